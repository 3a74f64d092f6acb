package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// networkPolicy makes a NetworkPolicy of the namespace ns.
func networkPolicy(t testing.TB, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	u := custom(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s}, spec: %s}", name, spec)
	out := new(networkingv1.NetworkPolicy)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	return out
}

func clusterNetworkPolicy(t testing.TB, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := custom(t, "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: %s}, spec: %s}", name, spec)
	u.SetNamespace("")
	return u
}

func selecting(key, value string) *netpol.Selector {
	return &netpol.Selector{Requirements: []netpol.Requirement{{Key: key, Op: netpol.In, Values: []string{value}}}}
}

func TestTranslateNetworkPolicy(t *testing.T) {
	anything := netpol.Rule{AnyPeer: true, AnyPort: true}
	for _, tc := range []struct {
		name, spec string
		want       netpol.Policy
	}{
		{"isolate", `{podSelector: {}}`, netpol.Policy{Ingress: true}},
		{"egress-rules-without-types", `{podSelector: {}, egress: [{}]}`, netpol.Policy{Ingress: true, Egress: true, EgressRules: []netpol.Rule{anything}}},
		{"egress-only", `{podSelector: {}, policyTypes: [Egress]}`, netpol.Policy{Egress: true}},
		{"both", `{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}]}`, netpol.Policy{Ingress: true, Egress: true, IngressRules: []netpol.Rule{anything}}},
		{"empty-lists", `{podSelector: {}, ingress: [{from: [], ports: []}]}`, netpol.Policy{Ingress: true, IngressRules: []netpol.Rule{anything}}},
		{"selectors", `{podSelector: {matchLabels: {b: c, a: b}, matchExpressions: [{key: k, operator: NotIn, values: [x, w]}, {key: e, operator: Exists}, {key: d, operator: DoesNotExist}, {key: i, operator: In, values: [z]}]}}`,
			netpol.Policy{Ingress: true, Pods: netpol.Selector{Requirements: []netpol.Requirement{
				{Key: "a", Op: netpol.In, Values: []string{"b"}}, {Key: "b", Op: netpol.In, Values: []string{"c"}},
				{Key: "k", Op: netpol.NotIn, Values: []string{"x", "w"}}, {Key: "e", Op: netpol.Exists}, {Key: "d", Op: netpol.DoesNotExist}, {Key: "i", Op: netpol.In, Values: []string{"z"}},
			}}}},
		{"peers", `{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {a: b}}}, {namespaceSelector: {}, podSelector: {matchLabels: {c: d}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}`,
			netpol.Policy{Ingress: true, IngressRules: []netpol.Rule{{AnyPort: true, Peers: []netpol.Peer{
				{Pods: &netpol.Selector{}}, {Namespaces: selecting("a", "b")}, {Namespaces: &netpol.Selector{}, Pods: selecting("c", "d")},
				{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
			}}}}},
		{"ports", `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: http}, {port: 8000, endPort: 8999}, {port: 53, protocol: UDP}, {protocol: SCTP}, {port: 9, endPort: 9}]}]}`,
			netpol.Policy{Ingress: true, IngressRules: []netpol.Rule{{AnyPeer: true, Ports: []netpol.Port{
				{Port: 80}, {Name: "http"}, {Port: 8000, End: 8999}, {Protocol: netpol.UDP, Port: 53}, {Protocol: netpol.SCTP}, {Port: 9},
			}}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.Tier, tc.want.Namespace, tc.want.Name = netpol.Namespaced, "ns", tc.name
			o := translateNetworkPolicy(networkPolicy(t, tc.name, tc.spec))
			if d := diff(&tc.want, o.policy); d != "" {
				t.Error(d)
			}
			if o.fault() != "" {
				t.Errorf("fault: %s", o.fault())
			}
		})
	}
}

// allows asks about a connection to a pod a that the policy is about, from a pod b or an address.
func allows(p *netpol.Policy, d netpol.Direction, peer string, port uint16) bool {
	set := netpol.New()
	set.Apply([]netpol.Object{
		p, &netpol.Namespace{Name: "ns"}, &netpol.Pod{UID: "a", Namespace: "ns", Labels: netpol.Labels{{Key: "app", Value: "a"}}},
		&netpol.Pod{UID: "b", Namespace: "ns", Labels: netpol.Labels{{Key: "app", Value: "b"}}},
	}, nil)
	set.SetReady(true)
	return set.Snapshot().Evaluate(netpol.Query{Direction: d, Subject: "a", Peer: peer, PeerAddr: netip.MustParseAddr("10.0.0.9"), Port: port}).Allowed
}

// TestNetworkPolicyFaults: what cannot be understood allows nothing and is said; the other rules still hold.
func TestNetworkPolicyFaults(t *testing.T) {
	for name, tc := range map[string]struct{ spec, want string }{
		"policy-type":      {`{podSelector: {}, policyTypes: [Ingres], ingress: [{}]}`, `policyTypes: "Ingres"`},
		"subject-operator": {`{podSelector: {matchExpressions: [{key: app, operator: Like, values: [x]}]}, ingress: [{}]}`, "subject"},
		"peer-operator":    {`{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Like, values: [b]}]}}]}]}`, "ingress 0"},
		"no-values":        {`{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In}]}}]}]}`, "ingress 0"},
		"empty-peer":       {`{podSelector: {}, ingress: [{from: [{}]}]}`, "ingress 0"},
		"two-kinds":        {`{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]}`, "ingress 0"},
		"bad-block":        {`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}`, `"10.0.0.0" is no block`},
		"bad-except":       {`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}]}`, `except: "x"`},
		"bad-protocol":     {`{podSelector: {}, ingress: [{ports: [{protocol: ICMP, port: 80}]}]}`, `protocol "ICMP"`},
		"port-0":           {`{podSelector: {}, ingress: [{ports: [{port: 0}]}]}`, "port 0"},
		"port-large":       {`{podSelector: {}, ingress: [{ports: [{port: 65616}]}]}`, "port 65616"},
		"port-empty":       {`{podSelector: {}, ingress: [{ports: [{port: ""}]}]}`, "not empty"},
		"range-backwards":  {`{podSelector: {}, ingress: [{ports: [{port: 90, endPort: 80}]}]}`, "port 90 to 80"},
		"range-named":      {`{podSelector: {}, ingress: [{ports: [{port: http, endPort: 80}]}]}`, "range begins"},
		"end-alone":        {`{podSelector: {}, ingress: [{ports: [{endPort: 80}]}]}`, "endPort without port"},
	} {
		t.Run(name, func(t *testing.T) {
			o := translateNetworkPolicy(networkPolicy(t, "p", tc.spec))
			if !strings.Contains(o.fault(), tc.want) {
				t.Errorf("fault is %q, want %q in it", o.fault(), tc.want)
			}
			for _, peer := range []string{"b", ""} {
				if allows(o.policy, netpol.Ingress, peer, 80) {
					t.Errorf("a connection of %q is allowed: %+v", peer, o.policy)
				}
			}
		})
	}
	o := translateNetworkPolicy(networkPolicy(t, "p", `{podSelector: {}, ingress: [{ports: [{port: 0}]}, {ports: [{port: 80}]}]}`))
	if o.fault() == "" || !allows(o.policy, netpol.Ingress, "b", 80) || allows(o.policy, netpol.Ingress, "b", 81) {
		t.Errorf("a faulty rule spoils another: %+v", o.policy)
	}
}

func TestTranslateClusterNetworkPolicy(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		want       netpol.Policy
	}{
		{"admin", `{tier: Admin, priority: 5, subject: {namespaces: {matchLabels: {a: b}}}, ingress: [{name: x, action: Deny, from: [{namespaces: {}}]}]}`,
			netpol.Policy{Tier: netpol.Admin, Priority: 5, Namespaces: selecting("a", "b"), Ingress: true,
				IngressRules: []netpol.Rule{{Name: "x", Action: netpol.Deny, AnyPort: true, Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}}}}}}},
		{"baseline", `{tier: Baseline, priority: 0, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}},
			egress: [{action: Pass, to: [{pods: {namespaceSelector: {matchLabels: {c: d}}, podSelector: {}}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {destinationPort: {number: 7}}}, {destinationNamedPort: http}]},
			{action: Accept, to: [{networks: [10.0.0.0/8, "fd00::/8"]}]}, {action: Deny, to: [{nodes: {}}]}, {action: Accept, to: [{domainNames: ["*.example.com"]}]}]}`,
			netpol.Policy{Tier: netpol.Baseline, Namespaces: &netpol.Selector{}, Pods: *selecting("a", "b"), Egress: true, EgressRules: []netpol.Rule{
				{Action: netpol.Pass, Peers: []netpol.Peer{{Namespaces: selecting("c", "d"), Pods: &netpol.Selector{}}}, Ports: []netpol.Port{
					{Port: 80}, {Protocol: netpol.UDP, Port: 1, End: 9}, {Protocol: netpol.SCTP, Port: 7}, {Protocol: netpol.AnyProtocol, Name: "http"},
				}},
				{AnyPort: true, Peers: []netpol.Peer{{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}},
				{Action: netpol.Deny, AnyPort: true, Peers: []netpol.Peer{{Nodes: &netpol.Selector{}}}},
				{AnyPort: true, Peers: []netpol.Peer{{Domains: []string{"*.example.com"}}}},
			}}},
		{"no-rules", `{tier: Admin, priority: 1, subject: {namespaces: {}}}`, netpol.Policy{Tier: netpol.Admin, Priority: 1, Namespaces: &netpol.Selector{}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.Name = tc.name
			o := translateClusterNetworkPolicy(clusterNetworkPolicy(t, tc.name, tc.spec))
			if d := diff(&tc.want, o.policy); d != "" {
				t.Error(d)
			}
			if o.fault() != "" {
				t.Errorf("fault: %s", o.fault())
			}
		})
	}
}

// TestClusterNetworkPolicyFaults: a faulty rule that accepts is none, one that does not denies everything, and a fault
// outside of the rules denies everything.
func TestClusterNetworkPolicyFaults(t *testing.T) {
	const subject = `tier: Admin, priority: 1, subject: {namespaces: {}}, `
	for name, tc := range map[string]struct {
		spec    string
		allowed bool
	}{
		"unknown-field":        {subject + `selector: {}, ingress: [{action: Accept, from: [{namespaces: {}}]}]`, false},
		"unknown-tier":         {`tier: Middle, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]`, false},
		"no-subject":           {`tier: Admin, priority: 1, subject: {}, ingress: [{action: Accept, from: [{namespaces: {}}]}]`, false},
		"unknown-subject":      {`tier: Admin, priority: 1, subject: {machines: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]`, false},
		"two-subjects":         {`tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {x: z}}, pods: {namespaceSelector: {}, podSelector: {}}}`, false},
		"wrong-type":           {`tier: Admin, priority: high, subject: {namespaces: {}}`, false},
		"no-spec":              {``, false},
		"accept-unknown-peer":  {subject + `ingress: [{action: Accept, from: [{machines: {}}]}, {action: Deny, from: [{namespaces: {}}]}]`, false},
		"deny-unknown-peer":    {subject + `ingress: [{action: Deny, from: [{machines: {}}]}]`, false},
		"pass-unknown-peer":    {subject + `ingress: [{action: Pass, from: [{machines: {}}]}]`, false},
		"deny-no-peer":         {subject + `ingress: [{action: Deny, from: []}]`, false},
		"deny-other-peer":      {subject + `ingress: [{action: Deny, from: [{namespaces: {matchLabels: {x: z}}}]}]`, true},
		"unknown-action":       {subject + `ingress: [{action: Log, from: [{namespaces: {matchLabels: {x: z}}}]}]`, false},
		"no-action":            {subject + `ingress: [{from: [{namespaces: {matchLabels: {x: z}}}]}]`, false},
		"deny-unknown-port":    {subject + `ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{icmp: {}}]}]`, false},
		"deny-empty-port":      {subject + `ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{}]}]`, false},
		"deny-number-and-more": {subject + `ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 2, end: 3}}}}]}]`, false},
		"deny-other-port":      {subject + `ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}]`, true},
		"rule-no-mapping":      {subject + `ingress: [x]`, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := translateClusterNetworkPolicy(clusterNetworkPolicy(t, "p", "{"+tc.spec+"}"))
			if strings.HasPrefix(name, "deny-other") == (o.fault() != "") {
				t.Errorf("fault: %q", o.fault())
			}
			if got := allows(o.policy, netpol.Ingress, "b", 80); got != tc.allowed {
				t.Errorf("allowed: %v, want %v: %+v", got, tc.allowed, o.policy)
			}
		})
	}
}

func (w *world) networkNames() []string {
	var out []string
	for _, o := range w.networks.Snapshot().Objects() {
		out = append(out, o.Key().String())
	}
	return out
}

func (w *world) networkPod(name string) *netpol.Pod {
	o, _ := w.networks.Snapshot().Object(netpol.Key{Kind: netpol.KindPod, Name: "Kubernetes//Pod/ns/" + name}).(*netpol.Pod)
	return o
}

func TestNetworkObjects(t *testing.T) {
	w := newWorld(t)
	with := func(labels map[string]string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Labels = labels
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "admin", ContainerPort: 9000}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}
		}
	}
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	ended := func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }
	w.set(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{"zone": "a", "x": "y"}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "node1"}}}},
		pod("a", []string{"10.0.0.1"}, with(map[string]string{"app": "a", "hash": "1"})), pod("b", []string{"10.0.0.2"}, with(map[string]string{"app": "b"})),
		pod("host", []string{"192.0.2.1"}, host), pod("ended", []string{"10.0.0.4"}, ended), pod("starting", nil),
	)
	if got := w.networkNames(); len(got) > 0 {
		t.Fatalf("without a policy there is %v", got)
	}

	isolate := networkPolicy(t, "isolate", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`)
	w.set(isolate)
	want := []string{"netpol ns/isolate", "pod Kubernetes//Pod/ns/a", "pod Kubernetes//Pod/ns/b", "namespace ns", "namespace other", "namespace root"}
	if got := w.networkNames(); !slices.Equal(got, want) {
		t.Errorf("objects are %q, want %q", got, want)
	}
	if p := w.networkPod("a"); len(p.Labels) > 0 || len(p.Ports) != 1 || p.Ports[0] != (netpol.NamedPort{Name: "http", Port: 8080}) {
		t.Errorf("pod is %+v", p)
	}

	byLabel := networkPolicy(t, "by-label", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: x}}}]}]}`)
	w.set(byLabel, namespace("other", func(n *corev1.Namespace) { n.Labels = map[string]string{"team": "x", "more": "y"} }))
	if p := w.networkPod("a"); len(p.Labels) != 1 || p.Labels[0] != (netpol.Label{Key: "app", Value: "a"}) {
		t.Errorf("pod is %+v", p)
	}
	if n := w.networks.Snapshot().Object(netpol.Key{Kind: netpol.KindNamespace, Name: "other"}).(*netpol.Namespace); len(n.Labels) != 1 {
		t.Errorf("namespace is %+v", n)
	}
	before := w.networks.Snapshot().Version()
	w.set(pod("a", []string{"10.0.0.1"}, with(map[string]string{"app": "a", "hash": "2"})))
	if w.networks.Snapshot().Version() != before {
		t.Error("a label that no policy selects by is published")
	}
	w.set(pod("a", []string{"10.0.0.1"}, with(map[string]string{"app": "c"})))
	if p := w.networkPod("a"); p.Labels[0].Value != "c" {
		t.Errorf("pod is %+v", p)
	}

	w.set(clusterNetworkPolicy(t, "nodes", `{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {zone: a}}}]}]}`))
	node, _ := w.networks.Snapshot().Object(netpol.Key{Kind: netpol.KindNode, Name: "node1"}).(*netpol.Node)
	if node == nil || len(node.Labels) != 1 || len(node.Addresses) != 1 || node.Addresses[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("node is %+v", node)
	}

	w.drop(pod("b", nil), namespace("root"))
	if got := w.networkNames(); slices.Contains(got, "pod Kubernetes//Pod/ns/b") || slices.Contains(got, "namespace root") {
		t.Errorf("objects are %q", got)
	}
	w.drop(isolate, byLabel)
	w.drop(clusterNetworkPolicy(t, "nodes", `{}`))
	if got := w.networkNames(); len(got) > 0 {
		t.Errorf("without a policy there is %v", got)
	}
}

// TestNetworkFaultIsSaid: a policy that cannot be understood is published as one that allows nothing.
func TestNetworkFaultIsSaid(t *testing.T) {
	w := newWorld(t)
	w.set(networkPolicy(t, "p", `{podSelector: {}, policyTypes: [Odd]}`))
	if f := w.networks.Snapshot().Fault(netpol.Key{Kind: netpol.KindPolicy, Namespace: "ns", Name: "p"}); f == nil {
		t.Error("there is no fault")
	}
	if text := w.st.faults[ref{kindNetworkPolicy, key{"ns", "p"}}]; !strings.Contains(text, "Odd") {
		t.Errorf("the log says %q", text)
	}
}

// randomNetworkPolicy is like randomObject.
func randomNetworkPolicy(t *testing.T, r *rand.Rand) any {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	if r.IntN(3) == 0 {
		return clusterNetworkPolicy(t, pick("c1", "c2"), fmt.Sprintf(`{tier: Admin, priority: 1, subject: {namespaces: %s}, egress: [{action: Deny, to: [%s]}]}`,
			pick(`{}`, `{matchLabels: {team: a}}`), pick(`{namespaces: {}}`, `{nodes: {}}`, `{nodes: {matchLabels: {"topology.kubernetes.io/zone": z1}}}`, `{odd: 1}`)))
	}
	p := networkPolicy(t, pick("n1", "n2"), fmt.Sprintf(`{podSelector: %s, ingress: [{from: [%s], ports: [%s]}]}`,
		pick(`{}`, `{matchLabels: {app: web}}`, `{matchLabels: {tier: x}}`), pick(``, `{namespaceSelector: {matchLabels: {team: a}}}`), pick(``, `{port: http}`, `{port: other}`)))
	p.Namespace = pick("ns", "other")
	return p
}

// networkDifference compares what is published of network policies.
func networkDifference(a, b *world) string {
	objects := func(w *world) map[string]netpol.Object {
		out := make(map[string]netpol.Object)
		for _, o := range w.networks.Snapshot().Objects() {
			out[o.Key().String()] = o
		}
		return out
	}
	oa, ob := objects(a), objects(b)
	for _, name := range slices.Sorted(maps.Keys(oa)) {
		if d := diff(oa[name], ob[name]); d != "" {
			return name + ": " + d
		}
		delete(ob, name)
	}
	for name := range ob {
		return name + " is there besides"
	}
	return ""
}

// FuzzNetworkPolicy: any spec becomes a policy; one of a field that nobody knows allows nothing by it.
func FuzzNetworkPolicy(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `[]`, `{"podSelector":{}}`, `{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["x"]}}],"ports":[{"port":"http","endPort":9}]}]}`,
		`{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"ingress":[{"action":"Deny","from":[{"pods":{"podSelector":{}}}],"protocols":[{"tcp":{"destinationPort":{"number":80}}}]}]}`,
		`{"tier":"Baseline","subject":{"pods":{}},"egress":[{"action":"Accept","to":[{"networks":["0.0.0.0/0"]},{"domainNames":["*.a.b"]},{"nodes":{}},{}]}]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		var v any
		if json.Unmarshal([]byte(spec), &v) != nil {
			return
		}
		u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "p", "namespace": "ns"}, "spec": v}}
		typed := new(networkingv1.NetworkPolicy)
		if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, typed) == nil {
			o := translateNetworkPolicy(typed)
			if !o.policy.Ingress && !o.policy.Egress {
				t.Fatalf("%s governs nothing", spec)
			}
			o.fault()
		}
		u.SetNamespace("")
		o := translateClusterNetworkPolicy(u)
		if m, ok := v.(map[string]any); ok && m["ingress"] == nil && m["egress"] == nil && o.fault() == "" && (o.policy.Ingress || o.policy.Egress) {
			t.Fatalf("%s governs what it does not name", spec)
		}
		if o.policy.Namespaces == nil {
			t.Fatalf("%s has no subject", spec)
		}
	})
}
