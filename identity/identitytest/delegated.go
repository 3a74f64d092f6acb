package identitytest

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// Entry is what is registered with SPIRE: whoever has all the selectors gets
// the SVID.
type Entry struct {
	// Selectors are written type:value, "k8s:pod-uid:1234" for example.
	Selectors []string
	// SVID is granted; its bundle is not, see DelegatedIdentity.SetRoots.
	SVID *svid.SVID
}

// DelegatedIdentity serves the X.509 half of SPIRE's Delegated Identity API on a
// Unix socket, as SPIRE's agent 1.15 does. It is quicker: entries come at once,
// while SPIRE's agent asks for them every few seconds, and Refuse ends streams
// at once, which SPIRE does when there is something to send on them.
type DelegatedIdentity struct {
	delegated.UnimplementedDelegatedIdentityServer

	// Address is the socket as a URI.
	Address string

	t    testing.TB
	path string

	mu      sync.Mutex
	changed chan struct{} // closed at each change of what follows, then replaced
	entries []Entry
	roots   map[string][]byte
	refusal error
	streams int
	stop    func() // nil while it does not serve
}

// NewDelegatedIdentity starts a server with nothing registered. It ends with the
// test.
func NewDelegatedIdentity(t testing.TB) *DelegatedIdentity {
	t.Helper()
	// Not t.TempDir: its path can be longer than a socket's may be.
	dir, err := os.MkdirTemp("", "delegated")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.sock")
	d := &DelegatedIdentity{
		Address: "unix://" + path, t: t, path: path, changed: make(chan struct{}), roots: make(map[string][]byte),
	}
	t.Cleanup(func() {
		d.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d.Start()
	return d
}

// SetEntries replaces all entries and tells every client whose answer changes.
func (d *DelegatedIdentity) SetEntries(entries ...Entry) {
	d.change(func() { d.entries = entries })
}

// SetRoots replaces the bundles of all trust domains.
func (d *DelegatedIdentity) SetRoots(bundles ...*identity.Bundle) {
	d.change(func() {
		d.roots = make(map[string][]byte)
		for _, b := range bundles {
			d.roots["spiffe://"+b.TrustDomain().String()] = concat(b.Certificates())
		}
	})
}

// SetRawRoots replaces the bundles by whatever is given.
func (d *DelegatedIdentity) SetRawRoots(roots map[string][]byte) {
	d.change(func() { d.roots = roots })
}

// Refuse ends every stream with err, and each new one too; nil ends that.
func (d *DelegatedIdentity) Refuse(err error) { d.change(func() { d.refusal = err }) }

// Streams returns how many streams are being served.
func (d *DelegatedIdentity) Streams() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.streams
}

func (d *DelegatedIdentity) change(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
	close(d.changed)
	d.changed = make(chan struct{})
}

// Start serves again after Stop.
func (d *DelegatedIdentity) Start() {
	d.t.Helper()
	listener, err := net.Listen("unix", d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	server := grpc.NewServer()
	delegated.RegisterDelegatedIdentityServer(server, d)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop = func() {
		server.Stop()
		serving.Wait()
	}
}

// Stop cuts all streams and closes the socket.
func (d *DelegatedIdentity) Stop() {
	d.mu.Lock()
	stop := d.stop
	d.stop = nil
	d.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// SubscribeToX509SVIDs serves one stream.
func (d *DelegatedIdentity) SubscribeToX509SVIDs(in *delegated.SubscribeToX509SVIDsRequest, stream grpc.ServerStreamingServer[delegated.SubscribeToX509SVIDsResponse]) error {
	if len(in.GetSelectors()) == 0 || in.GetPid() != 0 {
		return status.Error(codes.InvalidArgument, "must provide either selectors or non-zero PID, but not both")
	}
	var selectors []string
	for _, s := range in.GetSelectors() {
		selectors = append(selectors, s.GetType()+":"+s.GetValue())
	}
	signed := make(map[string]bool) // entries whose SVIDs have been sent
	first := true
	return d.serve(stream.Context(), func() error {
		matching := d.matching(selectors)
		// A stream that is open is told of an entry before its SVID has been signed.
		if waiting := slices.DeleteFunc(slices.Clone(matching), func(e Entry) bool { return !signed[e.key()] }); !first && len(waiting) < len(matching) {
			if err := sendSVIDs(stream, waiting); err != nil {
				return err
			}
		}
		first = false
		clear(signed)
		for _, e := range matching {
			signed[e.key()] = true
		}
		return sendSVIDs(stream, matching)
	})
}

// SubscribeToX509Bundles serves one stream.
func (d *DelegatedIdentity) SubscribeToX509Bundles(_ *delegated.SubscribeToX509BundlesRequest, stream grpc.ServerStreamingServer[delegated.SubscribeToX509BundlesResponse]) error {
	all := make(map[string][]byte) // a trust domain that goes away stays in what an open stream is sent
	return d.serve(stream.Context(), func() error {
		d.mu.Lock()
		maps.Copy(all, d.roots)
		d.mu.Unlock()
		return stream.Send(&delegated.SubscribeToX509BundlesResponse{CaCertificates: all})
	})
}

// serve sends at first and after each change.
func (d *DelegatedIdentity) serve(ctx context.Context, send func() error) error {
	d.mu.Lock()
	d.streams++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.streams--
	}()
	for {
		d.mu.Lock()
		refusal, changed := d.refusal, d.changed
		d.mu.Unlock()
		if refusal != nil {
			return refusal
		}
		if err := send(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// key tells entries apart.
func (e Entry) key() string { return e.SVID.ID.String() + " " + strings.Join(e.Selectors, " ") }

// matching are the entries for a subset of the selectors.
func (d *DelegatedIdentity) matching(selectors []string) []Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.entries), func(e Entry) bool {
		return slices.ContainsFunc(e.Selectors, func(s string) bool { return !slices.Contains(selectors, s) })
	})
}

func sendSVIDs(stream grpc.ServerStreamingServer[delegated.SubscribeToX509SVIDsResponse], entries []Entry) error {
	answer := &delegated.SubscribeToX509SVIDsResponse{}
	for _, e := range entries {
		key, err := x509.MarshalPKCS8PrivateKey(e.SVID.PrivateKey)
		if err != nil {
			return errors.Join(status.Error(codes.Internal, "could not serialize response"), err)
		}
		out := &types.X509SVID{ExpiresAt: e.SVID.NotAfter().Unix()}
		if id := e.SVID.ID; !id.IsZero() {
			out.Id = &types.SPIFFEID{TrustDomain: id.TrustDomain().String(), Path: id.URL().Path}
		}
		for _, cert := range e.SVID.Certificates {
			out.CertChain = append(out.CertChain, cert.Raw)
		}
		answer.X509Svids = append(answer.X509Svids, &delegated.X509SVIDWithKey{X509Svid: out, X509SvidKey: key})
	}
	return stream.Send(answer)
}
