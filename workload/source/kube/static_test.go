package kube

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/workload"
)

// loose gives objects the form in which files and dynamic clients have them.
func loose(t *testing.T, objects ...any) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, o := range objects {
		if u, ok := o.(*unstructured.Unstructured); ok {
			out = append(out, u)
			continue
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{Object: content}
		u.SetAPIVersion("v1")
		u.SetKind(reflect.TypeOf(o).Elem().Name())
		out = append(out, u)
	}
	return out
}

const (
	allowWeb = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: ns, name: allow},
		spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [other]}}]}, {to: [{operation: {ports: ["x"]}}]}]}}`
	peers = `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {namespace: %s, name: %s}, spec: %s}`
)

// Translate finds what a Source finds in a cluster with the same objects, whatever statuses those have.
func TestTranslate(t *testing.T) {
	objects := []any{
		namespace("ns"), namespace("other"), namespace("root"),
		pod("web", []string{"10.0.0.1"}, enrolled, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} }),
		service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} }),
		custom(t, peers, "root", "mesh", "{mtls: {mode: STRICT}}"),
		custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: ns, name: p},
			spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: ["22"]}}]}]},
			status: {conditions: [{type: ZtunnelAccepted, status: "True", reason: Accepted, message: "attached to ztunnel"}]}}`),
	}
	w := newWorld(t)
	w.set(objects...)
	got, err := Translate(Config{RootNamespace: "root"}, loose(t, objects...))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := got.Policies.Snapshot().Policies(), w.policies.Snapshot().Policies(); !reflect.DeepEqual(a, b) {
		t.Errorf("policies %+v, want %+v", a, b)
	}
	byUID := func(a, b *workload.Workload) int { return strings.Compare(a.UID, b.UID) }
	a, b := slices.SortedFunc(got.Store.Snapshot().Workloads(), byUID), slices.SortedFunc(w.store.Snapshot().Workloads(), byUID)
	if len(a) != 1 || !slices.EqualFunc(a, b, (*workload.Workload).Equal) {
		t.Errorf("workloads %+v, want %+v", a, b)
	}
	if got.Store.Snapshot().ServiceCount() != w.store.Snapshot().ServiceCount() {
		t.Error("services differ")
	}
	if len(got.Reports) != 1 || got.Reports[0].Want[0].Reason != reasonAccepted {
		t.Errorf("reports %+v: that of the policy is wanted although its status is right", got.Reports)
	}
	for _, tt := range []struct {
		namespace, app string
		want           bool
	}{{"ns", "web", true}, {"ns", "other", false}, {"other", "web", false}} {
		if got := got.Governs("ns", "p", tt.namespace, map[string]string{"app": tt.app}); got != tt.want {
			t.Errorf("governs %s in %s: %v", tt.app, tt.namespace, got)
		}
	}
}

func TestTranslateRefuses(t *testing.T) {
	if _, err := Translate(Config{TrustDomain: "no domain"}, nil); err == nil {
		t.Error("took a trust domain that is none")
	}
	bad := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p"}, "spec": "none"}}
	if _, err := Translate(Config{}, []*unstructured.Unstructured{bad}); err == nil || !strings.Contains(err.Error(), "Pod /p") {
		t.Errorf("took a pod that is none: %v", err)
	}
	other := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Pod", "spec": "none"}}
	if _, err := Translate(Config{}, []*unstructured.Unstructured{other, {Object: map[string]any{}}}); err != nil {
		t.Errorf("kinds that are not watched: %v", err)
	}
}

// Rules keep the place that they have in the object, also when the translated policy lacks some.
func TestTranslationRules(t *testing.T) {
	tr, err := Translate(Config{RootNamespace: "root"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rules := tr.Rules(custom(t, allowWeb))
	if len(rules) != 3 {
		t.Fatalf("%d rules", len(rules))
	}
	if !rules[0].Never || !strings.Contains(rules[0].Note, "methods") {
		t.Errorf("with HTTP conditions: %+v", rules[0])
	}
	if rules[1].Never || rules[1].Fault != "" || len(rules[1].Clauses) != 1 {
		t.Errorf("sound: %+v", rules[1])
	}
	if rules[2].Fault == "" {
		t.Errorf("with an unreadable port: %+v", rules[2])
	}
	// What is said of a rule does not count it among others.
	const spec = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: ns, name: p}, spec: {rules: [{}, {to: [{operation: {ports: [http]}}]}, {from: [{source: {principals: []}}]}]}}`
	if got := tr.Rules(custom(t, spec)); got[1].Fault != `ports: "http" is no port` || got[2].Fault != "" || got[2].Note != "" || !slices.Equal(got[2].Vacant, []string{"from 0: principals"}) {
		t.Errorf("got %+v", got)
	}
	if got := tr.Rules(custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: ns, name: p}}`)); got != nil {
		t.Errorf("without a spec: %+v", got)
	}
}

func TestTranslationPeerMode(t *testing.T) {
	for _, tt := range []struct {
		name    string
		objects []any
		want    PeerMode
	}{
		{"none", nil, PeerMode{Mode: "PERMISSIVE"}},
		{"mesh", []any{custom(t, peers, "root", "m", "{mtls: {mode: STRICT}}")}, PeerMode{Mode: "STRICT", From: "root/m"}},
		{
			"namespace", []any{custom(t, peers, "root", "m", "{mtls: {mode: STRICT}}"), custom(t, peers, "ns", "here", "{mtls: {mode: DISABLE}}")},
			PeerMode{Mode: "DISABLE", From: "ns/here"},
		},
		{
			"unset-inherits", []any{custom(t, peers, "root", "m", "{mtls: {mode: STRICT}}"), custom(t, peers, "ns", "here", "{mtls: {mode: UNSET}}")},
			PeerMode{Mode: "STRICT", From: "root/m"},
		},
		{
			"port", []any{
				custom(t, peers, "ns", "here", "{mtls: {mode: STRICT}}"),
				custom(t, peers, "ns", "w", `{selector: {matchLabels: {app: web}}, portLevelMtls: {"8080": {mode: PERMISSIVE}, "9090": {mode: STRICT}}}`),
			},
			PeerMode{Mode: "STRICT", From: "ns/here", Ports: map[uint16]string{8080: "PERMISSIVE"}, PortsFrom: "ns/w"},
		},
		{"other-pods", []any{custom(t, peers, "ns", "w", `{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}`)}, PeerMode{Mode: "PERMISSIVE"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, err := Translate(Config{RootNamespace: "root"}, loose(t, append(tt.objects, namespace("ns"), namespace("root"))...))
			if err != nil {
				t.Fatal(err)
			}
			if got := tr.PeerMode("ns", map[string]string{"app": "web"}); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
