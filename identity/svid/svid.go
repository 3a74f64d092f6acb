// Package svid holds X.509 SVIDs: the certificate chain, private key and roots
// that a workload proves its identity with.
//
// It parses and validates them; it neither fetches (package manager and the
// sources) nor checks a peer's (package mtls). An SVID is immutable after New
// or Parse has returned it and may be shared by any number of goroutines.
package svid

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// Source issues SVIDs. Implementations may be called concurrently, make a new
// key on each call unless the key is made elsewhere, and return when ctx ends.
type Source interface {
	Fetch(ctx context.Context, id identity.ID) (*SVID, error)
}

// Pusher is a Source that also announces SVIDs on its own, when a certificate
// or the roots change. Subscribe registers fn, which is called with one SVID at
// a time, in order, and must not block; the returned function ends that.
type Pusher interface {
	Source
	Subscribe(fn func(*SVID)) (cancel func())
}

// SVID is one identity document with its key. Make it with New or Parse; the
// fields must not be changed afterwards.
type SVID struct {
	// ID is the identity that the leaf certificate carries.
	ID identity.ID
	// Certificates is the chain to present, leaf first, roots left out.
	Certificates []*x509.Certificate
	// PrivateKey belongs to the leaf certificate.
	PrivateKey crypto.Signer
	// Bundle holds the roots that peers are verified against.
	Bundle *identity.Bundle
}

// New makes an SVID of a chain (leaf first), the leaf's key and the roots of
// the identity's trust domain. Certificates of the chain that are roots are
// dropped. It checks that the parts belong together, not that the chain is
// valid now; see Verify.
func New(chain []*x509.Certificate, key crypto.Signer, bundle *identity.Bundle) (*SVID, error) {
	if len(chain) == 0 {
		return nil, errors.New("make SVID: no certificate")
	}
	if key == nil || bundle == nil {
		return nil, errors.New("make SVID: key or roots missing")
	}
	leaf := chain[0]
	id, err := IDFromCert(leaf)
	if err != nil {
		return nil, fmt.Errorf("make SVID: %w", err)
	}
	if leaf.IsCA {
		return nil, fmt.Errorf("make SVID %s: the leaf is a CA certificate", id)
	}
	if td := bundle.TrustDomain(); td != id.TrustDomain() {
		return nil, fmt.Errorf("make SVID %s: roots are those of trust domain %s", id, td)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("make SVID %s: private key does not match the certificate", id)
	}
	s := &SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key, Bundle: bundle}
	for _, cert := range chain[1:] {
		if !bundle.Contains(cert) {
			s.Certificates = append(s.Certificates, cert)
		}
	}
	return s, nil
}

// Parse reads an SVID from PEM: the chain leaf first, the leaf's key (PKCS #8,
// or the older EC and RSA forms), and one or more roots.
func Parse(chainPEM, keyPEM, rootsPEM []byte) (*SVID, error) {
	chain, err := identity.ParseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("parse SVID chain: %w", err)
	}
	key, err := ParsePrivateKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("parse SVID key: %w", err)
	}
	id, err := IDFromCert(chain[0])
	if err != nil {
		return nil, fmt.Errorf("parse SVID: %w", err)
	}
	bundle, err := identity.ParseBundle(id.TrustDomain(), rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("parse SVID %s: %w", id, err)
	}
	return New(chain, key, bundle)
}

// ErrNoID says that a certificate carries no identity of the mesh.
var ErrNoID = errors.New("certificate has no SPIFFE identity of a service account")

// IDFromCert returns the identity of a certificate: the first URI SAN that
// parses as one, as ztunnel chooses it. Every check of a peer uses this one SAN
// and no other.
func IDFromCert(cert *x509.Certificate) (identity.ID, error) {
	for _, uri := range cert.URIs {
		if id, err := identity.Parse(uri.String()); err == nil {
			return id, nil
		}
	}
	return identity.ID{}, ErrNoID
}

// TLSCertificate returns the form that crypto/tls presents.
func (s *SVID) TLSCertificate() tls.Certificate {
	raw := make([][]byte, len(s.Certificates))
	for i, cert := range s.Certificates {
		raw[i] = cert.Raw
	}
	return tls.Certificate{Certificate: raw, PrivateKey: s.PrivateKey, Leaf: s.Leaf()}
}

// Leaf returns the certificate that carries the identity.
func (s *SVID) Leaf() *x509.Certificate { return s.Certificates[0] }

// NotBefore returns the first moment at which the leaf is valid.
func (s *SVID) NotBefore() time.Time { return s.Leaf().NotBefore }

// NotAfter returns the last moment at which the leaf is valid.
func (s *SVID) NotAfter() time.Time { return s.Leaf().NotAfter }

// Serial returns the leaf's serial number; it must not be changed.
func (s *SVID) Serial() *big.Int { return s.Leaf().SerialNumber }

// Expired reports whether the leaf's validity has ended at now.
func (s *SVID) Expired(now time.Time) bool { return now.After(s.NotAfter()) }

// Verify checks that the SVID's own chain leads to its own roots at now, as
// peers with the same roots will check it. A leaf that is not valid yet is
// tolerated, because the issuer's clock may be ahead of ours.
func (s *SVID) Verify(now time.Time) error {
	if s.Expired(now) {
		return fmt.Errorf("verify SVID %s: expired at %s", s.ID, s.NotAfter().UTC().Format(time.RFC3339))
	}
	if now.Before(s.NotBefore()) {
		now = s.NotBefore()
	}
	intermediates := x509.NewCertPool()
	for _, cert := range s.Certificates[1:] {
		intermediates.AddCert(cert)
	}
	_, err := s.Leaf().Verify(x509.VerifyOptions{
		Roots:         s.Bundle.Pool(),
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("verify SVID %s: %w", s.ID, err)
	}
	return nil
}
