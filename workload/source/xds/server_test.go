package xds_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test.
const patience = 10 * time.Second

// adsServer is an ADS server on a real socket. A test drives each stream.
type adsServer struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	addr    string
	roots   string // PEM
	grpc    *grpc.Server
	streams chan *adsStream
}

// adsStream is one stream as the server sees it.
type adsStream struct {
	t        *testing.T
	metadata metadata.MD
	requests chan *discovery.DeltaDiscoveryRequest
	stream   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	end      chan error
}

// startServer starts a server whose certificate carries the names; it ends with
// the test.
func startServer(t *testing.T, names ...string) *adsServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := certificate(t, names)
	s := &adsServer{
		addr:    l.Addr().String(),
		roots:   roots,
		grpc:    grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert))),
		streams: make(chan *adsStream, 16),
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.grpc.Serve(l) })
	t.Cleanup(func() {
		s.grpc.Stop()
		wg.Wait()
	})
	return s
}

// certificate makes a self-signed certificate and returns it with its PEM.
func certificate(t *testing.T, names []string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: names,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(text)
}

// DeltaAggregatedResources hands the stream to the test and lives until the test
// ends it.
func (s *adsServer) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	a := &adsStream{
		metadata: md, stream: stream, end: make(chan error, 1),
		requests: make(chan *discovery.DeltaDiscoveryRequest, 64),
	}
	s.streams <- a
	go func() {
		defer close(a.requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			a.requests <- r
		}
	}()
	select {
	case err := <-a.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// accept waits for the next stream.
func (s *adsServer) accept(t *testing.T) *adsStream {
	t.Helper()
	select {
	case a := <-s.streams:
		a.t = t
		return a
	case <-time.After(patience):
		t.Fatal("no stream")
		return nil
	}
}

// subscribed accepts a stream and takes the first request of each type.
func (s *adsServer) subscribed(t *testing.T) (a *adsStream, addresses, policies *discovery.DeltaDiscoveryRequest) {
	t.Helper()
	a = s.accept(t)
	return a, a.request(), a.request()
}

// request waits for the client's next message.
func (a *adsStream) request() *discovery.DeltaDiscoveryRequest {
	a.t.Helper()
	select {
	case r, ok := <-a.requests:
		if !ok {
			a.t.Fatal("stream ended")
		}
		return r
	case <-time.After(patience):
		a.t.Fatal("no request")
		return nil
	}
}

// send sends a response and returns the client's answer to it.
func (a *adsStream) send(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	a.t.Helper()
	if err := a.stream.Send(r); err != nil {
		a.t.Fatal(err)
	}
	answer := a.request()
	if answer.GetTypeUrl() != r.GetTypeUrl() || answer.GetResponseNonce() != r.GetNonce() {
		a.t.Errorf("answer is for %s %q, want %s %q", answer.GetTypeUrl(), answer.GetResponseNonce(), r.GetTypeUrl(), r.GetNonce())
	}
	return answer
}

// resource packs a message under a name and version.
func resource(t testing.TB, name, version string, m proto.Message) *discovery.Resource {
	t.Helper()
	packed, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.Resource{Name: name, Version: version, Resource: packed}
}

// garbage is a resource that does not decode.
func garbage(name, version, typeURL string) *discovery.Resource {
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte{0xff}}}
}

// observed is an Observer.
type observed struct {
	mu       sync.Mutex
	ends     []string
	messages map[string]int
	bytes    map[string]int
}

func newObserved() *observed {
	return &observed{messages: make(map[string]int), bytes: make(map[string]int)}
}

func (o *observed) Terminated(reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = append(o.ends, reason)
}

func (o *observed) Message(url string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages[url]++
	o.bytes[url] += n
}

// running is a client under test.
type running struct {
	*xds.Client
	store    *workload.Store
	policies *policy.Set
	observed *observed
	log      *workloadtest.Log
	stop     func()
}

// start runs a client of the server until the test ends. Pauses between attempts
// are cut to a millisecond unless the Config says otherwise.
func start(t *testing.T, s *adsServer, cfg xds.Config) *running {
	t.Helper()
	r := &running{store: workload.New(), policies: policy.New(), observed: newObserved(), log: new(workloadtest.Log)}
	if cfg.Address == "" {
		cfg.Address = s.addr
	}
	if cfg.RootCA == "" {
		cfg.RootCA = s.roots
	}
	if cfg.Sleep == nil {
		cfg.Sleep = func(ctx context.Context, _ time.Duration) { shortSleep(ctx) }
	}
	cfg.Store, cfg.Policies, cfg.Observer = r.store, r.policies, r.observed
	cfg.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, err := xds.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(r.stop)
	return r
}

func shortSleep(ctx context.Context) {
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
	}
}

func (r *running) isReady() bool {
	select {
	case <-r.Ready():
		return true
	default:
		return false
	}
}
