package workload_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func addr(s string) workload.NetworkAddress {
	a, err := workload.ParseNetworkAddress("/" + s)
	if err != nil {
		panic(err)
	}
	return a
}

func key(s string) workload.NamespacedHostname {
	k, err := workload.ParseNamespacedHostname(s)
	if err != nil {
		panic(err)
	}
	return k
}

func name[T interface {
	comparable
	String() string
}](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return v.String()
}

func uids(eps []workload.Endpoint) []string {
	out := []string{}
	for _, e := range eps {
		out = append(out, e.Workload.Name)
	}
	return out
}

func TestWorkloadLifecycle(t *testing.T) {
	s := workload.New()
	pod := wt.Pod("ns/a", []string{"127.0.0.1", "fd00::1"}, wt.In("ns/svc.ns", 80, 8080))
	pod.Hostname = "a.ns"
	s.Apply(wt.Events(pod, wt.Service("ns/svc.ns", []string{"127.0.1.1", "other/127.0.1.2"})))

	check := func(want bool, host string) {
		t.Helper()
		snap := s.Snapshot()
		for what, got := range map[string]bool{
			"uid":    snap.Workload(pod.UID) != nil,
			"ipv4":   snap.WorkloadByAddress(addr("127.0.0.1")) != nil,
			"mapped": snap.WorkloadByAddress(workload.NetworkAddress{Addr: netip.MustParseAddr("::ffff:127.0.0.1")}) != nil,
			"ipv6":   snap.WorkloadByAddress(addr("fd00::1")) != nil,
			"pod":    snap.WorkloadByPod("ns", "a", "a", "") != nil,
			"member": len(snap.Endpoints(key("ns/svc.ns"))) == 1,
			"count":  snap.WorkloadCount() == 1,
		} {
			if got != want {
				t.Errorf("%s: %t, want %t", what, got, want)
			}
		}
		if got := snap.WorkloadByHost(key("ns/"+host)) != nil; got != want {
			t.Errorf("host %s: %t, want %t", host, got, want)
		}
	}
	check(true, "a.ns")

	changed := *pod
	changed.Hostname = "b.ns"
	s.Apply(wt.Events(&changed))
	check(true, "b.ns")
	if s.Snapshot().WorkloadByHost(key("ns/a.ns")) != nil {
		t.Error("the old host name is still known")
	}

	s.Apply([]workload.Event{workload.Removal(pod.UID)})
	check(false, "b.ns")
	snap := s.Snapshot()
	if snap.ServiceCount() != 1 || snap.ServiceByVIP(addr("127.0.1.1"), "") == nil {
		t.Error("the service went with its endpoint")
	}
	if got := snap.ServiceByVIP(workload.NewNetworkAddress("other", netip.MustParseAddr("127.0.1.2")), ""); got == nil {
		t.Error("the VIP of the other network is not known")
	}
	s.Apply([]workload.Event{workload.Removal("ns/svc.ns"), workload.Removal("no/such/thing"), workload.Removal("nothing")})
	snap = s.Snapshot()
	if snap.ServiceCount() != 0 || snap.ServiceByVIP(addr("127.0.1.1"), "") != nil || len(snap.ServicesByHost("svc.ns")) != 0 {
		t.Error("the removed service is still known")
	}
}

func TestRemovalPrefersUID(t *testing.T) {
	w := wt.Pod("ns/a", nil)
	w.UID = "ns/svc.ns"
	s := wt.Store(w, wt.Service("ns/svc.ns", nil))
	s.Apply([]workload.Event{workload.Removal("ns/svc.ns")})
	if s.Snapshot().WorkloadCount() != 0 || s.Snapshot().ServiceCount() != 1 {
		t.Error("the service went, not the workload")
	}
}

func TestWorkloadByPod(t *testing.T) {
	a := wt.Pod("ns/a", nil)
	a.Node = "node1"
	b := wt.Pod("ns/a", nil)
	b.UID, b.Node, b.ServiceAccount = "cluster2//Pod/ns/a", "node2", "other"
	slice := wt.Pod("ns/c", nil)
	slice.UID, slice.Node = "cluster1/discovery.k8s.io/EndpointSlice/ns/c/192.0.2.1", "node1"
	snap := wt.Snapshot(a, b, slice)
	for _, tc := range []struct{ name, ns, pod, sa, node, want string }{
		{"match", "ns", "a", "a", "node1", a.UID},
		{"any-node", "ns", "a", "other", "", b.UID},
		{"other-node", "ns", "a", "a", "node2", ""},
		{"other-account", "ns", "a", "x", "", ""},
		{"other-namespace", "x", "a", "a", "", ""},
		{"other-name", "ns", "b", "a", "", ""},
		{"endpoint-of-slice", "ns", "c", "c", "node1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got string
			if w := snap.WorkloadByPod(tc.ns, tc.pod, tc.sa, tc.node); w != nil {
				got = w.UID
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestOverlappingAddress: pods win, healthy ones first, then members of the mesh; when the winner
// goes the next takes over.
func TestOverlappingAddress(t *testing.T) {
	vm := func(name string, mods ...func(*workload.Workload)) *workload.Workload {
		w := wt.Pod("ns/"+name, []string{"10.0.0.1"}, mods...)
		w.UID = "cluster1/networking.istio.io/WorkloadEntry/ns/" + name
		return w
	}
	plainVM, meshVM := vm("plain-vm", wt.Plain), vm("mesh-vm")
	plainPod, meshPod := wt.Pod("ns/plain-pod", []string{"10.0.0.1"}, wt.Plain), wt.Pod("ns/mesh-pod", []string{"10.0.0.1"})
	host := wt.Pod("ns/host", []string{"10.0.0.1"})
	host.NetworkMode = workload.HostNetwork

	s := wt.Store(plainVM, meshPod, host, meshVM, plainPod)
	for _, want := range []*workload.Workload{meshPod, plainPod, meshVM, plainVM} {
		if got := s.Snapshot().WorkloadByAddress(addr("10.0.0.1")); got == nil || got.UID != want.UID {
			t.Fatalf("got %v, want %v", got, want)
		}
		s.Apply([]workload.Event{workload.Removal(want.UID)})
	}
	if got := s.Snapshot().WorkloadByAddress(addr("10.0.0.1")); got != nil {
		t.Errorf("host-network workload %v is found by address", got)
	}
}

// TestAddressOfDeadPod: istiod tells of a pod until its object is deleted. When a machine dies its pods stay for minutes, not
// ready, and their addresses are given to new pods long before.
func TestAddressOfDeadPod(t *testing.T) {
	const at = "10.0.0.9"
	dead := wt.Pod("a/db-0", []string{at}, wt.Unhealthy)
	entry := wt.Pod("a/vm", []string{at})
	entry.UID = "cluster1/networking.istio.io/WorkloadEntry/a/vm"
	tests := []struct {
		name  string
		other *workload.Workload
		takes bool
	}{
		{"mesh", wt.Pod("b/web-0", []string{at}), true},
		{"plain", wt.Pod("b/job-0", []string{at}, wt.Plain), true},
		{"not-ready-either", wt.Pod("b/web-0", []string{at}, wt.Unhealthy), false},
		{"plain-and-not-ready", wt.Pod("a/a", []string{at}, wt.Plain, wt.Unhealthy), false},
		{"no-pod", entry, false}, // users say of themselves that they are well
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			want := dead
			if tc.takes {
				want = tc.other
			}
			check := func(s *workload.Store, when string) {
				t.Helper()
				if got := s.Snapshot().WorkloadByAddress(addr(at)); got == nil || got.UID != want.UID {
					t.Errorf("%s: the address is %v's, want %v's", when, got, want)
				}
			}
			for _, order := range [][]*workload.Workload{{dead, tc.other}, {tc.other, dead}} {
				s := wt.Store()
				for _, w := range order {
					s.Apply(wt.Events(w))
				}
				check(s, "arrived one by one")
				s.Apply(wt.Events(wt.Pod("a/db-0", []string{at})))
				s.Apply(wt.Events(dead))
				check(s, "after the node has died")
			}
		})
	}
}

func TestServiceByVIP(t *testing.T) {
	const ip = "10.10.0.1"
	for _, tc := range []struct {
		name     string
		services []any
		addr     string
		client   string
		want     string
	}{
		{"unknown", nil, ip, "a", ""},
		{"shared-own-namespace", []any{wt.Service("a/s.a", []string{ip}), wt.Service("b/s.b", []string{ip})}, ip, "b", "b/s.b"},
		{"shared-other-namespace", []any{wt.Service("b/s.b", []string{ip}), wt.Service("a/s.a", []string{ip})}, ip, "c", "a/s.a"},
		{"canonical", []any{wt.Service("a/s.a", []string{ip}), wt.Service("b/s.b", []string{ip}, wt.Canonical)}, ip, "c", "b/s.b"},
		{"own-canonical-before-own", []any{wt.Service("a/r.a", []string{ip}), wt.Service("a/s.a", []string{ip}, wt.Canonical)}, ip, "a", "a/s.a"},
		{"own-before-canonical", []any{wt.Service("a/s.a", []string{ip}), wt.Service("b/s.b", []string{ip}, wt.Canonical)}, ip, "a", "a/s.a"},
		{"private-own", []any{wt.Service("a/s.a", []string{ip}, wt.Private)}, ip, "a", "a/s.a"},
		{"private-other", []any{wt.Service("a/s.a", []string{ip}, wt.Private)}, ip, "b", ""},
		{"exported", []any{wt.Service("a/s.a", []string{ip}, wt.Private, exported("b", "d"))}, ip, "b", "a/s.a"},
		{"exported-not-to-this", []any{wt.Service("a/s.a", []string{ip}, wt.Private, exported("b", "d"))}, ip, "c", ""},
		{"exported-not-to-its-own", []any{wt.Service("a/s.a", []string{ip}, wt.Private, exported("b", "d"))}, ip, "a", ""},
		{"exported-is-no-winner", []any{wt.Service("a/s.a", []string{ip}, wt.Private, exported("b")), wt.Service("c/s.c", []string{ip}, wt.Canonical)}, ip, "b", "c/s.c"},
		{"private-is-no-winner", []any{wt.Service("a/s.a", []string{ip}, wt.Private, wt.Canonical), wt.Service("b/s.b", []string{ip})}, ip, "c", "b/s.b"},
		{"private-exact-falls-to-cidr", []any{wt.Service("a/s.a", []string{ip}, wt.Private), wt.Service("b/s.b", []string{"/10.10.0.0/16"})}, ip, "c", "b/s.b"},
		{"cidr-v4", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16"})}, ip, "c", "a/s.a"},
		{"cidr-v6", []any{wt.Service("a/s.a", []string{"/fd00::/64"})}, "fd00::9", "c", "a/s.a"},
		{"cidr-host-bits", []any{wt.Service("a/s.a", []string{"/10.10.99.99/16"})}, ip, "c", "a/s.a"},
		{"cidr-outside", []any{wt.Service("a/s.a", []string{"/10.11.0.0/16"})}, ip, "c", ""},
		{"cidr-all", []any{wt.Service("a/s.a", []string{"/0.0.0.0/0"})}, ip, "c", "a/s.a"},
		{"cidr-longest-v4", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16"}), wt.Service("b/s.b", []string{"/10.10.0.0/24"})}, ip, "c", "b/s.b"},
		{"cidr-longest-v6", []any{wt.Service("a/s.a", []string{"/fd00::/64"}), wt.Service("b/s.b", []string{"/fd00::/120"})}, "fd00::9", "c", "b/s.b"},
		{"cidr-dual-stack", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16", "/fd00::/64"})}, "fd00::9", "c", "a/s.a"},
		{"cidr-other-family", []any{wt.Service("a/s.a", []string{"/::/0"})}, ip, "c", ""},
		{"exact-v4-with-cidr-v6", []any{wt.Service("a/s.a", []string{ip, "/fd00::/64"})}, ip, "c", "a/s.a"},
		{"exact-over-cidr-v4", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16"}), wt.Service("b/s.b", []string{ip})}, ip, "a", "b/s.b"},
		{"exact-over-cidr-v6", []any{wt.Service("a/s.a", []string{"/fd00::/64"}), wt.Service("b/s.b", []string{"fd00::9"})}, "fd00::9", "a", "b/s.b"},
		{"cidr-other-network", []any{wt.Service("a/s.a", []string{"remote/10.10.0.0/16"})}, ip, "c", ""},
		{"cidr-same-block-own", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16"}), wt.Service("b/s.b", []string{"/10.10.0.0/16"})}, ip, "b", "b/s.b"},
		{"cidr-same-block-canonical", []any{wt.Service("a/s.a", []string{"/10.10.0.0/16"}), wt.Service("b/s.b", []string{"/10.10.0.0/16"}, wt.Canonical)}, ip, "c", "b/s.b"},
		{"cidr-own-short-beats-long", []any{wt.Service("a/s.a", []string{"/10.0.0.0/8"}), wt.Service("b/s.b", []string{"/10.10.0.0/24"})}, ip, "a", "a/s.a"},
		{"cidr-long-beats-canonical", []any{wt.Service("a/s.a", []string{"/10.0.0.0/8"}, wt.Canonical), wt.Service("b/s.b", []string{"/10.10.0.0/24"})}, ip, "c", "b/s.b"},
		{"cidr-private", []any{wt.Service("a/s.a", []string{"/10.10.0.0/24"}, wt.Private), wt.Service("b/s.b", []string{"/10.0.0.0/8"})}, ip, "c", "b/s.b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := wt.Store(tc.services...)
			if got := name(store.Snapshot().ServiceByVIP(addr(tc.addr), tc.client)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			var gone []workload.Event
			for _, o := range tc.services {
				gone = append(gone, workload.Removal(o.(*workload.Service).Key().String()))
			}
			store.Apply(gone)
			if got := store.Snapshot().ServiceByVIP(addr(tc.addr), tc.client); got != nil {
				t.Errorf("after removal: got %v", got)
			}
			if got := store.Snapshot().ServicesByVIP(addr(tc.addr)); len(got) != 0 {
				t.Errorf("after removal: ServicesByVIP = %v", got)
			}
		})
	}
}

func TestServicesByVIP(t *testing.T) {
	snap := wt.Snapshot(wt.Service("b/s.b", []string{"10.0.0.1"}, wt.Private), wt.Service("a/s.a", []string{"10.0.0.1"}),
		wt.Service("c/s.c", []string{"/10.0.0.0/8"}), wt.Service("d/s.d", []string{"/10.0.0.0/24"}))
	var got []string
	for _, s := range snap.ServicesByVIP(addr("10.0.0.1")) {
		got = append(got, s.String())
	}
	if want := []string{"a/s.a", "b/s.b", "d/s.d", "c/s.c"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestServiceByHost(t *testing.T) {
	const host = "www.example.com"
	for _, tc := range []struct {
		name     string
		services []any
		client   string
		want     string
	}{
		{"unknown", nil, "a", ""},
		{"own-namespace", []any{wt.Service("a/"+host, nil), wt.Service("b/"+host, nil, wt.Canonical)}, "a", "a/" + host},
		{"canonical", []any{wt.Service("a/"+host, nil), wt.Service("b/"+host, nil, wt.Canonical)}, "c", "b/" + host},
		{"first", []any{wt.Service("b/"+host, nil), wt.Service("a/"+host, nil)}, "c", "a/" + host},
		{"private", []any{wt.Service("a/"+host, nil, wt.Private)}, "c", ""},
		{"private-own", []any{wt.Service("a/"+host, nil, wt.Private)}, "a", "a/" + host},
		{"private-skipped", []any{wt.Service("a/"+host, nil, wt.Private), wt.Service("b/"+host, nil)}, "c", "b/" + host},
	} {
		t.Run(tc.name, func(t *testing.T) {
			snap := wt.Snapshot(tc.services...)
			if got := name(snap.ServiceByHost(host, tc.client)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if got := len(snap.ServicesByHost(host)); got != len(tc.services) {
				t.Errorf("ServicesByHost has %d, want %d", got, len(tc.services))
			}
		})
	}
}

func allowAll(s *workload.Service) {
	s.LoadBalancer = &workload.LoadBalancer{HealthPolicy: workload.AllowAll}
}

// TestEndpoints plays batches in order and looks at the endpoints after each.
func TestEndpoints(t *testing.T) {
	const host = "ns/svc.ns"
	in := wt.In(host, 80, 8080)
	a, b := wt.Pod("ns/a", []string{"10.0.0.1"}, in), wt.Pod("ns/b", []string{"10.0.0.2"}, in)
	badB := wt.Pod("ns/b", []string{"10.0.0.2"}, in, wt.Unhealthy)
	outB := wt.Pod("ns/b", []string{"10.0.0.2"})
	svc := wt.Service(host, nil)
	type step struct {
		batch  []workload.Event
		want   []string
		staged int
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"service-first", []step{{wt.Events(svc), nil, 0}, {wt.Events(b, a), []string{"a", "b"}, 0}}},
		{"service-in-the-middle", []step{{wt.Events(b, svc, a), []string{"a", "b"}, 0}}},
		{"staged-and-filtered", []step{{wt.Events(a, badB), nil, 1}, {wt.Events(svc), []string{"a"}, 0}}},
		{"staged-removal", []step{
			{wt.Events(a, b), nil, 1}, {[]workload.Event{workload.Removal(a.UID)}, nil, 1}, {wt.Events(svc), []string{"b"}, 0},
		}},
		{"staged-clean-up", []step{{wt.Events(a), nil, 1}, {[]workload.Event{workload.Removal(a.UID)}, nil, 0}}},
		{"staged-moves-out", []step{{wt.Events(b), nil, 1}, {wt.Events(outB), nil, 0}}},
		{"unhealthy-reinsert-evicts", []step{{wt.Events(svc, a, b), []string{"a", "b"}, 0}, {wt.Events(badB), []string{"a"}, 0}, {wt.Events(b), []string{"a", "b"}, 0}}},
		{"removal-before-upsert", []step{
			{wt.Events(svc, a), []string{"a"}, 0},
			{append(wt.Events(wt.Pod("ns/a", []string{"10.0.0.1"}, wt.In(host, 90, 9090))), workload.Removal(a.UID)), []string{"a"}, 0},
		}},
		{"leaves-service", []step{{wt.Events(svc, a, b), []string{"a", "b"}, 0}, {wt.Events(outB), []string{"a"}, 0}}},
		{"service-update-keeps-endpoints", []step{{wt.Events(svc, a), []string{"a"}, 0}, {wt.Events(wt.Service(host, []string{"10.1.1.1"})), []string{"a"}, 0}}},
		{"service-returns-with-endpoints", []step{
			{wt.Events(svc, a), []string{"a"}, 0}, {[]workload.Event{workload.Removal(host)}, nil, 1}, {wt.Events(svc), []string{"a"}, 0},
		}},
		{"both-health-policies", []step{
			{wt.Events(wt.Service(host, nil, allowAll), a, badB), []string{"a", "b"}, 0},
			{wt.Events(svc), []string{"a"}, 0},
			{wt.Events(wt.Service(host, nil, allowAll)), []string{"a", "b"}, 0},
		}},
		{"last-upsert-wins", []step{{wt.Events(svc, badB, b), []string{"b"}, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workload.New()
			for i, st := range tc.steps {
				s.Apply(st.batch)
				snap := s.Snapshot()
				if got := uids(snap.Endpoints(key(host))); !slices.Equal(got, append([]string{}, st.want...)) {
					t.Errorf("step %d: endpoints %v, want %v", i, got, st.want)
				}
				staged := 0
				for range snap.Staged() {
					staged++
				}
				if staged != st.staged {
					t.Errorf("step %d: %d staged services, want %d", i, staged, st.staged)
				}
			}
		})
	}
}

func TestEndpointPorts(t *testing.T) {
	s := wt.Store(wt.Service("ns/svc.ns", nil), wt.Pod("ns/a", nil, wt.In("ns/svc.ns", 80, 8080)))
	s.Apply(append(wt.Events(wt.Pod("ns/a", nil, wt.In("ns/svc.ns", 90, 9090))), workload.Removal("cluster1//Pod/ns/a")))
	e, ok := s.Snapshot().Endpoint(key("ns/svc.ns"), "cluster1//Pod/ns/a")
	if !ok || e.Ports[90] != 9090 || len(e.Ports) != 1 {
		t.Errorf("endpoint %v, %t", e.Ports, ok)
	}
	if _, ok := s.Snapshot().Endpoint(key("ns/svc.ns"), "x"); ok {
		t.Error("unknown endpoint is found")
	}
	if _, ok := s.Snapshot().Endpoint(key("ns/x"), "x"); ok {
		t.Error("endpoint of an unknown service is found")
	}
}

// TestSnapshotsAreIndependent keeps a snapshot over changes of everything in it.
func TestSnapshotsAreIndependent(t *testing.T) {
	in := wt.In("ns/svc.ns", 80, 8080)
	s := wt.Store(wt.Service("ns/svc.ns", []string{"10.1.0.1", "/10.2.0.0/16"}), wt.Pod("ns/a", []string{"10.0.0.1"}, in))
	old := s.Snapshot()
	s.Apply(append(wt.Events(wt.Pod("ns/b", []string{"10.0.0.2"}, in), wt.Service("ns/new.ns", []string{"/10.2.0.0/24"})),
		workload.Removal("cluster1//Pod/ns/a"), workload.Removal("ns/svc.ns")))
	if got := uids(old.Endpoints(key("ns/svc.ns"))); !slices.Equal(got, []string{"a"}) {
		t.Errorf("old endpoints %v", got)
	}
	if old.WorkloadByAddress(addr("10.0.0.2")) != nil || old.WorkloadByAddress(addr("10.0.0.1")) == nil {
		t.Error("old snapshot sees new workloads")
	}
	if got := name(old.ServiceByVIP(addr("10.2.0.1"), "")); got != "ns/svc.ns" {
		t.Errorf("old snapshot has %q", got)
	}
	if s.Snapshot().Version() != old.Version()+1 {
		t.Error("one batch is not one version")
	}
}

func TestApplyReportsChange(t *testing.T) {
	s := workload.New()
	ch := s.Changed()
	objects := func() []workload.Event {
		return wt.Events(wt.Pod("ns/a", []string{"10.0.0.1"}, wt.In("ns/s.ns", 1, 2)), wt.Service("ns/s.ns", []string{"10.1.1.1"}))
	}
	if !s.Apply(objects()) {
		t.Error("first Apply changed nothing")
	}
	select {
	case <-ch:
	default:
		t.Error("Changed is not closed")
	}
	before := s.Snapshot()
	if s.Apply(objects()) || s.Apply(nil) || s.Apply([]workload.Event{workload.Removal("x")}) || s.Snapshot() != before {
		t.Error("repeating what is known made a new snapshot")
	}
}

func TestReplaceKeepsWhatIsEqual(t *testing.T) {
	a, b := wt.Pod("ns/a", []string{"10.0.0.1"}), wt.Pod("ns/b", []string{"10.0.0.2"})
	s := wt.Store(a, b, wt.Service("ns/s.ns", nil), wt.Service("ns/t.ns", nil))
	kept := s.Snapshot().Workload(a.UID)
	s.Replace([]*workload.Workload{wt.Pod("ns/a", []string{"10.0.0.1"}), wt.Pod("ns/c", nil)}, []*workload.Service{wt.Service("ns/t.ns", nil)})
	snap := s.Snapshot()
	if snap.Workload(a.UID) != kept {
		t.Error("an equal workload was replaced")
	}
	if snap.Workload(b.UID) != nil || snap.WorkloadCount() != 2 || snap.ServiceCount() != 1 {
		t.Errorf("%d workloads, %d services", snap.WorkloadCount(), snap.ServiceCount())
	}
	if s.Replace(nil, nil); s.Snapshot().WorkloadCount()+s.Snapshot().ServiceCount() != 0 {
		t.Error("Replace with nothing leaves something")
	}
}

func TestWait(t *testing.T) {
	find := func(s *workload.Snapshot) (*workload.Workload, bool) {
		w := s.WorkloadByPod("ns", "a", "a", "")
		return w, w != nil
	}
	t.Run("there-already", func(t *testing.T) {
		if _, err := workload.Wait(t.Context(), wt.Store(wt.Pod("ns/a", nil)), find); err != nil {
			t.Error(err)
		}
	})
	t.Run("never", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := workload.Wait(ctx, workload.New(), find); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("err = %v", err)
			}
		})
	})
	t.Run("arrives-late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := workload.New()
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(time.Second)
				s.Apply(wt.Events(wt.Pod("ns/other", nil)))
				time.Sleep(time.Second)
				s.Apply(wt.Events(wt.Pod("ns/a", nil)))
			})
			if w, err := workload.Wait(t.Context(), s, find); err != nil || w.Name != "a" {
				t.Errorf("%v, %v", w, err)
			}
			wg.Wait()
		})
	})
}

// TestConcurrentReaders lets the race detector watch readers during writes.
func TestConcurrentReaders(t *testing.T) {
	s := wt.Store(wt.Service("ns/svc.ns", []string{"10.1.0.1"}))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				snap := s.Snapshot()
				for _, e := range snap.Endpoints(key("ns/svc.ns")) {
					if snap.Workload(e.Workload.UID) != e.Workload {
						t.Error("endpoint is not a workload of its snapshot")
					}
				}
			}
		})
	}
	for i := range 500 {
		n := strconv.Itoa(i % 20)
		s.Apply(wt.Events(wt.Pod("ns/"+n, []string{"10.0.0." + n}, wt.In("ns/svc.ns", 80, uint16(i)))))
	}
	close(done)
	wg.Wait()
}

// exported makes a private service visible in these namespaces.
func exported(to ...string) func(*workload.Service) {
	return func(s *workload.Service) { s.ExportTo = to }
}
