package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/e2e/cluster/truth"
	"github.com/culvert-mesh/culvert/workload/netpol"
	source "github.com/culvert-mesh/culvert/workload/source/kube"
)

// world is three namespaces of three pods each, of either family of addresses, and three addresses outside.
func world(v6 bool, ports [2]int32) *truth.Round {
	w := &truth.Round{Ports: []int32{ports[0], ports[1], 9000}}
	addr := func(n, p int) netip.Addr {
		if v6 {
			return netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::%d", n, p+4))
		}
		return netip.MustParseAddr(fmt.Sprintf("10.4.%d.%d", n*8, p+4))
	}
	for n, name := range []string{"x", "y", "z"} {
		w.Namespaces = append(w.Namespaces, truth.Namespace{Name: name, Labels: map[string]string{truth.SpaceKey: name, "ns": name}})
		for p, pod := range []string{"a", "b", "c"} {
			named := map[string]int32{truth.MainPort: ports[0], truth.OtherPort: ports[1]}
			if (n+p)%3 == 2 { // the same names are not the same ports everywhere
				named = map[string]int32{truth.MainPort: ports[1], truth.OtherPort: 9000}
			}
			w.Pods = append(w.Pods, truth.Pod{
				Namespace: name, Name: pod, Address: addr(n, p), Named: named,
				Labels: map[string]string{truth.PodKey: pod, truth.TierKey: truth.Tiers()[(n+p)%2]},
			})
		}
	}
	for i := range 3 {
		w.Pods = append(w.Pods, truth.Pod{Name: fmt.Sprint(i), Address: addr(20+3*i, 100)})
	}
	return w
}

// uid is the workload's of a pod, as the source makes it.
func uid(p *truth.Pod) string {
	if p.Namespace == "" {
		return ""
	}
	return "Kubernetes//Pod/" + p.Namespace + "/" + p.Name
}

// culvert translates the round as the controller does.
func culvert(t *testing.T, r *truth.Round) *netpol.Snapshot {
	t.Helper()
	var objects []*unstructured.Unstructured
	add := func(o runtime.Object, kind, version string) {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{Object: m}
		u.SetKind(kind)
		u.SetAPIVersion(version)
		objects = append(objects, u)
	}
	for _, n := range r.Namespaces {
		all := map[string]string{corev1.LabelMetadataName: n.Name}
		for k, v := range n.Labels {
			all[k] = v
		}
		add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: all}}, "Namespace", "v1")
	}
	for i := range r.Pods {
		p := &r.Pods[i]
		if p.Namespace == "" {
			continue
		}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels},
			Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "app"}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.Address.String(), PodIPs: []corev1.PodIP{{IP: p.Address.String()}}},
		}
		for name, port := range p.Named {
			pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports, corev1.ContainerPort{Name: name, ContainerPort: port})
		}
		add(pod, "Pod", "v1")
	}
	for i := range r.Policies {
		add(&r.Policies[i], "NetworkPolicy", "networking.k8s.io/v1")
	}
	translated, err := source.Translate(source.Config{}, objects)
	if err != nil {
		t.Fatal(err)
	}
	return translated.NetworkPolicies.Snapshot()
}

// tally counts cases and what was decided in them.
type tally struct{ cases, mismatches, out, in int }

// compare asks both about every connection of the round.
func (c *tally) compare(t *testing.T, r *truth.Round) {
	t.Helper()
	snap := culvert(t, r)
	pods := make(map[string]*truth.Pod)
	for i := range r.Pods {
		pods[r.Pods[i].String()] = &r.Pods[i]
	}
	for _, v := range judge(r) {
		from, to := pods[v.From], pods[v.To]
		egress, ingress := true, true
		if from.Namespace != "" {
			egress = snap.Evaluate(netpol.Query{
				Direction: netpol.Egress, Subject: uid(from), Peer: uid(to), PeerAddr: to.Address, Port: uint16(v.Port),
			}).Allowed
		}
		if to.Namespace != "" {
			ingress = snap.Evaluate(netpol.Query{
				Direction: netpol.Ingress, Subject: uid(to), Peer: uid(from), PeerAddr: from.Address, Port: uint16(v.Port),
			}).Allowed
		}
		c.cases++
		if !v.Egress {
			c.out++
		}
		if !v.Ingress {
			c.in++
		}
		if egress != v.Egress || ingress != v.Ingress {
			c.mismatches++
			t.Errorf("%s to %s, port %d: out %t, in %t; the oracle says out %t, in %t; policies %+v", v.From, v.To, v.Port, egress, ingress, v.Egress, v.Ingress, r.Policies)
			if c.mismatches > 3 {
				t.FailNow()
			}
		}
	}
}

func (c *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("netpol: %d cases, %d mismatches (%d refused by the source's policies, %d by the destination's)", c.cases, c.mismatches, c.out, c.in)
	if c.cases < 1000 || c.out*20 < c.cases || c.in*20 < c.cases {
		t.Error("too few cases, or too much of one kind")
	}
}

// TestGenerated compares with the oracle on policies of our own generator.
func TestGenerated(t *testing.T) {
	var c tally
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 6))
		w := world(seed%4 == 3, [2]int32{8080, 8081})
		w.Policies = truth.Policies(rng, w, "p", 6)
		c.compare(t, w)
	}
	c.report(t)
}

// TestTheirs compares on the cases that cyclonus itself brings, which have been run against many implementations.
func TestTheirs(t *testing.T) {
	var c tally
	for _, allowDNS := range []bool{true, false} {
		for _, tc := range generator.NewTestCaseGenerator(allowDNS, "10.4.0.4", []string{"x", "y", "z"}, nil, nil).GenerateAllTestCases() {
			w := world(false, [2]int32{80, 81})
			for _, step := range tc.Steps {
				for _, action := range step.Actions {
					apply(w, action)
				}
				c.compare(t, w)
			}
		}
	}
	c.report(t)
}

// apply does what an action of a case says. What it does to pods and namespaces beyond their labels is left out.
func apply(w *truth.Round, a *generator.Action) {
	remove := func(namespace, name string) {
		var rest []networkingv1.NetworkPolicy
		for _, p := range w.Policies {
			if p.Namespace != namespace || p.Name != name {
				rest = append(rest, p)
			}
		}
		w.Policies = rest
	}
	switch {
	case a.CreatePolicy != nil:
		w.Policies = append(w.Policies, *a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		remove(a.UpdatePolicy.Policy.Namespace, a.UpdatePolicy.Policy.Name)
		w.Policies = append(w.Policies, *a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		remove(a.DeletePolicy.Namespace, a.DeletePolicy.Name)
	case a.SetNamespaceLabels != nil:
		for i := range w.Namespaces {
			if w.Namespaces[i].Name == a.SetNamespaceLabels.Namespace {
				w.Namespaces[i].Labels = a.SetNamespaceLabels.Labels
			}
		}
	case a.SetPodLabels != nil:
		for i := range w.Pods {
			if w.Pods[i].Namespace == a.SetPodLabels.Namespace && w.Pods[i].Name == a.SetPodLabels.Pod {
				w.Pods[i].Labels = a.SetPodLabels.Labels
			}
		}
	}
}

// TestWhereTheOracleErrs holds the readings in which the oracle differs from the API, so that it is known if it changes.
func TestWhereTheOracleErrs(t *testing.T) {
	absent := map[string]string{"other": "x"}
	for _, tc := range []struct {
		name     string
		selector metav1.LabelSelector
		oracle   bool
	}{
		// "all resources with key equal to tier and values distinct from frontend and backend, and all resources with no
		// labels with the tier key" (Kubernetes, Labels and Selectors, on notin).
		{name: "notin-without-the-label", oracle: false, selector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"frontend", "backend"}},
		}}},
		// "A single {key,value} in the matchLabels map is equivalent to an element of matchExpressions, whose key field is
		// "key", the operator is "In", and the values array contains only "value"" (LabelSelector), and In needs the label.
		{name: "an-empty-value-without-the-label", oracle: true, selector: metav1.LabelSelector{MatchLabels: map[string]string{"tier": ""}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := kube.IsLabelsMatchLabelSelector(absent, tc.selector); got != tc.oracle {
				t.Errorf("the oracle now says %t", got)
			}
			api, err := metav1.LabelSelectorAsSelector(&tc.selector)
			if err != nil {
				t.Fatal(err)
			}
			w := world(false, [2]int32{80, 81})
			for i := range w.Pods {
				w.Pods[i].Labels = absent
			}
			w.Policies = []networkingv1.NetworkPolicy{{
				ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"},
				Spec:       networkingv1.NetworkPolicySpec{PodSelector: tc.selector},
			}}
			d := culvert(t, w).Evaluate(netpol.Query{Subject: uid(&w.Pods[0]), Peer: uid(&w.Pods[1]), PeerAddr: w.Pods[1].Address, Port: 80})
			if selected := !d.Allowed; selected != api.Matches(labels.Set(absent)) {
				t.Errorf("selected: %t, unlike Kubernetes itself", selected)
			}
		})
	}
}
