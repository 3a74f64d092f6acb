package kubeca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// labels are on everything that is made here.
func labels() map[string]string {
	return map[string]string{"app.kubernetes.io/managed-by": "culvert-controller", "app.kubernetes.io/part-of": "culvert"}
}

// follow reads the Secret, makes it if there is none, and signs with it from
// then on.
func (c *CA) follow(ctx context.Context) error {
	secret, err := c.secret(ctx)
	if err != nil {
		return err
	}
	_, err = c.adopt(secret)
	return err
}

// adopt understands a version of the Secret and puts it in use.
func (c *CA) adopt(secret *corev1.Secret) (*snapshot, error) {
	old := c.now.Load()
	if old != nil && old.version == secret.ResourceVersion {
		return old, nil
	}
	state, err := authority.Decode(secret.Data, c.cfg.Authority.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", c.cfg.Namespace, SecretName, err)
	}
	a, err := authority.New(state, c.cfg.Authority)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", c.cfg.Namespace, SecretName, err)
	}
	s := &snapshot{state: state, authority: a, version: secret.ResourceVersion, serials: secret.Data[RevokedSerials]}
	// Run and Lead may both be here; that one of them puts an older version in
	// place again is mended by the next look.
	c.now.Store(s)
	c.once.Do(func() { close(c.ready) })
	return s, nil
}

// secret returns the Secret, which is made if there is none. When another
// replica was faster, that one's counts.
func (c *CA) secret(ctx context.Context) (*corev1.Secret, error) {
	secrets := c.cfg.Client.CoreV1().Secrets(c.cfg.Namespace)
	got, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err == nil {
		return got, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read secret %s: %w", SecretName, err)
	}
	state, origin, err := c.first(ctx)
	if err != nil {
		return nil, fmt.Errorf("create secret %s: %w", SecretName, err)
	}
	data, err := state.Encode()
	if err != nil {
		return nil, fmt.Errorf("create secret %s: %w", SecretName, err)
	}
	if s := c.now.Load(); s != nil && s.serials != nil {
		data[RevokedSerials] = s.serials // what was revoked stays so
	}
	made, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: SecretName, Namespace: c.cfg.Namespace, Labels: labels()},
		Type:       corev1.SecretTypeOpaque,
		Data:       data,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		got, err = secrets.Get(ctx, SecretName, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read secret %s: %w", SecretName, err)
		}
		return got, nil
	}
	if err != nil {
		return nil, fmt.Errorf("create secret %s: %w", SecretName, err)
	}
	c.logger.Info("certificate authority created", "secret", SecretName, "origin", origin, "notAfter", state.Signer.NotAfter())
	return made, nil
}

// first is what the Secret begins with: what we sign with already (then somebody
// has deleted the Secret, and all certificates depend on what was in it), what
// the user brings, or a root of our own. An authority that is brought but of no
// use is an error, and never a reason to make one that nobody wanted.
func (c *CA) first(ctx context.Context) (authority.State, string, error) {
	if s := c.now.Load(); s != nil {
		return s.state, "memory", nil
	}
	brought, err := c.brought(ctx)
	if err != nil {
		return authority.State{}, "", err
	}
	if brought != nil {
		st := authority.NewState(brought.signer, true)
		st, err = st.WithRevoked(brought.revoked)
		return st, BroughtName, err
	}
	root, err := authority.NewRoot(c.cfg.Authority.TrustDomain, c.cfg.Authority.Clock(), c.cfg.Authority.RootTTL)
	if err != nil {
		return authority.State{}, "", err
	}
	return authority.NewState(root, false), "new root", nil
}

// broughtAuthority is what the user's Secret holds.
type broughtAuthority struct {
	signer  *authority.Signer
	revoked []byte
}

// brought reads the user's Secret; nil if there is none.
func (c *CA) brought(ctx context.Context) (*broughtAuthority, error) {
	secret, err := c.cfg.Client.CoreV1().Secrets(c.cfg.Namespace).Get(ctx, BroughtName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", BroughtName, err)
	}
	signer, err := authority.ParseSigner(authority.MaterialOf(secret.Data), c.cfg.Authority.TrustDomain, c.cfg.Authority.Clock())
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", BroughtName, err)
	}
	return &broughtAuthority{signer: signer, revoked: secret.Data[authority.KeyCRL]}, nil
}

// errConflict says that the Secret was changed by somebody else meanwhile.
var errConflict = errors.New("the secret was changed by somebody else, trying again")

// store writes a State over the version that it was made of. Entries that are
// none of ours stay.
func (c *CA) store(ctx context.Context, secret *corev1.Secret, st authority.State) (*corev1.Secret, error) {
	data, err := st.Encode()
	if err != nil {
		return nil, err
	}
	changed := secret.DeepCopy()
	maps.DeleteFunc(changed.Data, func(key string, _ []byte) bool { return authority.IsKey(key) })
	if changed.Data == nil {
		changed.Data = make(map[string][]byte, len(data))
	}
	maps.Copy(changed.Data, data)
	stored, err := c.cfg.Client.CoreV1().Secrets(c.cfg.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return nil, errConflict
	}
	if err != nil {
		return nil, fmt.Errorf("update secret %s: %w", SecretName, err)
	}
	return stored, nil
}

// publish makes the ConfigMaps say what the snapshot says.
func (c *CA) publish(ctx context.Context, s *snapshot) error {
	return errors.Join(
		c.configMap(ctx, RootsName, RootsKey, s.authority.BundlePEM()),
		c.configMap(ctx, RevokedName, RevokedKey, s.state.Revoked),
	)
}

// configMap writes one entry unless it is as it should be.
func (c *CA) configMap(ctx context.Context, name, key string, content []byte) error {
	objects := c.cfg.Client.CoreV1().ConfigMaps(c.cfg.Namespace)
	got, err := objects.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = objects.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.cfg.Namespace, Labels: labels()},
			Data:       map[string]string{key: string(content)},
		}, metav1.CreateOptions{})
	case err != nil:
	default:
		if have, ok := got.Data[key]; ok && bytes.Equal([]byte(have), content) {
			return nil
		}
		changed := got.DeepCopy()
		if changed.Data == nil {
			changed.Data = make(map[string]string, 1)
		}
		changed.Data[key] = string(content)
		_, err = objects.Update(ctx, changed, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write configmap %s: %w", name, err)
	}
	return nil
}
