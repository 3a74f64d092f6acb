package kubeca

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// revoke makes revocation lists of the serial numbers in the Secret, for all
// signers of our own making. Whoever brings an authority brings its lists too.
func (c *CA) revoke(secret *corev1.Secret, st authority.State, now time.Time) (authority.State, bool, error) {
	serials, err := authority.ParseSerials(secret.Data[RevokedSerials])
	if err != nil {
		return st, false, fmt.Errorf("secret %s: %s: %w", SecretName, RevokedSerials, err)
	}
	if st.Revokes(serials) {
		return st, false, nil
	}
	st, err = st.Revoke(serials, now)
	if err != nil {
		return st, false, err
	}
	c.logger.Info("revocation lists made", "certificates", len(serials))
	return st, true, nil
}

// carry puts the lists that the user brings beside those made here.
func (c *CA) carry(st authority.State, brought *broughtAuthority) (authority.State, bool, error) {
	if brought == nil {
		return st, false, nil
	}
	carried, err := st.WithRevoked(brought.revoked)
	if err != nil {
		return st, false, fmt.Errorf("secret %s: %w", BroughtName, err)
	}
	return carried, string(carried.Revoked) != string(st.Revoked), nil
}
