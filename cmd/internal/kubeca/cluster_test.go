package kubeca_test

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
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

// cluster is an API server with resource versions, which the plain fake has not.
type cluster struct {
	*fake.Clientset
	t testing.TB

	mu        sync.Mutex
	version   int
	fail      map[string]error // by verb and resource, "update configmaps"
	conflicts map[string]int   // conflicts to come
	calls     map[string]int
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{
		Clientset: fake.NewClientset(), t: t,
		fail: make(map[string]error), calls: make(map[string]int), conflicts: make(map[string]int),
	}
	c.PrependReactor("*", "*", c.react)
	return c
}

// react runs under the lock of the fake, so reading and writing are one.
func (c *cluster) react(action k8stesting.Action) (bool, runtime.Object, error) {
	key := action.GetVerb() + " " + action.GetResource().Resource
	c.mu.Lock()
	c.calls[key]++
	err := c.fail[key]
	c.version++
	version := strconv.Itoa(c.version)
	if c.conflicts[key] > 0 {
		c.conflicts[key]--
		err = apierrors.NewConflict(action.GetResource().GroupResource(), "disturbed", nil)
	}
	c.mu.Unlock()
	if err != nil {
		return true, nil, err
	}
	writing, ok := action.(k8stesting.CreateAction) // an update has the same methods
	if !ok {
		return false, nil, nil
	}
	object := writing.GetObject()
	changed, err := meta.Accessor(object)
	if err != nil || changed.GetName() == "" {
		return false, nil, nil // a review, not an object
	}
	if action.GetVerb() == "update" {
		if old, err := c.Tracker().Get(action.GetResource(), action.GetNamespace(), changed.GetName()); err == nil {
			stored, err := meta.Accessor(old)
			if err != nil {
				return true, nil, err
			}
			if stored.GetResourceVersion() != changed.GetResourceVersion() {
				return true, nil, apierrors.NewConflict(action.GetResource().GroupResource(), changed.GetName(), nil)
			}
		}
	}
	changed.SetResourceVersion(version)
	return false, nil, nil
}

// refuse makes a kind of request fail until it is called with nil.
func (c *cluster) refuse(verbAndResource string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail[verbAndResource] = err
}

// disturb makes the next requests of a kind meet a conflict.
func (c *cluster) disturb(verbAndResource string, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conflicts[verbAndResource] = times
}

func (c *cluster) count(verbAndResource string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[verbAndResource]
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
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
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

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
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
