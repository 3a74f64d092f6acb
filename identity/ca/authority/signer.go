package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

const (
	// DefaultRootTTL is the life of a root that NewRoot makes, as istiod's.
	DefaultRootTTL = 10 * 365 * 24 * time.Hour

	// backdate is how far a leaf begins before now, for peers whose clocks are
	// behind; it is istiod's.
	backdate = 2 * time.Minute

	// rootBackdate is the same for a root, which has a life long enough to be
	// generous to nodes whose clocks have not been set yet.
	rootBackdate = time.Hour

	minRSABits = 2048
	maxRSABits = 8192 // more takes longer to check than a stranger may ask of us
)

// Signer is a certificate that signs, with its key, what stands between it and
// the roots, and the roots that verify it.
type Signer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	above []*x509.Certificate // presented after a leaf: the signing certificate first; empty if that is a root
	roots []*x509.Certificate
}

// NewRoot makes a self-signed root of td with a new P-256 key, valid from an
// hour before now. It signs leaves only.
func NewRoot(td identity.TrustDomain, now time.Time, ttl time.Duration) (*Signer, error) {
	if td.IsZero() {
		return nil, errors.New("make root: no trust domain")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{td.String()}, CommonName: "Culvert authority of " + td.String()},
		// X.509-SVID specification, section 4.2: a signing certificate names its
		// trust domain.
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: td.String()}},
		NotBefore:             now.Add(-rootBackdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := create(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return &Signer{cert: cert, key: key, roots: []*x509.Certificate{cert}}, nil
}

// NewSigner makes a Signer of a chain that begins with the signing certificate
// and ends with the root, which may be the same, and the key of the first. It
// checks that they belong together and may sign at now.
func NewSigner(chain []*x509.Certificate, key crypto.Signer, now time.Time) (*Signer, error) {
	if len(chain) == 0 {
		return nil, errors.New("make signer: no certificate")
	}
	if err := CheckChain(chain, now); err != nil {
		return nil, fmt.Errorf("make signer: %w", err)
	}
	if !belongs(key, chain[0]) {
		return nil, ErrOtherKey
	}
	last := len(chain) - 1
	return &Signer{cert: chain[0], key: key, above: slices.Clone(chain[:last]), roots: slices.Clone(chain[last:])}, nil
}

// ErrOtherKey says that a private key is not that of the certificate.
var ErrOtherKey = errors.New("make signer: the key does not belong to the certificate")

// Certificate returns the certificate that signs.
func (s *Signer) Certificate() *x509.Certificate { return s.cert }

// Above returns what a leaf is presented with: the certificates between it and
// the root, signing certificate first; none if that is a root.
func (s *Signer) Above() []*x509.Certificate { return slices.Clone(s.above) }

// Roots returns the roots that verify what s signs, and others that whoever
// brought the signer wants to be trusted beside them.
func (s *Signer) Roots() []*x509.Certificate { return slices.Clone(s.roots) }

// NotAfter returns the last moment at which something that s signs can be
// verified.
func (s *Signer) NotAfter() time.Time {
	end := s.cert.NotAfter
	for _, cert := range s.above {
		end = earlier(end, cert.NotAfter)
	}
	var root time.Time
	for _, cert := range s.anchors() {
		root = later(root, cert.NotAfter)
	}
	return earlier(end, root)
}

// anchors are those of the roots that the chain leads to.
func (s *Signer) anchors() []*x509.Certificate {
	top := s.cert
	if n := len(s.above); n > 0 {
		top = s.above[n-1]
	}
	var found []*x509.Certificate
	for _, root := range s.roots {
		if root.Equal(top) || signedBy(top, root) {
			found = append(found, root)
		}
	}
	return found
}

// SignLeaf issues a certificate for id and its public key, valid from a little
// before now for ttl, but not longer than what signs it.
func (s *Signer) SignLeaf(public crypto.PublicKey, id identity.ID, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	if id.IsZero() {
		return nil, errors.New("no identity")
	}
	// With an empty subject crypto/x509 makes the SAN critical, as RFC 5280
	// section 4.2.1.6 wants it.
	return s.sign(&x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, public, ttl, now)
}

// sign fills in what all leaves have in common.
func (s *Signer) sign(template *x509.Certificate, public crypto.PublicKey, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	end := s.NotAfter()
	if !now.Before(end) {
		return nil, fmt.Errorf("the authority expired at %s", end.UTC().Format(time.RFC3339))
	}
	template.NotBefore = later(now.Add(-min(backdate, ttl/10)), s.cert.NotBefore)
	template.NotAfter = earlier(now.Add(ttl), end)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := public.(*rsa.PublicKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	template.BasicConstraintsValid = true
	return create(template, s.cert, public, s.key)
}

// CheckChain checks that each certificate of a chain may sign at now and is
// signed by the one after it.
func CheckChain(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain {
		if err := checkSigning(cert); err != nil {
			return err
		}
		if err := checkTime(cert, now); err != nil {
			return err
		}
		if i+1 < len(chain) {
			if err := cert.CheckSignatureFrom(chain[i+1]); err != nil {
				return fmt.Errorf("%q is not signed by the next certificate, %q: %w", cert.Subject, chain[i+1].Subject, err)
			}
		}
	}
	return nil
}

func checkSigning(cert *x509.Certificate) error {
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("%q is not a CA certificate", cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%q may not sign certificates", cert.Subject)
	}
	return nil
}

func checkTime(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("%q expired at %s", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%q is not valid before %s", cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// TrustDomainOf returns the trust domain that a signing certificate names in a
// URI SAN, or the zero value when it names none.
func TrustDomainOf(cert *x509.Certificate) identity.TrustDomain {
	for _, uri := range cert.URIs {
		if uri.Scheme != "spiffe" {
			continue
		}
		if td, err := identity.ParseTrustDomain(uri.Host); err == nil {
			return td
		}
	}
	return identity.TrustDomain{}
}

// checkPublicKey accepts the keys that peers of the mesh can verify and that
// are worth verifying.
func checkPublicKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fmt.Errorf("an ECDSA key on %s is not accepted, only on P-256 and P-384", key.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("an RSA key of %d bits is not accepted, only of %d to %d", bits, minRSABits, maxRSABits)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("a key of type %T is not accepted", public)
	}
	return nil
}

// create makes a certificate of template with a random serial number.
func create(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
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

// belongs reports whether key is that of cert.
func belongs(key crypto.Signer, cert *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

func signedBy(cert, parent *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, parent.RawSubject) && cert.CheckSignatureFrom(parent) == nil
}

func contains(certs []*x509.Certificate, cert *x509.Certificate) bool {
	return slices.ContainsFunc(certs, cert.Equal)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
