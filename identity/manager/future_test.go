package manager_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// The authority's clock is ten minutes ahead of all nodes' (which agree). With the two minutes by which it dates back, what it
// issues is not valid for eight minutes. A renewal must not put such a certificate in the place of one that is good for
// another hour: all peers refuse it.
func TestRenewalKeepsTheValidOneUntilTheNewOneIs(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		first := mustGet(t, m, idA)
		s.set(func(s *source) {
			s.issue = func(id identity.ID) *svid.SVID {
				theirs := time.Now().Add(10 * time.Minute)
				return s.ca.SVID(s.t, id.String(), identitytest.Validity(theirs.Add(-2*time.Minute), theirs.Add(life)))
			}
		})
		peer := s.ca.SVID(t, idB.String(), identitytest.Validity(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)))
		bad := 0
		for range 100 { // minutes, of which the first certificate is valid for 120
			time.Sleep(time.Minute)
			now := mustGet(t, m, idA)
			// What a peer does whose clock is right, and ours.
			_, err := now.Leaf().Verify(x509.VerifyOptions{
				Roots: peer.Bundle.Pool(), CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			})
			if err == nil {
				continue
			}
			if bad++; bad == 1 {
				t.Errorf("peers refuse us (%v) from %s on, though another certificate is at hand that is valid for %s more",
					err, time.Now().UTC().Format("15:04:05"), time.Until(first.NotAfter()).Round(time.Minute))
			}
		}
		if bad > 0 {
			t.Errorf("refused for %d minutes", bad)
		}
	})
}
