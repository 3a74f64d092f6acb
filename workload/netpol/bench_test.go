package netpol_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// benchSet has 1,000 policies in the subject's namespace, of which some select it. Each has three rules: other pods on the
// right port, the right pods on another port, and a block of addresses with an exception. Only the last one of the last
// policy allows the connection.
func benchSet(selecting int) (*netpol.Set, netpol.Query) {
	set := netpol.New()
	objects := []netpol.Object{
		&netpol.Namespace{Name: "ns", Labels: netpol.MakeLabels(map[string]string{"kubernetes.io/metadata.name": "ns", "team": "a"})},
		&netpol.Namespace{Name: "peers", Labels: netpol.MakeLabels(map[string]string{"kubernetes.io/metadata.name": "peers", "team": "b"})},
		pod("subject", "ns", map[string]string{"app": "web", "pod-template-hash": "12345", "version": "v1"}),
		pod("peer", "peers", map[string]string{"app": "client", "pod-template-hash": "54321", "version": "v2"}),
	}
	for i := range 1000 {
		p := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: fmt.Sprintf("p%04d", i), Ingress: true}
		if i%(1000/selecting) == 0 {
			p.Pods = is("app", "web")
		} else {
			p.Pods = is("app", fmt.Sprintf("web%d", i))
		}
		others, right := is("app", fmt.Sprintf("client%d", i)), is("app", "client")
		team := is("team", "b")
		p.IngressRules = []netpol.Rule{
			{Peers: []netpol.Peer{{Pods: &others, Namespaces: &team}}, Ports: []netpol.Port{{Port: 8080}}},
			{Peers: []netpol.Peer{{Pods: &right, Namespaces: &team}}, Ports: []netpol.Port{{Port: 80, End: 90}, {Name: "metrics"}}},
			{Peers: []netpol.Peer{{
				Block:  netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i%100)),
				Except: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.1.0/24", i%100))},
			}}, AnyPort: true},
		}
		objects = append(objects, p)
	}
	last := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: "z", Pods: is("app", "web"), Ingress: true}
	client := is("app", "client")
	all := netpol.Selector{}
	last.IngressRules = []netpol.Rule{{Peers: []netpol.Peer{{Pods: &client, Namespaces: &all}}, Ports: []netpol.Port{{Port: 8080}}}}
	set.Apply(append(objects, last), nil)
	return set, netpol.Query{Subject: "subject", Peer: "peer", PeerAddr: netip.MustParseAddr("10.200.0.1"), Port: 8080}
}

// BenchmarkPolicy is a decision with 1,000 policies in the namespace, none of which matches but the last.
func BenchmarkPolicy(b *testing.B) {
	for _, selecting := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d-of-1000", selecting), func(b *testing.B) {
			set, q := benchSet(selecting)
			snap := set.Snapshot()
			if d := snap.Evaluate(q); !d.Allowed || d.Policy != "netpol ns/z" {
				b.Fatalf("%+v", d)
			}
			b.ReportAllocs()
			for b.Loop() {
				snap.Evaluate(q)
			}
		})
	}
}

// BenchmarkPolicyChange is one changed policy among 1,000 of its namespace, and the next decision.
func BenchmarkPolicyChange(b *testing.B) {
	set, q := benchSet(10)
	p := *set.Snapshot().Object(netpol.Key{Kind: netpol.KindPolicy, Namespace: "ns", Name: "p0001"}).(*netpol.Policy)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		changed := p
		changed.Egress = i%2 == 0
		set.Apply([]netpol.Object{&changed}, nil)
		set.Snapshot().Evaluate(q)
	}
}
