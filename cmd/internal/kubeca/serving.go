package kubeca

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// servingTTL is the life of the controller's own server certificate, which is
// never stored.
const servingTTL = 24 * time.Hour

// serving keeps one server certificate.
type serving struct {
	ca    *CA
	names []string

	mu   sync.Mutex
	cert *tls.Certificate
	by   *authority.Authority
}

func (s *serving) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	snap := s.ca.now.Load()
	if snap == nil {
		return nil, ErrNotReady
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.ca.cfg.Authority.Clock()
	if s.cert != nil && s.by == snap.authority {
		leaf := s.cert.Leaf
		// A clock that was set back has made it one of the future.
		if !now.Before(leaf.NotBefore) && now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)/2)) {
			return s.cert, nil
		}
	}
	cert, err := snap.authority.ServerCertificate(s.names, min(servingTTL, s.ca.cfg.Authority.MaxTTL))
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil
		}
		return nil, err
	}
	s.cert, s.by = cert, snap.authority
	return cert, nil
}
