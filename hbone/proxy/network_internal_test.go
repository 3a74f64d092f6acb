package proxy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/route"
)

// asking is what it takes to ask about connections between two pods of which the destination has n policies of ten rules.
func asking(n int) (ingress, egress func() verdict) {
	pod := func(name, ip string) *workload.Workload {
		return &workload.Workload{
			UID: "c//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: name, TrustDomain: "cluster.local",
			Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Protocol: workload.HBONE, Capacity: 1,
		}
	}
	client, server := pod("client", "10.0.0.1"), pod("server", "10.0.0.2")
	store := workload.New()
	store.Apply([]workload.Event{workload.Upsert(client), workload.Upsert(server)})
	set := netpol.New()
	objects := []netpol.Object{&netpol.Namespace{Name: "ns"}}
	for _, w := range []*workload.Workload{client, server} {
		objects = append(objects, &netpol.Pod{UID: w.UID, Namespace: "ns", Labels: netpol.Labels{{Key: "app", Value: w.Name}}})
	}
	for i := range n {
		p := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: fmt.Sprint("p", i), Ingress: true, Egress: true}
		for j := range 10 {
			who := &netpol.Selector{Requirements: []netpol.Requirement{{Key: "app", Op: netpol.In, Values: []string{"nobody"}}}}
			r := netpol.Rule{Peers: []netpol.Peer{{Pods: who}}, Ports: []netpol.Port{{Port: uint16(8000 + j)}}}
			p.IngressRules, p.EgressRules = append(p.IngressRules, r), append(p.EgressRules, r)
		}
		if i == n-1 {
			last := netpol.Rule{AnyPeer: true, AnyPort: true}
			p.IngressRules, p.EgressRules = append(p.IngressRules, last), append(p.EgressRules, last)
		}
		objects = append(objects, p)
	}
	if n > 0 {
		set.Apply(objects, nil)
	}
	set.SetReady(true)
	judge := &networks{set: set, store: store, ownNode: func(netip.Addr) bool { return false }}
	f := &Flow{Direction: Inbound, Protocol: HBONE, facts: policy.Connection{Destination: netip.MustParseAddrPort("10.0.0.2:8080")}}
	f.Source = Peer{Addr: netip.MustParseAddrPort("10.0.0.1:40000"), Workload: client, ID: identity.MustParse("spiffe://cluster.local/ns/ns/sa/client")}
	t := &route.Target{Protocol: route.ProtocolHBONE, Workload: server, Dial: netip.MustParseAddrPort("10.0.0.2:15008"), Authority: "10.0.0.2:8080"}
	return func() verdict { return judge.incoming(server, f) }, func() verdict { return judge.outgoing(client, t) }
}

func BenchmarkAskNetworkPolicies(b *testing.B) {
	for _, n := range []int{0, 1, 10, 100} {
		ingress, egress := asking(n)
		for name, ask := range map[string]func() verdict{"ingress": ingress, "egress": egress} {
			b.Run(fmt.Sprintf("%s-%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if v := ask(); v.denied != nil {
						b.Fatal(v.denied)
					}
				}
			})
		}
	}
}

// What is allowed costs no memory, with or without policies, and neither does a look at a flow where there are none.
func TestAskingAllocatesNothing(t *testing.T) {
	for _, n := range []int{0, 10} {
		ingress, egress := asking(n)
		for name, ask := range map[string]func() verdict{"ingress": ingress, "egress": egress} {
			if v := ask(); v.denied != nil {
				t.Fatal(v.denied)
			}
			if a := testing.AllocsPerRun(100, func() { ask() }); a > 0 {
				t.Errorf("%s with %d policies allocates %.0f times", name, n, a)
			}
		}
	}
	set := netpol.New()
	set.SetReady(true)
	judge := &networks{set: set}
	local := &localState{workload: &workload.Workload{UID: "c//Pod/ns/a"}}
	if a := testing.AllocsPerRun(100, func() {
		if _, look := judge.sit(nil, local); look(&Flow{}) != nil {
			t.Error("a flow has to end")
		}
	}); a > 1 { // the Flow of the test
		t.Errorf("a look allocates %.0f times", a)
	}
}
