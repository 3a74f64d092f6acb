// Package issuer is a certificate authority inside the process.
package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// Issuer signs certificates in the process.
type Issuer struct{}

// New makes an authority in memory.
func New(td identity.TrustDomain) (*Issuer, error) { return &Issuer{}, nil }

// Load reads an authority's certificate and key from PEM files.
func Load(certPath, keyPath string) (*Issuer, error) { return &Issuer{}, nil }

// CreateFiles makes an authority and writes it to two PEM files.
func CreateFiles(certPath, keyPath, trustDomain string) error { return errors.ErrUnsupported }

// WithTTL returns an issuer whose certificates are valid for ttl.
func (i *Issuer) WithTTL(ttl time.Duration) *Issuer { return i }

// TrustDomain returns the trust domain of the authority.
func (i *Issuer) TrustDomain() identity.TrustDomain { return identity.TrustDomain{} }

// Fetch issues a certificate for id.
func (i *Issuer) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	return nil, errors.ErrUnsupported
}
