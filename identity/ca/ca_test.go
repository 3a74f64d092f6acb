package ca_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	web = identity.MustParse("spiffe://td/ns/default/sa/web")
	api = identity.MustParse("spiffe://td/ns/default/sa/api")
)

// setUp starts a service and a client of it.
func setUp(t *testing.T, change func(*ca.Config)) (*identitytest.IstioCA, *identitytest.CA, *ca.Client) {
	t.Helper()
	authority := identitytest.NewCA(t, "td").Intermediate(t)
	service := identitytest.NewIstioCA(t, authority)
	cfg := ca.Config{Address: service.Address, RootCA: string(service.RootPEM)}
	if change != nil {
		change(&cfg)
	}
	return service, authority, newClient(t, cfg)
}

func newClient(t *testing.T, cfg ca.Config) *ca.Client {
	t.Helper()
	client, err := ca.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return client
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFetch(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, []byte("first\n"))
	service, authority, client := setUp(t, func(cfg *ca.Config) {
		cfg.Address = "https://" + cfg.Address
		cfg.TokenFile = token
		cfg.ClusterID = "east"
		cfg.Headers = map[string]string{"X-Extra": "yes"}
		cfg.TTL = time.Hour
		cfg.Impersonate = true
	})
	s, err := client.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != web || len(s.Certificates) != 2 || !s.Bundle.Equal(authority.Bundle()) {
		t.Errorf("got %s with %d certificates and %d roots", s.ID, len(s.Certificates), len(s.Bundle.Certificates()))
	}
	if err := s.Verify(time.Now()); err != nil {
		t.Error(err)
	}

	write(t, token, []byte("second"))
	again, err := client.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if again.PrivateKey.Public().(*ecdsa.PublicKey).Equal(s.PrivateKey.Public()) {
		t.Error("the key was used twice")
	}
	requests := service.Requests()
	for i, want := range []string{"Bearer first", "Bearer second"} {
		header := requests[i].Header
		if got := header.Get("authorization"); !slices.Equal(got, []string{want}) {
			t.Errorf("call %d: authorization %q, want %q", i, got, want)
		}
		if got := header.Get("clusterid"); !slices.Equal(got, []string{"east"}) {
			t.Errorf("call %d: clusterid %q", i, got)
		}
		if got := header.Get("x-extra"); !slices.Equal(got, []string{"yes"}) {
			t.Errorf("call %d: x-extra %q", i, got)
		}
		if requests[i].Validity != time.Hour || requests[i].Impersonated != web.String() {
			t.Errorf("call %d: validity %s, impersonated %q", i, requests[i].Validity, requests[i].Impersonated)
		}
	}
}

func TestDefaultsSendLittle(t *testing.T) {
	service, _, client := setUp(t, nil)
	if _, err := client.Fetch(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	r := service.Requests()[0]
	if r.Impersonated != "" {
		t.Errorf("impersonated %q without being told to", r.Impersonated)
	}
	if r.Validity != 24*time.Hour {
		t.Errorf("validity %s", r.Validity)
	}
	for _, name := range []string{"authorization", "clusterid"} {
		if got := r.Header.Get(name); len(got) != 0 {
			t.Errorf("%s is sent: %q", name, got)
		}
	}
}

// TestBadAnswers checks what the client makes of answers that it must not use.
func TestBadAnswers(t *testing.T) {
	stranger := identitytest.NewCA(t, "td")
	tests := []struct {
		name   string
		answer identitytest.CAAnswer
		err    string // after "fetch certificate from ADDRESS: "
	}{
		{"empty_chain", func(context.Context, identitytest.CARequest, []string) ([]string, error) { return nil, nil },
			"the answer holds no certificate"},
		{"leaf_only", func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
			return chain[:1], nil
		},
			"the answer holds no root certificate, only a leaf"},
		{"wrong_identity", answerWith(t, stranger.SVID(t, api.String())),
			"the answer is for " + api.String() + ", not for " + web.String()},
		{"no_identity", func(context.Context, identitytest.CARequest, []string) ([]string, error) {
			root := string(stranger.RootPEM())
			return []string{root, root}, nil
		}, "read answer: certificate has no SPIFFE identity of a service account"},
		{"other_key", answerWith(t, stranger.SVID(t, web.String())),
			"make SVID " + web.String() + ": private key does not match the certificate"},
		{"not_pem", func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
			return []string{"hello", chain[2]}, nil
		}, "read answer: no PEM certificate found"},
		{"roots_not_pem", func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
			return []string{chain[0], "hello"}, nil
		}, "read answer: parse roots of td: no PEM certificate found"},
		{"refused", func(context.Context, identitytest.CARequest, []string) ([]string, error) {
			return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
		}, "Unauthenticated: request authenticate failure"},
	}
	service, _, client := setUp(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			service.Answer(tt.answer)
			want := "fetch certificate from " + service.Address + ": " + tt.err
			if s, err := client.Fetch(t.Context(), web); err == nil || err.Error() != want {
				t.Errorf("got %v, error %v; want %s", s, err, want)
			}
		})
	}
	service.Answer(nil)
	if _, err := client.Fetch(t.Context(), web); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func answerWith(t *testing.T, s *svid.SVID) identitytest.CAAnswer {
	t.Helper()
	chain := []string{
		string(identitytest.CertificatesPEM(s.Certificates...)),
		string(identitytest.CertificatesPEM(s.Bundle.Certificates()...)),
	}
	return func(context.Context, identitytest.CARequest, []string) ([]string, error) { return chain, nil }
}

// TestSeveralRoots has the last element carry two roots, as during a rotation.
func TestSeveralRoots(t *testing.T) {
	service, authority, client := setUp(t, nil)
	next := identitytest.NewCA(t, "td")
	service.Answer(func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
		chain[len(chain)-1] += string(next.RootPEM())
		return chain, nil
	})
	s, err := client.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Bundle.Certificates()) != 2 || !s.Bundle.Contains(next.Certificate) || s.Bundle.Contains(authority.Certificate) {
		t.Errorf("got %d roots", len(s.Bundle.Certificates()))
	}
}

func TestHangThenHeal(t *testing.T) {
	service, _, client := setUp(t, func(cfg *ca.Config) { cfg.Timeout = 200 * time.Millisecond })
	service.Answer(func(ctx context.Context, _ identitytest.CARequest, _ []string) ([]string, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	_, err := client.Fetch(t.Context(), web)
	if want := "fetch certificate from " + service.Address + ": no answer within 200ms: context deadline exceeded"; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Fetch(ctx, web); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	service.Answer(nil)
	eventually(t, func() error {
		_, err := client.Fetch(t.Context(), web)
		return err
	})
}

// TestServiceAwayThenBack has nobody listen at first.
func TestServiceAwayThenBack(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	service := identitytest.NewIstioCA(t, authority)
	var mu sync.Mutex
	address := "127.0.0.1:1" // nobody listens there
	client := newClient(t, ca.Config{
		Address: service.Address,
		RootCA:  string(service.RootPEM),
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	})
	begun := time.Now()
	if _, err := client.Fetch(t.Context(), web); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got error %v", err)
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("refused after %s only", d)
	}
	mu.Lock()
	address = service.Address
	mu.Unlock()
	eventually(t, func() error {
		_, err := client.Fetch(t.Context(), web)
		return err
	})
}

// eventually repeats fn until it succeeds.
func eventually(t *testing.T, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	service, _, client := setUp(t, func(cfg *ca.Config) { cfg.TokenFile = path })
	if _, err := client.Fetch(t.Context(), web); err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing: error %v", err)
	}
	write(t, path, []byte("\n"))
	if _, err := client.Fetch(t.Context(), web); err == nil || err.Error() != "fetch certificate: read token: "+path+" is empty" {
		t.Errorf("empty: error %v", err)
	}
	if n := len(service.Requests()); n != 0 {
		t.Errorf("%d calls without a token", n)
	}
	write(t, path, []byte("here"))
	if _, err := client.Fetch(t.Context(), web); err != nil {
		t.Error(err)
	}
}

func TestServerVerification(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	service := identitytest.NewIstioCA(t, authority)
	tests := []struct {
		name string
		cfg  ca.Config
		err  string
	}{
		{"address", ca.Config{RootCA: string(service.RootPEM)}, ""},
		{"other_name", ca.Config{RootCA: string(service.RootPEM), AltHostname: identitytest.ServerName}, ""},
		{"wrong_name", ca.Config{RootCA: string(service.RootPEM), AltHostname: "elsewhere.example"}, "certificate is valid for " + identitytest.ServerName + ", not elsewhere.example"},
		{"wrong_roots", ca.Config{RootCA: string(authority.RootPEM())}, "certificate signed by unknown authority"},
		{"system_roots", ca.Config{RootCA: "SYSTEM"}, "certificate signed by unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Address = service.Address
			_, err := newClient(t, tt.cfg).Fetch(t.Context(), web)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

// TestRootFileChanges replaces the file with the service's roots under a client
// that has a connection.
func TestRootFileChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.pem")
	var good []byte
	service, authority, client := setUp(t, func(cfg *ca.Config) {
		good = []byte(cfg.RootCA)
		write(t, path, good)
		cfg.RootCA = path
	})
	fetch := func() error {
		_, err := client.Fetch(t.Context(), web)
		return err
	}
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	write(t, path, []byte("damaged"))
	if err := fetch(); err != nil {
		t.Errorf("a damaged file ended the old connection: %v", err)
	}
	write(t, path, authority.RootPEM())
	if err := fetch(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("other roots, but error %v", err)
	}
	write(t, path, append(authority.RootPEM(), good...))
	if err := fetch(); err != nil {
		t.Errorf("with the right root among others: %v", err)
	}
	if n := len(service.Requests()); n != 3 {
		t.Errorf("%d calls, want 3", n)
	}
}

// TestRootFileChangesDuringCall checks that the old connection outlives the
// calls on it.
func TestRootFileChangesDuringCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.pem")
	service, authority, client := setUp(t, func(cfg *ca.Config) {
		write(t, path, []byte(cfg.RootCA))
		cfg.RootCA = path
	})
	entered, proceed := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	service.Answer(func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
		if calls.Add(1) == 1 {
			close(entered)
			<-proceed
		}
		return chain, nil
	})
	slow := make(chan error, 1)
	go func() {
		_, err := client.Fetch(t.Context(), web)
		slow <- err
	}()
	<-entered
	write(t, path, append(authority.RootPEM(), service.RootPEM...))
	if _, err := client.Fetch(t.Context(), api); err != nil {
		t.Error(err)
	}
	close(proceed)
	if err := <-slow; err != nil {
		t.Errorf("the call on the old connection: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	write(t, empty, nil)
	root := string(identitytest.NewCA(t, "td").RootPEM())
	tests := []struct {
		name string
		cfg  ca.Config
		err  string
	}{
		{"no_address", ca.Config{RootCA: root}, `address "": missing port in address`},
		{"no_port", ca.Config{Address: "https://istiod", RootCA: root}, `address "istiod": address istiod: missing port in address`},
		{"no_roots", ca.Config{Address: "istiod:15012"}, "no root certificates given"},
		{"missing_root_file", ca.Config{Address: "istiod:15012", RootCA: filepath.Join(dir, "none.pem")}, "no such file or directory"},
		{"empty_root_file", ca.Config{Address: "istiod:15012", RootCA: empty}, empty + ": no PEM certificate found"},
		{"short_validity", ca.Config{Address: "istiod:15012", RootCA: root, TTL: time.Millisecond}, "validity 1ms is less than a second"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ca.New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestClosed(t *testing.T) {
	_, _, client := setUp(t, nil)
	if _, err := client.Fetch(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Fetch(t.Context(), web); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got error %v", err)
	}
}
