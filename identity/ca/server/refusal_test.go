package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/ca/server"
)

func csr(t testing.TB) string {
	t.Helper()
	_, pemBytes, err := ca.CSR(web)
	if err != nil {
		t.Fatal(err)
	}
	return string(pemBytes)
}

// csrForCA asks for CA:TRUE.
func csrForCA(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}},
	}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func impersonate(value any) *structpb.Struct {
	v, err := structpb.NewValue(value)
	if err != nil {
		panic(err)
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": v}}
}

const opaque = "request authenticate failure"

func TestRefusals(t *testing.T) {
	s := start(t, nil)
	client := s.raw()
	good := csr(t)
	long := strings.Repeat("x", 20<<10)
	tests := []struct {
		name    string
		token   string // of the authorization header, whole
		in      *v1alpha1.IstioCertificateRequest
		code    codes.Code
		told    string
		outcome server.Outcome
		logged  string
	}{
		{"no_token", "", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, opaque, server.Unauthenticated, "no token"},
		{"basic", "Basic YTpi", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, opaque, server.Unauthenticated, "no bearer token"},
		{"empty", "Bearer ", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, opaque, server.Unauthenticated, "no bearer token"},
		{"expired", "Bearer ex.pir.ed", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, opaque, server.Unauthenticated, "the token has expired at noon"},
		{"api_server_away", "Bearer unknown.for.now", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unavailable, "authentication is not possible at the moment", server.Failed, "ask the API server"},
		{"strange_account", "Bearer strange.account.name", &v1alpha1.IstioCertificateRequest{Csr: good}, codes.Unauthenticated, opaque, server.Unauthorized, "the caller's own identity"},
		{"other_identity", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate("spiffe://td/ns/kube-system/sa/admin")},
			codes.Unauthenticated, opaque, server.Unauthorized, "no pod of spiffe://td/ns/kube-system/sa/admin is on the node of culvert-node-a"},
		{"other_trust_domain", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate("spiffe://other/ns/default/sa/web")},
			codes.Unauthenticated, opaque, server.Unauthorized, "is not of trust domain td"},
		{"no_identity", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate("web")},
			codes.Unauthenticated, opaque, server.Unauthorized, "scheme is not spiffe"},
		{"empty_identity", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate("")},
			codes.Unauthenticated, opaque, server.Unauthorized, "scheme is not spiffe"},
		{"path_tricks", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate("spiffe://td/ns/default/../kube-system/sa/web")},
			codes.Unauthenticated, opaque, server.Unauthorized, "not of the form"},
		{"identity_list", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate([]any{web.String()})},
			codes.InvalidArgument, "ImpersonatedIdentity is not a string", server.Invalid, "is not a string"},
		{"identity_null", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate(nil)},
			codes.InvalidArgument, "ImpersonatedIdentity is not a string", server.Invalid, "is not a string"},
		{"long_metadata", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate(long)},
			codes.InvalidArgument, "octets, limit is 16384", server.Invalid, "limit is 16384"},
		{"long_csr", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good + strings.Repeat("\n", 1<<20), Metadata: impersonate(web.String())},
			codes.InvalidArgument, "octets, limit is 16384", server.Invalid, "limit is 16384"},
		{"no_csr", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Metadata: impersonate(web.String())},
			codes.InvalidArgument, "the certificate request is not PEM", server.Invalid, "is not PEM"},
		{"csr_for_ca", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: csrForCA(t), Metadata: impersonate(web.String())},
			codes.InvalidArgument, "the certificate request: it asks for a CA certificate", server.Invalid, "it asks for a CA certificate"},
		{"too_long", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate(web.String()), ValidityDuration: 91 * 86400},
			codes.InvalidArgument, "validity 2184h0m0s is more than the longest that is granted, 2160h0m0s", server.Invalid, "is more than the longest"},
		{"forever", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate(web.String()), ValidityDuration: math.MaxInt64},
			codes.InvalidArgument, "a validity of 9223372036854775807 s is not possible", server.Invalid, "is not possible"},
		{"negative", "Bearer " + goodToken, &v1alpha1.IstioCertificateRequest{Csr: good, Metadata: impersonate(web.String()), ValidityDuration: -1},
			codes.InvalidArgument, "a validity of -1 s is not possible", server.Invalid, "is not possible"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", tt.token)
			}
			before, from := len(s.seen()), len(s.log.String())
			_, err := client.CreateCertificate(ctx, tt.in)
			if st := status.Convert(err); st.Code() != tt.code || !strings.Contains(st.Message(), tt.told) {
				t.Errorf("got %s: %s\nwant %s: %s", st.Code(), st.Message(), tt.code, tt.told)
			} else if tt.told == opaque && st.Message() != opaque {
				t.Errorf("the caller learns too much: %s", st.Message())
			}
			if seen := s.seen(); len(seen) != before+1 || seen[before] != tt.outcome {
				t.Errorf("observed %v, want %s", seen[before:], tt.outcome)
			}
			if log := s.log.String()[from:]; !strings.Contains(log, tt.logged) || strings.Contains(log, goodToken) {
				t.Errorf("log: %s\nwant %s", log, tt.logged)
			}
		})
	}
}

func TestSeveralTokens(t *testing.T) {
	s := start(t, nil)
	ctx := withToken(withToken(t.Context(), goodToken), otherNode)
	if _, err := s.raw().CreateCertificate(ctx, &v1alpha1.IstioCertificateRequest{Csr: csr(t)}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
	ctx = withToken(t.Context(), strings.Repeat("t", 20<<10))
	if _, err := s.raw().CreateCertificate(ctx, &v1alpha1.IstioCertificateRequest{Csr: csr(t)}); err == nil {
		t.Error("a token of 20 KiB is accepted")
	}
}

// TestHugeMessage is what gRPC refuses by itself.
func TestHugeMessage(t *testing.T) {
	s := start(t, nil)
	in := &v1alpha1.IstioCertificateRequest{Csr: strings.Repeat("x", 8<<20)}
	if _, err := s.raw().CreateCertificate(withToken(t.Context(), goodToken), in); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	if _, err := s.client(goodToken, true).Fetch(t.Context(), web); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

type brokenAuthority struct{}

func (brokenAuthority) Issue(*authority.Request, identity.ID, time.Duration) ([]string, error) {
	return nil, errors.New("the disk with the key is on fire")
}

func TestAuthorityFails(t *testing.T) {
	s := start(t, func(cfg *server.Config) { cfg.Authority = brokenAuthority{} })
	_, err := s.client(goodToken, true).Fetch(t.Context(), web)
	if err == nil || !strings.HasSuffix(err.Error(), "Internal: the certificate was not issued") {
		t.Errorf("got error %v", err)
	}
	if log := s.log.String(); !strings.Contains(log, "on fire") {
		t.Errorf("log: %s", log)
	}
}

// TestRateLimit has one agent ask without end; another one is not held up.
func TestRateLimit(t *testing.T) {
	var passed atomic.Int64
	begun := time.Now()
	s := start(t, func(cfg *server.Config) {
		cfg.Rate, cfg.Burst = 1, 3
		cfg.Clock = func() time.Time { return begun.Add(time.Duration(passed.Load())) }
	})
	greedy, modest := s.client(goodToken, true), s.client(otherNode, true)
	allowed := func(client *ca.Client, tries int) (n int) {
		t.Helper()
		for range tries {
			_, err := client.Fetch(t.Context(), web)
			if err == nil {
				n++
			} else if !strings.Contains(err.Error(), "ResourceExhausted: too many requests") {
				t.Error(err)
			}
		}
		return n
	}
	if n := allowed(greedy, 10); n != 3 {
		t.Errorf("%d at once", n)
	}
	if n := allowed(modest, 2); n != 2 {
		t.Errorf("%d of the other", n)
	}
	passed.Store(int64(2 * time.Second))
	if n := allowed(greedy, 5); n != 2 {
		t.Errorf("%d after two seconds", n)
	}
	passed.Store(int64(-time.Hour)) // a clock that is set back
	if n := allowed(greedy, 1); n != 0 {
		t.Errorf("%d in the past", n)
	}
	passed.Store(int64(time.Hour))
	if n := allowed(greedy, 5); n != 3 {
		t.Errorf("%d after an hour", n)
	}
}

// TestFloodOfRefusals: whoever cannot say who he is does not fill the log either.
func TestFloodOfRefusals(t *testing.T) {
	var passed atomic.Int64
	begun := time.Now()
	s := start(t, func(cfg *server.Config) {
		cfg.Clock = func() time.Time { return begun.Add(time.Duration(passed.Load())) }
	})
	raw := s.raw()
	ask := func() {
		t.Helper()
		if _, err := raw.CreateCertificate(t.Context(), &v1alpha1.IstioCertificateRequest{Csr: csr(t)}); status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	for range 100 {
		ask()
	}
	if lines := strings.Count(s.log.String(), "\n"); lines != 20 {
		t.Errorf("%d lines in the log for 100 refusals", lines)
	}
	if n := len(s.seen()); n != 100 {
		t.Errorf("%d of them were counted", n)
	}
	passed.Store(int64(time.Minute))
	ask()
	if log := s.log.String(); !strings.HasSuffix(log, " not_logged=80\n") {
		t.Errorf("nothing is said of those that were not logged: %s", log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:])
	}
}

// TestInFlight has one address hold as many requests open as it may.
func TestInFlight(t *testing.T) {
	entered, proceed := make(chan struct{}), make(chan struct{})
	var slow atomic.Bool
	slow.Store(true)
	s := start(t, func(cfg *server.Config) {
		cfg.InFlight = 2
		cfg.Authenticate = func(ctx context.Context, token string) (server.Caller, error) {
			if slow.Load() {
				entered <- struct{}{}
				<-proceed
			}
			return authenticate(ctx, token)
		}
	})
	client := s.client(goodToken, true)
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := client.Fetch(t.Context(), web)
			done <- err
		}()
		<-entered
	}
	if _, err := client.Fetch(t.Context(), web); err == nil || !strings.Contains(err.Error(), "ResourceExhausted: too many requests at a time") {
		t.Errorf("a third: %v", err)
	}
	slow.Store(false)
	close(proceed)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := client.Fetch(t.Context(), web); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestCallerLeaves does not count as a refusal of ours.
func TestCallerLeaves(t *testing.T) {
	entered := make(chan struct{})
	s := start(t, func(cfg *server.Config) {
		cfg.Authorize = func(ctx context.Context, _ server.Caller, _ identity.ID) error {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	client := s.client(goodToken, true)
	go func() {
		_, err := client.Fetch(ctx, web)
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for end := time.Now().Add(30 * time.Second); len(s.seen()) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if seen := s.seen(); len(seen) != 1 || seen[0] != server.Cancelled {
		t.Errorf("observed %v", seen)
	}
}
