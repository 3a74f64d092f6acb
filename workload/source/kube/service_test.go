package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

const webHost = "web.ns.svc.cluster.local"

func networkAddrs(list ...string) []workload.NetworkAddress {
	var out []workload.NetworkAddress
	for _, a := range addrs(list...) {
		out = append(out, workload.NewNetworkAddress("", a))
	}
	return out
}

var (
	nearZone = []workload.Scope{workload.ScopeNetwork, workload.ScopeRegion, workload.ScopeZone}
	nearNode = append(nearZone[:3:3], workload.ScopeSubzone, workload.ScopeNode)
)

func TestServiceTranslation(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	distribution := func(v string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.TrafficDistribution = &v }
	}
	annotated := func(v string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Annotations = map[string]string{annotationDistribution: v} }
	}
	near := func(scopes []workload.Scope) func(*workload.Service) {
		return func(s *workload.Service) {
			s.LoadBalancer = &workload.LoadBalancer{Mode: workload.LBFailover, Preferences: scopes}
		}
	}
	sticky := func(seconds *int32) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: seconds}}
		}
	}
	same := func(*workload.Service) {}
	for _, tc := range []struct {
		name        string
		nsAnnotated string
		mod         func(*corev1.Service)
		want        func(*workload.Service)
	}{
		{"plain", "", func(*corev1.Service) {}, same},
		{"headless", "", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"None"} }, func(s *workload.Service) { s.VIPs = nil }},
		{"old-field", "", func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ClusterIP = nil, "10.1.0.9" }, func(s *workload.Service) { s.VIPs = networkAddrs("10.1.0.9") }},
		{"dual-stack", "", func(s *corev1.Service) {
			s.Spec.ClusterIPs = []string{"10.1.0.1", "fd00:1::1"}
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		}, func(s *workload.Service) {
			s.VIPs, s.IPFamilies = networkAddrs("10.1.0.1", "fd00:1::1"), workload.FamiliesDual
		}},
		{"ipv4", "", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol} }, func(s *workload.Service) { s.IPFamilies = workload.FamiliesIPv4 }},
		{"ipv6", "", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }, func(s *workload.Service) { s.IPFamilies = workload.FamiliesIPv6 }},
		{"target-number", "", func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(8080) }, func(s *workload.Service) { s.Ports = workloadtest.PortMap(80, 8080) }},
		{"target-name", "", func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("http") }, func(s *workload.Service) { s.Ports = workloadtest.PortMap(80, 0) }},
		{"udp-beside-tcp", "", func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP})
		}, same},
		{"port-out-of-range", "", func(s *corev1.Service) { s.Spec.Ports[0].Port = 70000 }, func(s *workload.Service) { s.Ports, s.AppProtocols = nil, nil }},
		{"local", "PreferClose", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = &local }, func(s *workload.Service) {
			s.LoadBalancer = &workload.LoadBalancer{Mode: workload.LBStrict, Preferences: []workload.Scope{workload.ScopeNode}}
		}},
		{"prefer-close", "", distribution("PreferClose"), near(nearZone)},
		{"prefer-same-zone", "PreferSameNode", distribution("PreferSameZone"), near(nearZone)},
		{"prefer-same-node", "", distribution("PreferSameNode"), near(nearNode)},
		{"annotation", "", annotated("prefersamenode"), near(nearNode)},
		{"annotation-unknown-is-not-inherited", "PreferClose", annotated("sideways"), same},
		{"inherited", "PreferClose", func(*corev1.Service) {}, near(nearZone)},
		{"not-ready-too", "", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }, func(s *workload.Service) {
			s.LoadBalancer = &workload.LoadBalancer{HealthPolicy: workload.AllowAll}
		}},
		{"not-ready-too-and-near", "PreferClose", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }, func(s *workload.Service) {
			near(nearZone)(s)
			s.LoadBalancer.HealthPolicy = workload.AllowAll
		}},
		{"session-affinity", "", sticky(nil), func(s *workload.Service) { s.SessionAffinity = 3 * time.Hour }},
		{"session-affinity-time", "", sticky(new(int32(60))), func(s *workload.Service) { s.SessionAffinity = time.Minute }},
		{"session-affinity-no-time", "", sticky(new(int32(-1))), func(s *workload.Service) { s.SessionAffinity = 3 * time.Hour }},
		{"session-affinity-none", "", func(s *corev1.Service) {
			sticky(new(int32(60)))(s)
			s.Spec.SessionAffinity = corev1.ServiceAffinityNone
		}, same},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(namespace("ns", func(n *corev1.Namespace) { n.Annotations = map[string]string{annotationDistribution: tc.nsAnnotated} }),
				service("web", []string{"10.1.0.1"}, tc.mod))
			want := &workload.Service{
				Name: "web", Namespace: "ns", Hostname: webHost, VIPs: networkAddrs("10.1.0.1"),
				Ports: workloadtest.PortMap(80, 80), Canonical: true,
				AppProtocols: map[uint16]workload.AppProtocol{80: workload.AppHTTP1},
			}
			tc.want(want)
			if d := diff(want, w.service("ns/"+webHost)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestExternalNameIsSkipped(t *testing.T) {
	w := newWorld(t)
	w.set(service("web", nil, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	}))
	if n := w.store.Snapshot().ServiceCount(); n != 0 {
		t.Errorf("%d services", n)
	}
	w.set(service("web", []string{"10.1.0.1"})) // turned into another type
	w.service("ns/" + webHost)
}

func (w *world) ports(pod, service string) workload.PortMap {
	w.t.Helper()
	k, err := workload.ParseNamespacedHostname(service)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.pod(pod).Services[k]
}

func TestMembership(t *testing.T) {
	named := func(name string, n int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: name, ContainerPort: n, Protocol: corev1.ProtocolTCP}}
		}
	}
	svc := func(mods ...func(*corev1.Service)) *corev1.Service {
		return service("web", []string{"10.1.0.1"}, append([]func(*corev1.Service){func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{
				{Name: "a", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "b", Port: 81, TargetPort: intstr.FromInt32(8181)},
			}
		}}, mods...)...)
	}
	w := newWorld(t)
	w.set(svc(), pod("one", []string{"10.0.0.1"}, named("http", 8080)), pod("two", []string{"10.0.0.2"}, named("other", 8080)))
	if d := diff(workloadtest.PortMap(80, 8080, 81, 8181), w.ports("one", "ns/"+webHost)); d != "" {
		t.Error(d)
	}
	// A port whose name the pod does not have is left out for this pod.
	if d := diff(workloadtest.PortMap(81, 8181), w.ports("two", "ns/"+webHost)); d != "" {
		t.Error(d)
	}
	w.set(svc(func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[1:] }))
	if d := diff(workloadtest.PortMap(81, 8181), w.ports("one", "ns/"+webHost)); d != "" {
		t.Error(d)
	}
	w.set(svc(func(s *corev1.Service) { s.Spec.Selector["tier"] = "front" }))
	if len(w.pod("one").Services) != 0 {
		t.Errorf("one is still in %v", w.pod("one").Services)
	}
	w.set(pod("one", []string{"10.0.0.1"}, named("http", 8080), func(p *corev1.Pod) { p.Labels["tier"] = "front" }))
	if len(w.pod("one").Services) != 1 {
		t.Error("one is not in the service after its labels changed")
	}
	w.drop(svc())
	if len(w.pod("one").Services) != 0 {
		t.Error("one is in a service that is gone")
	}
	// Selectors are for pods of the own namespace.
	w.set(svc(), pod("one", []string{"10.0.0.1"}, func(p *corev1.Pod) { p.Namespace = "other" }))
	if got := w.workload("Kubernetes//Pod/other/one"); len(got.Services) != 0 {
		t.Errorf("a pod of another namespace is in %v", got.Services)
	}
}

func slice(name, service string, mods ...func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	port, port2, tcp := "http", int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: meta("ns", name), AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &port2, Protocol: &tcp}},
	}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	for _, mod := range mods {
		mod(s)
	}
	return s
}

func endpoints(list ...discoveryv1.Endpoint) func(*discoveryv1.EndpointSlice) {
	return func(s *discoveryv1.EndpointSlice) { s.Endpoints = list }
}

func TestEndpointSlices(t *testing.T) {
	yes, no := true, false
	selectorless := service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Spec.Selector = nil })
	at := func(ip string, ready *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ready}}
	}
	w := newWorld(t)
	w.set(slice("web-x", "web", endpoints(at("192.0.2.1", nil), at("192.0.2.2", &yes), at("192.0.2.3", &no), at("192.0.2.1", &no), at("bad", nil))))
	if n := w.store.Snapshot().WorkloadCount(); n != 0 {
		t.Errorf("%d workloads without the service", n)
	}
	w.set(selectorless)
	want := &workload.Workload{
		UID: "Kubernetes/discovery.k8s.io/EndpointSlice/ns/web-x/192.0.2.1", Name: "web-x", Namespace: "ns",
		TrustDomain: "cluster.local", ServiceAccount: "default", WorkloadType: "deployment", ClusterID: "Kubernetes",
		Addresses: addrs("192.0.2.1"), NetworkMode: workload.HostNetwork, Capacity: 1,
		Services: memberships{{Namespace: "ns", Hostname: webHost}: {80: 8080}},
	}
	if d := diff(want, w.workload(want.UID)); d != "" {
		t.Error(d)
	}
	if got := w.workload("Kubernetes/discovery.k8s.io/EndpointSlice/ns/web-x/192.0.2.3"); got.Health != workload.Unhealthy {
		t.Error("an endpoint that is not ready is healthy")
	}
	if n := w.store.Snapshot().WorkloadCount(); n != 3 {
		t.Errorf("%d workloads, want 3", n)
	}
	w.set(slice("web-x", "web", endpoints(at("192.0.2.2", &yes))))
	if n := w.store.Snapshot().WorkloadCount(); n != 1 {
		t.Errorf("%d workloads after endpoints left, want 1", n)
	}
	for name, mod := range map[string]func(*discoveryv1.EndpointSlice){
		"names":      func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN },
		"no-service": func(s *discoveryv1.EndpointSlice) { s.Labels = nil },
	} {
		w.set(slice("web-x", "web", endpoints(at("192.0.2.2", &yes)), mod))
		if n := w.store.Snapshot().WorkloadCount(); n != 0 {
			t.Errorf("%s: %d workloads, want none", name, n)
		}
	}
}

func TestEndpointSliceOfPods(t *testing.T) {
	refers := func(uid string) func(*discoveryv1.EndpointSlice) {
		return endpoints(discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{
			Kind: "Pod", Namespace: "ns", Name: "one", UID: meta("", uid).UID,
		}})
	}
	selectorless := service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Spec.Selector = nil })
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}), selectorless, slice("web-x", "web", refers("one")))
	if d := diff(workloadtest.PortMap(80, 8080), w.ports("one", "ns/"+webHost)); d != "" {
		t.Error(d)
	}
	if n := w.store.Snapshot().WorkloadCount(); n != 1 {
		t.Errorf("%d workloads, want the pod alone", n)
	}
	w.set(slice("web-x", "web", refers("one-before")))
	if len(w.pod("one").Services) != 0 {
		t.Error("a slice that refers to the pod's predecessor counts")
	}
	w.set(slice("web-x", "web", refers("one")))
	w.drop(selectorless)
	if len(w.pod("one").Services) != 0 {
		t.Error("the pod is in a service that is gone")
	}
	w.set(selectorless)
	if len(w.pod("one").Services) != 1 {
		t.Error("the pod is not in the service that came back")
	}
	w.drop(slice("web-x", "web"))
	if len(w.pod("one").Services) != 0 {
		t.Error("the pod is in a service whose slice is gone")
	}
}

// A slice may name pods of another namespace, as Knative's do while its activator stands in for pods that sleep: kube-proxy
// goes there.
func TestEndpointSliceOfPodsElsewhere(t *testing.T) {
	elsewhere := pod("one", []string{"10.0.0.1"})
	elsewhere.Namespace = "other"
	selectorless := service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Spec.Selector = nil })
	refers := slice("web-x", "web", endpoints(discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{
		Kind: "Pod", Namespace: "other", Name: "one", UID: elsewhere.UID,
	}}))
	w := newWorld(t)
	endpoints := func(want int) {
		t.Helper()
		if n := len(w.store.Snapshot().Endpoints(workload.NamespacedHostname{Namespace: "ns", Hostname: webHost})); n != want {
			t.Errorf("%d endpoints, want %d", n, want)
		}
	}
	w.set(namespace("other"), elsewhere, selectorless, refers)
	endpoints(1)
	w.drop(selectorless)
	endpoints(0)
	w.set(selectorless)
	endpoints(1)
	w.drop(slice("web-x", "web"))
	endpoints(0)
}

// Nobody stops the translation for everybody with a Service and a slice of many ports: with each compared with each it took seconds
// for every pod, whenever one of them changed.
func TestEndpointSliceOfManyPorts(t *testing.T) {
	const number, pods = 8000, 40
	wide := service("web", nil, func(s *corev1.Service) { s.Spec.Selector, s.Spec.Ports = nil, nil })
	refers := slice("web-x", "web")
	refers.Ports = nil
	for i := range number {
		name, port := fmt.Sprintf("p%05d", i), int32(i+1)
		wide.Spec.Ports = append(wide.Spec.Ports, corev1.ServicePort{Name: name, Port: port})
		refers.Ports = append(refers.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	w := newWorld(t)
	for i := range pods {
		name := fmt.Sprintf("pod-%d", i)
		w.set(pod(name, []string{fmt.Sprintf("10.0.0.%d", i+1)}))
		refers.Endpoints = append(refers.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: name},
		})
	}
	begin := time.Now()
	w.set(wide, refers)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v for %d pods", took, pods)
	}
	if got := w.ports("pod-7", "ns/"+webHost); len(got) != number || got[4711] != 4711 {
		t.Errorf("%d ports, and 4711 is %d", len(got), got[4711])
	}
}

// TestPortsOfSlices: an EndpointSlice has endpoints for its own ports only. What kube-proxy does with a Service without selector whose
// ports have different endpoints (subsets of Endpoints, mirrored; operators that write slices) is the measure.
func TestPortsOfSlices(t *testing.T) {
	one := func(name, port string, number int32, e discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return slice(name, "web", endpoints(e), func(s *discoveryv1.EndpointSlice) {
			if s.Ports[0].Name, s.Ports[0].Port = &port, &number; port == "" {
				s.Ports[0].Name = nil
			}
		})
	}
	at := func(ip string) discoveryv1.Endpoint { return discoveryv1.Endpoint{Addresses: []string{ip}} }
	ofPod := func(name string) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: name}}
	}
	w := newWorld(t)
	w.set(pod("front", []string{"10.0.0.1"}), pod("exporter", []string{"10.0.0.2"}))
	w.set(service("web", []string{"10.1.0.1"}, func(s *corev1.Service) {
		s.Spec.Selector = nil
		s.Spec.Ports = []corev1.ServicePort{
			{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "metrics", Port: 9090, Protocol: corev1.ProtocolTCP},
			{Port: 7070, Protocol: corev1.ProtocolTCP},
		}
	}), one("web-http", "http", 80, at("192.0.2.1")), one("web-metrics", "metrics", 9091, at("192.0.2.2")), one("web-any", "", 7071, at("192.0.2.3")),
		one("web-pod", "http", 8080, ofPod("front")), one("web-exporter", "metrics", 9091, ofPod("exporter")))
	for port, want := range map[uint16][]string{
		80: {"10.0.0.1:8080", "192.0.2.1:80"}, 9090: {"10.0.0.2:9091", "192.0.2.2:9091"}, 7070: {"192.0.2.3:7071"},
	} {
		if got := w.targets("10.1.0.1", port, ""); !slices.Equal(got, want) {
			t.Errorf("connections to port %d may go to %v, want %v", port, got, want)
		}
	}
	// An agent that closes the world opens no more than that.
	for at, want := range map[string]bool{"192.0.2.2:9091": true, "192.0.2.2:80": false, "192.0.2.2:9090": false} {
		in := route.Input{Snapshot: w.store.Snapshot(), Source: &workload.Workload{Namespace: "ns"}, Destination: netip.MustParseAddrPort(at)}
		if got := route.Registered(in); got != want {
			t.Errorf("%s is registered: %v, want %v", at, got, want)
		}
	}
}

// targets returns where a connection from the node to a Service may go.
func (w *world) targets(vip string, port uint16, node string) []string {
	plan := route.Make(route.Input{
		Snapshot: w.store.Snapshot(), Source: &workload.Workload{Namespace: "ns", Node: node},
		Destination: netip.AddrPortFrom(netip.MustParseAddr(vip), port),
	})
	out := make([]string, 0, len(plan.Targets))
	for _, target := range plan.Targets {
		out = append(out, target.Dial.String())
	}
	slices.Sort(out)
	return out
}

// TestNodeOfSliceEndpoint: an endpoint of a slice names its node, by which internalTrafficPolicy Local and trafficDistribution choose,
// also where it is no pod.
func TestNodeOfSliceEndpoint(t *testing.T) {
	near, far, local := "node1", "node2", corev1.ServiceInternalTrafficPolicyLocal
	w := newWorld(t)
	w.set(service("web", []string{"10.1.0.1"}, func(s *corev1.Service) {
		s.Spec.Selector, s.Spec.InternalTrafficPolicy = nil, &local
	}), slice("web-x", "web", endpoints(
		discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}, NodeName: &near},
		discoveryv1.Endpoint{Addresses: []string{"192.0.2.2"}, NodeName: &far},
		discoveryv1.Endpoint{Addresses: []string{"192.0.2.3"}})))
	for node, want := range map[string][]string{"node1": {"192.0.2.1:8080"}, "node2": {"192.0.2.2:8080"}, "node3": {}} {
		if got := w.targets("10.1.0.1", 80, node); !slices.Equal(got, want) {
			t.Errorf("connections from %s may go to %v, want %v", node, got, want)
		}
	}
	at := func(zone string) {
		t.Helper()
		for ip, want := range map[string]string{"192.0.2.1": zone, "192.0.2.2": ""} {
			if got := w.workload("Kubernetes/discovery.k8s.io/EndpointSlice/ns/web-x/" + ip).Locality.Zone; got != want {
				t.Errorf("%s is in zone %q, want %q", ip, got, want)
			}
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{labelZone: "a"}}}
	w.set(node)
	at("a")
	w.drop(node)
	at("")
	// It is not the pod of its name there.
	if got := w.store.Snapshot().WorkloadByPod("ns", "web-x", workload.DefaultServiceAccount, "node1"); got != nil {
		t.Errorf("the agent of node1 takes %s for a pod", got.UID)
	}
}

func TestNodeLocality(t *testing.T) {
	node := func(zone string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{labelZone: zone}}}
	}
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}))
	for _, zone := range []string{"a", "b"} {
		w.set(node(zone))
		if got := w.pod("one").Locality.Zone; got != zone {
			t.Errorf("zone is %q, want %q", got, zone)
		}
	}
	w.set(node("b"))
	if len(w.last.events) != 0 {
		t.Errorf("%d events though nothing changed", len(w.last.events))
	}
	w.drop(node("b"))
	if got := w.pod("one").Locality; got != (workload.Locality{}) {
		t.Errorf("locality is %v without the node", got)
	}
}

func TestAppProtocol(t *testing.T) {
	for s, want := range map[string]workload.AppProtocol{
		"": workload.AppUnknown, "http": workload.AppHTTP1, "HTTP-web": workload.AppHTTP1, "http2": workload.AppHTTP2, "grpc-x": workload.AppGRPC,
		"grpc-web": workload.AppUnknown, "grpc-web-x": workload.AppUnknown, "https": workload.AppTLS, "tls-a-b": workload.AppTLS, "tcp": workload.AppTCP,
		"kubernetes.io/h2c": workload.AppHTTP2, "kubernetes.io/ws": workload.AppHTTP1, "kubernetes.io/wss": workload.AppTLS, "mysql": workload.AppUnknown,
	} {
		if got := appProtocol(s); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
	given := "grpc"
	got := trimService(service("web", nil, func(s *corev1.Service) { s.Spec.Ports[0].AppProtocol = &given }))
	if got.ports[0].app != workload.AppGRPC {
		t.Error("the field does not go before the name")
	}
	// Ports of protocols in which the server speaks first are TCP unless they say otherwise, as in Istio.
	for _, tc := range []struct {
		port  int32
		name  string
		given *string
		want  workload.AppProtocol
	}{
		{3306, "", nil, workload.AppTCP},
		{27017, "db", nil, workload.AppTCP},
		{25, "mail", nil, workload.AppTCP},
		{53, "dns-tcp", nil, workload.AppTCP},
		{3306, "http-x", nil, workload.AppHTTP1},
		{3306, "", &given, workload.AppGRPC},
		{8080, "", nil, workload.AppUnknown},
	} {
		got := trimService(service("web", nil, func(s *corev1.Service) {
			s.Spec.Ports[0] = corev1.ServicePort{Name: tc.name, Port: tc.port, AppProtocol: tc.given}
		}))
		if got.ports[0].app != tc.want {
			t.Errorf("port %d %q is %v, want %v", tc.port, tc.name, got.ports[0].app, tc.want)
		}
	}
}

func TestIngressUsesWaypoint(t *testing.T) {
	w := newWorld(t)
	label := func(v string) map[string]string { return map[string]string{labelUseWaypoint: "wp", labelIngressUse: v} }
	use := func() bool { return w.service("ns/" + webHost).IngressUseWaypoint }
	w.set(service("web", nil, func(s *corev1.Service) { s.Labels = label("true") }))
	if use() {
		t.Error("without a waypoint")
	}
	w.set(gateway(t, "wp", ""))
	if !use() {
		t.Error("not with the waypoint")
	}
	w.set(namespace("ns", func(n *corev1.Namespace) { n.Labels = label("true") }), service("web", nil, func(s *corev1.Service) { s.Labels = label("perhaps") }))
	if use() {
		t.Error("the service's own label does not go before the namespace's")
	}
	w.set(service("web", nil))
	if !use() {
		t.Error("the namespace's label is not inherited")
	}
}

// What a slice says of a pod counts, and not what the pod says of itself: its ports, and whether it is ready.
func TestEndpointSliceDecidesAboutPods(t *testing.T) {
	no := false
	refers := func(ns string, ready *bool) func(*discoveryv1.EndpointSlice) {
		return endpoints(discoveryv1.Endpoint{
			Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: "one", UID: meta("", "one").UID},
		})
	}
	selectorless := service("web", []string{"10.1.0.1"}, func(s *corev1.Service) { s.Spec.Selector = nil })
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}), selectorless, slice("web-x", "web", refers("ns", nil)))
	if d := diff(workloadtest.PortMap(80, 8080), w.ports("one", "ns/"+webHost)); d != "" {
		t.Error("ports: " + d)
	}
	w.set(slice("web-x", "web", refers("ns", &no)))
	if n := len(w.store.Snapshot().Endpoints(workload.NamespacedHostname{Namespace: "ns", Hostname: webHost})); n != 0 {
		t.Errorf("%d endpoints, though the only one is not ready", n)
	}
}
