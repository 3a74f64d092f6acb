// Package identitytest makes certificates, revocation lists and certificate
// services for tests. Everything registers its own cleanup with the test.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// CA is a certificate authority for tests.
type CA struct {
	// TrustDomain is that of the certificates it signs.
	TrustDomain identity.TrustDomain
	// Certificate is the signing certificate.
	Certificate *x509.Certificate
	// Key signs.
	Key *ecdsa.PrivateKey

	chain []*x509.Certificate // intermediates above the leaf, signing first
	root  *x509.Certificate
}

// NewCA makes a root authority of a trust domain, "cluster.local" for example.
// All roots of one trust domain have the same name.
func NewCA(t testing.TB, trustDomain string, opts ...Option) *CA {
	t.Helper()
	td, err := identity.ParseTrustDomain(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	template := caTemplate(td, "root of "+trustDomain)
	for _, opt := range opts {
		opt(template)
	}
	cert := sign(t, template, template, key, key)
	return &CA{TrustDomain: td, Certificate: cert, Key: key, root: cert}
}

// Intermediate makes an authority below ca, with the same root.
func (ca *CA) Intermediate(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	template := caTemplate(ca.TrustDomain, "below "+ca.Certificate.Subject.CommonName)
	cert := sign(t, template, ca.Certificate, key, ca.Key)
	return &CA{
		TrustDomain: ca.TrustDomain,
		Certificate: cert,
		Key:         key,
		chain:       slices.Concat([]*x509.Certificate{cert}, ca.chain),
		root:        ca.root,
	}
}

// CrossSign returns a second certificate for the key and name of other, signed
// by ca.
func (ca *CA) CrossSign(t testing.TB, other *CA) *x509.Certificate {
	t.Helper()
	template := caTemplate(other.TrustDomain, other.Certificate.Subject.CommonName)
	return sign(t, template, ca.Certificate, other.Key, ca.Key)
}

// Bundle returns the root as the trust domain's bundle.
func (ca *CA) Bundle() *identity.Bundle {
	return identity.NewBundle(ca.TrustDomain, []*x509.Certificate{ca.root})
}

// RootPEM returns the root certificate.
func (ca *CA) RootPEM() []byte { return CertificatesPEM(ca.root) }

// An Option changes a certificate before it is signed.
type Option func(*x509.Certificate)

// Expired makes the certificate end an hour ago.
func Expired() Option {
	return Validity(time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
}

// Validity sets the certificate's first and last moment.
func Validity(notBefore, notAfter time.Time) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = notBefore, notAfter }
}

// URIs replaces the URI SANs. The first that is an identity must be the one
// asked for if the certificate is to become an SVID.
func URIs(uris ...string) Option {
	return func(c *x509.Certificate) {
		c.URIs = nil
		for _, s := range uris {
			u, err := url.Parse(s)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// SVID issues a certificate for a SPIFFE ID, valid for a day unless an option
// says otherwise.
func (ca *CA) SVID(t testing.TB, id string, opts ...Option) *svid.SVID {
	t.Helper()
	chain, key := ca.Issue(t, id, opts...)
	s, err := svid.New(chain, key, ca.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Issue is SVID without the checks: it returns the chain, leaf first and root
// left out, and the leaf's key.
func (ca *CA) Issue(t testing.TB, id string, opts ...Option) ([]*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(t),
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	URIs(id)(template)
	for _, opt := range opts {
		opt(template)
	}
	leaf := sign(t, template, ca.Certificate, key, ca.Key)
	return slices.Concat([]*x509.Certificate{leaf}, ca.chain), key
}

// CRL returns a PEM revocation list of ca with the given certificates on it,
// all of which ca has issued.
func (ca *CA) CRL(t testing.TB, revoked ...*x509.Certificate) []byte {
	t.Helper()
	template := &x509.RevocationList{
		Number:     serial(t),
		ThisUpdate: time.Now().Add(-time.Minute),
		NextUpdate: time.Now().Add(time.Hour),
	}
	for _, cert := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber:   cert.SerialNumber,
			RevocationTime: time.Now().Add(-time.Minute),
		})
	}
	issuer := *ca.Certificate
	issuer.KeyUsage |= x509.KeyUsageCRLSign // which CreateRevocationList insists on
	der, err := x509.CreateRevocationList(rand.Reader, template, &issuer, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// CertificatesPEM returns certificates as PEM text.
func CertificatesPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

// KeyPEM returns a private key as PKCS #8 PEM text.
func KeyPEM(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func caTemplate(td identity.TrustDomain, name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: td.String()}},
		NotBefore:             now.Add(-48 * time.Hour),
		NotAfter:              now.Add(365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = serial(t)
	}
	cert, err := signCertificate(template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func signCertificate(template, parent *x509.Certificate, public crypto.PublicKey, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}
