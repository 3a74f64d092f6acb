package identity_test

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

func TestBundle(t *testing.T) {
	a, b := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	td := identity.MustTrustDomain("td")
	both, err := identity.ParseBundle(td, append(a.RootPEM(), b.RootPEM()...))
	if err != nil {
		t.Fatal(err)
	}
	if both.TrustDomain() != td || len(both.Certificates()) != 2 {
		t.Fatalf("got %d roots of %v", len(both.Certificates()), both.TrustDomain())
	}
	for name, ca := range map[string]*identitytest.CA{"first": a, "second": b} {
		leaf := ca.SVID(t, "spiffe://td/ns/a/sa/b").Leaf()
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: both.Pool()}); err != nil {
			t.Errorf("%s root: %v", name, err)
		}
		if !both.Contains(ca.Certificate) {
			t.Errorf("%s root is not contained", name)
		}
	}
	stranger := identitytest.NewCA(t, "td")
	if both.Contains(stranger.Certificate) {
		t.Error("contains a root that was not given")
	}
	certs := both.Certificates()
	certs[0] = stranger.Certificate
	if both.Contains(stranger.Certificate) {
		t.Error("the caller's slice is the bundle's own")
	}
}

func TestBundleEqual(t *testing.T) {
	a, b := identitytest.NewCA(t, "td").Certificate, identitytest.NewCA(t, "td").Certificate
	td := identity.MustTrustDomain("td")
	bundle := func(td identity.TrustDomain, certs ...*x509.Certificate) *identity.Bundle {
		return identity.NewBundle(td, certs)
	}
	tests := []struct {
		name string
		x, y *identity.Bundle
		want bool
	}{
		{"same", bundle(td, a), bundle(td, a), true},
		{"order", bundle(td, a, b), bundle(td, b, a), true},
		{"duplicate", bundle(td, a, a), bundle(td, a), true},
		{"subset", bundle(td, a, b), bundle(td, a), false},
		{"other_root", bundle(td, a), bundle(td, b), false},
		{"other_trust_domain", bundle(td, a), bundle(identity.MustTrustDomain("other"), a), false},
		{"nil_and_empty", nil, bundle(td), false},
		{"nil_and_nil", nil, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.x.Equal(tt.y); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if got := tt.y.Equal(tt.x); got != tt.want {
				t.Errorf("the other way round: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestEmptyBundleTrustsNobody(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	empty := identity.NewBundle(ca.TrustDomain, nil)
	if _, err := ca.SVID(t, "spiffe://td/ns/a/sa/b").Leaf().Verify(x509.VerifyOptions{Roots: empty.Pool()}); err == nil {
		t.Error("a certificate verifies against no roots")
	}
}

func TestParseCertificatesRefuses(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	good := string(ca.RootPEM())
	tests := []struct {
		name, in, err string
	}{
		{"empty", "", "no PEM certificate found"},
		{"text", "hello", "no PEM certificate found"},
		{"key_among_them", good + string(identitytest.KeyPEM(t, ca.Key)), `PEM block 2 is "PRIVATE KEY", want CERTIFICATE`},
		{"not_a_certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1: x509: malformed certificate"},
		{"truncated", good + good[:len(good)/2], "PEM block 2 is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			certs, err := identity.ParseCertificates([]byte(tt.in))
			if err == nil || err.Error() != tt.err {
				t.Errorf("got %d certificates, error %v; want %s", len(certs), err, tt.err)
			}
		})
	}
	commented := "# the root\n" + strings.ReplaceAll(good, "\n", "\r\n") + "# end\n"
	if _, err := identity.ParseCertificates([]byte(commented)); err != nil {
		t.Errorf("with comments and CRLF: %v", err)
	}
}
