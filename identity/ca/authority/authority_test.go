package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/svid"
)

var (
	td  = identity.MustTrustDomain("td")
	web = identity.MustParse("spiffe://td/ns/default/sa/web")
)

func newRoot(t testing.TB) *authority.Signer {
	t.Helper()
	s, err := authority.NewRoot(td, time.Now(), authority.DefaultRootTTL)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newAuthority(t testing.TB, s *authority.Signer, cfg authority.Config) *authority.Authority {
	t.Helper()
	cfg.TrustDomain = td
	a, err := authority.New(authority.NewState(s, false), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// csrPEM signs a request with the key after change has had its way with it.
func csrPEM(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func p256(t testing.TB) *ecdsa.PrivateKey { return ecdsaKey(t, elliptic.P256()) }

func ecdsaKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue parses a request and has it signed.
func issue(t testing.TB, a *authority.Authority, csr []byte, ttl time.Duration) []string {
	t.Helper()
	r, err := authority.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(r, web, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func one(t testing.TB, pemText string) *x509.Certificate {
	t.Helper()
	certs, err := identity.ParseCertificates([]byte(pemText))
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d certificates, error %v", len(certs), err)
	}
	return certs[0]
}

func TestIssue(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t, newRoot(t), authority.Config{})
	for name, key := range map[string]crypto.Signer{
		"p256": p256(t), "p384": ecdsaKey(t, elliptic.P384()), "rsa2048": rsaKey(t, 2048), "ed25519": edKey,
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			chain := issue(t, a, csrPEM(t, key, nil), time.Hour)
			if len(chain) != 2 {
				t.Fatalf("%d elements, want leaf and roots", len(chain))
			}
			leaf := one(t, chain[0])
			s, err := svid.New([]*x509.Certificate{leaf}, key, a.Bundle())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(now); err != nil || s.ID != web {
				t.Errorf("identity %s, error %v", s.ID, err)
			}
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Bundle().Pool(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
					t.Errorf("usage %v: %v", usage, err)
				}
			}
			if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
				t.Errorf("the leaf may sign: CA %v, usage %b", leaf.IsCA, leaf.KeyUsage)
			}
			if before := now.Sub(leaf.NotBefore); before < 2*time.Minute-time.Second || before > 2*time.Minute+2*time.Second {
				t.Errorf("begins %s before now", before)
			}
			if left := leaf.NotAfter.Sub(now); left < time.Hour-2*time.Second || left > time.Hour+2*time.Second {
				t.Errorf("valid for %s", left)
			}
			checkSAN(t, leaf)
		})
	}
}

// checkSAN wants the identity alone, in a critical extension.
func checkSAN(t *testing.T, leaf *x509.Certificate) {
	t.Helper()
	if leaf.Subject.String() != "" || len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.String() ||
		len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("subject %q, URIs %v, names %v %v %v", leaf.Subject, leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.String() == "2.5.29.17" && !ext.Critical {
			t.Error("the SAN is not critical")
		}
	}
}

func TestIssueIgnoresWishes(t *testing.T) {
	a := newAuthority(t, newRoot(t), authority.Config{})
	other, err := url.Parse("spiffe://td/ns/kube-system/sa/admin")
	if err != nil {
		t.Fatal(err)
	}
	csr := csrPEM(t, p256(t), func(r *x509.CertificateRequest) {
		r.Subject = pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}
		r.URIs = []*url.URL{other}
		r.DNSNames = []string{"kubernetes.default.svc"}
		r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 0}}}
	})
	checkSAN(t, one(t, issue(t, a, csr, time.Hour)[0]))
	r, err := authority.ParseRequest(csr)
	if err != nil || len(r.Names()) != 1 || r.Names()[0] != other.String() {
		t.Errorf("names %v, error %v", r.Names(), err)
	}
}

func TestIssueBounds(t *testing.T) {
	root := newRoot(t)
	a := newAuthority(t, root, authority.Config{TTL: 2 * time.Hour, MaxTTL: 48 * time.Hour})
	r, err := authority.ParseRequest(csrPEM(t, p256(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		id   identity.ID
		ttl  time.Duration
		err  string
	}{
		{"too_long", web, 48*time.Hour + time.Second, "validity 48h0m1s is more than the longest that is granted, 48h0m0s"},
		{"negative", web, -time.Second, "validity -1s is negative"},
		{"foreign", identity.MustParse("spiffe://other/ns/a/sa/b"), time.Hour, "spiffe://other/ns/a/sa/b is not of trust domain td"},
		{"nobody", identity.ID{}, time.Hour, " is not of trust domain td"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.Issue(r, tt.id, tt.ttl)
			if _, ok := errors.AsType[*authority.RequestError](err); !ok || err.Error() != tt.err {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
	if chain, err := a.Issue(r, web, 0); err != nil || time.Until(one(t, chain[0]).NotAfter).Round(time.Minute) != 2*time.Hour {
		t.Errorf("default validity: error %v", err)
	}
	late := newAuthority(t, root, authority.Config{Clock: func() time.Time { return root.NotAfter().Add(-time.Minute) }})
	if chain, err := late.Issue(r, web, time.Hour); err != nil || !one(t, chain[0]).NotAfter.Equal(root.NotAfter()) {
		t.Errorf("the leaf does not end with its signer; error %v", err)
	}
	over := newAuthority(t, root, authority.Config{Clock: func() time.Time { return root.NotAfter() }})
	_, err = over.Issue(r, web, time.Hour)
	if _, told := errors.AsType[*authority.RequestError](err); err == nil || told || !strings.Contains(err.Error(), "the authority expired at") {
		t.Errorf("expired: error %v", err)
	}
}

// TestIssueBelowIntermediates checks the form of the answer: one certificate an
// element, but all roots in the last.
func TestIssueBelowIntermediates(t *testing.T) {
	root, other := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	middle := root.Intermediate(t)
	low := middle.Intermediate(t)
	s, err := authority.ParseSigner(authority.Material{
		Cert:  identitytest.CertificatesPEM(low.Certificate),
		Key:   identitytest.KeyPEM(t, low.Key),
		Chain: identitytest.CertificatesPEM(root.Certificate, middle.Certificate, low.Certificate), // any order
		Roots: identitytest.CertificatesPEM(other.Certificate, root.Certificate),
	}, td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := ca.CSR(web)
	if err != nil {
		t.Fatal(err)
	}
	chain := issue(t, newAuthority(t, s, authority.Config{}), csr, 0)
	if len(chain) != 4 || !one(t, chain[1]).Equal(low.Certificate) || !one(t, chain[2]).Equal(middle.Certificate) {
		t.Fatalf("%d elements", len(chain))
	}
	bundle, err := identity.ParseBundle(td, []byte(chain[3]))
	if err != nil || len(bundle.Certificates()) != 2 {
		t.Fatalf("roots: %v", err)
	}
	got, err := svid.New([]*x509.Certificate{one(t, chain[0]), one(t, chain[1]), one(t, chain[2])}, key, bundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(time.Now()); err != nil {
		t.Error(err)
	}
}

func TestServerCertificate(t *testing.T) {
	a := newAuthority(t, newRoot(t), authority.Config{})
	cert, err := a.ServerCertificate([]string{"culvert-controller.culvert-system.svc", "localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: a.Bundle().Pool(), DNSName: "localhost"}); err != nil {
		t.Error(err)
	}
	if _, err := svid.IDFromCert(cert.Leaf); !errors.Is(err, svid.ErrNoID) {
		t.Errorf("it carries an identity: %v", err)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: a.Bundle().Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("it is good for a client")
	}
	if _, err := a.ServerCertificate(nil, time.Hour); err == nil {
		t.Error("a certificate for no name")
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  authority.Config
		err  string
	}{
		{"nothing", authority.Config{}, "no trust domain"},
		{"order", authority.Config{TrustDomain: td, TTL: 2 * time.Hour, MaxTTL: time.Hour}, "validity 2h0m0s is more than the longest, 1h0m0s"},
		{"short", authority.Config{TrustDomain: td, MaxTTL: time.Millisecond}, "longest validity of 1ms is less than a second"},
		{"negative", authority.Config{TrustDomain: td, Settle: -time.Hour}, "settle time of -1h0m0s is less than a second"},
		{"root", authority.Config{TrustDomain: td, MaxTTL: time.Hour, RootTTL: 3 * time.Hour}, "a root's life of 3h0m0s has no room for a rotation, it takes 4h0m0s at least"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.cfg.WithDefaults(); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
	if _, err := authority.New(authority.State{}, authority.Config{TrustDomain: td}); err == nil {
		t.Error("an authority of nothing")
	}
	if _, err := authority.NewRoot(identity.TrustDomain{}, time.Now(), time.Hour); err == nil {
		t.Error("a root of no trust domain")
	}
}
