package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test.
const patience = 60 * time.Second

const namespace = "culvert-system"

// cluster is an API server in memory, with an agent and an application on each of two nodes.
type cluster struct{ core *fake.Clientset }

func newCluster() *cluster {
	c := &cluster{core: fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		node("node-a", taintKeys[0], "other"), node("node-b", taintKeys[1]), node("node-c", taintKeys[0]),
		pod(namespace, "culvert-node-a", "culvert-node", "node-a", "10.0.0.1", true),
		pod(namespace, "culvert-node-b", "culvert-node", "node-b", "10.0.1.1", true),
		pod(namespace, "culvert-node-c", "culvert-node", "node-c", "10.0.2.1", false),
		pod("shop", "front", "front", "node-a", "10.0.0.2", true),
		pod("shop", "back", "back", "node-b", "10.0.1.2", true),
	)}
	c.core.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		var claims struct{ Account, Pod, UID string }
		if raw, err := base64.RawURLEncoding.DecodeString(strings.Split(review.Spec.Token, ".")[1]); err == nil && json.Unmarshal(raw, &claims) == nil && claims.Pod != "" {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: review.Spec.Audiences, User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:" + claims.Account,
				Extra: map[string]authenticationv1.ExtraValue{
					"authentication.kubernetes.io/pod-name": {claims.Pod}, "authentication.kubernetes.io/pod-uid": {claims.UID},
				},
			}}
		}
		return true, review, nil
	})
	return c
}

// token returns one that the API server accepts, in a file.
func token(t *testing.T, account, pod string) string {
	t.Helper()
	claims, err := json.Marshal(map[string]any{
		"aud": "istio-ca", "exp": time.Now().Add(time.Hour).Unix(), "account": account, "pod": pod, "uid": "uid-" + pod,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("e30."+base64.RawURLEncoding.EncodeToString(claims)+".x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func node(name string, taints ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, key := range taints {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

func pod(namespace, name, account, node, ip string, ready bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": account},
			Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"},
		},
		Spec:   corev1.PodSpec{NodeName: node, ServiceAccountName: account},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
	state := corev1.ConditionFalse
	if ready {
		state = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: state}}
	return p
}

// program is a controller under test.
type program struct {
	*controller
	roots string // PEM
	log   *workloadtest.Log
	stop  func()
}

func (p *program) address() string { return p.grpcAddress.String() }

// start runs a replica until the test ends.
func (c *cluster) start(t *testing.T, name string) *program {
	t.Helper()
	s, set, err := readSettings([]string{
		"--pod-name=" + name, "--grpc-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
		"--lease-duration=3s", "--server-names=extra.example",
	}, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	levels, err := admin.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	p := &program{log: new(workloadtest.Log)}
	p.controller, err = newController(s, set, clients{core: c.core, source: c.source()}, levels, slog.New(slog.NewTextHandler(p.log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.run(ctx); err != nil {
			t.Errorf("replica %s: %v\n%s", name, err, p.log)
		}
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(func() {
		p.stop()
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.log)
		}
	})
	eventually(t, "replica "+name+" is ready", func() bool { code, _ := p.get(t, "/readyz"); return code == http.StatusOK })
	eventually(t, "roots are published", func() bool {
		m, err := c.core.CoreV1().ConfigMaps(namespace).Get(t.Context(), kubeca.RootsName, metav1.GetOptions{})
		if err == nil {
			p.roots = m.Data[kubeca.RootsKey]
		}
		return p.roots != ""
	})
	return p
}

// source gives the Source a cluster without custom resources.
func (c *cluster) source() *kube.Clients {
	scheme := runtime.NewScheme()
	return &kube.Clients{Core: c.core, Dynamic: dynamicfake.NewSimpleDynamicClient(scheme), Metadata: metadatafake.NewSimpleMetadataClient(metadataScheme())}
}

func metadataScheme() *runtime.Scheme {
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		panic(err)
	}
	return scheme
}

// get asks the health port.
func (p *program) get(t *testing.T, path string) (int, string) {
	t.Helper()
	r, err := http.Get("http://" + p.healthAddress.String() + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// agent runs the client of a node agent, which says it is on the node.
func (p *program) agent(t *testing.T, pod, node string, seen *ends) *workload.Store {
	t.Helper()
	store := workload.New()
	client, err := xds.New(xds.Config{
		Address: p.address(), RootCA: p.roots, AltHostname: "culvert-controller.culvert-system.svc", TokenFile: token(t, namespace+":culvert-node", pod),
		Node: xds.Node{NodeName: node, PodName: pod, Namespace: namespace}, Store: store, Policies: policy.New(), Observer: seen,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = client.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return store
}

// ends counts how streams ended.
type ends struct {
	mu    sync.Mutex
	count int
}

func (e *ends) Terminated(string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count++
}

func (*ends) Message(string, int) {}

func (e *ends) any() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count > 0
}

// certificate asks for a certificate as the agent of that pod.
func (p *program) certificate(t *testing.T, account, pod, id string, hostname string) error {
	t.Helper()
	client, err := ca.New(ca.Config{
		Address: p.address(), RootCA: p.roots, AltHostname: hostname, TokenFile: token(t, account, pod), Impersonate: true, Timeout: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	got, err := client.Fetch(t.Context(), identity.MustParse(id))
	if err == nil && got.ID.String() != id {
		t.Errorf("certificate is for %s, want %s", got.ID, id)
	}
	return err
}

// TestWhole starts every component against a cluster in memory, and asks it as agents do.
func TestWhole(t *testing.T) {
	c := newCluster()
	p := c.start(t, "one")

	t.Run("discovery", func(t *testing.T) {
		store := p.agent(t, "culvert-node-a", "node-a", new(ends))
		eventually(t, "workloads arrive", func() bool { return store.Snapshot().WorkloadCount() == 5 })
		front := store.Snapshot().WorkloadByPod("shop", "front", "front", "node-a")
		if front == nil || front.Protocol != workload.HBONE {
			t.Errorf("workload is %+v", front)
		}
		if _, err := c.core.CoreV1().Pods("shop").Create(t.Context(), pod("shop", "late", "late", "node-b", "10.0.1.3", true), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a new workload arrives", func() bool { return store.Snapshot().WorkloadByPod("shop", "late", "late", "") != nil })
	})
	t.Run("agent-that-lies", func(t *testing.T) {
		seen := new(ends)
		store := p.agent(t, "culvert-node-a", "node-b", seen)
		eventually(t, "the stream is refused", seen.any)
		if n := store.Snapshot().WorkloadCount(); n != 0 {
			t.Errorf("%d workloads were told", n)
		}
		eventually(t, "the lie is logged", func() bool { return strings.Contains(p.log.String(), `NODE_NAME is \"node-a\", not \"node-b\"`) })
	})
	t.Run("other-account", func(t *testing.T) {
		seen := new(ends)
		client, err := xds.New(xds.Config{
			Address: p.address(), RootCA: p.roots, AltHostname: "culvert-controller", TokenFile: token(t, "shop:front", "front"),
			Store: workload.New(), Policies: policy.New(), Observer: seen,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = client.Run(ctx) })
		eventually(t, "the stream is refused", seen.any)
		cancel()
		wg.Wait()
		eventually(t, "why is logged", func() bool { return strings.Contains(p.log.String(), "shop/front is not the account of a node agent") })
	})
	t.Run("certificates", func(t *testing.T) { testCertificates(t, p) })
	t.Run("taints", func(t *testing.T) { testTaints(t, c) })
	t.Run("metrics", func(t *testing.T) {
		_, text := p.get(t, "/metrics")
		for _, want := range []string{
			`pilot_xds_pushes{type="wds"}`, `pilot_xds_pushes{type="wads"}`, "pilot_xds ", "pilot_services 0", "culvert_leader 1",
			"citadel_server_success_cert_issuance_count 2", `culvert_ca_requests_total{outcome="unauthorized"}`, `culvert_xds_refused_total{reason="claim"}`,
			"citadel_server_root_cert_expiry_timestamp", "culvert_taints_removed_total 2", "pilot_proxy_convergence_time_count", "process_open_fds",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("metrics lack %q", want)
			}
		}
	})
	if strings.Contains(p.log.String(), "e30.") {
		t.Error("a token is in the log")
	}
}

func testCertificates(t *testing.T, p *program) {
	const agent = namespace + ":culvert-node"
	for _, tt := range []struct {
		name, account, pod, id, hostname string
		want                             bool
	}{
		{"own-node", agent, "culvert-node-a", "spiffe://cluster.local/ns/shop/sa/front", "culvert-controller.culvert-system.svc", true},
		{"other-name", agent, "culvert-node-a", "spiffe://cluster.local/ns/shop/sa/front", "extra.example", true},
		{"other-node", agent, "culvert-node-a", "spiffe://cluster.local/ns/shop/sa/back", "culvert-controller.culvert-system.svc", false},
		{"no-such-pod", agent, "culvert-node-x", "spiffe://cluster.local/ns/shop/sa/front", "culvert-controller.culvert-system.svc", false},
		{"no-agent", "shop:front", "front", "spiffe://cluster.local/ns/shop/sa/back", "culvert-controller.culvert-system.svc", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := p.certificate(t, tt.account, tt.pod, tt.id, tt.hostname)
			if tt.want && err != nil {
				t.Errorf("certificate: %v", err)
			}
			if !tt.want && (err == nil || !strings.HasSuffix(err.Error(), "Unauthenticated: request authenticate failure")) {
				t.Errorf("certificate: %v, want a refusal that says nothing", err)
			}
		})
	}
}

func testTaints(t *testing.T, c *cluster) {
	left := func(node string) []corev1.Taint {
		n, err := c.core.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n.Spec.Taints
	}
	eventually(t, "node-a keeps only the other taint", func() bool { l := left("node-a"); return len(l) == 1 && l[0].Key == "other" })
	eventually(t, "node-b has no taint", func() bool { return len(left("node-b")) == 0 })
	if l := left("node-c"); len(l) != 1 {
		t.Errorf("node-c, whose agent is not ready, has taints %v", l)
	}
}

// TestReplicas: both serve, one leads, and the other takes over when it ends. The one that ends tells its clients.
func TestReplicas(t *testing.T) {
	c := newCluster()
	one, two := c.start(t, "one"), c.start(t, "two")
	if one.roots != two.roots {
		t.Fatal("replicas have different roots")
	}
	if !one.election.leading.Load() || two.election.leading.Load() {
		t.Error("not exactly the first leads")
	}
	for _, p := range []*program{one, two} {
		if err := p.certificate(t, namespace+":culvert-node", "culvert-node-b", "spiffe://cluster.local/ns/shop/sa/back", "culvert-controller"); err != nil {
			t.Errorf("certificate: %v", err)
		}
	}
	seen := new(ends)
	store := one.agent(t, "culvert-node-a", "node-a", seen)
	eventually(t, "workloads arrive", func() bool { return store.Snapshot().WorkloadCount() == 5 })
	one.stop()
	eventually(t, "the stream has ended", seen.any)
	eventually(t, "the other leads", two.election.leading.Load)
	if n := store.Snapshot().WorkloadCount(); n != 5 {
		t.Errorf("the agent knows %d workloads without its server, want 5", n)
	}
}
