package netpol_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

var (
	nobody  = pods(&all, others)
	webPods = pods(&all, webs)
	allow   = netpol.Allow
	deny    = netpol.Deny
	pass    = netpol.Pass
)

func networks(cidrs ...string) netpol.Peer {
	var p netpol.Peer
	for _, c := range cidrs {
		p.Networks = append(p.Networks, netip.MustParsePrefix(c))
	}
	return p
}

func TestTiers(t *testing.T) {
	deciding := func(policy string, allowed bool) verdict {
		return verdict{allowed: allowed, policy: policy, rule: "ingress 0"}
	}
	always := func(tier netpol.Tier, name string, priority int32, a netpol.Action) *netpol.Policy {
		return cnp(tier, name, priority, act(a, anyone))
	}
	never := func(tier netpol.Tier, name string, priority int32, a netpol.Action) *netpol.Policy {
		return cnp(tier, name, priority, act(a, from(nobody)))
	}
	run(t, []row{
		{name: "admin-accept", policies: one(always(admin, "c", 0, allow)), want: deciding("cluster-netpol c", true)},
		{name: "admin-deny", policies: one(always(admin, "c", 0, deny)), want: deciding("cluster-netpol c", false)},
		{name: "admin-pass", policies: one(always(admin, "c", 0, pass)), want: free},
		{name: "admin-no-match", policies: one(never(admin, "c", 0, deny)), want: free},
		{name: "admin-without-rules", policies: one(cnp(admin, "c", 0)), want: free},
		{name: "baseline-accept", policies: one(always(baseline, "c", 0, allow)), want: deciding("cluster-netpol c", true)},
		{name: "baseline-deny", policies: one(always(baseline, "c", 0, deny)), want: deciding("cluster-netpol c", false)},
		{name: "baseline-pass", policies: one(always(baseline, "c", 0, pass), always(baseline, "d", 1, deny)), want: free},
		{name: "admin-accept-over-namespaced", policies: one(always(admin, "c", 0, allow), np("p", all)), want: deciding("cluster-netpol c", true)},
		{name: "admin-deny-over-namespaced", policies: one(always(admin, "c", 0, deny), np("p", all, anyone)), want: deciding("cluster-netpol c", false)},
		{name: "admin-pass-to-namespaced", policies: one(always(admin, "c", 0, pass), always(admin, "d", 1, allow), np("p", all)), want: refused},
		{name: "namespaced-over-baseline", policies: one(np("p", all, anyone), always(baseline, "c", 0, deny)), want: taken},
		{name: "namespaced-is-final", policies: one(np("p", all), always(baseline, "c", 0, allow)), want: refused},
		{name: "namespaced-is-final-for-itself", policies: one(np("p", all), always(baseline, "c", 0, deny)), conn: conn{peer: "a/web"}, want: verdict{allowed: true}},
		{name: "pass-past-namespaced-to-baseline", policies: one(always(admin, "c", 0, pass), always(baseline, "d", 0, deny)), want: deciding("cluster-netpol d", false)},
		{name: "admin-over-baseline", policies: one(always(admin, "z", 1000, allow), always(baseline, "a", 0, deny)), want: deciding("cluster-netpol z", true)},
		{name: "lower-priority-value-first", policies: one(always(admin, "a", 2, deny), always(admin, "b", 1, allow)), want: deciding("cluster-netpol b", true)},
		{name: "next-priority", policies: one(never(admin, "a", 1, deny), always(admin, "b", 2, allow)), want: deciding("cluster-netpol b", true)},
		{name: "equal-priority-by-name", policies: one(always(admin, "b", 1, allow), always(admin, "a", 1, deny)), want: deciding("cluster-netpol a", false)},
		{
			name: "rules-in-order", policies: one(cnp(admin, "c", 0, act(deny, from(nobody)), act(allow, from(webPods)), act(deny, anyone))),
			want: verdict{allowed: true, policy: "cluster-netpol c", rule: "ingress 1"},
		},
		{
			name: "rule-by-name", policies: one(cnp(admin, "c", 0, netpol.Rule{Name: "let-nobody-in", Action: deny, AnyPeer: true, AnyPort: true})),
			want: verdict{policy: "cluster-netpol c", rule: "let-nobody-in", contains: "denied by a rule"},
		},
	})
}

func TestClusterSubjects(t *testing.T) {
	subject := func(namespaces, pods netpol.Selector) []*netpol.Policy {
		p := cnp(admin, "c", 0, act(deny, anyone))
		p.Namespaces, p.Pods = &namespaces, pods
		return one(p)
	}
	denied := verdict{policy: "cluster-netpol c", rule: "ingress 0"}
	run(t, []row{
		{name: "all", policies: subject(all, all), want: denied},
		{name: "namespace", policies: subject(*teamX, all), want: denied},
		{name: "other-namespace", policies: subject(*teamX, all), conn: conn{subject: "b/web", peer: "a/web"}, want: free},
		{name: "pods", policies: subject(all, *webs), conn: conn{subject: "b/web", peer: "a/db"}, want: denied},
		{name: "pods-and-namespace", policies: subject(*teamX, *webs), conn: conn{subject: "a/db"}, want: free},
	})
}

func TestClusterPeers(t *testing.T) {
	p := func(a netpol.Action, peer netpol.Peer, ports ...netpol.Port) []*netpol.Policy {
		return one(cnp(admin, "c", 0, netpol.Rule{Action: a, Peers: []netpol.Peer{peer}, AnyPort: len(ports) == 0, Ports: ports}))
	}
	denied := verdict{policy: "cluster-netpol c", rule: "egress 0"}
	accepted := verdict{policy: "cluster-netpol c", rule: "egress 0", allowed: true}
	unproven := verdict{policy: "cluster-netpol c", rule: "egress 0", contains: "nobody has proven"}
	edge, every := netpol.Peer{Nodes: ptr(is("pool", "edge"))}, netpol.Peer{Nodes: &all}
	outside := conn{dir: out, peer: "-", addr: "203.0.113.5"}
	named := conn{dir: out, peer: "-", addr: "203.0.113.5", domain: "www.example.com"}
	run(t, []row{
		{name: "namespaces", policies: p(deny, pods(teamX, nil)), conn: conn{dir: out, peer: "a/db"}, want: denied},
		{name: "namespaces-not-outside", policies: p(deny, pods(&all, nil)), conn: outside, want: free},
		{name: "networks", policies: p(deny, networks("198.51.100.0/24", "203.0.113.0/24")), conn: outside, want: denied},
		{name: "networks-and-pods", policies: p(deny, networks("0.0.0.0/0")), conn: conn{dir: out}, want: denied},
		{name: "networks-elsewhere", policies: p(deny, networks("198.51.100.0/24")), conn: outside, want: free},
		{name: "nodes", policies: p(deny, edge), conn: conn{dir: out, peer: "-", addr: "192.168.0.1"}, want: denied},
		{name: "nodes-mapped", policies: p(deny, edge), conn: conn{dir: out, peer: "-", addr: "192.168.9.1"}, want: denied},
		{name: "nodes-other", policies: p(deny, edge), conn: conn{dir: out, peer: "-", addr: "192.168.0.2"}, want: free},
		{name: "nodes-all", policies: p(deny, every), conn: conn{dir: out, peer: "-", addr: "192.168.0.2"}, want: denied},
		{name: "nodes-all-but-no-node", policies: p(deny, every), conn: outside, want: free},
		{name: "domain", policies: p(allow, netpol.Peer{Domains: []string{"WWW.example.com."}}), conn: named, want: accepted},
		{name: "domain-below", policies: p(allow, netpol.Peer{Domains: []string{"*.example.com"}}), conn: named, want: accepted},
		{name: "domain-not-itself", policies: p(allow, netpol.Peer{Domains: []string{"*.www.example.com"}}), conn: named, want: free},
		{name: "domain-no-part", policies: p(allow, netpol.Peer{Domains: []string{"ww.example.com", "*.ample.com", "example.com"}}), conn: named, want: free},
		{name: "domain-unknown", policies: p(allow, netpol.Peer{Domains: []string{"*.example.com"}}), conn: outside, want: free},
		{name: "port-range", policies: p(deny, webPods, netpol.Port{Port: 8000, End: 9000}), conn: conn{dir: out}, want: denied},
		{name: "named-port", policies: p(deny, pods(&all, nil), netpol.Port{Name: "sql", Protocol: netpol.AnyProtocol}), conn: conn{dir: out, peer: "a/db", port: 5432}, want: denied},
		{name: "named-port-elsewhere", policies: p(deny, pods(&all, nil), netpol.Port{Name: "sql", Protocol: netpol.AnyProtocol}), conn: conn{dir: out, peer: "a/db"}, want: free},

		{name: "unproven-accept", policies: p(allow, webPods), conn: conn{dir: out, unproven: true}, want: free},
		{name: "unproven-deny", policies: p(deny, webPods), conn: conn{dir: out, unproven: true}, want: unproven},
		{name: "unproven-deny-others", policies: p(deny, nobody), conn: conn{dir: out, unproven: true}, want: unproven},
		{name: "unproven-pass", policies: p(pass, nobody), conn: conn{dir: out, unproven: true}, want: unproven},
		{name: "unproven-other-port", policies: p(deny, webPods, netpol.Port{Port: 1}), conn: conn{dir: out, unproven: true}, want: free},
		{name: "unproven-named-port", policies: p(deny, networks("0.0.0.0/0"), netpol.Port{Name: "none"}), conn: conn{dir: out, unproven: true}, want: unproven},
		{name: "unproven-network", policies: p(allow, networks("10.0.0.0/8")), conn: conn{dir: out, unproven: true}, want: accepted},
		{name: "no-address-deny", policies: p(deny, networks("10.0.0.0/8")), conn: conn{dir: out, peer: "-", addr: "-"}, want: unproven},
		{name: "no-address-accept", policies: p(allow, networks("0.0.0.0/0")), conn: conn{dir: out, peer: "-", addr: "-"}, want: free},
	})
}

func TestInvalid(t *testing.T) {
	bad := func(p *netpol.Policy) []*netpol.Policy {
		p.Invalid = "no words for it"
		return one(p)
	}
	edit := func(p *netpol.Policy, f func(*netpol.Policy)) []*netpol.Policy {
		f(p)
		return one(p)
	}
	neither := np("p", all, anyone)
	neither.Ingress, neither.Egress = false, false
	broken := netpol.Selector{Requirements: []netpol.Requirement{require("app", netpol.In, "web"), require("app", 0, "web")}}
	isolates := verdict{policy: "netpol a/p", contains: "(netpol a/p is invalid: "}
	denies := verdict{policy: "cluster-netpol c", contains: "invalid: "}
	denyRule := verdict{policy: "cluster-netpol c", rule: "ingress 0", contains: "invalid: "}
	run(t, []row{
		{name: "netpol", policies: bad(np("p", all, anyone)), want: isolates},
		{name: "netpol-of-no-direction", policies: bad(neither), conn: conn{dir: out}, want: isolates},
		{name: "netpol-of-others", policies: bad(np("p", *others, anyone)), want: free},
		{name: "netpol-and-another", policies: append(bad(np("p", all)), np("q", all, anyone)), want: verdict{allowed: true, policy: "netpol a/q", rule: "ingress 0"}},
		{name: "netpol-subject", policies: one(np("p", broken, anyone)), want: isolates},
		{name: "netpol-subject-of-others", policies: one(np("p", broken, anyone)), conn: conn{subject: "a/db"}, want: free},
		{name: "netpol-with-namespaces", policies: edit(np("p", all, anyone), func(p *netpol.Policy) { p.Namespaces = teamX }), want: isolates},
		{name: "netpol-of-another-tier", policies: edit(np("p", all, anyone), func(p *netpol.Policy) { p.Tier = admin }), want: isolates},
		{name: "netpol-rule", policies: one(np("p", all, netpol.Rule{AnyPeer: true, AnyPort: true, Invalid: "what"})), want: isolates},
		{name: "netpol-other-rule", policies: one(np("p", all, netpol.Rule{AnyPeer: true, AnyPort: true, Invalid: "what"}, anyone)), want: verdict{allowed: true, policy: "netpol a/p", rule: "ingress 1"}},
		{name: "netpol-deny", policies: one(np("p", all, act(deny, anyone))), want: isolates},
		{name: "netpol-peer-selector", policies: one(np("p", all, from(pods(&all, &broken)))), want: isolates},
		{name: "netpol-peer-of-two-kinds", policies: one(np("p", all, from(netpol.Peer{Pods: webs, Block: netip.MustParsePrefix("10.0.0.0/8")}))), want: isolates},
		{name: "netpol-peer-of-no-kind", policies: one(np("p", all, from(netpol.Peer{}))), want: isolates},
		{name: "netpol-peer-except-alone", policies: one(np("p", all, from(netpol.Peer{Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}))), want: isolates},
		{name: "netpol-peer-of-domains", policies: one(np("p", all, from(netpol.Peer{Domains: []string{"a.b"}}))), want: isolates},
		{name: "netpol-peer-of-networks", policies: one(np("p", all, from(networks("0.0.0.0/0")))), want: isolates},
		{name: "netpol-peer-of-nodes", policies: one(np("p", all, from(netpol.Peer{Nodes: &all}))), want: isolates},
		{name: "netpol-all-peers-and-some", policies: one(np("p", all, netpol.Rule{AnyPeer: true, Peers: []netpol.Peer{webPods}, AnyPort: true})), want: isolates},
		{name: "netpol-all-ports-and-some", policies: one(np("p", all, netpol.Rule{AnyPeer: true, Ports: []netpol.Port{{}}, AnyPort: true})), want: isolates},
		{name: "netpol-range-backwards", policies: one(np("p", all, on(netpol.Port{Port: 9000, End: 1}))), want: isolates},
		{name: "netpol-range-without-start", policies: one(np("p", all, on(netpol.Port{End: 9000}))), want: isolates},
		{name: "netpol-named-range", policies: one(np("p", all, on(netpol.Port{Name: "http", End: 9000}))), want: isolates},
		{name: "netpol-protocol", policies: one(np("p", all, on(netpol.Port{Protocol: 9}))), want: isolates},
		{name: "netpol-mixed-block", policies: one(np("p", all, from(netpol.Peer{Block: netip.PrefixFrom(netip.MustParseAddr("::ffff:0:0"), 90)}))), want: isolates},
		{name: "netpol-mixed-except", policies: one(np("p", all, from(netpol.Peer{
			Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:0:0"), 90)},
		}))), want: isolates},

		{name: "cnp", policies: bad(cnp(admin, "c", 0, anyone)), want: denies},
		{name: "cnp-baseline", policies: bad(cnp(baseline, "c", 0, anyone)), want: denies},
		{name: "cnp-baseline-under-netpol", policies: append(bad(cnp(baseline, "c", 0, anyone)), np("p", all, anyone)), want: taken},
		{name: "cnp-after-accept", policies: append(bad(cnp(admin, "c", 1, anyone)), cnp(admin, "d", 0, anyone)), want: verdict{allowed: true, policy: "cluster-netpol d", rule: "ingress 0"}},
		{name: "cnp-without-subject", policies: edit(cnp(admin, "c", 0, anyone), func(p *netpol.Policy) { p.Namespaces = nil }), want: denies},
		{name: "cnp-without-tier", policies: edit(cnp(0, "c", 0, anyone), func(*netpol.Policy) {}), want: denies},
		{name: "cnp-of-namespaced", policies: edit(cnp(netpol.Namespaced, "c", 0, anyone), func(p *netpol.Policy) { p.Namespaces = nil }), want: denies},
		{name: "cnp-subject-of-others", policies: edit(cnp(admin, "c", 0, anyone), func(p *netpol.Policy) { p.Pods = broken }), conn: conn{subject: "a/db"}, want: free},
		{name: "cnp-accept-rule", policies: one(cnp(admin, "c", 0, netpol.Rule{AnyPeer: true, AnyPort: true, Invalid: "what"})), want: free},
		{name: "cnp-deny-rule", policies: one(cnp(admin, "c", 0, act(deny, netpol.Rule{Peers: []netpol.Peer{nobody}, AnyPort: true, Invalid: "what"}))), want: denyRule},
		{name: "cnp-pass-rule", policies: one(cnp(admin, "c", 0, act(pass, netpol.Rule{Peers: []netpol.Peer{nobody}, AnyPort: true, Invalid: "what"}))), want: denyRule},
		{name: "cnp-accept-of-a-peer-of-no-kind", policies: one(cnp(admin, "c", 0, from(netpol.Peer{}))), want: free},
		{name: "cnp-deny-of-a-peer-of-no-kind", policies: one(cnp(admin, "c", 0, act(deny, from(netpol.Peer{})))), want: denyRule},
		{name: "cnp-deny-of-nobody", policies: one(cnp(admin, "c", 0, act(deny, netpol.Rule{AnyPort: true}))), want: denyRule},
		{name: "cnp-pods-without-namespaces", policies: one(cnp(admin, "c", 0, act(deny, from(pods(nil, others))))), want: denyRule},
		{name: "cnp-deny-of-domains", policies: one(cnp(admin, "c", 0, act(deny, from(netpol.Peer{Domains: []string{"a.b"}})))), want: denyRule},
		{name: "cnp-bad-domain", policies: one(cnp(admin, "c", 0, from(netpol.Peer{Domains: []string{"a.*.b"}}))), want: free},
		{name: "cnp-action", policies: one(cnp(admin, "c", 0, act(9, from(nobody)))), want: denyRule},
	})
}

func TestUnknown(t *testing.T) {
	set := netpol.New()
	set.Apply(append(world(), pod("c/web", "c", nil), np("p", all, from(webPods))), nil)
	for _, tc := range []struct {
		name             string
		conn             conn
		allowed, unknown bool
	}{
		{name: "known", allowed: true},
		{name: "subject", conn: conn{subject: "a/new"}, unknown: true},
		{name: "namespace-of-subject", conn: conn{subject: "c/web"}, unknown: true},
		{name: "peer", conn: conn{peer: "a/new"}, unknown: true},
		{name: "namespace-of-peer", conn: conn{peer: "c/web"}, unknown: true},
		{name: "peer-that-does-not-matter", conn: conn{subject: "b/web", peer: "a/new"}, allowed: true},
		{name: "unproven", conn: conn{unproven: true}},
		{name: "no-pod", conn: conn{peer: "-"}},
		{name: "direction", conn: conn{dir: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := set.Snapshot().Evaluate(tc.conn.query())
			if d.Allowed != tc.allowed || d.Unknown != tc.unknown {
				t.Errorf("%+v", d)
			}
		})
	}
	for i := range 20 { // so many that they are looked up
		set.Apply([]netpol.Object{np(fmt.Sprintf("q%d", i), all, from(pods(&all, others)))}, nil)
	}
	if d := set.Snapshot().Evaluate(conn{peer: "a/new"}.query()); d.Allowed || !d.Unknown {
		t.Errorf("with many policies: %+v", d)
	}
	if d := netpol.New().Snapshot().Evaluate(conn{}.query()); !d.Allowed {
		t.Errorf("without a policy: %+v", d)
	}
	set.Apply([]netpol.Object{cnp(admin, "c", 0, act(deny, anyone))}, nil)
	if d := set.Snapshot().Evaluate(conn{peer: "a/new"}.query()); d.Allowed || d.Unknown {
		t.Errorf("denied whoever the peer is: %+v", d)
	}
}
