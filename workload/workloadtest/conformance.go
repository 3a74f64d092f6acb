package workloadtest

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// State is everything that a source delivers.
type State struct {
	Workloads []*workload.Workload
	Services  []*workload.Service
	Policies  []*policy.Policy
}

// Source is a source under test. It runs until the test ends.
type Source struct {
	Store    *workload.Store
	Policies *policy.Set
	// Publish makes the origin (a file, a server) hold exactly this state. The
	// source is expected to bring Store and Policies there soon.
	Publish func(State)
	// Expect is for an origin that cannot say everything in the source's own
	// words: it returns what the state means there, or false when the state is
	// beyond it, which skips the case. Nil: states mean what they say.
	Expect func(State) (State, bool)
}

// Conform runs the suite; start returns a running source whose origin is
// empty.
func Conform(t *testing.T, start func(t *testing.T) Source) {
	t.Helper()
	for _, tc := range []struct {
		name   string
		states []State
	}{
		{"empty", []State{{}}},
		{"every-field", []State{full()}},
		{"all-gone", []State{full(), {}}},
		{"service-after-endpoints", []State{
			{Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"}, In("ns/svc.ns", 80, 8081))}},
			{
				Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"}, In("ns/svc.ns", 80, 8081))},
				Services:  []*workload.Service{Service("ns/svc.ns", []string{"10.1.0.1"})},
			},
		}},
		{"service-goes-and-comes-back", []State{
			withService(true), withService(false), withService(true),
		}},
		{"health-changes", []State{
			{Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"}, In("ns/svc.ns"))}, Services: []*workload.Service{Service("ns/svc.ns", []string{"10.1.0.1"})}},
			{Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"}, In("ns/svc.ns"), Unhealthy)}, Services: []*workload.Service{Service("ns/svc.ns", []string{"10.1.0.1"})}},
		}},
		{"address-moves", []State{
			{Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"})}},
			{Workloads: []*workload.Workload{Pod("ns/b", []string{"10.0.0.1"})}},
		}},
		{"policy-changes", []State{
			{Policies: []*policy.Policy{{Namespace: "ns", Name: "p", Action: policy.Deny, Rules: [][][]policy.Match{{}}}}},
			{Policies: []*policy.Policy{{Namespace: "ns", Name: "p", Action: policy.Deny, Scope: policy.WorkloadSelector, Rules: [][][]policy.Match{{}}}}},
			{Policies: []*policy.Policy{{Namespace: "ns", Name: "q", Action: policy.Allow}}},
			{Policies: []*policy.Policy{{Namespace: "ns", Name: "q", Action: policy.Audit, Rules: [][][]policy.Match{{}}}}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := start(t)
			for i, state := range tc.states {
				want, ok := src.expect(state)
				if !ok {
					t.Skipf("state %d cannot be said at this origin", i)
				}
				src.Publish(state)
				await(t, fmt.Sprintf("state %d", i), func() string { return difference(src, want) })
			}
		})
	}
}

func (s Source) expect(state State) (State, bool) {
	if s.Expect == nil {
		return state, true
	}
	return s.Expect(state)
}

// withService returns a pod in a service that is there or not.
func withService(there bool) State {
	s := State{Workloads: []*workload.Workload{Pod("ns/a", []string{"10.0.0.1"}, In("ns/svc.ns", 80, 8081))}}
	if there {
		s.Services = []*workload.Service{Service("ns/svc.ns", []string{"10.1.0.1"})}
	}
	return s
}

// full returns a state that uses every field that all sources can carry.
func full() State {
	a := Pod("ns/a", []string{"10.0.0.1", "fd00::1"}, In("ns/svc.ns", 80, 8081, 90, 9090), In("ns/other.ns"), Network("net1"))
	a.Node, a.WorkloadName, a.WorkloadType, a.CanonicalRevision = "node1", "a-deploy", "deployment", "v2"
	a.Locality = workload.Locality{Region: "r", Zone: "z", Subzone: "s"}
	a.Waypoint = Gateway("ns/waypoint.ns", 15008)
	a.NetworkGateway = Gateway("net1/10.9.9.9", 15009)
	a.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088}
	a.AuthorizationPolicies = []string{"ns/p", "root/strict"}
	a.NativeTunnel, a.Capacity = true, 7
	b := Pod("ns/b", nil, Plain, Unhealthy)
	b.Hostname, b.NetworkMode, b.TrustDomain, b.ClusterID = "b.example.com", workload.HostNetwork, "other.domain", "cluster2"
	svc := Service("ns/svc.ns", []string{"net1/10.1.0.1", "/fd00:1::1", "net1/10.2.0.0/16"}, Ports(80, 8080, 90, 0, 95, 0), Canonical, Private)
	svc.SubjectAltNames = []identity.ID{identity.MustParse("spiffe://cluster.local/ns/x/sa/y")}
	svc.Waypoint = Gateway("/10.3.0.1", 15008)
	svc.WeightedWaypoints = []workload.WeightedWaypoint{
		{Destination: *Gateway("ns/w1.ns", 15008), Weight: 90}, {Destination: *Gateway("ns/w2.ns", 15008), Weight: 10},
	}
	svc.LoadBalancer = &workload.LoadBalancer{
		Preferences:  []workload.Scope{workload.ScopeNetwork, workload.ScopeRegion, workload.ScopeZone, workload.ScopeSubzone, workload.ScopeNode, workload.ScopeCluster},
		Mode:         workload.LBFailover,
		HealthPolicy: workload.AllowAll,
	}
	svc.SessionAffinity = 90 * time.Minute
	svc.ExportTo = []string{"a", "ns"}
	svc.IPFamilies = workload.FamiliesIPv4
	plain := Service("ns/other.ns", nil, Balance(workload.LBPassthrough))
	return State{
		Workloads: []*workload.Workload{a, b},
		Services:  []*workload.Service{svc, plain},
		Policies:  []*policy.Policy{fullPolicy(), {Namespace: "root", Name: "strict", Scope: policy.WorkloadSelector, Action: policy.Deny, DryRun: true, Rules: [][][]policy.Match{{}, {{}}}}},
	}
}

func fullPolicy() *policy.Policy {
	strings := func(v string) []policy.StringMatch {
		return []policy.StringMatch{
			{Kind: policy.Exact, Value: v}, {Kind: policy.Prefix, Value: v}, {Kind: policy.Suffix, Value: v}, {Kind: policy.Presence},
		}
	}
	blocks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")}
	accounts := []policy.ServiceAccount{{Namespace: "ns", Name: "sa"}}
	m := policy.Match{
		Namespaces: strings("ns"), NotNamespaces: strings("not"),
		Principals: strings("cluster.local/ns/a/sa/b"), NotPrincipals: strings("td/x"),
		ServiceAccounts: accounts, NotServiceAccounts: accounts,
		SourceIPs: blocks, NotSourceIPs: blocks, DestinationIPs: blocks, NotDestinationIPs: blocks,
		DestinationPorts: []uint16{80, 443}, NotDestinationPorts: []uint16{9999},
	}
	return &policy.Policy{
		Namespace: "ns", Name: "p", Scope: policy.Namespace, Action: policy.Allow,
		Rules: [][][]policy.Match{{{m, {DestinationPorts: []uint16{1}}}, {m}}, {{{NotDestinationPorts: []uint16{2}}}}},
	}
}

// difference says in what the source differs from the state, or nothing.
func difference(src Source, want State) string {
	snap := src.Store.Snapshot()
	if n := snap.WorkloadCount(); n != len(want.Workloads) {
		return fmt.Sprintf("%d workloads, want %d", n, len(want.Workloads))
	}
	if n := snap.ServiceCount(); n != len(want.Services) {
		return fmt.Sprintf("%d services, want %d", n, len(want.Services))
	}
	for _, w := range want.Workloads {
		if got := snap.Workload(w.UID); !w.Equal(got) {
			return fmt.Sprintf("workload %s:\ngot  %+v\nwant %+v", w.UID, got, w)
		}
	}
	for _, s := range want.Services {
		if got := snap.Service(s.Key()); !s.Equal(got) {
			return fmt.Sprintf("service %s:\ngot  %+v\nwant %+v", s.Key(), got, s)
		}
		if d := endpointDifference(snap, s, want.Workloads); d != "" {
			return d
		}
	}
	got := src.Policies.Snapshot().Policies()
	sorted := slices.SortedFunc(slices.Values(want.Policies), func(a, b *policy.Policy) int { return strings.Compare(a.Key(), b.Key()) })
	if len(got) != len(sorted) {
		return fmt.Sprintf("%d policies, want %d", len(got), len(sorted))
	}
	for i := range sorted {
		if !equalPolicy(got[i], sorted[i]) {
			return fmt.Sprintf("policy %s:\ngot  %+v\nwant %+v", sorted[i].Key(), got[i], sorted[i])
		}
	}
	return ""
}

// equalPolicy takes nil and empty lists for the same.
func equalPolicy(a, b *policy.Policy) bool {
	x, y := *a, *b
	x.Rules, y.Rules = nil, nil
	return reflect.DeepEqual(x, y) && fmt.Sprintf("%v", a.Rules) == fmt.Sprintf("%v", b.Rules)
}

func endpointDifference(snap *workload.Snapshot, s *workload.Service, all []*workload.Workload) string {
	want := make(map[string]workload.PortMap)
	for _, w := range all {
		ports, ok := w.Services[s.Key()]
		accepted := w.Health == workload.Healthy || s.LoadBalancer != nil && s.LoadBalancer.HealthPolicy == workload.AllowAll
		if ok && accepted {
			want[w.UID] = ports
		}
	}
	got := make(map[string]workload.PortMap)
	for _, e := range snap.Endpoints(s.Key()) {
		got[e.Workload.UID] = e.Ports
	}
	if !maps.EqualFunc(got, want, func(a, b workload.PortMap) bool { return maps.Equal(a, b) }) {
		return fmt.Sprintf("endpoints of %s: %v, want %v", s.Key(), got, want)
	}
	return ""
}

// await polls until differs returns nothing.
func await(t *testing.T, what string, differs func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		d := differs()
		if d == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not reached: %s", what, d)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
