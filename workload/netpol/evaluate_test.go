package netpol_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

const (
	in, out         = netpol.Ingress, netpol.Egress
	tcp, udp        = netpol.TCP, netpol.UDP
	admin, baseline = netpol.Admin, netpol.Baseline
)

// world is what the tables below are about: web and db in namespace a, web in b, nobody's rules.
func world() []netpol.Object {
	named := []netpol.NamedPort{{Name: "http", Port: 8080}, {Name: "http", Port: 8081}, {Name: "dns", Protocol: udp, Port: 53}}
	return []netpol.Object{
		&netpol.Namespace{Name: "a", Labels: netpol.MakeLabels(map[string]string{"kubernetes.io/metadata.name": "a", "team": "x"})},
		&netpol.Namespace{Name: "b", Labels: netpol.MakeLabels(map[string]string{"kubernetes.io/metadata.name": "b"})},
		pod("a/web", "a", map[string]string{"app": "web"}, named...),
		pod("a/db", "a", map[string]string{"app": "db", "tier": "back"}, netpol.NamedPort{Name: "sql", Port: 5432}),
		pod("b/web", "b", map[string]string{"app": "web"}),
		&netpol.Node{Name: "n1", Labels: netpol.MakeLabels(map[string]string{"pool": "edge"}), Addresses: addrs("192.168.0.1", "::ffff:192.168.9.1")},
		&netpol.Node{Name: "n2", Addresses: addrs("192.168.0.2")},
	}
}

func addrs(in ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// np is a NetworkPolicy of namespace a for both directions with one rule in each.
func np(name string, subject netpol.Selector, rules ...netpol.Rule) *netpol.Policy {
	return &netpol.Policy{
		Tier: netpol.Namespaced, Namespace: "a", Name: name, Pods: subject,
		Ingress: true, Egress: true, IngressRules: rules, EgressRules: rules,
	}
}

// cnp is a ClusterNetworkPolicy for all pods of namespace a.
func cnp(tier netpol.Tier, name string, priority int32, rules ...netpol.Rule) *netpol.Policy {
	return &netpol.Policy{
		Tier: tier, Name: name, Priority: priority, Namespaces: ptr(is("kubernetes.io/metadata.name", "a")),
		Ingress: true, Egress: true, IngressRules: rules, EgressRules: rules,
	}
}

func from(peers ...netpol.Peer) netpol.Rule { return netpol.Rule{Peers: peers, AnyPort: true} }

func on(ports ...netpol.Port) netpol.Rule { return netpol.Rule{AnyPeer: true, Ports: ports} }

func act(a netpol.Action, r netpol.Rule) netpol.Rule {
	r.Action = a
	return r
}

func pods(namespaces, pods *netpol.Selector) netpol.Peer {
	return netpol.Peer{Namespaces: namespaces, Pods: pods}
}

var (
	all    = netpol.Selector{}
	webs   = ptr(is("app", "web"))
	others = ptr(is("app", "other"))
	teamX  = ptr(is("team", "x"))
	anyone = netpol.Rule{AnyPeer: true, AnyPort: true}
)

// conn is a connection to or from a/web, with b/web at 10.0.2.1 as the peer and 8080 as the port unless said otherwise.
type conn struct {
	dir      netpol.Direction
	subject  string
	peer     string // "-" is no pod
	addr     string // "-" is none
	port     uint16
	protocol netpol.Protocol
	domain   string
	unproven bool
	node     bool
}

func (c conn) query() netpol.Query {
	q := netpol.Query{
		Direction: c.dir, Subject: "a/web", Peer: "b/web", Port: 8080, Protocol: c.protocol,
		PeerUnproven: c.unproven, PeerIsNode: c.node, PeerAddr: netip.MustParseAddr("10.0.2.1"), PeerDomain: c.domain,
	}
	if c.subject != "" {
		q.Subject = c.subject
	}
	if c.peer != "" {
		q.Peer = c.peer
	}
	if c.peer == "-" {
		q.Peer = ""
	}
	if c.addr == "-" {
		q.PeerAddr = netip.Addr{}
	} else if c.addr != "" {
		q.PeerAddr = netip.MustParseAddr(c.addr)
	}
	if c.port != 0 {
		q.Port = c.port
	}
	return q
}

const isolated = "selected by a network policy, and no rule allows it"

type verdict struct {
	allowed                bool
	policy, rule, contains string
}

var (
	free    = verdict{allowed: true, contains: "no network policy"}
	refused = verdict{policy: "netpol a/p", contains: isolated}
	taken   = verdict{allowed: true, policy: "netpol a/p", rule: "ingress 0", contains: "allowed by a rule"}
)

type row struct {
	name     string
	policies []*netpol.Policy
	conn     conn
	want     verdict
}

func run(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			set := netpol.New()
			objects := world()
			for _, p := range r.policies {
				objects = append(objects, p)
			}
			set.Apply(objects, nil)
			got := set.Snapshot().Evaluate(r.conn.query())
			if got.Allowed != r.want.allowed || got.Policy != r.want.policy || got.Rule != r.want.rule || !strings.Contains(got.Reason, r.want.contains) {
				t.Errorf("got %+v, want %+v", got, r.want)
			}
			if got.Reason == "" {
				t.Error("no reason")
			}
		})
	}
}

func one(p ...*netpol.Policy) []*netpol.Policy { return p }

func TestIsolation(t *testing.T) {
	ingressOnly, egressOnly := np("p", all), np("p", all)
	ingressOnly.Egress, egressOnly.Ingress = false, false
	elsewhere := np("p", all)
	elsewhere.Namespace = "b"
	run(t, []row{
		{name: "no-policy", want: free},
		{name: "not-selected", policies: one(np("p", *others)), want: free},
		{name: "other-namespace", policies: one(elsewhere), want: free},
		{name: "ingress-of-both", policies: one(np("p", all)), want: refused},
		{name: "egress-of-both", policies: one(np("p", all)), conn: conn{dir: out}, want: refused},
		{name: "ingress-of-ingress", policies: one(ingressOnly), want: refused},
		{name: "egress-of-ingress", policies: one(ingressOnly), conn: conn{dir: out}, want: free},
		{name: "ingress-of-egress", policies: one(egressOnly), want: free},
		{name: "egress-of-egress", policies: one(egressOnly), conn: conn{dir: out}, want: refused},
		{name: "the-zero-rule-matches-nothing", policies: one(np("p", all, netpol.Rule{})), want: refused},
		{name: "everything", policies: one(np("p", all, anyone)), want: taken},
		{
			name: "policies-add-up", policies: one(np("p", all), np("q", *webs, anyone), np("r", all, anyone)),
			want: verdict{allowed: true, policy: "netpol a/q", rule: "ingress 0"},
		},
		{
			name: "the-first-is-named", policies: one(np("q", all), np("p", all)),
			want: verdict{policy: "netpol a/p", contains: "selected by 2 network policies"},
		},
		{
			name: "itself", policies: one(np("p", all)), conn: conn{peer: "a/web", addr: "10.0.1.1"},
			want: verdict{allowed: true, contains: "itself"},
		},
		{name: "itself-unproven", policies: one(np("p", all)), conn: conn{peer: "a/web", unproven: true}, want: refused},
		{
			name: "its-node", policies: one(np("p", all)), conn: conn{peer: "-", node: true},
			want: verdict{allowed: true, contains: "node"},
		},
		{name: "egress-to-its-node", policies: one(np("p", all)), conn: conn{dir: out, peer: "-", node: true}, want: verdict{allowed: true}},
		{name: "its-node-and-admin", policies: one(cnp(admin, "c", 0, act(netpol.Deny, anyone))), conn: conn{peer: "-", node: true}, want: verdict{policy: "cluster-netpol c", rule: "ingress 0"}},
	})
}

func TestPeers(t *testing.T) {
	p := func(peers ...netpol.Peer) []*netpol.Policy { return one(np("p", all, from(peers...))) }
	run(t, []row{
		{name: "none", policies: one(np("p", all, netpol.Rule{Peers: []netpol.Peer{}, AnyPort: true})), want: refused},
		{name: "pods-of-own-namespace", policies: p(pods(nil, webs)), conn: conn{subject: "a/db", peer: "a/web"}, want: taken},
		{name: "pods-of-own-namespace-only", policies: p(pods(nil, webs)), want: refused},
		{name: "all-pods-of-own-namespace", policies: p(pods(nil, &all)), conn: conn{peer: "a/db"}, want: taken},
		{name: "all-pods-are-not-all-peers", policies: p(pods(&all, nil)), conn: conn{peer: "-"}, want: refused},
		{name: "all-namespaces", policies: p(pods(&all, nil)), want: taken},
		{name: "namespace", policies: p(pods(ptr(is("kubernetes.io/metadata.name", "b")), nil)), want: taken},
		{name: "other-namespace", policies: p(pods(teamX, nil)), want: refused},
		{name: "both", policies: p(pods(&all, webs)), want: taken},
		{name: "both-but-the-pod", policies: p(pods(&all, others)), want: refused},
		{name: "both-but-the-namespace", policies: p(pods(teamX, webs)), want: refused},
		{name: "either-of-two", policies: p(pods(teamX, nil), pods(&all, webs)), want: taken},
		{name: "labels-of-the-namespace-are-not-the-pod's", policies: p(pods(&all, teamX)), conn: conn{peer: "a/db"}, want: refused},
		{name: "block", policies: p(block("10.0.2.0/24")), conn: conn{peer: "-"}, want: taken},
		{name: "block-and-a-pod", policies: p(block("10.0.2.0/24")), want: taken},
		{name: "block-elsewhere", policies: p(block("10.0.3.0/24")), want: refused},
		{name: "block-with-host-bits", policies: p(block("10.0.2.99/24")), want: taken},
		{name: "except", policies: p(block("10.0.0.0/8", "10.0.2.0/24")), want: refused},
		{name: "except-elsewhere", policies: p(block("10.0.0.0/8", "10.0.3.0/24")), want: taken},
		{name: "except-is-of-its-block", policies: p(block("10.0.0.0/8", "10.0.2.0/24"), block("10.0.2.1/32")), want: taken},
		{name: "block-all-is-one-family", policies: p(block("0.0.0.0/0")), conn: conn{peer: "-", addr: "fd00::1"}, want: refused},
		{name: "block6", policies: p(block("fd00::/8", "fd00:1::/32")), conn: conn{peer: "-", addr: "fd00::1"}, want: taken},
		{name: "block6-except", policies: p(block("fd00::/8", "fd00::/32")), conn: conn{peer: "-", addr: "fd00::1"}, want: refused},
		{name: "mapped-peer", policies: p(block("10.0.2.0/24")), conn: conn{addr: "::ffff:10.0.2.1"}, want: taken},
		{name: "mapped-peer-and-except", policies: p(block("10.0.0.0/8", "10.0.2.0/24")), conn: conn{addr: "::ffff:10.0.2.1"}, want: refused},
		{name: "mapped-peer-is-not-ipv6", policies: p(block("::/0")), conn: conn{addr: "::ffff:10.0.2.1"}, want: refused},
		{name: "mapped-block", policies: p(block("::ffff:10.0.2.0/120")), want: taken},
		{name: "mapped-block-elsewhere", policies: p(block("::ffff:10.0.3.0/120")), want: refused},
		{name: "mapped-except", policies: p(block("10.0.0.0/8", "::ffff:10.0.2.0/120")), want: refused},
		{name: "zone", policies: p(block("fe80::/10")), conn: conn{peer: "-", addr: "fe80::1%eth0"}, want: taken},
		{name: "no-address", policies: p(block("0.0.0.0/0")), conn: conn{peer: "-", addr: "-"}, want: refused},
		{name: "unproven", policies: p(pods(&all, nil)), conn: conn{unproven: true}, want: refused},
		{name: "unproven-but-the-address", policies: p(block("10.0.2.0/24")), conn: conn{unproven: true}, want: taken},
		{name: "unproven-but-anybody", policies: one(np("p", all, anyone)), conn: conn{unproven: true}, want: taken},
	})
}

func TestSelectors(t *testing.T) {
	p := func(r ...netpol.Requirement) []*netpol.Policy {
		return one(np("p", all, from(pods(&all, &netpol.Selector{Requirements: r}))))
	}
	c := conn{peer: "a/db"} // app=db, tier=back
	run(t, []row{
		{name: "in", policies: p(require("app", netpol.In, "x", "db")), conn: c, want: taken},
		{name: "in-not", policies: p(require("app", netpol.In, "x", "y")), conn: c, want: refused},
		{name: "in-absent", policies: p(require("none", netpol.In, "")), conn: c, want: refused},
		{name: "notin", policies: p(require("app", netpol.NotIn, "x", "y")), conn: c, want: taken},
		{name: "notin-not", policies: p(require("app", netpol.NotIn, "x", "db")), conn: c, want: refused},
		{name: "notin-absent", policies: p(require("none", netpol.NotIn, "x")), conn: c, want: taken},
		{name: "exists", policies: p(require("app", netpol.Exists)), conn: c, want: taken},
		{name: "exists-not", policies: p(require("none", netpol.Exists)), conn: c, want: refused},
		{name: "absent", policies: p(require("none", netpol.DoesNotExist)), conn: c, want: taken},
		{name: "absent-not", policies: p(require("app", netpol.DoesNotExist)), conn: c, want: refused},
		{name: "and", policies: p(require("app", netpol.In, "db"), require("tier", netpol.In, "back")), conn: c, want: taken},
		{name: "and-not", policies: p(require("app", netpol.In, "db"), require("tier", netpol.In, "front")), conn: c, want: refused},
		{name: "and-contradiction", policies: p(require("app", netpol.In, "db"), require("app", netpol.In, "x")), conn: c, want: refused},
	})
}

func TestPorts(t *testing.T) {
	p := func(ports ...netpol.Port) []*netpol.Policy { return one(np("p", all, on(ports...))) }
	egress := taken
	egress.rule = "egress 0"
	run(t, []row{
		{name: "none", policies: one(np("p", all, netpol.Rule{AnyPeer: true, Ports: []netpol.Port{}})), want: refused},
		{name: "number", policies: p(netpol.Port{Port: 8080}), want: taken},
		{name: "other-number", policies: p(netpol.Port{Port: 8081}), want: refused},
		{name: "any-of-the-protocol", policies: p(netpol.Port{}), want: taken},
		{name: "other-protocol", policies: p(netpol.Port{Protocol: udp}), want: refused},
		{name: "other-protocol-same-number", policies: p(netpol.Port{Protocol: udp, Port: 8080}), want: refused},
		{name: "udp", policies: p(netpol.Port{Protocol: udp, Port: 8080}), conn: conn{protocol: udp}, want: taken},
		{name: "any-protocol", policies: p(netpol.Port{Protocol: netpol.AnyProtocol, Port: 8080}), conn: conn{protocol: netpol.SCTP}, want: taken},
		{name: "second", policies: p(netpol.Port{Port: 1}, netpol.Port{Port: 8080}), want: taken},
		{name: "range", policies: p(netpol.Port{Port: 8000, End: 8999}), want: taken},
		{name: "range-start", policies: p(netpol.Port{Port: 8080, End: 8999}), want: taken},
		{name: "range-end", policies: p(netpol.Port{Port: 8000, End: 8080}), want: taken},
		{name: "range-of-one", policies: p(netpol.Port{Port: 8080, End: 8080}), want: taken},
		{name: "below-range", policies: p(netpol.Port{Port: 8081, End: 8999}), want: refused},
		{name: "above-range", policies: p(netpol.Port{Port: 8000, End: 8079}), want: refused},
		{name: "range-to-the-last", policies: p(netpol.Port{Port: 1, End: 65535}), conn: conn{port: 65535}, want: taken},
		{name: "range-of-other-protocol", policies: p(netpol.Port{Protocol: udp, Port: 1, End: 65535}), want: refused},
		{name: "named", policies: p(netpol.Port{Name: "http"}), want: taken},
		{name: "named-twice", policies: p(netpol.Port{Name: "http"}), conn: conn{port: 8081}, want: taken},
		{name: "named-other-port", policies: p(netpol.Port{Name: "http"}), conn: conn{port: 8082}, want: refused},
		{name: "named-unknown", policies: p(netpol.Port{Name: "https"}), want: refused},
		{name: "named-of-other-protocol", policies: p(netpol.Port{Name: "dns"}), conn: conn{port: 53}, want: refused},
		{name: "named-udp", policies: p(netpol.Port{Name: "dns", Protocol: udp}), conn: conn{port: 53, protocol: udp}, want: taken},
		{name: "named-any-protocol", policies: p(netpol.Port{Name: "dns", Protocol: netpol.AnyProtocol}), conn: conn{port: 53, protocol: udp}, want: taken},
		{name: "named-is-not-the-source's", policies: p(netpol.Port{Name: "sql"}), conn: conn{peer: "a/db", port: 5432}, want: refused},
		{name: "egress-named", policies: p(netpol.Port{Name: "sql"}), conn: conn{dir: out, peer: "a/db", port: 5432}, want: egress},
		{name: "egress-named-is-not-the-source's", policies: p(netpol.Port{Name: "http"}), conn: conn{dir: out, peer: "a/db"}, want: refused},
		{name: "egress-named-of-no-pod", policies: p(netpol.Port{Name: "http"}), conn: conn{dir: out, peer: "-"}, want: refused},
		{name: "egress-named-unproven", policies: p(netpol.Port{Name: "sql"}), conn: conn{dir: out, peer: "a/db", port: 5432, unproven: true}, want: refused},
		{name: "egress-number", policies: p(netpol.Port{Port: 8080}), conn: conn{dir: out, peer: "-"}, want: egress},
		{
			name: "peer-and-port", policies: one(np("p", all, netpol.Rule{Peers: []netpol.Peer{pods(&all, webs)}, Ports: []netpol.Port{{Port: 8080}}})),
			want: taken,
		},
		{
			name: "peer-of-one-rule-port-of-another", policies: one(np("p", all,
				netpol.Rule{Peers: []netpol.Peer{pods(&all, webs)}, Ports: []netpol.Port{{Port: 1}}},
				netpol.Rule{Peers: []netpol.Peer{pods(&all, others)}, Ports: []netpol.Port{{Port: 8080}}})),
			want: refused,
		},
	})
}
