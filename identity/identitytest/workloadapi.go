package identitytest

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity/svid"
)

// WorkloadAPI serves the X.509 half of the SPIFFE Workload API on a Unix socket.
type WorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	// Address is the socket as a URI.
	Address string

	t    testing.TB
	path string

	mu      sync.Mutex
	changed chan struct{} // closed at each change of what follows, then replaced
	svids   []*svid.SVID
	refusal error
	streams int
	stop    func() // nil while it does not serve
}

// NewWorkloadAPI starts a server that offers the given SVIDs. Without any it
// answers "no identity issued", as SPIRE does. It ends with the test.
func NewWorkloadAPI(t testing.TB, svids ...*svid.SVID) *WorkloadAPI {
	t.Helper()
	// Not t.TempDir: its path can be longer than a socket's may be.
	dir, err := os.MkdirTemp("", "workloadapi")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.sock")
	w := &WorkloadAPI{
		Address: "unix://" + path,
		t:       t,
		path:    path,
		changed: make(chan struct{}),
		svids:   svids,
	}
	t.Cleanup(func() {
		w.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w.Start()
	return w
}

// Push replaces the SVIDs and sends them to every client.
func (w *WorkloadAPI) Push(svids ...*svid.SVID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.svids, w.refusal = svids, nil
	w.announceLocked()
}

// Refuse ends every stream with err, and each new one too until the next Push.
func (w *WorkloadAPI) Refuse(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusal = err
	w.announceLocked()
}

// Streams returns how many clients are being served.
func (w *WorkloadAPI) Streams() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams
}

// Start serves again after Stop.
func (w *WorkloadAPI) Start() {
	w.t.Helper()
	listener, err := net.Listen("unix", w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, w)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop = func() {
		server.Stop()
		serving.Wait()
	}
}

// Stop cuts all streams and closes the socket.
func (w *WorkloadAPI) Stop() {
	w.mu.Lock()
	stop := w.stop
	w.stop = nil
	w.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (w *WorkloadAPI) announceLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// FetchX509SVID serves one stream.
func (w *WorkloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if got := md.Get("workload.spiffe.io"); len(got) != 1 || got[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	w.mu.Lock()
	w.streams++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.streams--
	}()
	for {
		w.mu.Lock()
		svids, refusal, changed := w.svids, w.refusal, w.changed
		w.mu.Unlock()
		if refusal != nil {
			return refusal
		}
		if len(svids) == 0 {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		response, err := x509Response(svids)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func x509Response(svids []*svid.SVID) (*workload.X509SVIDResponse, error) {
	response := &workload.X509SVIDResponse{}
	for _, s := range svids {
		key, err := x509.MarshalPKCS8PrivateKey(s.PrivateKey)
		if err != nil {
			return nil, err
		}
		response.Svids = append(response.Svids, &workload.X509SVID{
			SpiffeId:    s.Leaf().URIs[0].String(),
			X509Svid:    concat(s.Certificates),
			X509SvidKey: key,
			Bundle:      concat(s.Bundle.Certificates()),
		})
	}
	return response, nil
}

// concat returns certificates as the Workload API carries them: DER, one after
// the other.
func concat(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, cert.Raw...)
	}
	return out
}
