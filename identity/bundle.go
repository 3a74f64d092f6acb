package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// Bundle is the immutable set of root certificates of one trust domain. A
// bundle without certificates trusts nobody.
type Bundle struct {
	td    TrustDomain
	certs []*x509.Certificate
	pool  *x509.CertPool
}

// NewBundle makes a bundle of certs, which must not be changed afterwards.
// Duplicates are dropped; the order is kept.
func NewBundle(td TrustDomain, certs []*x509.Certificate) *Bundle {
	b := &Bundle{td: td, pool: x509.NewCertPool()}
	for _, cert := range certs {
		if b.Contains(cert) {
			continue
		}
		b.certs = append(b.certs, cert)
		b.pool.AddCert(cert)
	}
	return b
}

// ParseBundle reads one or more PEM certificates as the roots of td.
func ParseBundle(td TrustDomain, pemBytes []byte) (*Bundle, error) {
	certs, err := ParseCertificates(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("parse roots of %s: %w", td, err)
	}
	return NewBundle(td, certs), nil
}

// TrustDomain returns the trust domain whose roots these are.
func (b *Bundle) TrustDomain() TrustDomain { return b.td }

// Pool returns the roots for certificate verification. It is shared by all
// callers, who must not add to it.
func (b *Bundle) Pool() *x509.CertPool { return b.pool }

// Certificates returns the roots in their order, as a slice of the caller's own
// with shared certificates.
func (b *Bundle) Certificates() []*x509.Certificate { return slices.Clone(b.certs) }

// Contains reports whether cert is one of the roots.
func (b *Bundle) Contains(cert *x509.Certificate) bool {
	return slices.ContainsFunc(b.certs, cert.Equal)
}

// Equal reports whether both bundles hold the same roots of the same trust
// domain, in whatever order. A nil bundle equals only nil.
func (b *Bundle) Equal(other *Bundle) bool {
	if b == nil || other == nil {
		return b == other
	}
	if b.td != other.td || len(b.certs) != len(other.certs) {
		return false
	}
	for _, cert := range b.certs {
		if !other.Contains(cert) {
			return false
		}
	}
	return true
}

// ParseCertificates reads PEM text with one or more CERTIFICATE blocks. Text
// between blocks is ignored, blocks of another type are not: a private key in
// a file of certificates is a mistake worth reporting.
func ParseCertificates(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	blocks, err := EachPEM(pemBytes, "CERTIFICATE", func(der []byte) error {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case blocks == 0:
		return nil, errors.New("no PEM certificate found")
	}
	return certs, nil
}

// EachPEM calls take with the content of each block of PEM text, and returns how many there are. All of them must be of the
// type. Text between blocks is ignored, a damaged block is not. The first error ends it.
func EachPEM(text []byte, blockType string, take func(der []byte) error) (blocks int, err error) {
	for rest := text; ; blocks++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && bytes.Contains(rest, []byte("-----BEGIN ")):
			return blocks, fmt.Errorf("PEM block %d is damaged", blocks+1)
		case block == nil:
			return blocks, nil
		case block.Type != blockType:
			return blocks, fmt.Errorf("PEM block %d is %q, want %s", blocks+1, block.Type, blockType)
		}
		if err := take(block.Bytes); err != nil {
			return blocks, err
		}
	}
}
