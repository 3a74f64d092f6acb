package kube_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	corefake "k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come. It only passes when
// something is broken.
const patience = 60 * time.Second

var (
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	services    = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	namespaces  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	nodes       = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	slices      = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	entries     = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	policies    = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
)

// cluster is an API server made of client-go's fakes.
type cluster struct {
	t       testing.TB
	core    *corefake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	meta    *metadatafake.FakeMetadataClient

	mu      sync.Mutex
	watches map[schema.GroupVersionResource]int // opened so far
	refused map[schema.GroupVersionResource]error
	changed chan struct{}
}

func newCluster(t testing.TB) *cluster {
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, core: corefake.NewSimpleClientset(), meta: metadatafake.NewSimpleMetadataClient(scheme),
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			entries: "ServiceEntryList", policies: "AuthorizationPolicyList",
		}),
		watches: make(map[schema.GroupVersionResource]int), refused: make(map[schema.GroupVersionResource]error), changed: make(chan struct{}),
	}
	// The fakes have no resource versions: what is created between list and
	// watch would be lost. So tests wait until watches are open.
	c.core.PrependWatchReactor("*", c.watch(c.core.Tracker()))
	c.dynamic.PrependWatchReactor("*", c.watch(c.dynamic.Tracker()))
	c.meta.PrependWatchReactor("*", c.watch(c.meta.Tracker()))
	c.dynamic.PrependReactor("list", "*", c.list)
	for _, ns := range []string{"ns", "root"} {
		c.put(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	return c
}

func (c *cluster) watch(tracker clienttesting.ObjectTracker) clienttesting.WatchReactionFunc {
	return func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := tracker.Watch(action.GetResource(), action.GetNamespace())
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watches[action.GetResource()]++
		close(c.changed)
		c.changed = make(chan struct{})
		return true, w, err
	}
}

func (c *cluster) list(action clienttesting.Action) (bool, runtime.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.refused[action.GetResource()]
	return err != nil, nil, err
}

// refuse makes lists of a custom resource fail; nil lets them pass.
func (c *cluster) refuse(gvr schema.GroupVersionResource, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[gvr] = err
}

// watched waits until a watch of each resource is open.
func (c *cluster) watched(resources ...schema.GroupVersionResource) {
	c.t.Helper()
	deadline := time.After(patience)
	for _, gvr := range resources {
		for {
			c.mu.Lock()
			n, changed := c.watches[gvr], c.changed
			c.mu.Unlock()
			if n > 0 {
				break
			}
			select {
			case <-changed:
			case <-deadline:
				c.t.Fatalf("%s is not watched", gvr.Resource)
			}
		}
	}
}

func (c *cluster) tracker(gvr schema.GroupVersionResource) clienttesting.ObjectTracker {
	switch {
	case gvr == definitions:
		return c.meta.Tracker()
	case gvr.Group == "" || gvr.Group == "discovery.k8s.io":
		return c.core.Tracker()
	default:
		return c.dynamic.Tracker()
	}
}

// put creates or updates an object.
func (c *cluster) put(gvr schema.GroupVersionResource, o runtime.Object) {
	c.t.Helper()
	m := o.(metav1.Object)
	tracker := c.tracker(gvr)
	var err error
	if _, missing := tracker.Get(gvr, m.GetNamespace(), m.GetName()); missing != nil {
		err = tracker.Create(gvr, o, m.GetNamespace())
	} else {
		err = tracker.Update(gvr, o, m.GetNamespace())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) remove(gvr schema.GroupVersionResource, ns, name string) {
	c.t.Helper()
	if err := c.tracker(gvr).Delete(gvr, ns, name); err != nil {
		c.t.Fatal(err)
	}
}

// define makes a custom resource known.
func (c *cluster) define(gvr schema.GroupVersionResource) {
	c.put(definitions, &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: gvr.Resource + "." + gvr.Group},
	})
}

// running is a source that runs until the test ends.
type running struct {
	*kube.Source
	store    *workload.Store
	policies *policy.Set
}

func (c *cluster) run(cfg kube.Config) running {
	c.t.Helper()
	r := running{store: workload.New(), policies: policy.New()}
	cfg.Clients = &kube.Clients{Core: c.core, Dynamic: c.dynamic, Metadata: c.meta}
	cfg.Store, cfg.Policies = r.store, r.policies
	if cfg.RootNamespace == "" {
		cfg.RootNamespace = "root"
	}
	cfg.Quiet, cfg.Linger = time.Millisecond, 10*time.Millisecond
	var err error
	if r.Source, err = kube.New(cfg); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	return r
}

// ready waits until the source has synced and all watches are open.
func (c *cluster) ready(r running, more ...schema.GroupVersionResource) {
	c.t.Helper()
	select {
	case <-r.Synced():
	case <-time.After(patience):
		c.t.Fatal("the source does not sync")
	}
	c.watched(append([]schema.GroupVersionResource{pods, services, namespaces, nodes, slices, definitions}, more...)...)
}

// eventually waits until ok says so; it is asked after each change.
func (r running) eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func newPod(name, ip string, mods ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{ServiceAccountName: name, NodeName: "node1"},
		Status: corev1.PodStatus{
			PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, mod := range mods {
		mod(p)
	}
	return p
}

func object(apiVersion, kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": "ns", "name": name}, "spec": spec,
	}}
}
