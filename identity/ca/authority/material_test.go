package authority_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// material is that of a CA whose issuer, if it is not a root, is root.
func material(t testing.TB, ca, root *identitytest.CA) authority.Material {
	t.Helper()
	return authority.Material{
		Cert:  identitytest.CertificatesPEM(ca.Certificate),
		Key:   identitytest.KeyPEM(t, ca.Key),
		Chain: identitytest.CertificatesPEM(ca.Certificate, root.Certificate),
		Roots: root.RootPEM(),
	}
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }

func TestParseSignerRefuses(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	middle := root.Intermediate(t)
	low := middle.Intermediate(t)
	past := identitytest.NewCA(t, "td", identitytest.Expired())
	future := identitytest.NewCA(t, "td", identitytest.Validity(time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)))
	foreign := identitytest.NewCA(t, "elsewhere")
	noSign := identitytest.NewCA(t, "td", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	short := identitytest.NewCA(t, "td", func(c *x509.Certificate) { c.MaxPathLenZero = true })
	names := identitytest.NewCA(t, "td", func(c *x509.Certificate) { c.PermittedURIDomains = []string{"elsewhere"} })
	leaf, leafKey := root.Issue(t, web.String())
	with := func(ca *identitytest.CA, change func(*authority.Material)) authority.Material {
		m := material(t, ca, root)
		change(&m)
		return m
	}
	tests := []struct {
		name string
		in   authority.Material
		err  string
	}{
		{"nothing", authority.Material{}, "ca-cert.pem: missing or empty"},
		{"no_key", with(middle, func(m *authority.Material) { m.Key = []byte(" \n") }), "ca-key.pem: missing or empty"},
		{"no_roots", with(middle, func(m *authority.Material) { m.Roots = nil }), "root-cert.pem: missing or empty"},
		{"swapped", with(middle, func(m *authority.Material) { m.Cert, m.Key = m.Key, m.Cert }), `ca-cert.pem: PEM block 1 is "PRIVATE KEY", want CERTIFICATE`},
		{"damaged_chain", with(middle, func(m *authority.Material) { m.Chain = []byte("hello") }), "cert-chain.pem: no PEM certificate found"},
		{"damaged_root", with(middle, func(m *authority.Material) { m.Roots = m.Roots[:len(m.Roots)/2] }), "root-cert.pem: PEM block 1 is damaged"},
		{"huge", with(middle, func(m *authority.Material) { m.Chain = bytes.Repeat([]byte("#"), 1<<20) }), "cert-chain.pem: 1048576 octets, limit is 524288"},
		{"many", with(middle, func(m *authority.Material) { m.Chain = bytes.Repeat(root.RootPEM(), 65) }), "cert-chain.pem: 65 certificates, limit is 64"},
		{"not_a_ca", with(root, func(m *authority.Material) {
			m.Cert, m.Key = identitytest.CertificatesPEM(leaf[0]), identitytest.KeyPEM(t, leafKey)
		}), `ca-cert.pem: "" is not a CA certificate`},
		{"root_not_a_ca", with(middle, func(m *authority.Material) { m.Roots = identitytest.CertificatesPEM(leaf[0]) }), `root-cert.pem: "" is not a CA certificate`},
		{"may_not_sign", material(t, noSign, noSign), `ca-cert.pem: "CN=root of td" may not sign certificates`},
		{"other_key", with(middle, func(m *authority.Material) { m.Key = identitytest.KeyPEM(t, root.Key) }), "ca-key.pem: the key does not belong to the certificate in ca-cert.pem"},
		{"weak_key", with(middle, func(m *authority.Material) { m.Key = identitytest.KeyPEM(t, weakRSA(t)) }), "ca-key.pem: an RSA key of 1024 bits is not accepted, only of 2048 to 8192"},
		{"expired", material(t, past, past), `ca-cert.pem: "CN=root of td" expired at ` + stamp(past.Certificate.NotAfter)},
		{"not_yet", material(t, future, future), `ca-cert.pem: "CN=root of td" is not valid before ` + stamp(future.Certificate.NotBefore)},
		{"no_chain", with(low, func(m *authority.Material) { m.Chain = nil }),
			`cert-chain.pem: "CN=below below root of td" is issued by "CN=below root of td", which is neither here nor in root-cert.pem with that key`},
		{"namesake_root", with(middle, func(m *authority.Material) { m.Roots = identitytest.NewCA(t, "td").RootPEM() }),
			`cert-chain.pem: "CN=root of td" is issued by "CN=root of td", which is neither here nor in root-cert.pem with that key`},
		{"trust_domain", material(t, foreign, foreign), `ca-cert.pem: "CN=root of elsewhere" is of trust domain elsewhere, the mesh is td`},
		{"path_length", material(t, short.Intermediate(t), short), "ca-cert.pem: peers would not accept what it signs: x509: too many intermediates"},
		{"constraints", material(t, names, names), "ca-cert.pem: peers would not accept what it signs: x509: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := authority.ParseSigner(tt.in, td, time.Now())
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error  %v\nwant error %s", err, tt.err)
			}
			if err != nil && strings.Contains(err.Error(), "BEGIN") {
				t.Error("the error quotes what it was given")
			}
		})
	}
}

// TestParseSignerExpiredAbove has a root end before what it signed.
func TestParseSignerExpiredAbove(t *testing.T) {
	root := identitytest.NewCA(t, "td", identitytest.Expired())
	m := material(t, root.Intermediate(t), root)
	want := `root-cert.pem: "CN=root of td" expired at ` + stamp(root.Certificate.NotAfter)
	if _, err := authority.ParseSigner(m, td, time.Now()); err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestParseSignerAccepts(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	low := root.Intermediate(t).Intermediate(t)
	middle := root.Intermediate(t)
	chain, _ := low.Issue(t, web.String())
	for _, tt := range []struct {
		name  string
		in    authority.Material
		above int
	}{
		{"root", material(t, root, root), 0},
		{"root_without_chain", authority.Material{Cert: root.RootPEM(), Key: identitytest.KeyPEM(t, root.Key), Roots: root.RootPEM()}, 0},
		{"intermediate", material(t, middle, root), 1},
		{"chain_empty", authority.Material{Cert: identitytest.CertificatesPEM(middle.Certificate), Key: identitytest.KeyPEM(t, middle.Key), Roots: root.RootPEM()}, 1},
		{"chain_in_cert", authority.Material{Cert: identitytest.CertificatesPEM(chain[1:]...), Key: identitytest.KeyPEM(t, low.Key), Roots: root.RootPEM()}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := authority.ParseSigner(tt.in, td, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Above()) != tt.above || len(s.Roots()) != 1 {
				t.Errorf("%d above, %d roots", len(s.Above()), len(s.Roots()))
			}
			m, err := s.Material()
			if err != nil {
				t.Fatal(err)
			}
			again, err := authority.ParseSigner(m, td, time.Now())
			if err != nil || !again.Certificate().Equal(s.Certificate()) || len(again.Above()) != tt.above {
				t.Errorf("written and read again: %v", err)
			}
		})
	}
}

// TestParseSignerFromOpenSSL reads what a careful administrator makes.
func TestParseSignerFromOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v: %s", args[0], err, out)
		}
	}
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	run("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "30", "-subj", "/O=Example/CN=Root", "-keyout", "root.key", "-out", "root.pem",
		"-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-subj", "/O=Example/CN=Mesh", "-keyout", "ca.key", "-out", "ca.csr")
	if err := os.WriteFile(filepath.Join(dir, "ext"), []byte("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("x509", "-req", "-in", "ca.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "20", "-extfile", "ext", "-out", "ca.pem")
	s, err := authority.ParseSigner(authority.Material{
		Cert: read("ca.pem"), Key: read("ca.key"), Chain: append(read("ca.pem"), read("root.pem")...), Roots: read("root.pem"),
	}, td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t, s, authority.Config{})
	if chain := issue(t, a, csrPEM(t, p256(t), nil), 0); len(chain) != 3 {
		t.Errorf("%d elements", len(chain))
	}
	if left := time.Until(a.NotAfter()); left > 20*24*time.Hour {
		t.Errorf("ends in %s", left)
	}
}

// FuzzParseSigner checks that no authority that somebody brings does harm, and
// that one which is accepted can sign.
func FuzzParseSigner(f *testing.F) {
	root := identitytest.NewCA(f, "td")
	low := root.Intermediate(f).Intermediate(f)
	for _, m := range []authority.Material{material(f, root, root), material(f, low, root), {}} {
		f.Add(m.Cert, m.Key, m.Chain, m.Roots)
	}
	f.Fuzz(func(t *testing.T, cert, key, chain, roots []byte) {
		s, err := authority.ParseSigner(authority.Material{Cert: cert, Key: key, Chain: chain, Roots: roots}, td, time.Now())
		if err != nil {
			return
		}
		if _, err := s.SignLeaf(root.Key.Public(), web, time.Hour, time.Now()); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzDecode checks that a Secret which was tampered with is refused or usable.
func FuzzDecode(f *testing.F) {
	st := authority.NewState(newRoot(f), false)
	data, err := st.Encode()
	if err != nil {
		f.Fatal(err)
	}
	chain, err := json.Marshal(string(data[authority.KeyCert]))
	if err != nil {
		f.Fatal(err)
	}
	retired := fmt.Appendf(nil, `[{"chain":%s,"until":"2100-01-01T00:00:00Z"}]`, chain)
	f.Add(data["state.json"], data[authority.KeyRoots], []byte(nil), []byte("[]"))
	f.Add([]byte(`{"version":1}`), data[authority.KeyRoots], identitytest.NewCA(f, "td").CRL(f), retired)
	f.Add(data["state.json"], data[authority.KeyRoots], []byte(nil), retired)
	f.Fuzz(func(t *testing.T, state, roots, crl, retired []byte) {
		in := map[string][]byte{authority.KeyCert: data[authority.KeyCert], authority.KeyKey: data[authority.KeyKey],
			authority.KeyRoots: roots, authority.KeyCRL: crl, "state.json": state, keyRetired: retired}
		st, err := authority.Decode(in, td)
		if err != nil {
			return
		}
		cfg, _ := authority.Config{TrustDomain: td}.WithDefaults()
		st, _ = authority.Advance(st, time.Now(), cfg)
		if len(st.Roots) == 0 {
			t.Fatal("an empty bundle")
		}
		if _, err := st.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTrustDomainOf(t *testing.T) {
	if got := authority.TrustDomainOf(identitytest.NewCA(t, "td").Certificate); got != td {
		t.Errorf("got %q", got)
	}
	plain := identitytest.NewCA(t, "td", identitytest.URIs("https://example.com"))
	if got := authority.TrustDomainOf(plain.Certificate); got != (identity.TrustDomain{}) {
		t.Errorf("got %q of a certificate that names none", got)
	}
}
