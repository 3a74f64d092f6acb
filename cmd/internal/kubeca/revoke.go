package kubeca

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// revoke makes revocation lists of the serial numbers in the Secret. Whoever
// brings an authority brings its lists too.
func (c *CA) revoke(secret *corev1.Secret, st authority.State, now time.Time) (authority.State, bool, error) {
	raw, given := secret.Data[RevokedSerials]
	if st.Brought || !given && len(st.Revoked) == 0 {
		return st, false, nil
	}
	serials, err := authority.ParseSerials(raw)
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
