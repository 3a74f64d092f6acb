package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/culvert-mesh/culvert/identity"
)

// crlSet is what one state of the file says. It is immutable but for the
// memory of signatures and chains checked.
type crlSet struct {
	byIssuer map[string][]*crl // key: raw DER of the issuer's name
	lists    int
	entries  int

	mu      sync.Mutex
	checked map[chainKey]*x509.Certificate // what trace returned
}

// chainKey stands for a peer's chain and the roots that it is traced to.
type chainKey struct {
	chain [sha256.Size]byte
	roots *identity.Bundle
}

// maxChecked bounds the memory of chains. A node has as many as its peers have
// certificates.
const maxChecked = 4096

// check is trace for a peer's chain. Live connections are many, and most of them
// have the chain of another one, for which signatures need not be verified again.
func (s *crlSet) check(chain []*x509.Certificate, roots *identity.Bundle) *x509.Certificate {
	key := chainKey{roots: roots}
	h := sha256.New()
	for _, cert := range chain {
		h.Write(cert.Raw) // DER says where it ends
	}
	h.Sum(key.chain[:0])
	s.mu.Lock()
	bad, known := s.checked[key]
	s.mu.Unlock()
	if known {
		return bad
	}
	bad = s.trace(chain[0], slices.Concat(roots.Certificates(), chain[1:]), roots)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checked == nil || len(s.checked) >= maxChecked {
		s.checked = make(map[chainKey]*x509.Certificate)
	}
	s.checked[key] = bad
	return bad
}

// crl is one revocation list.
type crl struct {
	list    *x509.RevocationList
	serials map[string]struct{} // big-endian serial numbers

	mu       sync.Mutex
	verified map[string]bool // by the issuer's raw public key
}

// parseCRLs reads the content of a revocation file: any number of PEM blocks,
// or one list in DER. Blank content is an empty set. Unlike in ztunnel,
// content that holds something else than lists is an error: it is more likely a
// wrong path than the wish to revoke nothing.
func parseCRLs(content []byte) (*crlSet, error) {
	set := &crlSet{byIssuer: make(map[string][]*crl)}
	if len(bytes.TrimSpace(content)) == 0 {
		return set, nil
	}
	if !bytes.Contains(content, []byte("-----BEGIN")) {
		return set, set.add(content)
	}
	blocks, err := identity.EachPEM(content, "X509 CRL", set.add)
	switch {
	case err != nil:
		return nil, err
	case blocks == 0:
		return nil, errors.New("no revocation list found")
	}
	return set, nil
}

// add takes one list in DER. It insists that nothing follows it, since
// ParseRevocationList ignores what does.
func (s *crlSet) add(der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("revocation list %d: %w", s.lists+1, err)
	}
	if len(list.Raw) != len(der) {
		return fmt.Errorf("revocation list %d: %d octets too many at its end", s.lists+1, len(der)-len(list.Raw))
	}
	c := &crl{
		list:     list,
		serials:  make(map[string]struct{}, len(list.RevokedCertificateEntries)),
		verified: make(map[string]bool),
	}
	for _, entry := range list.RevokedCertificateEntries {
		c.serials[string(entry.SerialNumber.Bytes())] = struct{}{}
	}
	s.lists++
	s.entries += len(c.serials)
	name := string(list.RawIssuer)
	s.byIssuer[name] = append(s.byIssuer[name], c)
	return nil
}

// revoked reports whether a list that issuer signed names cert. Lists of another
// key under the same name are not issuer's and are passed over.
func (s *crlSet) revoked(cert, issuer *x509.Certificate) bool {
	for _, c := range s.byIssuer[string(cert.RawIssuer)] {
		if _, ok := c.serials[string(cert.SerialNumber.Bytes())]; ok && c.signedBy(issuer) {
			return true
		}
	}
	return false
}

// signedBy checks the list's signature once per issuer key. The issuer's key
// usage is left aside on purpose: Istio's own root lacks the bit for signing
// revocation lists, and dropping an authentic list would let the revoked in.
func (c *crl) signedBy(issuer *x509.Certificate) bool {
	key := string(issuer.RawSubjectPublicKeyInfo)
	c.mu.Lock()
	ok, known := c.verified[key]
	c.mu.Unlock()
	if known {
		return ok
	}
	ok = issuer.CheckSignature(c.list.SignatureAlgorithm, c.list.RawTBSRevocationList, c.list.Signature) == nil
	c.mu.Lock()
	c.verified[key] = ok
	c.mu.Unlock()
	return ok
}
