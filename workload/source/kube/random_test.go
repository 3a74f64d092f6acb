package kube

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// TestChangesLeadWhereAFreshStartDoes: after any sequence of changes the Store
// and the Set hold what they would if the source had started just now. It is
// what guards the marks by which a change finds what refers to it.
func TestChangesLeadWhereAFreshStartDoes(t *testing.T) {
	steps := 1500
	if testing.Short() {
		steps = 300
	}
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("seed-", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, seed))
			w := newWorld(t)
			objects := make(map[ref]object)
			for _, o := range []any{namespace("ns"), namespace("other"), namespace("root")} {
				k, trimmed := w.trimAny(o)
				objects[ref{k, trimmed.head().key}] = trimmed
			}
			for step := range steps {
				for range 1 + r.IntN(3) { // a batch
					k, trimmed := w.trimAny(randomObject(t, r))
					name := ref{k, trimmed.head().key}
					if r.IntN(4) == 0 {
						delete(objects, name)
						w.st.apply(change{ref: name})
					} else {
						objects[name] = trimmed
						w.st.apply(change{ref: name, object: trimmed})
					}
				}
				w.flush()
				if step%5 != 0 {
					continue
				}
				fresh := newWorld(t)
				fresh.drop(namespace("ns"), namespace("other"), namespace("root"))
				for name, o := range objects {
					fresh.st.apply(change{ref: name, object: o})
				}
				fresh.flush()
				if d := worldDifference(fresh, w); d != "" {
					t.Fatalf("step %d (-fresh +changed): %s", step, d)
				}
			}
		})
	}
}

func worldDifference(a, b *world) string {
	workloads := func(w *world) map[string]*workload.Workload {
		out := make(map[string]*workload.Workload)
		for o := range w.store.Snapshot().Workloads() {
			out[o.UID] = o
		}
		return out
	}
	serviceMap := func(w *world) map[string]*workload.Service {
		out := make(map[string]*workload.Service)
		for o := range w.store.Snapshot().Services() {
			out[o.Key().String()] = o
		}
		return out
	}
	policies := func(w *world) []*policy.Policy { return w.policies.Snapshot().Policies() }
	wa, wb := workloads(a), workloads(b)
	if !maps.EqualFunc(wa, wb, (*workload.Workload).Equal) {
		return diff(wa, wb)
	}
	sa, sb := serviceMap(a), serviceMap(b)
	if !maps.EqualFunc(sa, sb, (*workload.Service).Equal) {
		return diff(sa, sb)
	}
	if d := diff(policies(a), policies(b)); d != "" {
		return d
	}
	if d := networkDifference(a, b); d != "" {
		return d
	}
	return diff(slices.Sorted(maps.Keys(reportTexts(a))), slices.Sorted(maps.Keys(reportTexts(b))))
}

func reportTexts(w *world) map[string]bool {
	out := make(map[string]bool)
	for r, report := range w.reports {
		out[fmt.Sprint(r, report.Want, report.Have)] = true
	}
	return out
}

// randomObject returns one of few objects in one of few states, so that they
// meet often.
func randomObject(t *testing.T, r *rand.Rand) any {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	ns := pick("ns", "ns", "other", "root")
	maybe := func(k string, values ...string) map[string]string {
		if v := pick(append(values, "")...); v != "" {
			return map[string]string{k: v}
		}
		return nil
	}
	labels := func(list ...map[string]string) map[string]string {
		out := make(map[string]string)
		for _, m := range list {
			maps.Copy(out, m)
		}
		return out
	}
	waypointLabel := func() map[string]string { return maybe(labelUseWaypoint, "wp", "none", "gone", "") }
	quote := func(m map[string]string) (s string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			s += fmt.Sprintf("%q: %q, ", k, m[k])
		}
		return s
	}
	created := pick(day1, day2)
	switch r.IntN(15) {
	case 0, 1, 2:
		return pod(pick("a", "b", "c"), []string{pick("10.0.0.1", "10.0.0.2", "10.0.0.3")}, func(p *corev1.Pod) {
			p.Namespace, p.Spec.NodeName = ns, pick("node1", "node2")
			p.Labels = labels(map[string]string{"app": pick("web", "db")}, maybe("tier", "x"), waypointLabel(), maybe(labelGatewayName, "wp"))
			if r.IntN(2) == 0 {
				enrolled(p)
			}
			if r.IntN(4) == 0 {
				p.Status.Conditions = nil
			}
			if r.IntN(8) == 0 {
				p.Status.Phase = corev1.PodFailed
			}
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: int32(8080 + r.IntN(2))}}
		})
	case 3:
		return service(pick("web", "db"), []string{pick("10.1.0.1", "10.1.0.2", "None")}, func(s *corev1.Service) {
			s.Namespace = ns
			s.Spec.Selector = labels(maybe("app", "web", "db"), maybe("tier", "x"))
			s.Labels = labels(waypointLabel(), maybe(labelIngressUse, "true"))
			s.Spec.Ports[0].Port = int32(80 + r.IntN(2))
			if r.IntN(6) == 0 {
				s.Spec.Type = corev1.ServiceTypeExternalName
			}
		})
	case 4:
		return slice(pick("s1", "s2"), pick("web", "db"), func(s *discoveryv1.EndpointSlice) {
			s.Namespace = ns
			name, node := pick("a", "b"), pick("node1", "node2")
			s.Endpoints = []discoveryv1.Endpoint{
				{Addresses: []string{pick("192.0.2.1", "192.0.2.2")}, NodeName: &node},
				{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: name, UID: meta("", name).UID}},
			}
		})
	case 5:
		return namespace(ns, func(n *corev1.Namespace) {
			n.Labels = labels(maybe(labelUseWaypoint, "wp", "gone"), maybe("team", "a"))
			n.Annotations = maybe(annotationDistribution, "PreferClose")
		})
	case 6:
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: pick("node1", "node2"), Labels: maybe(labelZone, "z1", "z2")}}
	case 7, 8:
		endpoints := pick(`endpoints: [{address: 192.0.2.7}, {address: 192.0.2.8, labels: {istio.io/use-waypoint: wp}}],`, `workloadSelector: {labels: {app: web}},`, ``)
		return custom(t, `{apiVersion: v1, kind: ServiceEntry, metadata: {name: %s, namespace: %s, creationTimestamp: %q, labels: {%s}},
			spec: {hosts: [%s, %s], addresses: [%s], %s resolution: %s, ports: [{number: %d, name: http}]}}`,
			pick("e1", "e2"), ns, created, quote(labels(waypointLabel(), maybe("app", "web"))), pick("a.example.com", "web.ns.svc.cluster.local"), pick("b.example.com", "c.example.com"),
			pick("10.0.0.1", "10.1.0.1", "192.0.2.200"), endpoints, pick("STATIC", "DNS"), 80+r.IntN(2))
	case 9:
		return custom(t, `{apiVersion: v1, kind: WorkloadEntry, metadata: {name: %s, namespace: %s, labels: {%s}}, spec: {address: %s}}`,
			pick("v1", "v2"), ns, quote(labels(waypointLabel(), maybe("app", "web", "db"))), pick("192.0.2.50", "vm.example.com", "'a b'"))
	case 10:
		return custom(t, `{apiVersion: v1, kind: PeerAuthentication, metadata: {name: %s, namespace: %s, creationTimestamp: %q}, spec: {%s mtls: {mode: %s}, portLevelMtls: {80: {mode: %s}}}}`,
			pick("p1", "p2"), ns, created, pick("selector: {matchLabels: {app: web}},", ""), pick("STRICT", "PERMISSIVE", "DISABLE", "UNSET", "ODD"), pick("STRICT", "DISABLE", "UNSET"))
	case 12, 13:
		return randomNetworkPolicy(t, r)
	case 11:
		return custom(t, `{apiVersion: v1, kind: AuthorizationPolicy, metadata: {name: %s, namespace: %s}, spec: {%s action: %s, rules: [{}]}}`,
			pick("q1", "q2"), ns, pick("selector: {matchLabels: {app: web}},", "selector: {matchLabels: {tier: x}},", "", "targetRefs: [{kind: Service, name: web}],",
				"targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}, {group: networking.istio.io, kind: ServiceEntry, name: e1}],"), pick("ALLOW", "DENY", "AUDIT"))
	default:
		if r.IntN(3) == 0 {
			return custom(t, `{apiVersion: v1, kind: GatewayClass, metadata: {name: c, labels: {%s}}}`, quote(maybe(labelWaypointFor, "workload", "all")))
		}
		g := gateway(t, "wp", fmt.Sprintf("namespace: %s, labels: {%s}", ns, quote(maybe(labelWaypointFor, "all", "workload", "service"))),
			pick(`allowedRoutes: {namespaces: {from: All}}`, ``, `allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}`))
		if r.IntN(4) == 0 {
			delete(g.Object, "status")
		}
		return g
	}
}
