package svid_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const web = "spiffe://td/ns/default/sa/web"

func TestParseRoundTrip(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	ca := root.Intermediate(t)
	chain, key := ca.Issue(t, web)
	// A chain that carries its root, as some authorities answer.
	chainPEM := identitytest.CertificatesPEM(append(chain, root.Certificate)...)
	s, err := svid.Parse(chainPEM, identitytest.KeyPEM(t, key), root.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != identity.MustParse(web) {
		t.Errorf("identity is %s", s.ID)
	}
	if len(s.Certificates) != 2 || !s.Certificates[1].Equal(ca.Certificate) {
		t.Errorf("chain has %d certificates, want leaf and intermediate", len(s.Certificates))
	}
	if s.Serial().Cmp(chain[0].SerialNumber) != 0 || !s.NotAfter().Equal(chain[0].NotAfter) || !s.NotBefore().Equal(chain[0].NotBefore) {
		t.Error("serial number or times are not the leaf's")
	}
	cert := s.TLSCertificate()
	if len(cert.Certificate) != 2 || string(cert.Certificate[0]) != string(chain[0].Raw) || cert.Leaf == nil || cert.PrivateKey == nil {
		t.Error("the form for crypto/tls is incomplete")
	}
	if err := s.Verify(time.Now()); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	chain, key := ca.Issue(t, web)
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caChain, caKey := ca.Issue(t, web, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
	noID, noIDKey := ca.Issue(t, "spiffe://td/something/else")
	tests := []struct {
		name  string
		chain []*x509.Certificate
		key   *ecdsa.PrivateKey
		roots *identity.Bundle
		err   string
	}{
		{"no_chain", nil, key, ca.Bundle(), "make SVID: no certificate"},
		{"other_key", chain, otherKey, ca.Bundle(), "make SVID " + web + ": private key does not match the certificate"},
		{"no_roots", chain, key, nil, "make SVID: key or roots missing"},
		{"other_trust_domain", chain, key, identitytest.NewCA(t, "other").Bundle(), "make SVID " + web + ": roots are those of trust domain other"},
		{"ca_as_leaf", caChain, caKey, ca.Bundle(), "make SVID " + web + ": the leaf is a CA certificate"},
		{"no_identity", noID, noIDKey, ca.Bundle(), "make SVID: certificate has no SPIFFE identity of a service account"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := svid.New(tt.chain, tt.key, tt.roots); err == nil || err.Error() != tt.err {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	now := time.Now()
	tests := []struct {
		name string
		svid *svid.SVID
		err  string // prefix
	}{
		{"valid", ca.SVID(t, web), ""},
		{"not_yet_valid", ca.SVID(t, web, identitytest.Validity(now.Add(time.Minute), now.Add(time.Hour))), ""},
		{"expired", ca.SVID(t, web, identitytest.Expired()), "verify SVID " + web + ": expired at "},
		{"foreign_root", foreignRoot(t, ca), "verify SVID " + web + ": x509: certificate signed by unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.svid.Verify(now)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

// foreignRoot makes an SVID with the roots of somebody else.
func foreignRoot(t *testing.T, ca *identitytest.CA) *svid.SVID {
	chain, key := ca.Issue(t, web)
	s, err := svid.New(chain, key, identitytest.NewCA(t, "td").Bundle())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestIDFromCert(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	tests := []struct {
		name string
		uris []string
		want string
	}{
		{"one", []string{web}, web},
		{"first_of_two", []string{web, "spiffe://td/ns/a/sa/b"}, web},
		{"first_that_parses", []string{"https://example.com", "spiffe://td/node", web}, web},
		{"none", nil, ""},
		{"none_parses", []string{"spiffe://td", "spiffe://td/ns/a/sa/b/c"}, ""},
		{"escaped", []string{"spiffe://td/ns/a/sa/%62"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			chain, _ := ca.Issue(t, web, identitytest.URIs(tt.uris...))
			id, err := svid.IDFromCert(chain[0])
			if id.String() != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, error %v; want %q", id, err, tt.want)
			}
		})
	}
}

func TestParsePrivateKey(t *testing.T) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	tests := []struct {
		name, in, err string
	}{
		{"pkcs8_ec", string(identitytest.KeyPEM(t, ecKey)), ""},
		{"pkcs8_rsa", string(identitytest.KeyPEM(t, rsaKey)), ""},
		{"sec1_after_parameters", block("EC PARAMETERS", []byte{6, 1, 2}) + block("EC PRIVATE KEY", sec1), ""},
		{"pkcs1", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), ""},
		{"empty", "", "no PEM private key found"},
		{"certificate_only", block("CERTIFICATE", []byte{1}), "no PEM private key found"},
		{"encrypted", block("ENCRYPTED PRIVATE KEY", []byte{1}), "private key is encrypted"},
		{"garbage", block("EC PRIVATE KEY", []byte{1}), "EC PRIVATE KEY: x509: failed to parse EC private key: asn1: syntax error: truncated tag or length"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			key, err := svid.ParsePrivateKey([]byte(tt.in))
			switch {
			case tt.err == "" && (err != nil || key == nil):
				t.Errorf("got %v, error %v", key, err)
			case tt.err != "" && (err == nil || err.Error() != tt.err):
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
}

// FuzzParse checks that no input makes the parser fall over or return an SVID
// without its parts.
func FuzzParse(f *testing.F) {
	ca := identitytest.NewCA(f, "td")
	chain, key := ca.Issue(f, web)
	f.Add(identitytest.CertificatesPEM(chain...), identitytest.KeyPEM(f, key), ca.RootPEM())
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----"), []byte{})
	f.Fuzz(func(t *testing.T, chain, key, roots []byte) {
		s, err := svid.Parse(chain, key, roots)
		if err == nil && (s.ID.IsZero() || len(s.Certificates) == 0 || s.PrivateKey == nil || len(s.Bundle.Certificates()) == 0) {
			t.Fatal("an incomplete SVID and no error")
		}
	})
}
