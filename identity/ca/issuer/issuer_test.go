package issuer_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
)

var web = identity.MustParse("spiffe://td/ns/default/sa/web")

func newIssuer(t *testing.T) *issuer.Issuer {
	t.Helper()
	i, err := issuer.New(identity.MustTrustDomain("td"))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestFetch(t *testing.T) {
	i := newIssuer(t)
	s, err := i.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != web {
		t.Errorf("identity %s", s.ID)
	}
	now := time.Now()
	if err := s.Verify(now); err != nil {
		t.Error(err)
	}
	leaf := s.Leaf()
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.Bundle.Pool(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.URIs) != 1 || leaf.Subject.String() != "" {
		t.Errorf("leaf: CA %v, usage %b, URIs %v, subject %q", leaf.IsCA, leaf.KeyUsage, leaf.URIs, leaf.Subject)
	}
	if left := leaf.NotAfter.Sub(now); left < 24*time.Hour-time.Minute || left > 24*time.Hour {
		t.Errorf("valid for %s", left)
	}
	if len(s.Certificates) != 1 || len(i.Certificates()) != 1 || !s.Bundle.Contains(i.Certificates()[0]) {
		t.Error("the root is not where it belongs")
	}
	again, err := i.Fetch(t.Context(), web)
	if err != nil || again.Serial().Cmp(s.Serial()) == 0 {
		t.Errorf("same serial number twice; error %v", err)
	}
	if !again.Bundle.Equal(s.Bundle) {
		t.Error("roots differ from call to call")
	}
}

func TestWithTTL(t *testing.T) {
	i := newIssuer(t)
	for _, ttl := range []time.Duration{10 * time.Second, time.Hour, 100 * 365 * 24 * time.Hour} {
		s, err := i.WithTTL(ttl).Fetch(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		want := min(ttl, time.Until(i.Certificates()[0].NotAfter))
		if got := time.Until(s.NotAfter()); got > want+time.Second || got < want-2*time.Second {
			t.Errorf("%s: valid for %s", ttl, got)
		}
		if before := time.Until(s.NotBefore()); before > 0 || -before > min(2*time.Minute, ttl/10)+2*time.Second {
			t.Errorf("%s: begins in %s", ttl, before)
		}
	}
	s, err := i.Fetch(t.Context(), web)
	if err != nil || time.Until(s.NotAfter()) < 23*time.Hour {
		t.Errorf("WithTTL changed the original; error %v", err)
	}
}

func TestFetchRefuses(t *testing.T) {
	i := newIssuer(t)
	for _, tt := range []struct {
		name string
		id   identity.ID
		err  string
	}{
		{"nobody", identity.ID{}, "issue certificate: no identity"},
		{"foreign", identity.MustParse("spiffe://elsewhere/ns/a/sa/b"),
			"issue certificate for spiffe://elsewhere/ns/a/sa/b: the authority is that of trust domain td"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := i.Fetch(t.Context(), tt.id); err == nil || err.Error() != tt.err {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
	if _, err := issuer.New(identity.TrustDomain{}); err == nil {
		t.Error("an authority of no trust domain")
	}
}
