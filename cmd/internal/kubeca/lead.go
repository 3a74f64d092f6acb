package kubeca

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// attempts is how often a change is tried that others come in the way of.
const attempts = 5

// advance is one round of the leader. The bundle is published before anything
// builds upon it: while that fails, the rotation stands still.
func (c *CA) advance(ctx context.Context) error {
	for range attempts {
		secret, err := c.secret(ctx)
		if err != nil {
			return err
		}
		s, err := c.adopt(secret)
		if err != nil {
			return err
		}
		if err := c.publish(ctx, s); err != nil {
			return err
		}
		next, changed, trouble := c.change(ctx, secret, s.state)
		if !changed {
			return trouble
		}
		stored, err := c.store(ctx, secret, next)
		if errors.Is(err, errConflict) {
			continue
		}
		if err != nil {
			return errors.Join(trouble, err)
		}
		if s, err = c.adopt(stored); err != nil {
			return errors.Join(trouble, err)
		}
		return errors.Join(trouble, c.publish(ctx, s))
	}
	return errConflict
}

// change works out what becomes of the State now. A trouble with what users
// want does not hold up the rest.
func (c *CA) change(ctx context.Context, secret *corev1.Secret, st authority.State) (authority.State, bool, error) {
	cfg, now := c.cfg.Authority, c.cfg.Authority.Clock()
	brought, trouble := c.brought(ctx)
	st, changed := c.takeOver(st, brought, now)
	wanted, asked := st.Requested(secret.Annotations[RotateAnnotation])
	if asked {
		st, changed = wanted, true
		if st.Brought {
			c.logger.Warn("a new root is asked for, but the authority was brought: replace it in its Secret", "secret", BroughtName)
			asked = false
		}
	}
	st, p := authority.Advance(st, now, cfg)
	c.tell(st, p)
	if (p.Step == authority.MakeRoot || asked) && st.Next == nil {
		root, err := authority.NewRoot(cfg.TrustDomain, now, cfg.RootTTL)
		if err != nil {
			return st, changed || p.Changed, errors.Join(trouble, err)
		}
		st, changed = st.Introduce(root, false, now, cfg), true
		c.logger.Info("new root made, it signs when all know it", "after", cfg.Settle)
	}
	// What the user brings comes last: revoke does not know it from other lists of the same issuer.
	st, revoked, err := c.revoke(secret, st, now)
	st, carried, cerr := c.carry(st, brought)
	return st, changed || p.Changed || revoked || carried, errors.Join(trouble, err, cerr)
}

// takeOver introduces what the user brings if it is not what we have.
func (c *CA) takeOver(st authority.State, brought *broughtAuthority, now time.Time) (authority.State, bool) {
	if brought == nil || st.Brought && st.Same(brought.signer) {
		return st, false
	}
	c.logger.Info("authority brought by the user is taken over", "secret", BroughtName, "signer", brought.signer.Certificate().Subject.String())
	return st.Introduce(brought.signer, true, now, c.cfg.Authority), true
}

// tell logs the steps of the rotation.
func (c *CA) tell(st authority.State, p authority.Progress) {
	if p.Switched {
		c.logger.Info("new signer in use", "signer", st.Signer.Certificate().Subject.String(), "notAfter", st.Signer.NotAfter(), "roots", len(st.Roots))
	}
	if p.Dropped > 0 {
		c.logger.Info("old roots have left the bundle", "left", p.Dropped, "roots", len(st.Roots))
	}
}
