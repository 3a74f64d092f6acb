package kubeca_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/cmd/internal/kubetest"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// TestReplicasMakeOneRoot starts several controllers in an empty cluster at the
// same moment.
func TestReplicasMakeOneRoot(t *testing.T) {
	c := newCluster(t)
	var replicas []*kubeca.CA
	for range 5 {
		replicas = append(replicas, newCA(t, c, nil))
	}
	var tasks []func(context.Context) error
	for _, ca := range replicas {
		tasks = append(tasks, ca.Run, ca.Lead) // five leaders do no harm either
	}
	run(t, tasks...)
	for _, ca := range replicas {
		ready(t, ca)
	}
	stored, err := identity.ParseBundle(td, c.secret(kubeca.SecretName).Data[authority.KeyRoots])
	if err != nil || len(stored.Certificates()) != 1 {
		t.Fatalf("stored: %v", err)
	}
	for i, ca := range replicas {
		if !ca.Bundle().Equal(stored) {
			t.Errorf("replica %d has another root", i)
		}
	}
	eventually(t, "bundle published", func() bool {
		return c.published(kubeca.RootsName, kubeca.RootsKey) == string(c.secret(kubeca.SecretName).Data[authority.KeyRoots])
	})
	if n := c.Count("update secrets"); n != 0 {
		t.Errorf("%d updates of a secret that needs none", n)
	}
}

// TestFirstRound has everything work out at the first look: there is no second
// one in this test.
func TestFirstRound(t *testing.T) {
	c := newCluster(t)
	var tasks []func(context.Context) error
	var replicas []*kubeca.CA
	for range 5 {
		ca := newCA(t, c, func(cfg *kubeca.Config) { cfg.Interval = time.Hour })
		replicas, tasks = append(replicas, ca), append(tasks, ca.Run)
	}
	run(t, tasks...)
	for _, ca := range replicas {
		ready(t, ca)
	}
	c.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Annotations = map[string]string{kubeca.RotateAnnotation: "1"} })
	c.Fail("update secrets", 2, nil) // somebody else writes first, twice
	run(t, replicas[0].Lead)
	eventually(t, "new root", func() bool { return c.roots() == 2 })
	if st := replicas[0].Status(); !st.Rotating || st.Trouble != nil {
		t.Errorf("status %+v", st)
	}
}

func TestBroughtIsPreferred(t *testing.T) {
	c := newCluster(t)
	root := identitytest.NewCA(t, "td")
	c.bring(root.Intermediate(t))
	ca := newCA(t, c, nil)
	run(t, ca.Run)
	ready(t, ca)
	if st := ca.Status(); !ca.Bundle().Equal(root.Bundle()) || !st.Brought || st.Rotating || st.Trouble != nil {
		t.Errorf("status %+v", st)
	}
}

// TestBroughtIsBad has a user bring what cannot be used: nobody falls back to a
// root that he did not want.
func TestBroughtIsBad(t *testing.T) {
	c := newCluster(t)
	root := identitytest.NewCA(t, "td")
	c.bring(root)
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) {
		s.Data[authority.KeyKey] = identitytest.KeyPEM(t, identitytest.NewCA(t, "td").Key)
	})
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "secret cacerts: ca-key.pem: the key does not belong to the certificate in ca-cert.pem")
	})
	if _, err := ca.Issue(nil, web, 0); !errors.Is(err, kubeca.ErrNotReady) || ca.Bundle() != nil {
		t.Errorf("it signs: %v", err)
	}
	c.bring(root)
	ready(t, ca)
	eventually(t, "trouble over", func() bool { return ca.Status().Trouble == nil })
}

// TestBroughtLater replaces a root of our own, with an overlap, and shows that
// the user's mistakes afterwards change nothing.
func TestBroughtLater(t *testing.T) {
	c := newCluster(t)
	now := &clock{now: time.Now()}
	ca := newCA(t, c, func(cfg *kubeca.Config) {
		cfg.Authority = authority.Config{TrustDomain: td, MaxTTL: time.Hour, Settle: time.Hour, Overlap: 2 * time.Hour, Clock: now.Now}
	})
	run(t, ca.Run, ca.Lead)
	ready(t, ca)
	old := ca.Bundle().Certificates()[0]
	root := identitytest.NewCA(t, "td")
	c.bring(root.Intermediate(t))
	eventually(t, "both roots published", func() bool { return c.roots() == 2 })
	signs := func() *x509.Certificate {
		certs, err := identity.ParseCertificates(c.secret(kubeca.SecretName).Data[authority.KeyCert])
		if err != nil {
			t.Fatal(err)
		}
		return certs[0]
	}
	if !signs().Equal(old) || !ca.Status().Rotating {
		t.Error("the new one signs before anybody knows its root")
	}
	now.add(time.Hour)
	eventually(t, "switch", func() bool { return !signs().Equal(old) })
	if c.roots() != 2 {
		t.Errorf("%d roots published", c.roots())
	}
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyRoots] = []byte("oops") })
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "secret cacerts: root-cert.pem: no PEM certificate found")
	})
	now.add(2 * time.Hour)
	eventually(t, "old root gone", func() bool { return c.roots() == 1 }) // the rotation goes on
	if !ca.Bundle().Equal(root.Bundle()) {
		t.Error("another root is left")
	}
	if err := c.CoreV1().Secrets(namespace).Delete(t.Context(), kubeca.BroughtName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "trouble over", func() bool { return ca.Status().Trouble == nil })
	if !ca.Bundle().Equal(root.Bundle()) {
		t.Error("the user's authority went with its Secret")
	}
}

// TestRotateOnRequest follows the annotation, and stands still while the bundle
// cannot be published.
func TestRotateOnRequest(t *testing.T) {
	c := newCluster(t)
	now := &clock{now: time.Now()}
	ca := newCA(t, c, func(cfg *kubeca.Config) {
		cfg.Authority = authority.Config{TrustDomain: td, MaxTTL: time.Hour, Clock: now.Now}
	})
	run(t, ca.Run, ca.Lead)
	ready(t, ca)
	eventually(t, "bundle published", func() bool { return c.roots() == 1 })
	ask := func(wish string) {
		t.Helper()
		// The leader may write at the same time.
		eventually(t, "annotate", func() bool {
			secret := c.secret(kubeca.SecretName).DeepCopy()
			secret.Annotations = map[string]string{kubeca.RotateAnnotation: wish}
			_, err := c.CoreV1().Secrets(namespace).Update(t.Context(), secret, metav1.UpdateOptions{})
			return err == nil
		})
	}
	c.Fail("update configmaps", kubetest.Always, errors.New("quota exceeded"))
	ask("once")
	eventually(t, "new root", func() bool { return len(ca.Bundle().Certificates()) == 2 })
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "write configmap culvert-ca-root: quota exceeded")
	})
	now.add(2 * time.Hour)
	tried := c.Count("update configmaps")
	eventually(t, "a few rounds", func() bool { return c.Count("update configmaps") > tried+5 })
	if !ca.Status().Rotating || c.roots() != 1 {
		t.Error("it goes on though nobody knows the new root")
	}
	c.Fail("update configmaps", 0, nil)
	eventually(t, "switch", func() bool { return !ca.Status().Rotating })
	if c.roots() != 2 {
		t.Errorf("%d roots published", c.roots())
	}
	now.add(3 * time.Hour)
	eventually(t, "old root gone", func() bool { return c.roots() == 1 })
	updates := c.Count("update secrets")
	ask("once")
	rounds := c.Count("get secrets")
	eventually(t, "a few rounds", func() bool { return c.Count("get secrets") > rounds+10 })
	if ca.Status().Rotating || c.Count("update secrets") != updates+1 {
		t.Error("one wish is heeded twice")
	}
}

// TestSecretDeleted has somebody delete what all certificates depend on.
func TestSecretDeleted(t *testing.T) {
	c := newCluster(t)
	ca := newCA(t, c, nil)
	run(t, ca.Run)
	ready(t, ca)
	before := c.secret(kubeca.SecretName).Data
	if err := c.CoreV1().Secrets(namespace).Delete(t.Context(), kubeca.SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "restored", func() bool {
		got, err := c.CoreV1().Secrets(namespace).Get(t.Context(), kubeca.SecretName, metav1.GetOptions{})
		return err == nil && maps.EqualFunc(got.Data, before, bytes.Equal)
	})
}

// TestSecretDamaged has somebody edit it into something of no use: it is neither
// used nor overwritten.
func TestSecretDamaged(t *testing.T) {
	c := newCluster(t)
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	ready(t, ca)
	good := ca.Bundle()
	c.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Data[authority.KeyCert] = []byte("hello") })
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "secret culvert-system/culvert-ca: read authority: ca-cert.pem: no PEM certificate found")
	})
	if !ca.Bundle().Equal(good) || string(c.secret(kubeca.SecretName).Data[authority.KeyCert]) != "hello" {
		t.Error("it was used or overwritten")
	}
	late := newCA(t, c, nil)
	run(t, late.Run)
	eventually(t, "trouble of the newcomer", func() bool { return late.Status().Trouble != nil })
	select {
	case <-late.Ready():
		t.Error("a newcomer is ready with a damaged secret")
	default:
	}
}

// TestAPIServerAway keeps signing with what is known.
func TestAPIServerAway(t *testing.T) {
	c := newCluster(t)
	c.Fail("get secrets", kubetest.Always, errors.New("connection refused"))
	ca := newCA(t, c, nil)
	run(t, ca.Run)
	eventually(t, "trouble", func() bool { return ca.Status().Trouble != nil })
	c.Fail("get secrets", 0, nil)
	ready(t, ca)
	c.Fail("get secrets", kubetest.Always, errors.New("connection refused"))
	eventually(t, "trouble", func() bool { return ca.Status().Trouble != nil })
	if ca.Bundle() == nil {
		t.Error("what was known is forgotten")
	}
}

func TestRevokedSerials(t *testing.T) {
	c := newCluster(t)
	ca := newCA(t, c, nil)
	stop := run(t, ca.Run, ca.Lead)
	ready(t, ca)
	eventually(t, "bundle published", func() bool { return c.roots() == 1 })
	if list := c.published(kubeca.RevokedName, kubeca.RevokedKey); list != "" {
		t.Errorf("a list of nothing: %s", list)
	}
	c.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Data[kubeca.RevokedSerials] = []byte("BEEF # stolen\n") })
	eventually(t, "list published", func() bool { return strings.Contains(c.published(kubeca.RevokedName, kubeca.RevokedKey), "X509 CRL") })
	if got := c.secret(kubeca.SecretName).Data[kubeca.RevokedSerials]; string(got) != "BEEF # stolen\n" {
		t.Errorf("the entry became %q", got)
	}
	updates := c.Count("update secrets")
	rounds := c.Count("get secrets")
	eventually(t, "a few rounds", func() bool { return c.Count("get secrets") > rounds+10 })
	if n := c.Count("update secrets"); n != updates {
		t.Errorf("%d updates that nobody needs", n-updates)
	}
	stop()
	c.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Data[kubeca.RevokedSerials] = []byte("stolen") })
	run(t, ca.Lead)
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "secret culvert-ca: revoked-serials: line 1 is no serial number")
	})
}

// TestBroughtRevocations carries the user's lists.
func TestBroughtRevocations(t *testing.T) {
	c := newCluster(t)
	root := identitytest.NewCA(t, "td")
	c.bring(root)
	list := string(root.CRL(t))
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = []byte(list) })
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	eventually(t, "list published", func() bool { return c.published(kubeca.RevokedName, kubeca.RevokedKey) == list })
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = identitytest.NewCA(t, "td").CRL(t) })
	eventually(t, "trouble", func() bool {
		err := ca.Status().Trouble
		return err != nil && strings.Contains(err.Error(), "is signed by no certificate of this authority")
	})
	if c.published(kubeca.RevokedName, kubeca.RevokedKey) != list {
		t.Error("the good list was replaced by a stranger's")
	}
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { delete(s.Data, authority.KeyCRL) })
	eventually(t, "list removed", func() bool { return c.published(kubeca.RevokedName, kubeca.RevokedKey) == "" })
}

// TestTroubleOfFormerLeader: a replica that loses its lease while the API server is away tells of no trouble when all is well
// again and another one leads.
func TestTroubleOfFormerLeader(t *testing.T) {
	c := newCluster(t)
	ca, other := newCA(t, c, nil), newCA(t, c, nil)
	run(t, ca.Run, other.Run)
	ready(t, ca)
	lost := run(t, ca.Lead)
	c.Fail("get secrets", kubetest.Always, errors.New("connection refused"))
	eventually(t, "trouble", func() bool { return strings.Contains(fmt.Sprint(ca.Status().Trouble), "connection refused") })
	rounds := c.Count("get secrets")
	eventually(t, "a few rounds", func() bool { return c.Count("get secrets") > rounds+10 })
	lost()
	c.Fail("get secrets", 0, nil)
	run(t, other.Lead)
	rounds = c.Count("get secrets")
	eventually(t, "a few rounds", func() bool { return c.Count("get secrets") > rounds+20 })
	if err := other.Status().Trouble; err != nil {
		t.Errorf("the leader is in trouble: %v", err)
	}
	if err := ca.Status().Trouble; err != nil {
		t.Errorf("who led before is in trouble for ever: %v", err)
	}
}

func TestServing(t *testing.T) {
	c := newCluster(t)
	now := &clock{now: time.Now()}
	ca := newCA(t, c, func(cfg *kubeca.Config) { cfg.Authority.Clock = now.Now })
	get := ca.Serving([]string{"culvert-controller.culvert-system.svc"})
	if _, err := get(nil); !errors.Is(err, kubeca.ErrNotReady) {
		t.Errorf("before: %v", err)
	}
	run(t, ca.Run)
	ready(t, ca)
	serve := func() *tls.Certificate {
		t.Helper()
		cert, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Bundle().Pool(), DNSName: "culvert-controller.culvert-system.svc", CurrentTime: now.Now()}); err != nil {
			t.Error(err)
		}
		return cert
	}
	first := serve()
	if serve() != first {
		t.Error("made anew for each handshake")
	}
	now.add(13 * time.Hour)
	if serve() == first {
		t.Error("not renewed")
	}
	now.add(-30 * time.Minute) // the clock was ahead: what was made then is not valid yet
	serve()
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]kubeca.Config{
		"nothing":   {},
		"namespace": {Client: newCluster(t), Authority: authority.Config{TrustDomain: td}},
		"authority": {Client: newCluster(t), Namespace: namespace},
	} {
		if _, err := kubeca.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
