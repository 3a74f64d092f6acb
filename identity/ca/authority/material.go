package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// The keys of a Secret with an authority, as Istio names them.
const (
	KeyCert  = "ca-cert.pem"    // the signing certificate
	KeyKey   = "ca-key.pem"     // its private key
	KeyChain = "cert-chain.pem" // what leads from it to a root
	KeyRoots = "root-cert.pem"  // one root or several
	KeyCRL   = "ca-crl.pem"     // revocation lists
)

const (
	// maxPEM bounds one entry of a Secret, which holds 1 MiB in all.
	maxPEM = 512 << 10
	// maxCertificates bounds what is tried against each other in one chain.
	maxCertificates = 64
	maxChain        = 10
)

// Material is an authority as PEM text.
type Material struct {
	Cert, Key, Chain, Roots []byte
}

// MaterialOf takes the entries of a Secret that make an authority.
func MaterialOf(data map[string][]byte) Material {
	return Material{Cert: data[KeyCert], Key: data[KeyKey], Chain: data[KeyChain], Roots: data[KeyRoots]}
}

// ParseSigner reads an authority of td that somebody brought: a root, or an
// intermediate whose chain leads to a root in Roots. Each error names the entry
// that is at fault and why. What passes can sign leaves that verify at now.
func ParseSigner(m Material, td identity.TrustDomain, now time.Time) (*Signer, error) {
	s, err := parseSigner(m, td)
	if err != nil {
		return nil, err
	}
	if err := checkTime(s.cert, now); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCert, err)
	}
	for _, cert := range s.above {
		if err := checkTime(cert, now); err != nil {
			return nil, fmt.Errorf("%s: %w", KeyChain, err)
		}
	}
	if err := s.checkAnchors(now); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyRoots, err)
	}
	if err := s.probe(td, now); err != nil {
		return nil, err
	}
	return s, nil
}

// checkAnchors wants one root at least that the chain leads to and that is
// valid.
func (s *Signer) checkAnchors(now time.Time) error {
	var faults error
	for _, root := range s.anchors() {
		err := checkTime(root, now)
		if err == nil {
			return nil
		}
		faults = errors.Join(faults, err)
	}
	return faults
}

// parseSigner does all of ParseSigner that does not depend on the time.
func parseSigner(m Material, td identity.TrustDomain) (*Signer, error) {
	certs, err := certificates(KeyCert, m.Cert)
	if err != nil {
		return nil, err
	}
	s := &Signer{cert: certs[0]}
	if err := checkSigning(s.cert); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCert, err)
	}
	if err := s.readKey(m.Key); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyKey, err)
	}
	if s.roots, err = certificates(KeyRoots, m.Roots); err != nil {
		return nil, err
	}
	for _, root := range s.roots {
		if err := checkSigning(root); err != nil {
			return nil, fmt.Errorf("%s: %w", KeyRoots, err)
		}
	}
	middle := certs[1:] // some people put the whole chain there
	if len(bytes.TrimSpace(m.Chain)) > 0 {
		chain, err := certificates(KeyChain, m.Chain)
		if err != nil {
			return nil, err
		}
		middle = append(middle, chain...)
	}
	if err := s.findPath(middle); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyChain, err)
	}
	return s, s.checkTrustDomain(td)
}

func (s *Signer) readKey(pemBytes []byte) error {
	if len(bytes.TrimSpace(pemBytes)) == 0 {
		return errors.New("missing or empty")
	}
	if len(pemBytes) > maxPEM {
		return fmt.Errorf("%d octets, limit is %d", len(pemBytes), maxPEM)
	}
	key, err := svid.ParsePrivateKey(pemBytes)
	if err != nil {
		return err
	}
	if err := checkSigningKey(key.Public()); err != nil {
		return err
	}
	if !belongs(key, s.cert) {
		return fmt.Errorf("the key does not belong to the certificate in %s", KeyCert)
	}
	s.key = key
	return nil
}

// checkSigningKey is checkPublicKey, but for one more curve that an authority
// may have.
func checkSigningKey(public any) error {
	if key, ok := public.(*ecdsa.PublicKey); ok && key.Curve == elliptic.P521() {
		return nil
	}
	return checkPublicKey(public)
}

// findPath fills in what leads from the signing certificate to one of the
// roots, in whatever order it was given.
func (s *Signer) findPath(middle []*x509.Certificate) error {
	if contains(s.roots, s.cert) {
		return nil
	}
	s.above = []*x509.Certificate{s.cert}
	for top := s.cert; len(s.anchors()) == 0; {
		next := -1
		for i, cert := range middle {
			if !contains(s.above, cert) && signedBy(top, cert) {
				next = i
				break
			}
		}
		if next < 0 {
			return fmt.Errorf("%q is issued by %q, which is neither here nor in %s with that key", top.Subject, top.Issuer, KeyRoots)
		}
		if len(s.above) == maxChain {
			return fmt.Errorf("more than %d certificates up to the root", maxChain)
		}
		top = middle[next]
		s.above = append(s.above, top)
	}
	return nil
}

// checkTrustDomain refuses certificates that name another trust domain. Most
// name none, and then nothing can be told.
func (s *Signer) checkTrustDomain(td identity.TrustDomain) error {
	check := func(key string, certs ...*x509.Certificate) error {
		for _, cert := range certs {
			if named := TrustDomainOf(cert); !named.IsZero() && named != td {
				return fmt.Errorf("%s: %q is of trust domain %s, the mesh is %s", key, cert.Subject, named, td)
			}
		}
		return nil
	}
	return errors.Join(check(KeyCert, s.cert), check(KeyChain, s.above...), check(KeyRoots, s.anchors()...))
}

// probe signs a certificate and verifies it as a peer would. That finds what
// single checks do not: length of the path, constraints of names and of usage,
// expired roots, weak signatures.
func (s *Signer) probe(td identity.TrustDomain, now time.Time) error {
	id, err := identity.New(td, "culvert-probe", "culvert-probe")
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf, err := s.SignLeaf(key.Public(), id, time.Hour, now)
	if err != nil {
		return fmt.Errorf("%s: cannot sign: %w", KeyKey, err)
	}
	for _, usage := range leaf.ExtKeyUsage {
		if err := s.verify(leaf, now, usage); err != nil {
			return fmt.Errorf("%s: peers would not accept what it signs: %w", KeyCert, err)
		}
	}
	return nil
}

func (s *Signer) verify(leaf *x509.Certificate, now time.Time, usage x509.ExtKeyUsage) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range s.roots {
		roots.AddCert(cert)
	}
	for _, cert := range s.above {
		intermediates.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

// Material returns the signer as PEM text, the private key included.
func (s *Signer) Material() (Material, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return Material{}, fmt.Errorf("encode signer: %w", err)
	}
	return Material{
		Cert:  encode(s.cert),
		Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		Chain: encode(s.above...),
		Roots: encode(s.roots...),
	}, nil
}

// certificates reads one entry of a Secret.
func certificates(key string, pemBytes []byte) ([]*x509.Certificate, error) {
	if len(bytes.TrimSpace(pemBytes)) == 0 {
		return nil, fmt.Errorf("%s: missing or empty", key)
	}
	if len(pemBytes) > maxPEM {
		return nil, fmt.Errorf("%s: %d octets, limit is %d", key, len(pemBytes), maxPEM)
	}
	certs, err := identity.ParseCertificates(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if len(certs) > maxCertificates {
		return nil, fmt.Errorf("%s: %d certificates, limit is %d", key, len(certs), maxCertificates)
	}
	return certs, nil
}

// encode returns certificates as PEM text.
func encode(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}
