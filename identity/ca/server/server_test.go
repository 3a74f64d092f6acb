package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	td    = identity.MustTrustDomain("td")
	web   = identity.MustParse("spiffe://td/ns/default/sa/web")
	agent = identity.MustParse("spiffe://td/ns/culvert-system/sa/culvert-node")
)

const (
	goodToken = "agents.very.secret"
	otherNode = "other.agents.secret"
	hostName  = "localhost"
)

// service is a Server on a socket, with everything around it.
type service struct {
	t       testing.TB
	address string
	root    *authority.Signer
	log     *buffer

	mu       sync.Mutex
	outcomes []server.Outcome
}

// CertificateRequest implements server.Observer.
func (s *service) CertificateRequest(outcome server.Outcome, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes = append(s.outcomes, outcome)
}

func (s *service) seen() []server.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.outcomes)
}

// buffer is a log for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// authenticate knows the agents of two nodes.
func authenticate(_ context.Context, token string) (server.Caller, error) {
	switch token {
	case goodToken:
		return server.Caller{Namespace: "culvert-system", ServiceAccount: "culvert-node", PodName: "culvert-node-a", PodUID: "uid-a"}, nil
	case otherNode:
		return server.Caller{Namespace: "culvert-system", ServiceAccount: "culvert-node", PodName: "culvert-node-b", PodUID: "uid-b"}, nil
	case "unknown.for.now":
		return server.Caller{}, fmt.Errorf("ask the API server: %w", server.ErrUnavailable)
	case "strange.account.name":
		return server.Caller{Namespace: "culvert-system", ServiceAccount: "system:node"}, nil
	}
	return server.Caller{}, errors.New("the token has expired at noon")
}

// authorize lets agents have what is in namespace default.
func authorize(_ context.Context, caller server.Caller, id identity.ID) error {
	if id.Namespace() != "default" {
		return fmt.Errorf("no pod of %s is on the node of %s", id, caller.PodName)
	}
	return nil
}

func start(t testing.TB, change func(*server.Config)) *service {
	t.Helper()
	root, err := authority.NewRoot(td, time.Now(), authority.DefaultRootTTL)
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.New(authority.NewState(root, false), authority.Config{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, root: root, log: &buffer{}}
	cfg := server.Config{
		Authority: a, TrustDomain: td, Authenticate: authenticate, Authorize: authorize, Observer: s,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.ServerCertificate([]string{hostName}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.address = identitytest.ServeGRPC(t, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }, srv.Register)
	return s
}

// client is the agent's own.
func (s *service) client(token string, impersonate bool) *ca.Client {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		s.t.Fatal(err)
	}
	client, err := ca.New(ca.Config{
		Address: s.address, RootCA: string(s.rootPEM()), AltHostname: hostName, TokenFile: path, Impersonate: impersonate, TTL: time.Hour,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = client.Close() })
	return client
}

func (s *service) rootPEM() []byte { return identitytest.CertificatesPEM(s.root.Certificate()) }

// raw is a client without manners.
func (s *service) raw() v1alpha1.IstioCertificateServiceClient {
	s.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.root.Certificate())
	conn, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: hostName})))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return v1alpha1.NewIstioCertificateServiceClient(conn)
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestFetch(t *testing.T) {
	s := start(t, nil)
	got, err := s.client(goodToken, true).Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(time.Now()); err != nil || got.ID != web || !got.Bundle.Contains(s.root.Certificate()) {
		t.Errorf("identity %s, error %v", got.ID, err)
	}
	if seen := s.seen(); len(seen) != 1 || seen[0] != server.Issued {
		t.Errorf("observed %v", seen)
	}
	if log := s.log.String(); !strings.Contains(log, web.String()) || strings.Contains(log, goodToken) {
		t.Errorf("log: %s", log)
	}
}

// TestFetchOwn leaves out whom it is for, whatever the request says.
func TestFetchOwn(t *testing.T) {
	s := start(t, func(cfg *server.Config) {
		cfg.Authorize = func(context.Context, server.Caller, identity.ID) error { return errors.New("not asked for oneself") }
	})
	client := s.client(goodToken, false)
	if got, err := client.Fetch(t.Context(), agent); err != nil || got.ID != agent {
		t.Errorf("own identity: %v", err)
	}
	_, err := client.Fetch(t.Context(), web) // named in the request proper only
	if want := "the answer is for " + agent.String() + ", not for " + web.String(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %s", err, want)
	}
	if log := s.log.String(); !strings.Contains(log, "names what its sender is not") || !strings.Contains(log, "named="+web.String()) {
		t.Errorf("the attempt is not in the log: %s", log)
	}
}

func TestNewRefuses(t *testing.T) {
	good := server.Config{Authority: &authority.Authority{}, TrustDomain: td, Authenticate: authenticate, Authorize: authorize}
	if _, err := server.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*server.Config){
		"authority":    func(c *server.Config) { c.Authority = nil },
		"authenticate": func(c *server.Config) { c.Authenticate = nil },
		"authorize":    func(c *server.Config) { c.Authorize = nil },
		"trust_domain": func(c *server.Config) { c.TrustDomain = identity.TrustDomain{} },
		"rate":         func(c *server.Config) { c.Rate = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := server.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
