package issuer_test

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

func paths(t *testing.T) (certPath, keyPath string) {
	dir := t.TempDir()
	return filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCreateAndLoad(t *testing.T) {
	certPath, keyPath := paths(t)
	if err := issuer.CreateFiles(certPath, keyPath, "td"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(keyPath)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file has mode %v, error %v", info.Mode(), err)
	}
	one, err := issuer.Load(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	two, err := issuer.Load(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	if one.TrustDomain() != identity.MustTrustDomain("td") {
		t.Errorf("trust domain %q", one.TrustDomain())
	}
	root := one.Certificates()[0]
	if years := time.Until(root.NotAfter).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("the authority is valid for %.1f years", years)
	}
	// Two nodes with the same files trust each other.
	a, err := one.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	b, err := two.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Bundle.Equal(b.Bundle) {
		t.Error("the roots differ")
	}
	if _, err := a.Leaf().Verify(x509.VerifyOptions{Roots: b.Bundle.Pool()}); err != nil {
		t.Error(err)
	}
}

func TestCreateOverwritesNothing(t *testing.T) {
	for _, existing := range []string{"certificate", "key"} {
		t.Run(existing, func(t *testing.T) {
			certPath, keyPath := paths(t)
			there, absent := certPath, keyPath
			if existing == "key" {
				there, absent = keyPath, certPath
			}
			write(t, there, []byte("precious"))
			err := issuer.CreateFiles(certPath, keyPath, "td")
			if err == nil || !strings.Contains(err.Error(), there+": file exists") {
				t.Errorf("got error %v", err)
			}
			if content, err := os.ReadFile(there); err != nil || string(content) != "precious" {
				t.Errorf("the file now holds %q, error %v", content, err)
			}
			if _, err := os.Stat(absent); !os.IsNotExist(err) {
				t.Errorf("half of an authority was left behind: %v", err)
			}
		})
	}
	certPath, keyPath := paths(t)
	if err := issuer.CreateFiles(certPath, keyPath, "Not A Name"); err == nil {
		t.Error("a bad trust domain is accepted")
	}
	if err := issuer.CreateFiles(filepath.Join(certPath, "below"), keyPath, "td"); err == nil {
		t.Error("a missing directory is accepted")
	}
	if _, err := os.Stat(keyPath); !os.IsNotExist(err) {
		t.Errorf("a key was left behind: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	chain, leafKey := root.Intermediate(t).Issue(t, web.String())
	cert, key := string(root.RootPEM()), string(identitytest.KeyPEM(t, root.Key))
	past := identitytest.NewCA(t, "td", identitytest.Expired())
	future := identitytest.NewCA(t, "td", identitytest.Validity(time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)))
	noSign := identitytest.NewCA(t, "td", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	middle := identitytest.NewCA(t, "td").Intermediate(t)
	tests := []struct {
		name, cert, key string
		err             string // $cert and $key stand for the paths
	}{
		{"empty_certificate", "", key, "load authority: certificate $cert: no PEM certificate found"},
		{"files_swapped", key, cert, `load authority: certificate $cert: PEM block 1 is "PRIVATE KEY", want CERTIFICATE`},
		{"not_a_ca", string(identitytest.CertificatesPEM(chain[0])), string(identitytest.KeyPEM(t, leafKey)), `load authority: certificate $cert: "" is not a CA certificate`},
		{"may_not_sign", string(noSign.RootPEM()), string(identitytest.KeyPEM(t, noSign.Key)), `load authority: certificate $cert: "CN=root of td" may not sign certificates`},
		{"expired", string(past.RootPEM()), string(identitytest.KeyPEM(t, past.Key)), `load authority: certificate $cert: "CN=root of td" expired at ` + past.Certificate.NotAfter.UTC().Format(time.RFC3339)},
		{"not_yet_valid", string(future.RootPEM()), string(identitytest.KeyPEM(t, future.Key)), `load authority: certificate $cert: "CN=root of td" is not valid before ` + future.Certificate.NotBefore.UTC().Format(time.RFC3339)},
		{"chain_broken", string(identitytest.CertificatesPEM(middle.Certificate, root.Certificate)), string(identitytest.KeyPEM(t, middle.Key)),
			`load authority: certificate $cert: "CN=below root of td" is not signed by the next certificate, "CN=root of td": x509: ECDSA verification failure`},
		{"empty_key", cert, "", "load authority: key $key: no PEM private key found"},
		{"other_key", cert, string(identitytest.KeyPEM(t, past.Key)), "load authority: key $key does not belong to certificate $cert"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			certPath, keyPath := paths(t)
			write(t, certPath, []byte(tt.cert))
			write(t, keyPath, []byte(tt.key))
			want := strings.NewReplacer("$cert", certPath, "$key", keyPath).Replace(tt.err)
			if _, err := issuer.Load(certPath, keyPath); err == nil || err.Error() != want {
				t.Errorf("got error  %v\nwant error %s", err, want)
			}
		})
	}
	certPath, keyPath := paths(t)
	if _, err := issuer.Load(certPath, keyPath); err == nil || !strings.Contains(err.Error(), certPath+": no such file") {
		t.Errorf("no certificate file: error %v", err)
	}
	write(t, certPath, []byte(cert))
	if _, err := issuer.Load(certPath, keyPath); err == nil || !strings.Contains(err.Error(), keyPath+": no such file") {
		t.Errorf("no key file: error %v", err)
	}
}

// TestLoadIntermediate loads an authority that is not a root itself.
func TestLoadIntermediate(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	low := root.Intermediate(t).Intermediate(t)
	leafChain, _ := low.Issue(t, web.String())
	certPath, keyPath := paths(t)
	write(t, certPath, identitytest.CertificatesPEM(append(leafChain[1:], root.Certificate)...))
	write(t, keyPath, identitytest.KeyPEM(t, low.Key))
	i, err := issuer.Load(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	s, err := i.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Certificates) != 3 || !s.Bundle.Equal(root.Bundle()) {
		t.Errorf("chain of %d, %d roots", len(s.Certificates), len(s.Bundle.Certificates()))
	}
	if err := s.Verify(time.Now()); err != nil {
		t.Error(err)
	}
}

// TestLoadFromOpenSSL loads an authority that names no trust domain.
func TestLoadFromOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	certPath, keyPath := paths(t)
	out, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
		"-subj", "/CN=home made", "-addext", "basicConstraints=critical,CA:TRUE", "-keyout", keyPath, "-out", certPath).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	i, err := issuer.Load(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	if !i.TrustDomain().IsZero() {
		t.Errorf("trust domain %q", i.TrustDomain())
	}
	for _, id := range []identity.ID{web, identity.MustParse("spiffe://elsewhere/ns/a/sa/b")} {
		s, err := i.WithTTL(time.Hour).Fetch(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.ID != id || s.Bundle.TrustDomain() != id.TrustDomain() || s.Verify(time.Now()) != nil {
			t.Errorf("got %s of %s", s.ID, s.Bundle.TrustDomain())
		}
	}
}
