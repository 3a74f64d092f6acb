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
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const defaultTTL = 24 * time.Hour

// Issuer signs certificates in the process. It is a svid.Source.
type Issuer struct {
	td     identity.TrustDomain // zero: any
	signer *authority.Signer
	ttl    time.Duration
}

var _ svid.Source = (*Issuer)(nil)

// New makes an authority with a new key that lives and ends with the process.
func New(td identity.TrustDomain) (*Issuer, error) {
	signer, err := authority.NewRoot(td, time.Now(), authority.DefaultRootTTL)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return &Issuer{td: td, signer: signer, ttl: defaultTTL}, nil
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
	return i.signer.Roots()
}

// Fetch issues a certificate for id with a new P-256 key.
func (i *Issuer) Fetch(_ context.Context, id identity.ID) (*svid.SVID, error) {
	if id.IsZero() {
		return nil, errors.New("issue certificate: no identity")
	}
	if !i.td.IsZero() && id.TrustDomain() != i.td {
		return nil, fmt.Errorf("issue certificate for %s: the authority is that of trust domain %s", id, i.td)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	leaf, err := i.signer.SignLeaf(key.Public(), id, i.ttl, time.Now())
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	chain := append([]*x509.Certificate{leaf}, i.signer.Above()...)
	return svid.New(chain, key, identity.NewBundle(id.TrustDomain(), i.signer.Roots()))
}
