package kubeca_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/cmd/internal/kubetest"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const namespace = "culvert-system"

var (
	td  = identity.MustTrustDomain("td")
	web = identity.MustParse("spiffe://td/ns/default/sa/web")
)

// cluster is an API server and what the tests do to it.
type cluster struct {
	*kubetest.Server
	t testing.TB
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	return &cluster{Server: kubetest.New(), t: t}
}

func (c *cluster) secret(name string) *corev1.Secret {
	c.t.Helper()
	got, err := c.CoreV1().Secrets(namespace).Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return got
}

// edit changes a Secret as a person with kubectl would.
func (c *cluster) edit(name string, change func(*corev1.Secret)) {
	c.t.Helper()
	secret := c.secret(name).DeepCopy()
	if secret.Data == nil {
		secret.Data = make(map[string][]byte)
	}
	change(secret)
	if _, err := c.CoreV1().Secrets(namespace).Update(c.t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// bring makes the user's Secret of a CA and its root.
func (c *cluster) bring(ca *identitytest.CA) {
	c.t.Helper()
	data := map[string][]byte{
		authority.KeyCert:  identitytest.CertificatesPEM(ca.Certificate),
		authority.KeyKey:   identitytest.KeyPEM(c.t, ca.Key),
		authority.KeyRoots: identitytest.CertificatesPEM(ca.Bundle().Certificates()...),
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: kubeca.BroughtName, Namespace: namespace}, Data: data}
	_, err := c.CoreV1().Secrets(namespace).Create(c.t.Context(), secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data = data })
		return
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// published returns one entry of a ConfigMap, or nothing.
func (c *cluster) published(name, key string) string {
	c.t.Helper()
	got, err := c.CoreV1().ConfigMaps(namespace).Get(c.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return got.Data[key]
}

func (c *cluster) roots() int {
	return strings.Count(c.published(kubeca.RootsName, kubeca.RootsKey), "BEGIN CERTIFICATE")
}

// clock is moved by hand, but not far: TLS has its own.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newCA(t testing.TB, c *cluster, change func(*kubeca.Config)) *kubeca.CA {
	t.Helper()
	cfg := kubeca.Config{
		Client: c, Namespace: namespace, Authority: authority.Config{TrustDomain: td}, Interval: 5 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&cfg)
	}
	ca, err := kubeca.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// run starts tasks and ends them with the test, or when stop is called.
func run(t testing.TB, tasks ...func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // outlives t.Context, which ends before cleanups
	var running sync.WaitGroup
	for _, task := range tasks {
		running.Go(func() {
			if err := task(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("%s: not within 30 s", what)
}

func ready(t testing.TB, ca *kubeca.CA) {
	t.Helper()
	select {
	case <-ca.Ready():
	case <-time.After(30 * time.Second):
		t.Fatalf("no authority: %v", ca.Status().Trouble)
	}
}
