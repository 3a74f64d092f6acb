package publish_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test.
const patience = 30 * time.Second

// agent is the peer that the test's token stands for.
var agent = publish.Peer{Namespace: "culvert-system", ServiceAccount: "culvert-node", PodName: "culvert-node-a", PodUID: "uid-a", Node: "node-a"}

// fixture is a running server on a real socket with TLS.
type fixture struct {
	addr     string
	roots    string // PEM
	store    *workload.Store
	policies *policy.Set
	observed *observed
	log      *workloadtest.Log
	stop     func() // ends Run, and waits
}

// start runs a server that has these objects until the test ends; change adjusts
// its Config.
func start(t testing.TB, change func(*publish.Config), objects ...any) *fixture {
	t.Helper()
	f := &fixture{store: workloadtest.Store(objects...), policies: policy.New(), observed: newObserved(), log: new(workloadtest.Log)}
	ready := make(chan struct{})
	close(ready)
	cfg := publish.Config{
		Store: f.store, Policies: f.policies, Ready: ready, Observer: f.observed, Debounce: time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Authenticate: func(_ context.Context, token string) (publish.Peer, error) {
			if token != "good" {
				return publish.Peer{}, errors.New("no such token")
			}
			return agent, nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := publish.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := certificate(t)
	f.roots = roots
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	g := grpc.NewServer(append(s.Options(), grpc.Creds(credentials.NewServerTLSFromCert(&cert)))...)
	s.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	ran := make(chan struct{})
	wg.Go(func() {
		defer close(ran)
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-ran
	})
	t.Cleanup(func() {
		f.stop()
		g.Stop()
		wg.Wait()
	})
	return f
}

// certificate makes a self-signed certificate for this machine and returns it with
// its PEM.
func certificate(t testing.TB) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(text)
}

// tokenFile writes a token for the real client.
func tokenFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("good"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// client is a raw stream to the server.
type client struct {
	t         testing.TB
	stream    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	responses chan *discovery.DeltaDiscoveryResponse
	failed    chan error
}

// connect makes a connection, which ends with the test.
func (f *fixture) connect(t testing.TB) *grpc.ClientConn {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(f.roots))
	conn, err := grpc.NewClient("passthrough:///"+f.addr, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// dial opens a stream with a token, which ends with the test.
func (f *fixture) dial(t testing.TB, authorization ...string) *client {
	t.Helper()
	conn := f.connect(t)
	ctx, cancel := context.WithCancel(context.Background())
	for _, a := range authorization {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, stream: stream, responses: make(chan *discovery.DeltaDiscoveryResponse), failed: make(chan error, 1)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				c.failed <- err
				return
			}
			select {
			case c.responses <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return c
}

func (c *client) send(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// receive waits for the next response.
func (c *client) receive() *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case r := <-c.responses:
		return r
	case err := <-c.failed:
		c.t.Fatalf("stream ended: %v", err)
	case <-time.After(patience):
		c.t.Fatal("no response")
	}
	return nil
}

// answer takes the next response, which has to be of the type, and acknowledges it.
func (c *client) answer(typeURL string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r := c.receive()
	if r.GetTypeUrl() != typeURL {
		c.t.Fatalf("response of type %s, want %s", r.GetTypeUrl(), typeURL)
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return r
}

// ended waits for the end of the stream.
func (c *client) ended() error {
	c.t.Helper()
	select {
	case r := <-c.responses:
		c.t.Fatalf("response %v, want the end", r)
	case err := <-c.failed:
		return err
	case <-time.After(patience):
		c.t.Fatal("the stream goes on")
	}
	return nil
}

// subscribe makes the first request of a wildcard client.
func subscribe(typeURL string, known map[string]string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, Node: &core.Node{Id: "test"}, InitialResourceVersions: known}
}

// onDemand makes the first request of a client that wants nothing yet.
func onDemand() *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{
		TypeUrl: publish.AddressType, Node: &core.Node{Id: "test"},
		ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"},
	}
}

func ask(names ...string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: publish.AddressType, ResourceNamesSubscribe: names}
}

// names returns the names of a response's resources, in their order.
func names(r *discovery.DeltaDiscoveryResponse) []string {
	out := []string{}
	for _, res := range r.GetResources() {
		out = append(out, res.GetName())
	}
	return out
}

// observed is an Observer that counts.
type observed struct {
	mu      sync.Mutex
	counts  map[string]int
	streams int
}

func newObserved() *observed { return &observed{counts: make(map[string]int)} }

func (o *observed) count(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts[what]++
}

func (o *observed) of(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[what]
}

func (o *observed) Streams(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.streams = n
}

func (o *observed) Pushed(url string, _, _, _ int) { o.count("pushed " + url) }
func (o *observed) Converged(time.Duration)        { o.count("converged") }
func (o *observed) Rejected(url string)            { o.count("rejected " + url) }
func (o *observed) Expired(url string)             { o.count("expired " + url) }
func (o *observed) Refused(why publish.Refusal)    { o.count("refused " + string(why)) }

// eventually waits for a count.
func (o *observed) eventually(t testing.TB, what, key string, want int) {
	t.Helper()
	eventually(t, what, func() bool { return o.of(key) == want })
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}
