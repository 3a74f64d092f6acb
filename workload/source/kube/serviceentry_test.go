package kube

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

const exampleUID = "Kubernetes/networking.istio.io/ServiceEntry/ns/ext/"

func serviceEntry(t testing.TB, spec string) *unstructured.Unstructured {
	return custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext}, spec: %s}`, spec)
}

func TestServiceEntryServices(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		want       []*workload.Service
	}{
		{"static", `{hosts: [a.example.com, B.example.com.], addresses: [192.0.2.1, 2001:db8::1/128, 198.51.100.0/24], resolution: STATIC,
			ports: [{number: 443, name: https, protocol: TLS}, {number: 80, targetPort: 8080, name: http}],
			subjectAltNames: ["spiffe://cluster.local/ns/x/sa/y", "not-an-identity"]}`,
			[]*workload.Service{
				{Name: "ext", Namespace: "ns", Hostname: "a.example.com", VIPs: networkAddrs("192.0.2.1", "2001:db8::1"), CIDRVIPs: []workload.NetworkPrefix{cidr("198.51.100.0/24")}, Ports: workloadtest.PortMap(443, 443, 80, 8080), AppProtocols: map[uint16]workload.AppProtocol{443: workload.AppTLS}, Canonical: true, SubjectAltNames: ids("spiffe://cluster.local/ns/x/sa/y")},
				{Name: "ext", Namespace: "ns", Hostname: "b.example.com", VIPs: networkAddrs("192.0.2.1", "2001:db8::1"), CIDRVIPs: []workload.NetworkPrefix{cidr("198.51.100.0/24")}, Ports: workloadtest.PortMap(443, 443, 80, 8080), AppProtocols: map[uint16]workload.AppProtocol{443: workload.AppTLS}, Canonical: true, SubjectAltNames: ids("spiffe://cluster.local/ns/x/sa/y")},
			}},
		{"none", `{hosts: [a.example.com], addresses: [198.51.100.0/24], ports: [{number: 80, name: http}]}`,
			[]*workload.Service{{Name: "ext", Namespace: "ns", Hostname: "a.example.com", CIDRVIPs: []workload.NetworkPrefix{cidr("198.51.100.0/24")}, Ports: workloadtest.PortMap(80, 80), Canonical: true, LoadBalancer: &workload.LoadBalancer{Mode: workload.LBPassthrough, HealthPolicy: workload.AllowAll}}}},
		{"udp-and-bad-ports", `{hosts: [a.example.com], resolution: DNS, ports: [{number: 53, protocol: UDP, name: dns}, {number: 70000, name: x}, {number: 1, targetPort: 70000, name: q}]}`,
			[]*workload.Service{{Name: "ext", Namespace: "ns", Hostname: "a.example.com", Canonical: true}}},
		{"bad-host-beside-good", `{hosts: ["a/b", "", "x..y", "ok.example.com"], resolution: DNS}`,
			[]*workload.Service{{Name: "ext", Namespace: "ns", Hostname: "ok.example.com", Canonical: true}}},
		{"wildcard", `{hosts: ["*.example.com"], resolution: NONE}`,
			[]*workload.Service{{Name: "ext", Namespace: "ns", Hostname: "*.example.com", Canonical: true, LoadBalancer: &workload.LoadBalancer{Mode: workload.LBPassthrough, HealthPolicy: workload.AllowAll}}}},
		{"cannot-be-read", `{hosts: 5}`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(serviceEntry(t, tc.spec))
			if n := w.store.Snapshot().ServiceCount(); n != len(tc.want) {
				t.Errorf("%d services, want %d", n, len(tc.want))
			}
			for _, want := range tc.want {
				if d := diff(want, w.service(want.Key().String())); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func TestAutomaticAddresses(t *testing.T) {
	entry := func(extra string) *unstructured.Unstructured {
		return custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext, %s
			status: {addresses: [{value: 240.240.0.1, host: a.example.com}, {value: 2001:2::1, host: a.example.com}, {value: bad, host: a.example.com}, {value: 240.240.0.2, host: "*.b.example.com"}]}}`, extra)
	}
	w := newWorld(t)
	w.set(entry(`}, spec: {hosts: [a.example.com, "*.b.example.com"], resolution: DNS},`))
	if d := diff(networkAddrs("240.240.0.1", "2001:2::1"), w.service("ns/a.example.com").VIPs); d != "" {
		t.Error(d)
	}
	if got := w.service("ns/*.b.example.com").VIPs; len(got) != 0 {
		t.Errorf("a wildcard has %v", got)
	}
	w.set(entry(`}, spec: {hosts: ["*.b.example.com"], resolution: DYNAMIC_DNS},`))
	if d := diff(networkAddrs("240.240.0.2"), w.service("ns/*.b.example.com").VIPs); d != "" {
		t.Error(d)
	}
	for name, extra := range map[string]string{
		"resolution-none": `}, spec: {hosts: [a.example.com]},`,
		"opted-out":       `labels: {networking.istio.io/enable-autoallocate-ip: "false"}}, spec: {hosts: [a.example.com], resolution: DNS},`,
		"own-addresses":   `}, spec: {hosts: [a.example.com], resolution: DNS, addresses: [192.0.2.7]},`,
	} {
		w.set(entry(extra))
		for _, a := range w.service("ns/a.example.com").VIPs {
			if a.Addr.String() == "240.240.0.1" {
				t.Errorf("%s: has the automatic address", name)
			}
		}
	}
}

func TestServiceEntryWorkloads(t *testing.T) {
	w := newWorld(t)
	w.set(serviceEntry(t, `{hosts: [a.example.com, b.example.com], resolution: STATIC, ports: [{number: 80, targetPort: 8080, name: http}, {number: 443, name: https}],
		endpoints: [
			{address: 192.0.2.1, ports: {http: 9090}, labels: {k: v}, network: net2, locality: r/z/s, weight: 5, serviceAccount: sa},
			{address: db.example.com}, {address: 192.0.2.1}, {address: "unix:///var/run/x"}, {address: 192.0.2.9, ports: {http: 700000}}]}`))
	in := func(http uint16) memberships {
		return memberships{
			{Namespace: "ns", Hostname: "a.example.com"}: {80: http, 443: 443}, {Namespace: "ns", Hostname: "b.example.com"}: {80: http, 443: 443},
		}
	}
	want := &workload.Workload{
		UID: exampleUID + "192.0.2.1", Name: "ext", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa", Network: "net2",
		WorkloadName: "ext", WorkloadType: "pod", CanonicalName: "ext", CanonicalRevision: "latest", ClusterID: "Kubernetes",
		Locality: workload.Locality{Region: "r", Zone: "z", Subzone: "s"}, Addresses: addrs("192.0.2.1"), Capacity: 5, Services: in(9090),
	}
	if d := diff(want, w.workload(want.UID)); d != "" {
		t.Error(d)
	}
	byName := &workload.Workload{
		UID: exampleUID + "db.example.com", Name: "ext", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "default",
		Hostname: "db.example.com", WorkloadName: "ext", WorkloadType: "pod", CanonicalName: "ext", CanonicalRevision: "latest",
		ClusterID: "Kubernetes", Capacity: 1, Services: in(8080),
	}
	if d := diff(byName, w.workload(byName.UID)); d != "" {
		t.Error(d)
	}
	if n := w.store.Snapshot().WorkloadCount(); n != 2 {
		t.Errorf("%d workloads, want 2", n)
	}
	// Without endpoints the hosts themselves are resolved.
	w.set(serviceEntry(t, `{hosts: [a.example.com, b.example.com], resolution: DNS, ports: [{number: 80, name: http}]}`))
	if n := w.store.Snapshot().WorkloadCount(); n != 2 {
		t.Errorf("%d implicit workloads, want 2", n)
	}
	got := w.workload(exampleUID + "a.example.com")
	if d := diff(memberships{{Namespace: "ns", Hostname: "a.example.com"}: {80: 80}}, got.Services); d != "" || got.Hostname != "a.example.com" {
		t.Error(d, got.Hostname)
	}
	w.drop(serviceEntry(t, `{}`))
	if snap := w.store.Snapshot(); snap.WorkloadCount()+snap.ServiceCount() != 0 {
		t.Error("something is left of it")
	}
}

func TestServiceEntrySelects(t *testing.T) {
	w := newWorld(t)
	w.set(
		serviceEntry(t, `{hosts: [a.example.com], resolution: STATIC, ports: [{number: 80, name: http}, {number: 81, targetPort: 8181, name: x}], workloadSelector: {labels: {app: web}}}`),
		pod("one", []string{"10.0.0.1"}, func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: "TCP"}}
		}),
		custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, labels: {app: web}}, spec: {address: 192.0.2.1, ports: {http: 9090}, labels: {app: other, k: v}}}`),
	)
	if d := diff(workloadtest.PortMap(80, 8080, 81, 8181), w.ports("one", "ns/a.example.com")); d != "" {
		t.Error(d)
	}
	vm := w.workload("Kubernetes/networking.istio.io/WorkloadEntry/ns/vm")
	if d := diff(memberships{{Namespace: "ns", Hostname: "a.example.com"}: {80: 9090, 81: 8181}}, vm.Services); d != "" {
		t.Error(d)
	}
}

// TestServiceSelectsWorkloadEntry has a machine behind a Service, beside its pods or in their place.
func TestServiceSelectsWorkloadEntry(t *testing.T) {
	web := service("web", []string{"10.1.0.1"}, func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{
			{Name: "plain", Port: 80, TargetPort: intstr.FromInt32(8080)},
			{Name: "named", Port: 81, TargetPort: intstr.FromString("http")},
			{Name: "absent", Port: 82, TargetPort: intstr.FromString("grpc")},
		}
	})
	w := newWorld(t)
	w.set(web, custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, labels: {app: web}}, spec: {address: 192.0.2.1, ports: {http: 9090, plain: 8081, named: 1}}}`))
	const uid = "Kubernetes/networking.istio.io/WorkloadEntry/ns/vm"
	want := memberships{{Namespace: "ns", Hostname: "web.ns.svc.cluster.local"}: {80: 8081, 81: 9090}}
	if d := diff(want, w.workload(uid).Services); d != "" {
		t.Error(d)
	}
	web.Spec.Selector = map[string]string{"app": "other"}
	w.set(web)
	if got := w.workload(uid).Services; len(got) != 0 {
		t.Errorf("not selected any more and still in %v", got)
	}
}

func TestWorkloadEntry(t *testing.T) {
	entry := func(text string) *unstructured.Unstructured {
		return custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, %s}`, text)
	}
	want := workload.Workload{
		UID: "Kubernetes/networking.istio.io/WorkloadEntry/ns/vm", Name: "vm", Namespace: "ns", TrustDomain: "cluster.local",
		ServiceAccount: "default", WorkloadName: "vm", WorkloadType: "pod", CanonicalName: "vm", CanonicalRevision: "latest",
		ClusterID: "Kubernetes", Addresses: addrs("192.0.2.1"), Capacity: 1,
	}
	for _, tc := range []struct {
		name, text string
		want       func(*workload.Workload)
	}{
		{"plain", `metadata: {name: vm}, spec: {address: 192.0.2.1}`, func(*workload.Workload) {}},
		{"all", `metadata: {name: vm, labels: {app: web, version: v2}, annotations: {ambient.istio.io/redirection: enabled}}, spec: {address: 192.0.2.1, network: net2, locality: a/b, weight: 3, serviceAccount: sa}`, func(w *workload.Workload) {
			w.CanonicalName, w.CanonicalRevision, w.Protocol, w.Network = "web", "v2", workload.HBONE, "net2"
			w.Locality, w.Capacity, w.ServiceAccount = workload.Locality{Region: "a", Zone: "b"}, 3, "sa"
		}},
		{"host", `metadata: {name: vm}, spec: {address: VM.example.com}`, func(w *workload.Workload) { w.Addresses, w.Hostname = nil, "vm.example.com" }},
		{"tunnel-in-spec-labels", `metadata: {name: vm}, spec: {address: 192.0.2.1, labels: {networking.istio.io/tunnel: http}}`, func(w *workload.Workload) { w.Protocol, w.NativeTunnel = workload.HBONE, true }},
		{"registered", `metadata: {name: vm, annotations: {istio.io/autoRegistrationGroup: g}, labels: {service.istio.io/workload-name: named}}, spec: {address: 192.0.2.1}`, func(w *workload.Workload) { w.WorkloadName, w.CanonicalName = "g", "g" }},
		{"named", `metadata: {name: vm, labels: {service.istio.io/workload-name: named}}, spec: {address: 192.0.2.1}`, func(w *workload.Workload) { w.WorkloadName, w.CanonicalName = "named", "named" }},
		{"no-address", `metadata: {name: vm}, spec: {}`, nil},
		{"bad-address", `metadata: {name: vm}, spec: {address: "a b"}`, nil},
		{"unspecified-address", `metadata: {name: vm}, spec: {address: "0.0.0.0"}`, nil},
		{"bad-type", `metadata: {name: vm}, spec: {address: {}}`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(entry(tc.text))
			if tc.want == nil {
				if n := w.store.Snapshot().WorkloadCount(); n != 0 {
					t.Errorf("%d workloads", n)
				}
				return
			}
			want := want
			tc.want(&want)
			if d := diff(&want, w.workload(want.UID)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestHostOfSeveral(t *testing.T) {
	entry := func(ns, name, created, host string) *unstructured.Unstructured {
		return custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %s, namespace: %s, creationTimestamp: %q},
			spec: {hosts: [%s], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}}`, name, ns, created, host)
	}
	w := newWorld(t)
	const early, late = "2020-01-01T00:00:00Z", "2024-01-01T00:00:00Z"
	older, newer := entry("ns", "older", early, "a.example.com"), entry("ns", "newer", late, "a.example.com")
	elsewhere := entry("other", "x", late, "a.example.com")
	w.set(newer, elsewhere)
	if got := w.service("ns/a.example.com"); got.Name != "newer" {
		t.Errorf("%s has the host", got.Name)
	}
	w.set(older)
	if got := w.service("ns/a.example.com"); got.Name != "older" || !got.Canonical {
		t.Errorf("%s has the host, canonical %v; want the older one", got.Name, got.Canonical)
	}
	if w.service("other/a.example.com").Canonical {
		t.Error("two are canonical")
	}
	// The endpoints of the one that lost are gone.
	if n := w.store.Snapshot().WorkloadCount(); n != 2 {
		t.Errorf("%d workloads, want 2", n)
	}
	w.drop(older)
	if got := w.service("ns/a.example.com"); got.Name != "newer" {
		t.Errorf("%s has the host after the older one left", got.Name)
	}
	// A Service wins over whatever is older, also in other namespaces.
	w.set(entry("ns", "older", early, webHost), entry("other", "x", early, webHost), service("web", []string{"10.1.0.1"}))
	if got := w.service("ns/" + webHost); got.Name != "web" || !got.Canonical {
		t.Errorf("%s has the service's host", got.Name)
	}
	if w.service("other/" + webHost).Canonical {
		t.Error("a ServiceEntry of another namespace is canonical for a service's host")
	}
}

func TestServiceEntryTakesNoAddresses(t *testing.T) {
	w := newWorld(t)
	entry := serviceEntry(t, `{hosts: [a.example.com], resolution: STATIC, addresses: [10.1.0.1, 10.0.0.1, 192.0.2.1]}`)
	w.set(entry)
	check := func(want ...string) {
		t.Helper()
		if d := diff(networkAddrs(want...), w.service("ns/a.example.com").VIPs); d != "" {
			t.Error(d)
		}
	}
	check("10.1.0.1", "10.0.0.1", "192.0.2.1")
	w.set(service("web", []string{"10.1.0.1"}))
	check("10.0.0.1", "192.0.2.1")
	w.set(pod("one", []string{"10.0.0.1"}))
	check("192.0.2.1")
	w.drop(pod("one", nil))
	check("10.0.0.1", "192.0.2.1")
}

// Whoever declares an endpoint at the address of a Service leads there and no more. Were the address its own, nobody would go
// through the Service's waypoint any more.
func TestEndpointsTakeNoAddressesOfServices(t *testing.T) {
	machine := custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: other}, spec: {address: 10.1.0.1}}`)
	entry := custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext, namespace: other},
		spec: {hosts: [a.example.com], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2, network: net2}]}}`)
	web := service("web", []string{"10.1.0.1"})
	for _, declared := range []any{machine, entry} {
		for _, late := range []bool{false, true} {
			w := newWorld(t)
			owner := func(network, address string) string {
				if o := w.store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress(network, netip.MustParseAddr(address))); o != nil {
					return o.Name
				}
				return ""
			}
			if late {
				w.set(declared)
				w.set(web)
			} else {
				w.set(web)
				w.set(declared)
			}
			if o := owner("", "10.1.0.1"); o != "" {
				t.Errorf("the address of a Service is that of %s (declared first: %t)", o, late)
			}
			if declared == entry {
				if n := len(w.store.Snapshot().Endpoints(workload.NamespacedHostname{Namespace: "other", Hostname: "a.example.com"})); n != 2 {
					t.Errorf("%d endpoints, want 2", n)
				}
				w.set(service("far", []string{"10.1.0.2"}))
				if o := owner("net2", "10.1.0.2"); o != "ext" {
					t.Errorf("the address in another network is that of %q", o)
				}
			}
			w.drop(web)
			if o := owner("", "10.1.0.1"); o == "" {
				t.Error("the address is nobody's when the Service is gone")
			}
		}
	}
}

func cidr(s string) workload.NetworkPrefix {
	p, err := workload.ParseNetworkPrefix("/" + s)
	if err != nil {
		panic(err)
	}
	return p
}

func ids(s string) []identity.ID { return []identity.ID{identity.MustParse(s)} }
