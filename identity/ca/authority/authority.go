package authority

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// What an empty field of Config stands for; istiod's values.
const (
	DefaultTTL    = 24 * time.Hour
	DefaultMaxTTL = 90 * 24 * time.Hour
)

// overlapMargin is added to the longest life of a leaf: a replica that has not
// heard of the new signer yet, on a machine whose clock is ahead, may have
// issued with the old one.
const overlapMargin = time.Hour

// Config says what is issued and how roots follow each other. The zero value
// but for TrustDomain is good for production.
type Config struct {
	// TrustDomain of all that is issued. Required.
	TrustDomain identity.TrustDomain
	// TTL is the validity of a certificate whose request names none; 0 means
	// 24 h.
	TTL time.Duration
	// MaxTTL is the most that may be asked for; more is an error and is not
	// shortened. 0 means 90 days.
	MaxTTL time.Duration
	// RootTTL is the life of a root made here; 0 means ten years. It must have
	// room for a rotation.
	RootTTL time.Duration
	// Settle is how long a new root is in the bundle before anything is signed
	// below it. Whoever gets the bundle with a certificate has the new one when
	// the old certificate has ended, so 0 means MaxTTL. It may be as short as
	// the longest time in which all agents renew or read the bundle elsewhere.
	Settle time.Duration
	// Overlap is how long the old root stays in the bundle after that; 0 means
	// MaxTTL and an hour, so that all certificates below it have ended.
	Overlap time.Duration
	// Clock returns the time; nil means time.Now.
	Clock func() time.Time
}

// WithDefaults returns cfg with its empty fields filled in, or all that is
// wrong with it.
func (cfg Config) WithDefaults() (Config, error) {
	cfg.MaxTTL = cmp.Or(cfg.MaxTTL, DefaultMaxTTL)
	cfg.TTL = cmp.Or(cfg.TTL, min(DefaultTTL, cfg.MaxTTL))
	cfg.RootTTL = cmp.Or(cfg.RootTTL, DefaultRootTTL)
	cfg.Settle = cmp.Or(cfg.Settle, cfg.MaxTTL)
	cfg.Overlap = cmp.Or(cfg.Overlap, cfg.MaxTTL+overlapMargin)
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	var faults []error
	if cfg.TrustDomain.IsZero() {
		faults = append(faults, errors.New("no trust domain"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"validity", cfg.TTL}, {"longest validity", cfg.MaxTTL}, {"settle time", cfg.Settle}, {"overlap", cfg.Overlap}} {
		if d.value < time.Second {
			faults = append(faults, fmt.Errorf("%s of %s is less than a second", d.name, d.value))
		}
	}
	if cfg.TTL > cfg.MaxTTL {
		faults = append(faults, fmt.Errorf("validity %s is more than the longest, %s", cfg.TTL, cfg.MaxTTL))
	}
	if least := 2 * cfg.rotationTime(); cfg.RootTTL < least {
		faults = append(faults, fmt.Errorf("a root's life of %s has no room for a rotation, it takes %s at least", cfg.RootTTL, least))
	}
	return cfg, errors.Join(faults...)
}

// rotationTime is from a new root's appearance to the end of the last leaf
// below the old one.
func (cfg Config) rotationTime() time.Duration { return cfg.Settle + cfg.MaxTTL }

// Authority issues certificates from one State. It is immutable.
type Authority struct {
	cfg    Config
	signer *Signer
	bundle *identity.Bundle
	tail   []string // what follows the leaf in an answer
}

// New makes the Authority of a State.
func New(st State, cfg Config) (*Authority, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	if st.Signer == nil || len(st.Roots) == 0 {
		return nil, errors.New("make authority: nothing to sign with")
	}
	a := &Authority{cfg: cfg, signer: st.Signer, bundle: identity.NewBundle(cfg.TrustDomain, st.Certificates())}
	for _, cert := range st.Signer.above {
		a.tail = append(a.tail, string(encode(cert)))
	}
	a.tail = append(a.tail, string(encode(a.bundle.Certificates()...)))
	return a, nil
}

// Bundle returns the roots that everybody is to trust now.
func (a *Authority) Bundle() *identity.Bundle { return a.bundle }

// BundlePEM returns the same as PEM text.
func (a *Authority) BundlePEM() []byte { return []byte(a.tail[len(a.tail)-1]) }

// NotAfter returns when the authority's own certificates end.
func (a *Authority) NotAfter() time.Time { return a.signer.NotAfter() }

// Issue signs the public key of a request for id, which the caller has found to
// be authorised, and answers as istiod does: the leaf, each intermediate as an
// element of its own, and as the last element the whole bundle of roots. A ttl
// of 0 means the default. Errors that are the sender's fault are *RequestError.
func (a *Authority) Issue(r *Request, id identity.ID, ttl time.Duration) ([]string, error) {
	switch {
	case ttl < 0:
		return nil, refuse("validity %s is negative", ttl)
	case ttl > a.cfg.MaxTTL:
		return nil, refuse("validity %s is more than the longest that is granted, %s", ttl, a.cfg.MaxTTL)
	case id.TrustDomain() != a.cfg.TrustDomain:
		return nil, refuse("%s is not of trust domain %s", id, a.cfg.TrustDomain)
	}
	leaf, err := a.signer.SignLeaf(r.public, id, cmp.Or(ttl, a.cfg.TTL), a.cfg.Clock())
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return append([]string{string(encode(leaf))}, a.tail...), nil
}

// ServerCertificate makes a certificate with a new P-256 key for a TLS server
// with DNS names, such as the controller itself, that those who trust the
// bundle can verify. It carries no identity of the mesh.
func (a *Authority) ServerCertificate(names []string, ttl time.Duration) (*tls.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("issue server certificate: no names")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	leaf, err := a.signer.sign(&x509.Certificate{
		DNSNames:    names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public(), ttl, a.cfg.Clock())
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, above := range a.signer.above {
		cert.Certificate = append(cert.Certificate, above.Raw)
	}
	return cert, nil
}
