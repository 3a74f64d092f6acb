package publish_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// mirror is a real client with what it has learnt.
type mirror struct {
	*xds.Client
	store    *workload.Store
	policies *policy.Set
	stop     func()
}

// follow runs a real client of the server until the test ends.
func (f *fixture) follow(t testing.TB) *mirror {
	t.Helper()
	return f.followInto(t, nil)
}

// followInto is follow for a client that asks for network policies too, unless networks is nil.
func (f *fixture) followInto(t testing.TB, networks *netpol.Set) *mirror {
	t.Helper()
	m := &mirror{store: workload.New(), policies: policy.New()}
	var err error
	m.Client, err = xds.New(xds.Config{
		Address: f.addr, RootCA: f.roots, TokenFile: tokenFile(t), Store: m.store, Policies: m.policies, NetworkPolicies: networks,
		Node: xds.Node{NodeName: agent.Node, PodName: agent.PodName, Namespace: agent.Namespace},
		Sleep: func(ctx context.Context, _ time.Duration) {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	m.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(m.stop)
	return m
}

// TestConformance runs the suite that all sources pass: a Store that is published
// and read again is the same Store.
func TestConformance(t *testing.T) {
	workloadtest.Conform(t, func(t *testing.T) workloadtest.Source {
		f := start(t, nil)
		m := f.follow(t)
		return workloadtest.Source{Store: m.store, Policies: m.policies, Publish: func(s workloadtest.State) {
			f.store.Replace(s.Workloads, s.Services)
			f.policies.Replace(s.Policies)
		}}
	})
}

// difference says in what the mirror differs from the origin, or nothing.
func (f *fixture) difference(m *mirror) string {
	want, got := f.store.Snapshot(), m.store.Snapshot()
	if got.WorkloadCount() != want.WorkloadCount() || got.ServiceCount() != want.ServiceCount() {
		return fmt.Sprintf("%d workloads and %d services, want %d and %d", got.WorkloadCount(), got.ServiceCount(), want.WorkloadCount(), want.ServiceCount())
	}
	for w := range want.Workloads() {
		if g := got.Workload(w.UID); !w.Equal(g) {
			return fmt.Sprintf("workload:\ngot  %+v\nwant %+v", g, w)
		}
	}
	for s := range want.Services() {
		if g := got.Service(s.Key()); !s.Equal(g) {
			return fmt.Sprintf("service:\ngot  %+v\nwant %+v", g, s)
		}
	}
	wantPolicies, gotPolicies := f.policies.Snapshot().Policies(), m.policies.Snapshot().Policies()
	if len(wantPolicies) != len(gotPolicies) {
		return fmt.Sprintf("%d policies, want %d", len(gotPolicies), len(wantPolicies))
	}
	for i, p := range wantPolicies {
		if !reflect.DeepEqual(p, gotPolicies[i]) {
			return fmt.Sprintf("policy:\ngot  %+v\nwant %+v", gotPolicies[i], p)
		}
	}
	return ""
}

func (f *fixture) await(t testing.TB, m *mirror) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		d := f.difference(m)
		if d == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the client differs: %s\nlog:\n%s", d, f.log)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestGenerated publishes generated objects with every field that there is, changes
// them at random, and loses the connection now and then.
func TestGenerated(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.MaxAge = 50 * time.Millisecond })
	g := generator{rand.New(rand.NewPCG(7, 8))}
	m := f.follow(t)
	for range 40 {
		var batch []workload.Event
		var policies []*policy.Policy
		var gone []string
		for range g.IntN(30) {
			w, s, p := g.workload(g.IntN(60)), g.service(g.IntN(20)), g.policy(g.IntN(20))
			switch g.IntN(6) {
			case 0, 1:
				batch = append(batch, workload.Upsert(w))
			case 2:
				batch = append(batch, workload.UpsertService(s))
			case 3:
				policies = append(policies, p)
			case 4:
				batch = append(batch, workload.Removal(w.UID), workload.Removal(s.Key().String()))
			case 5:
				gone = append(gone, p.Key())
			}
		}
		f.policies.Apply(policies, gone)
		f.store.Apply(batch)
		if g.IntN(4) == 0 {
			f.await(t, m)
		}
	}
	f.await(t, m)
	select {
	case <-m.Ready():
	default:
		t.Error("the client is not ready")
	}
}

// generator makes objects in the form that the wire gives them back.
type generator struct{ *rand.Rand }

func (g generator) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g generator) addr() netip.Addr {
	if g.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, 0, byte(g.IntN(4)), byte(g.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(g.IntN(256))})
}

func (g generator) prefix() netip.Prefix {
	a := g.addr()
	return netip.PrefixFrom(a, g.IntN(a.BitLen())).Masked()
}

func (g generator) port() uint16 { return uint16(g.IntN(65536)) }

func (g generator) ports() workload.PortMap {
	m := workload.PortMap{}
	for range g.IntN(4) {
		m[g.port()] = g.port()
	}
	return m
}

func (g generator) gateway() *workload.GatewayAddress {
	switch g.IntN(3) {
	case 0:
		return nil
	case 1:
		return &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "ns", Hostname: "way.ns"}, HBONEPort: g.port()}
	default:
		return &workload.GatewayAddress{Address: workload.NewNetworkAddress(g.pick("", "net1"), g.addr()), HBONEPort: g.port()}
	}
}

func (g generator) workload(i int) *workload.Workload {
	w := workloadtest.Pod(fmt.Sprintf("ns/pod%d", i), nil)
	w.TrustDomain, w.ServiceAccount, w.ClusterID = g.pick("cluster.local", "other"), g.pick("default", "sa"), g.pick("Kubernetes", "c2")
	w.Network, w.Hostname, w.Node = g.pick("", "net1"), g.pick("", "host.example"), g.pick("", "node-a", "node-b")
	w.WorkloadName, w.WorkloadType = g.pick("", "w"), g.pick("deployment", "cronjob", "pod", "job")
	w.CanonicalName, w.CanonicalRevision = g.pick("", "app"), g.pick("", "v1")
	if g.IntN(2) == 0 {
		w.Locality = workload.Locality{Region: "r", Zone: g.pick("", "z"), Subzone: g.pick("", "s")}
	}
	for range g.IntN(3) {
		w.Addresses = append(w.Addresses, g.addr())
	}
	w.Waypoint, w.NetworkGateway = g.gateway(), g.gateway()
	if g.IntN(3) == 0 {
		w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProtocol(g.IntN(2)), Port: g.port()}
	}
	for range g.IntN(3) {
		w.AuthorizationPolicies = append(w.AuthorizationPolicies, fmt.Sprintf("ns/policy%d", g.IntN(20)))
	}
	for range g.IntN(3) {
		workloadtest.In(fmt.Sprintf("ns/svc%d.ns", g.IntN(20)))(w)
	}
	for key := range w.Services {
		w.Services[key] = g.ports()
	}
	w.Capacity, w.Protocol = uint32(g.IntN(3)), workload.Protocol(g.IntN(2))
	w.NetworkMode, w.Health, w.NativeTunnel = workload.NetworkMode(g.IntN(2)), workload.Health(g.IntN(2)), g.IntN(2) == 0
	return w
}

func (g generator) service(i int) *workload.Service {
	s := &workload.Service{
		Name: g.pick("", "svc"), Namespace: "ns", Hostname: fmt.Sprintf("svc%d.ns", i), Ports: g.ports(), Waypoint: g.gateway(),
		IPFamilies: workload.IPFamilies(g.IntN(4)), Canonical: g.IntN(2) == 0, Visibility: workload.Visibility(g.IntN(2)),
	}
	if g.IntN(2) == 0 {
		s.SessionAffinity = time.Duration(1 + g.Int64N(int64(24*time.Hour)))
	}
	if g.IntN(2) == 0 {
		s.Visibility, s.ExportTo = workload.VisibilityNamespace, []string{"a", "b"}[:g.IntN(3)]
	}
	for range g.IntN(3) {
		s.VIPs = append(s.VIPs, workload.NewNetworkAddress(g.pick("", "net1"), g.addr()))
	}
	for range g.IntN(3) {
		s.CIDRVIPs = append(s.CIDRVIPs, workload.NetworkPrefix{Network: g.pick("", "net1"), Prefix: g.prefix()})
	}
	for range g.IntN(2) {
		s.SubjectAltNames = append(s.SubjectAltNames, identity.MustParse("spiffe://td/ns/a/sa/"+g.pick("b", "c")))
	}
	for range g.IntN(3) {
		if d := g.gateway(); d != nil {
			s.WeightedWaypoints = append(s.WeightedWaypoints, workload.WeightedWaypoint{Destination: *d, Weight: uint32(g.IntN(100))})
		}
	}
	if g.IntN(2) == 0 {
		s.LoadBalancer = &workload.LoadBalancer{Mode: workload.Mode(g.IntN(4)), HealthPolicy: workload.HealthPolicy(g.IntN(2))}
		for range g.IntN(3) {
			s.LoadBalancer.Preferences = append(s.LoadBalancer.Preferences, workload.Scope(1+g.IntN(6)))
		}
	}
	return s
}

func (g generator) policy(i int) *policy.Policy {
	p := &policy.Policy{
		Namespace: "ns", Name: fmt.Sprintf("policy%d", i), Scope: policy.Scope(g.IntN(3)), Action: policy.Action(g.IntN(2)), DryRun: g.IntN(4) == 0,
	}
	for range g.IntN(3) {
		var rule [][]policy.Match
		for range g.IntN(3) {
			var clause []policy.Match
			for range g.IntN(3) {
				clause = append(clause, g.match())
			}
			rule = append(rule, clause)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func (g generator) match() policy.Match {
	return policy.Match{
		Namespaces: some(g, g.str), NotNamespaces: some(g, g.str), Principals: some(g, g.str), NotPrincipals: some(g, g.str),
		ServiceAccounts: some(g, g.account), NotServiceAccounts: some(g, g.account),
		SourceIPs: some(g, g.prefix), NotSourceIPs: some(g, g.prefix), DestinationIPs: some(g, g.prefix), NotDestinationIPs: some(g, g.prefix),
		DestinationPorts: some(g, g.port), NotDestinationPorts: some(g, g.port),
	}
}

func (g generator) str() policy.StringMatch {
	kind := policy.MatchKind(1 + g.IntN(4))
	if kind == policy.Presence {
		return policy.StringMatch{Kind: kind}
	}
	return policy.StringMatch{Kind: kind, Value: g.pick("", "a", "ü")}
}

func (g generator) account() policy.ServiceAccount {
	return policy.ServiceAccount{Namespace: g.pick("", "ns"), Name: "sa"}
}

func some[T any](g generator, one func() T) []T {
	var out []T
	for range g.IntN(3) {
		out = append(out, one())
	}
	return out
}

// TestFaultyPolicyDenies: a policy of which something cannot be told or read is
// published as one that denies what it governs.
func TestFaultyPolicyDenies(t *testing.T) {
	f := start(t, nil)
	f.policies.Apply([]*policy.Policy{
		{Namespace: "ns", Name: "said", Scope: policy.WorkloadSelector, Invalid: "cannot be read"},
		{Namespace: "ns", Name: "scope", Scope: 77, Rules: [][][]policy.Match{{}}},
		{Namespace: "ns", Name: "no-kind", Scope: policy.Global, Rules: [][][]policy.Match{{{{Namespaces: []policy.StringMatch{{}}}}}}},
		{Namespace: "ns", Name: "no-text", Rules: [][][]policy.Match{{{{Namespaces: []policy.StringMatch{{Kind: policy.Exact, Value: "\xff"}}}}}}},
		{Namespace: "ns", Name: "dry", DryRun: true, Invalid: "cannot be read"},
	}, nil)
	m := f.follow(t)
	eventually(t, "policies arrive", func() bool { return m.policies.Snapshot().Len() == 5 })
	for name, scope := range map[string]policy.Scope{
		"said": policy.WorkloadSelector, "scope": policy.Namespace, "no-kind": policy.Global, "no-text": policy.Global, "dry": policy.Global,
	} {
		want := &policy.Policy{Namespace: "ns", Name: name, Scope: scope, Action: policy.Deny, DryRun: name == "dry", Rules: [][][]policy.Match{nil}}
		if got := m.policies.Snapshot().Policy("ns/" + name); !reflect.DeepEqual(got, want) {
			t.Errorf("policy %s is %+v, want %+v", name, got, want)
		}
	}
}

// TestUnfitObjectStaysOut: an object that is no text for the wire is left out, and
// nothing else is.
func TestUnfitObjectStaysOut(t *testing.T) {
	f := start(t, nil)
	f.store.Apply(workloadtest.Events(
		workloadtest.Pod("ns/good", []string{"10.0.0.1"}),
		workloadtest.Pod("ns/bad", []string{"10.0.0.2"}, func(w *workload.Workload) { w.CanonicalName = "\xff" }),
	))
	m := f.follow(t)
	eventually(t, "the good one arrives", func() bool { return m.store.Snapshot().WorkloadCount() == 1 })
	if m.store.Snapshot().WorkloadByPod("ns", "good", "good", "") == nil {
		t.Error("the good one is not there")
	}
}
