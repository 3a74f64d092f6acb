package netpol_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// dice makes choices from octets, so that fuzzing steers them; at the end it always says 0.
type dice struct{ octets []byte }

func (d *dice) roll(n int) int {
	if len(d.octets) == 0 {
		return 0
	}
	v := int(d.octets[0])
	d.octets = d.octets[1:]
	return v % n
}

func choose[T any](d *dice, of ...T) T { return of[d.roll(len(of))] }

// some returns up to n values.
func some[T any](d *dice, n int, f func() T) []T {
	var out []T
	for range d.roll(n + 1) {
		out = append(out, f())
	}
	return out
}

func (d *dice) seldom() bool { return d.roll(16) == 15 }

func (d *dice) labels() netpol.Labels {
	m := map[string]string{}
	for _, k := range []string{"app", "team", "x"} {
		if v := d.roll(4); v > 0 {
			m[k] = []string{"", "", "a", "b"}[v]
		}
	}
	return netpol.MakeLabels(m)
}

func (d *dice) requirement() netpol.Requirement {
	r := netpol.Requirement{
		Key: choose(d, "app", "team", "x"), Op: choose(d, netpol.In, netpol.In, netpol.NotIn, netpol.Exists, netpol.DoesNotExist),
	}
	if r.Op == netpol.In || r.Op == netpol.NotIn {
		r.Values = append(some(d, 2, func() string { return choose(d, "a", "b", "") }), choose(d, "a", "b", ""))
	}
	if d.seldom() {
		r.Op, r.Values = netpol.Op(d.roll(7)), some(d, 1, func() string { return "a" })
	}
	return r
}

func (d *dice) selector() *netpol.Selector {
	return &netpol.Selector{Requirements: some(d, 2, d.requirement)}
}

func (d *dice) addr() netip.Addr {
	a := choose(d, "10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1", "fd00::1", "fd00::2", "::ffff:10.0.0.1", "fe80::1%eth0", "")
	if a == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(a)
}

func (d *dice) block() netip.Prefix {
	return netip.MustParsePrefix(choose(d, "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "10.0.0.2/31", "0.0.0.0/0", "::/0", "fd00::/8",
		"fd00::1/128", "::ffff:10.0.0.0/104", "::ffff:0.0.0.0/96", "::ffff:0.0.0.0/90"))
}

func (d *dice) peer(namespaced bool) netpol.Peer {
	var p netpol.Peer
	n := 9
	if namespaced && !d.seldom() {
		n = 6
	}
	switch d.roll(n) {
	case 0, 1:
		p.Pods = d.selector()
		if !namespaced {
			p.Namespaces = d.selector()
		}
	case 2:
		p.Namespaces = d.selector()
	case 3:
		p.Namespaces, p.Pods = d.selector(), d.selector()
	case 4, 5:
		p.Block, p.Except = d.block(), some(d, 2, d.block)
	case 6:
		p.Networks = append(some(d, 2, d.block), d.block())
	case 7:
		p.Nodes = d.selector()
	default:
		p.Domains = []string{choose(d, "a.example", "*.example", "B.example.")}
	}
	if d.seldom() {
		p.Block = d.block()
	}
	return p
}

func (d *dice) protocol() netpol.Protocol { return choose(d, tcp, tcp, tcp, udp, netpol.SCTP) }

func (d *dice) port() netpol.Port {
	p := netpol.Port{Protocol: d.protocol()}
	switch d.roll(5) {
	case 0:
		p.Name, p.Protocol = choose(d, "http", "dns"), choose(d, tcp, udp, netpol.AnyProtocol)
	case 1:
		p.Port, p.End = choose(d, uint16(79), 80), choose(d, uint16(79), 80, 81, 65535)
	case 2:
	default:
		p.Port = choose(d, uint16(80), 81)
	}
	return p
}

func (d *dice) rule(namespaced bool) netpol.Rule {
	r := netpol.Rule{Name: choose(d, "", "named")}
	if !namespaced {
		r.Action = choose(d, netpol.Allow, netpol.Deny, netpol.Pass)
	}
	r.Peers = some(d, 2, func() netpol.Peer { return d.peer(namespaced) })
	r.Ports = some(d, 2, d.port)
	r.AnyPeer, r.AnyPort = len(r.Peers) == 0, len(r.Ports) == 0
	if d.seldom() {
		r.AnyPeer, r.Action = !r.AnyPeer, netpol.Action(d.roll(4))
	}
	if d.seldom() {
		r.Invalid = "what"
	}
	return r
}

func (d *dice) policy() *netpol.Policy {
	p := &netpol.Policy{Name: fmt.Sprintf("p%d", d.roll(12)), Tier: netpol.Namespaced, Namespace: choose(d, "a", "b"), Priority: int32(d.roll(3))}
	namespaced := d.roll(2) == 0
	p.Pods = *d.selector()
	if !namespaced {
		p.Tier, p.Namespace, p.Namespaces = choose(d, netpol.Admin, netpol.Baseline), "", d.selector()
	}
	if d.seldom() {
		p.Tier = netpol.Tier(d.roll(5))
	}
	p.IngressRules = some(d, 3, func() netpol.Rule { return d.rule(namespaced) })
	p.EgressRules = some(d, 3, func() netpol.Rule { return d.rule(namespaced) })
	types := d.roll(4)
	p.Ingress, p.Egress = types != 1, types != 2
	if d.seldom() {
		p.Ingress, p.Egress, p.Invalid = types&1 == 1, types&2 == 2, choose(d, "", "what")
	}
	return p
}

func (d *dice) objects() []netpol.Object {
	var out []netpol.Object
	for _, n := range []string{"a", "b", "c"} {
		if n != "c" || d.roll(2) == 0 {
			out = append(out, &netpol.Namespace{Name: n, Labels: d.labels()})
		}
	}
	for _, uid := range []string{"a/1", "a/2", "b/1", "b/2", "c/1"} {
		out = append(out, pod(uid, uid[:1], asMap(d.labels()), some(d, 2, func() netpol.NamedPort {
			return netpol.NamedPort{Name: choose(d, "http", "dns"), Protocol: choose(d, tcp, udp), Port: choose(d, uint16(80), 81)}
		})...))
	}
	for _, n := range []string{"n1", "n2"} {
		node := &netpol.Node{Name: n, Labels: d.labels()}
		if a := d.addr(); a.IsValid() && a.Zone() == "" {
			node.Addresses = []netip.Addr{a}
		}
		out = append(out, node)
	}
	for range d.roll(20) {
		p := d.policy()
		out = slices.DeleteFunc(out, func(o netpol.Object) bool { return o.Key() == p.Key() })
		out = append(out, p)
	}
	return out
}

func (d *dice) query() netpol.Query {
	return netpol.Query{
		Direction: choose(d, netpol.Ingress, netpol.Egress), Protocol: d.protocol(), Port: choose(d, uint16(80), 81, 443),
		Subject: choose(d, "a/1", "a/1", "a/2", "a/2", "b/1", "b/2", "c/1", "none"), Peer: choose(d, "a/1", "a/2", "b/1", "b/2", "c/1", "", "", "none"),
		PeerUnproven: d.roll(6) == 5, PeerIsNode: d.seldom(), PeerAddr: d.addr(), PeerDomain: choose(d, "", "", "a.example", "b.example"),
	}
}

// compare makes a world, asks both a number of queries about it, changes it and asks again.
func compare(t *testing.T, octets []byte, queries int) (answers map[answer]int) {
	t.Helper()
	d := &dice{octets}
	set := netpol.New()
	answers = make(map[answer]int)
	for range 2 {
		objects := d.objects()
		set.Replace(objects)
		model, snap := newPlain(objects), set.Snapshot()
		for range queries {
			q := d.query()
			got, want := snap.Evaluate(q), model.decide(q)
			if have := (answer{got.Allowed, got.Policy, got.Rule}); have != want {
				dump, _ := json.MarshalIndent(objects, "", " ")
				t.Fatalf("%+v\ngot  %+v\nwant %+v\nof %s", q, got, want, dump)
			}
			neverWider(t, snap, q, got)
			answers[want]++
		}
	}
	return answers
}

// neverWider: what is allowed to a peer that nobody has proven is allowed to whatever it may be.
func neverWider(t *testing.T, snap *netpol.Snapshot, q netpol.Query, d netpol.Decision) {
	t.Helper()
	if !q.PeerUnproven || !d.Allowed || !q.PeerAddr.IsValid() {
		return
	}
	for _, peer := range []string{"", "a/1", "a/2", "b/1", "b/2"} {
		q.PeerUnproven, q.Peer = false, peer
		if is := snap.Evaluate(q); !is.Allowed {
			t.Fatalf("allowed to somebody, but not to %q: %+v, %+v", peer, d, is)
		}
	}
}

func FuzzEvaluate(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(strings.Repeat("netpol", 60)))
	for seed := range uint64(8) {
		f.Add(octets(seed)[:700]) // longer ones take minutes to minimize
	}
	f.Fuzz(func(t *testing.T, b []byte) { compare(t, b, 6) })
}

func octets(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 4000+rng.IntN(6000))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// TestManyPolicies is about pods that so many policies select that their rules are looked up.
func TestManyPolicies(t *testing.T) {
	decided := make(map[bool]int)
	for seed := range uint64(60) {
		d := &dice{octets(seed)}
		objects := slices.DeleteFunc(d.objects(), func(o netpol.Object) bool { return o.Key().Kind == netpol.KindPolicy })
		for i := range 5 + d.roll(60) {
			p := np(fmt.Sprintf("p%d", i), all)
			p.IngressRules = []netpol.Rule{d.rule(true), d.rule(true)}
			p.EgressRules = []netpol.Rule{d.rule(true), d.rule(true)}
			for j := range 2 { // nearly all rules are about some peers and all ports
				p.IngressRules[j] = narrow(d, p.IngressRules[j])
				p.EgressRules[j] = narrow(d, p.EgressRules[j])
			}
			objects = append(objects, p)
		}
		set := netpol.New()
		set.Apply(objects, nil)
		model := newPlain(objects)
		for range 100 {
			q := d.query()
			got, want := set.Snapshot().Evaluate(q), model.decide(q)
			if (answer{got.Allowed, got.Policy, got.Rule}) != want {
				t.Fatalf("seed %d: %+v\ngot  %+v\nwant %+v", seed, q, got, want)
			}
			if want.policy != "" {
				decided[want.allowed]++
			}
		}
	}
	t.Logf("%d allowed, %d refused", decided[true], decided[false])
	if decided[true] < 300 || decided[false] < 300 {
		t.Error("the cases are of one kind: they show little")
	}
}

func narrow(d *dice, r netpol.Rule) netpol.Rule {
	if r.AnyPeer && d.roll(50) > 0 {
		r.AnyPeer, r.Peers = false, []netpol.Peer{d.peer(true)}
	}
	if d.roll(3) == 0 {
		r.AnyPort, r.Ports = true, nil
	}
	for i := range r.Peers {
		for s := r.Peers[i].Pods; s != nil && len(s.Requirements) == 0; {
			s.Requirements = some(d, 2, d.requirement)
			if d.roll(3) == 0 {
				break
			}
		}
	}
	return r
}

func TestDifferential(t *testing.T) {
	allowed, named, cases := 0, 0, 0
	for seed := range uint64(200) {
		for a, n := range compare(t, octets(seed+100), 48) {
			cases += n
			if a.allowed {
				allowed += n
			}
			if a.policy != "" {
				named += n
			}
		}
	}
	t.Logf("%d cases, %d allowed, %d decided by a policy", cases, allowed, named)
	if allowed*10 < cases || allowed*10 > cases*9 || named*4 < cases {
		t.Error("the cases are of one kind: they show little")
	}
}
