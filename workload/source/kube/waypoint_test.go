package kube

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// gateway returns a Gateway of the namespace ns that is ready.
func gateway(t testing.TB, name, metadata string, more ...string) *unstructured.Unstructured {
	text := `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: %s, %s},
		spec: {gatewayClassName: c, listeners: [{name: mesh, port: 15008, protocol: HBONE, %s}]},
		status: {addresses: [{type: IPAddress, value: 10.3.0.1}, {type: Hostname, value: %s.ns.svc.cluster.local}]}}`
	return custom(t, text, name, metadata, strings.Join(more, ","), name)
}

func useWaypointLabel(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Labels = map[string]string{labelUseWaypoint: name} }
}

func TestServiceWaypoint(t *testing.T) {
	ready := workloadtest.Gateway("ns/wp.ns.svc.cluster.local", 15008)
	refused := func(reason string) *workload.GatewayAddress {
		return workloadtest.Gateway("ns/wp."+reason+".invalid", 15008)
	}
	label := func(k, v string) map[string]string { return map[string]string{k: v} }
	notReady := func(g *unstructured.Unstructured) *unstructured.Unstructured {
		delete(g.Object, "status")
		return g
	}
	for _, tc := range []struct {
		name        string
		svc, ns     map[string]string
		gateway     *unstructured.Unstructured
		want        *workload.GatewayAddress
		reason, not string // reason of the condition; nothing: no condition
	}{
		{"none", nil, nil, gateway(t, "wp", ""), nil, "", ""},
		{"own-label", label(labelUseWaypoint, "wp"), nil, gateway(t, "wp", ""), ready, "WaypointAccepted", ""},
		{"inherited", nil, label(labelUseWaypoint, "wp"), gateway(t, "wp", ""), ready, "WaypointAccepted", ""},
		{"opted-out", label(labelUseWaypoint, "none"), label(labelUseWaypoint, "wp"), gateway(t, "wp", ""), nil, "", ""},
		{"not-there", label(labelUseWaypoint, "wp"), nil, nil, refused("waypointisnotready"), "WaypointIsNotReady", ""},
		{"not-ready", label(labelUseWaypoint, "wp"), nil, notReady(gateway(t, "wp", "")), refused("waypointisnotready"), "WaypointIsNotReady", ""},
		{"not-ready-does-not-fall-back", label(labelUseWaypoint, "x"), label(labelUseWaypoint, "wp"), gateway(t, "wp", ""),
			workloadtest.Gateway("ns/x.waypointisnotready.invalid", 15008), "WaypointIsNotReady", ""},
		{"for-workloads", label(labelUseWaypoint, "wp"), nil, gateway(t, "wp", `labels: {istio.io/waypoint-for: workload}`), nil, "UnsupportedTrafficType", ""},
		{"for-workloads-not-ready", label(labelUseWaypoint, "wp"), nil, notReady(gateway(t, "wp", `labels: {istio.io/waypoint-for: workload}`)), nil, "UnsupportedTrafficType", ""},
		{"for-all", label(labelUseWaypoint, "wp"), nil, gateway(t, "wp", `labels: {istio.io/waypoint-for: all}`), ready, "WaypointAccepted", ""},
		{"waypoint-itself", map[string]string{labelUseWaypoint: "wp", labelManaged: managedMeshController}, nil, gateway(t, "wp", ""), nil, "", ""},
		{"other-namespace-denies", map[string]string{labelUseWaypoint: "wp", labelUseWaypointNS: "other"}, nil, gateway(t, "wp", "namespace: other"),
			workloadtest.Gateway("other/wp.attachmentdenied.invalid", 15008), "AttachmentDenied", ""},
		{"other-namespace-allows", map[string]string{labelUseWaypoint: "wp", labelUseWaypointNS: "other"}, nil,
			gateway(t, "wp", "namespace: other", `allowedRoutes: {namespaces: {from: All}}`), workloadtest.Gateway("other/wp.ns.svc.cluster.local", 15008), "WaypointAccepted", ""},
		{"other-namespace-by-selector", map[string]string{labelUseWaypoint: "wp", labelUseWaypointNS: "other"}, label("team", "a"),
			gateway(t, "wp", "namespace: other", `allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}`), workloadtest.Gateway("other/wp.ns.svc.cluster.local", 15008), "WaypointAccepted", ""},
		{"other-namespace-by-other-selector", map[string]string{labelUseWaypoint: "wp", labelUseWaypointNS: "other"}, label("team", "b"),
			gateway(t, "wp", "namespace: other", `allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}`), workloadtest.Gateway("other/wp.attachmentdenied.invalid", 15008), "AttachmentDenied", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// In both orders: the gateway may be there before or after.
			for _, first := range []bool{true, false} {
				w := newWorld(t)
				objects := []any{
					namespace("ns", func(n *corev1.Namespace) { n.Labels = tc.ns }),
					service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Labels = tc.svc }),
				}
				if first && tc.gateway != nil {
					w.set(tc.gateway)
				}
				w.set(objects...)
				if !first && tc.gateway != nil {
					w.set(tc.gateway)
				}
				if d := diff(tc.want, w.service("ns/"+webHost).Waypoint); d != "" {
					t.Errorf("gateway first %v: %s", first, d)
				}
				if c := w.condition(kindService, "web", conditionBound); c.Reason != tc.reason || c.Status != (tc.reason == "WaypointAccepted") {
					t.Errorf("gateway first %v: condition is %+v", first, c)
				}
			}
		})
	}
}

func TestWaypointFromClass(t *testing.T) {
	w := newWorld(t)
	w.set(gateway(t, "wp", ""), service("web", nil, useWaypointLabel("wp")))
	class := custom(t, `{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: c, labels: {istio.io/waypoint-for: workload}}}`)
	w.set(class)
	if got := w.service("ns/" + webHost).Waypoint; got != nil {
		t.Errorf("waypoint is %v, want none: the class is for workloads", got)
	}
	w.set(gateway(t, "wp", `labels: {istio.io/waypoint-for: service}`)) // the Gateway's own goes before
	if w.service("ns/"+webHost).Waypoint == nil {
		t.Error("no waypoint")
	}
	w.drop(gateway(t, "wp", ""))
	if got := w.service("ns/" + webHost).Waypoint; got == nil || !strings.HasSuffix(got.Hostname.Hostname, ".invalid") {
		t.Errorf("waypoint is %v after the Gateway left, want one that refuses", got)
	}
}

func TestCanary(t *testing.T) {
	for _, tc := range []struct {
		name, weight, canary string
		want                 []uint32
		note                 string
	}{
		{"half", "50", "canary", []uint32{50, 50}, ""},
		{"no-weight", "", "canary", []uint32{100, 0}, ""},
		{"bad-weight", "x", "canary", nil, "invalid weight"},
		{"too-much", "101", "canary", nil, "invalid weight"},
		{"same", "5", "wp", nil, "must differ"},
		{"not-ready", "5", "gone", nil, "not ready"},
		{"none", "5", "none", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(gateway(t, "wp", ""), gateway(t, "canary", ""), service("web", nil, func(s *corev1.Service) {
				s.Labels = map[string]string{labelUseWaypoint: "wp", labelCanary: tc.canary}
				s.Annotations = map[string]string{annotationCanaryWeight: tc.weight}
			}))
			var got []uint32
			for _, x := range w.service("ns/" + webHost).WeightedWaypoints {
				got = append(got, x.Weight)
			}
			if d := diff(tc.want, got); d != "" {
				t.Error(d)
			}
			c := w.condition(kindService, "web", conditionBound)
			if !c.Status || !strings.Contains(c.Message, tc.note) || strings.Contains(c.Message, "Canary") != (tc.note != "") {
				t.Errorf("condition is %+v", c)
			}
		})
	}
	w := newWorld(t)
	w.set(gateway(t, "wp", ""), gateway(t, "canary", ""), namespace("ns", func(n *corev1.Namespace) {
		n.Labels = map[string]string{labelUseWaypoint: "wp", labelCanary: "canary"}
		n.Annotations = map[string]string{annotationCanaryWeight: "10"}
	}), service("web", nil))
	if got := w.service("ns/" + webHost).WeightedWaypoints; len(got) != 2 || got[1].Weight != 10 {
		t.Errorf("inherited canary: %v", got)
	}
}

// TestCanaryOfOthers: a canary that lets nobody of the namespace attach, or takes no traffic of services, gets nothing, and the
// service's condition says so.
func TestCanaryOfOthers(t *testing.T) {
	const all = "allowedRoutes: {namespaces: {from: All}}"
	for _, tt := range []struct {
		name   string
		canary *unstructured.Unstructured
		note   string // empty: it gets its share
	}{
		{"closed", gateway(t, "canary", "namespace: other"), "not permitted to attach"},
		{"open", gateway(t, "canary", "namespace: other", all), ""},
		{"for_others", gateway(t, "canary", "namespace: other, labels: {istio.io/waypoint-for: workload}", all), "does not support"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(namespace("other"), gateway(t, "wp", ""), tt.canary, service("web", nil, func(s *corev1.Service) {
				s.Labels = map[string]string{labelUseWaypoint: "wp", labelCanary: "canary", labelCanaryNS: "other"}
				s.Annotations = map[string]string{annotationCanaryWeight: "50"}
			}))
			if got := w.service("ns/" + webHost).WeightedWaypoints; (len(got) == 0) != (tt.note != "") {
				t.Errorf("waypoints are %v", got)
			}
			if c := w.condition(kindService, "web", conditionBound); !c.Status || !strings.Contains(c.Message, tt.note) {
				t.Errorf("condition is %+v", c)
			}
		})
	}
}

func TestWorkloadWaypoint(t *testing.T) {
	own := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels[labelUseWaypoint] = name }
	}
	forWorkloads := gateway(t, "wp", `labels: {istio.io/waypoint-for: workload}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}`)
	w := newWorld(t)
	labelled := namespace("ns", func(n *corev1.Namespace) { n.Labels = map[string]string{labelUseWaypoint: "wp"} })
	w.set(labelled, pod("inherits", []string{"10.0.0.1"}), pod("asks", []string{"10.0.0.2"}, own("wp")), pod("declines", []string{"10.0.0.3"}, own("none")),
		pod("instance", []string{"10.0.0.4"}, func(p *corev1.Pod) { p.Labels[labelGatewayName] = "wp" }))
	refuses := func(name string) bool {
		g := w.pod(name).Waypoint
		return g != nil && strings.HasSuffix(g.Hostname.Hostname, ".invalid")
	}
	if w.pod("inherits").Waypoint != nil || !refuses("asks") || w.pod("declines").Waypoint != nil {
		t.Errorf("before the Gateway: %v %v %v", w.pod("inherits").Waypoint, w.pod("asks").Waypoint, w.pod("declines").Waypoint)
	}
	w.set(gateway(t, "wp", "")) // for services
	if w.pod("inherits").Waypoint != nil || w.pod("asks").Waypoint != nil {
		t.Error("workloads have a waypoint for services")
	}
	w.set(forWorkloads)
	want := workloadtest.Gateway("ns/wp.ns.svc.cluster.local", 15008)
	for _, name := range []string{"inherits", "asks"} {
		if d := diff(want, w.pod(name).Waypoint); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if w.pod("declines").Waypoint != nil {
		t.Error("declines has a waypoint")
	}
	got := w.pod("instance")
	if d := diff(&workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088}, got.ApplicationTunnel); d != "" || got.Waypoint != nil {
		t.Error(d, got.Waypoint)
	}
}

func TestBinding(t *testing.T) {
	for s, want := range map[string]*workload.ApplicationTunnel{
		"PROXY": {Protocol: workload.TunnelProxy}, "PROXY/80": {Protocol: workload.TunnelProxy, Port: 80}, "NONE/1": {Port: 1},
		"": nil, "proxy": nil, "PROXY/": nil, "PROXY/70000": nil, "PROXY/1/2": nil,
	} {
		if d := diff(want, parseBinding(s)); d != "" {
			t.Errorf("%q: %s", s, d)
		}
	}
}

func TestServiceEntryConditions(t *testing.T) {
	w := newWorld(t)
	w.set(serviceEntry(t, `{hosts: ["*.example.com"], resolution: DYNAMIC_DNS}`))
	if c := w.condition(kindServiceEntry, "ext", "istio.io/WaypointMissing"); c.Reason != "NoWaypointForWildcardService" || !c.Status {
		t.Errorf("condition is %+v", c)
	}
	racing := serviceEntry(t, `{hosts: [a.example.com], resolution: DNS}`)
	for _, other := range []string{"", "DEFAULT", "x"} {
		racing.SetAnnotations(map[string]string{annotationConnect: other})
		w.set(racing)
		if got := w.reports[ref{kindServiceEntry, key{"ns", "ext"}}].Want; len(got) != 0 {
			t.Errorf("strategy %q: conditions are %+v", other, got)
		}
	}
	racing.SetAnnotations(map[string]string{annotationConnect: "RACE_FIRST_TCP_CONNECT"})
	w.set(racing)
	if c := w.condition(kindServiceEntry, "ext", "istio.io/WaypointMissing"); c.Reason != "NoWaypointForRacingConnectStrategy" {
		t.Errorf("condition is %+v", c)
	}
	racing.SetLabels(map[string]string{labelUseWaypoint: "wp"})
	w.set(racing, gateway(t, "wp", ""))
	if c := w.condition(kindServiceEntry, "ext", conditionBound); !c.Status || c.ObservedGeneration != 1 {
		t.Errorf("condition is %+v", c)
	}
	w.set(custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, labels: {istio.io/use-waypoint: wp}}, spec: {address: 192.0.2.1}}`))
	if c := w.condition(kindWorkloadEntry, "vm", conditionBound); c.Reason != "UnsupportedTrafficType" {
		t.Errorf("condition is %+v", c)
	}
}

func TestReports(t *testing.T) {
	w := newWorld(t)
	r := ref{kindService, key{"ns", "web"}}
	w.set(service("web", nil))
	if len(w.reports) != 0 {
		t.Errorf("reports %v for a service without a waypoint", w.reports)
	}
	w.set(gateway(t, "wp", ""), service("web", nil, useWaypointLabel("wp")))
	got := w.reports[r]
	if len(got.Want) != 1 || len(got.Have) != 0 || got.UID != "uid-web" {
		t.Fatalf("report is %+v", got)
	}
	// Somebody wrote it; another's condition stands beside it.
	written := func(mods ...func(*corev1.Service)) *corev1.Service {
		c := got.Want[0]
		s := service("web", nil, mods...)
		s.Status.Conditions = []metav1.Condition{
			{Type: "example.com/Other", Status: metav1.ConditionTrue},
			{Type: c.Type, Status: metav1.ConditionTrue, Reason: c.Reason, Message: c.Message, ObservedGeneration: 1},
		}
		return s
	}
	w.set(written(useWaypointLabel("wp")))
	if len(w.reports) != 0 {
		t.Errorf("reports %v though all is written", w.reports)
	}
	w.set(written())
	if got := w.reports[r]; len(got.Want) != 0 || len(got.Have) != 1 {
		t.Errorf("report is %+v, want the condition gone", got)
	}
	w.drop(service("web", nil))
	if len(w.reports) != 0 {
		t.Errorf("reports %v of what is gone", w.reports)
	}
}
