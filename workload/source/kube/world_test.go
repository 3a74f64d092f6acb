package kube

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// world is a state with the Store and the Set that it writes into.
type world struct {
	t        testing.TB
	st       *state
	store    *workload.Store
	policies *policy.Set
	networks *netpol.Set
	reports  map[ref]Report
	last     batch
}

func defaults() settings {
	return settings{cluster: "Kubernetes", trustDomain: "cluster.local", domain: "cluster.local", root: "root"}
}

// newWorld returns a world with the namespaces ns, other and root.
func newWorld(t testing.TB, mods ...func(*settings)) *world {
	s := defaults()
	for _, mod := range mods {
		mod(&s)
	}
	w := &world{
		t: t, st: newState(s, slog.New(slog.DiscardHandler)), store: workload.New(), policies: policy.New(), networks: netpol.New(),
		reports: make(map[ref]Report),
	}
	w.set(namespace("ns"), namespace("other"), namespace("root"))
	return w
}

// trimAny trims any object as its watch would.
func (w *world) trimAny(o any) (kind, object) {
	w.t.Helper()
	switch o := o.(type) {
	case *corev1.Pod:
		return kindPod, trimPod(o)
	case *corev1.Service:
		return kindService, trimService(o)
	case *corev1.Node:
		return kindNode, trimNode(o)
	case *corev1.Namespace:
		return kindNamespace, trimNamespace(o)
	case *networkingv1.NetworkPolicy:
		return kindNetworkPolicy, translateNetworkPolicy(o)
	case *discoveryv1.EndpointSlice:
		return kindEndpointSlice, trimSlice(o)
	case *unstructured.Unstructured:
		switch o.GetKind() {
		case "ServiceEntry":
			return kindServiceEntry, trimServiceEntry(o)
		case "WorkloadEntry":
			return kindWorkloadEntry, trimWorkloadEntry(o)
		case "PeerAuthentication":
			return kindPeerAuthentication, trimPeerAuthentication(o)
		case "AuthorizationPolicy":
			return kindAuthorizationPolicy, translateAuthorization(o, &w.st.settings)
		case "Gateway":
			return kindGateway, trimGateway(o)
		case "ClusterNetworkPolicy":
			return kindClusterNetworkPolicy, translateClusterNetworkPolicy(o)
		case "GatewayClass":
			return kindGatewayClass, trimGatewayClass(o)
		}
	}
	w.t.Fatalf("unknown object %T", o)
	return 0, nil
}

// set gives objects to the state and applies what follows.
func (w *world) set(objects ...any) {
	w.t.Helper()
	for _, o := range objects {
		k, trimmed := w.trimAny(o)
		w.st.apply(change{ref: ref{k, trimmed.head().key}, object: trimmed})
	}
	w.flush()
}

// drop takes objects away.
func (w *world) drop(objects ...any) {
	w.t.Helper()
	for _, o := range objects {
		k, trimmed := w.trimAny(o)
		w.st.apply(change{ref: ref{k, trimmed.head().key}})
	}
	w.flush()
}

func (w *world) flush() {
	b := w.st.flush()
	w.networks.Apply(b.networks, b.networkRemovals)
	w.policies.Apply(b.policies, nil)
	w.store.Apply(b.events)
	w.policies.Apply(b.narrowed, b.removals)
	for r, report := range b.reports {
		if report == nil {
			delete(w.reports, r)
		} else {
			w.reports[r] = *report
		}
	}
	w.last = b
}

func (w *world) workload(uid string) *workload.Workload {
	w.t.Helper()
	got := w.store.Snapshot().Workload(uid)
	if got == nil {
		w.t.Fatalf("workload %s is not there", uid)
	}
	return got
}

func (w *world) pod(name string) *workload.Workload {
	w.t.Helper()
	return w.workload("Kubernetes//Pod/ns/" + name)
}

func (w *world) service(key string) *workload.Service {
	w.t.Helper()
	k, err := workload.ParseNamespacedHostname(key)
	if err != nil {
		w.t.Fatal(err)
	}
	got := w.store.Snapshot().Service(k)
	if got == nil {
		w.t.Fatalf("service %s is not there", key)
	}
	return got
}

// condition returns what an object's condition should be.
func (w *world) condition(k kind, name, conditionType string) Condition {
	for _, c := range w.reports[ref{k, key{"ns", name}}].Want {
		if c.Type == conditionType {
			return c
		}
	}
	return Condition{}
}

var epoch = time.Unix(1_700_000_000, 0)

func meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: ns, Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(epoch),
	}
}

func namespace(name string, mods ...func(*corev1.Namespace)) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, mod := range mods {
		mod(n)
	}
	return n
}

func pod(name string, ips []string, mods ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: meta("ns", name),
		Spec:       corev1.PodSpec{ServiceAccountName: "sa", NodeName: "node1", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	p.Labels = map[string]string{"app": "web"}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	for _, mod := range mods {
		mod(p)
	}
	return p
}

func enrolled(p *corev1.Pod) { p.Annotations = map[string]string{annotationRedirection: "enabled"} }

func service(name string, ips []string, mods ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: meta("ns", name),
		Spec: corev1.ServiceSpec{
			ClusterIPs: ips, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, mod := range mods {
		mod(s)
	}
	return s
}

// custom makes an object of a custom resource in the namespace ns from YAML.
func custom(t testing.TB, text string, args ...any) *unstructured.Unstructured {
	t.Helper()
	b, err := yaml.YAMLToJSON(fmt.Appendf(nil, text, args...))
	if err != nil {
		t.Fatal(err)
	}
	// As the API machinery reads numbers.
	u := new(unstructured.Unstructured)
	if err := u.UnmarshalJSON(b); err != nil {
		// Kind and version are filled in by kindOf.
		if err := json.Unmarshal(b, &u.Object); err != nil {
			t.Fatal(err)
		}
	}
	if u.GetNamespace() == "" && u.GetKind() != "GatewayClass" {
		u.SetNamespace("ns")
	}
	u.SetGeneration(1)
	if u.GetCreationTimestamp().Time.IsZero() {
		u.SetCreationTimestamp(metav1.NewTime(epoch))
	}
	u.SetUID(types.UID("uid-" + u.GetName()))
	return u
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
