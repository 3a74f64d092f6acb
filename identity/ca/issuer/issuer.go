// Package issuer is a certificate authority inside the process, for the demo,
// for tests and for meshes without Kubernetes whose nodes share an authority's
// files.
//
// Whoever holds the authority's key can mint any identity of the mesh, so this
// is no source for a node of a cluster; see package ca for that. An Issuer is
// immutable and may be used concurrently.
package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const (
	defaultTTL   = 24 * time.Hour
	authorityTTL = 10 * 365 * 24 * time.Hour

	// maxBackdate is how far a certificate begins before now, for peers whose
	// clocks are behind.
	maxBackdate = time.Minute
)

// Issuer signs certificates in the process. It is a svid.Source.
type Issuer struct {
	td    identity.TrustDomain // zero: any
	cert  *x509.Certificate
	key   crypto.Signer
	above []*x509.Certificate // what stands between the leaf and the root
	roots []*x509.Certificate
	ttl   time.Duration
}

var _ svid.Source = (*Issuer)(nil)

// New makes an authority with a new key that lives and ends with the process.
func New(td identity.TrustDomain) (*Issuer, error) {
	if td.IsZero() {
		return nil, errors.New("make authority: no trust domain")
	}
	cert, key, err := newAuthority(td)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return &Issuer{td: td, cert: cert, key: key, roots: []*x509.Certificate{cert}, ttl: defaultTTL}, nil
}

// WithTTL returns the same authority issuing certificates that are valid for
// ttl, instead of 24 h. No certificate outlives the authority's own.
func (i *Issuer) WithTTL(ttl time.Duration) *Issuer {
	c := *i
	c.ttl = ttl
	return &c
}

// TrustDomain returns the trust domain that the authority's certificate names.
// It is zero when it names none; the authority then issues for any.
func (i *Issuer) TrustDomain() identity.TrustDomain { return i.td }

// Certificates returns the roots that verify what the authority issues.
func (i *Issuer) Certificates() []*x509.Certificate {
	return append([]*x509.Certificate(nil), i.roots...)
}

// Fetch issues a certificate for id with a new P-256 key.
func (i *Issuer) Fetch(_ context.Context, id identity.ID) (*svid.SVID, error) {
	if id.IsZero() {
		return nil, errors.New("issue certificate: no identity")
	}
	if !i.td.IsZero() && id.TrustDomain() != i.td {
		return nil, fmt.Errorf("issue certificate for %s: the authority is that of trust domain %s", id, i.td)
	}
	now := time.Now()
	if now.After(i.cert.NotAfter) {
		return nil, fmt.Errorf("issue certificate for %s: the authority expired at %s", id, i.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	notAfter := now.Add(i.ttl)
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	template := &x509.Certificate{
		// With an empty subject the SAN becomes critical, as RFC 5280 wants it.
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-min(maxBackdate, i.ttl/10)),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	leaf, err := sign(template, i.cert, key.Public(), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	chain := append([]*x509.Certificate{leaf}, i.above...)
	return svid.New(chain, key, identity.NewBundle(id.TrustDomain(), i.roots))
}

// newAuthority makes a self-signed root that may sign leaves only.
func newAuthority(td identity.TrustDomain) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{td.String()}, CommonName: "Culvert authority of " + td.String()},
		// X.509-SVID specification, section 4.2: a signing certificate names its
		// trust domain.
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: td.String()}},
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              now.Add(authorityTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

// sign makes a certificate of template with a random serial number.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // zero is not allowed
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
