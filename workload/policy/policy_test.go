package policy_test

import (
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

var (
	here  = netip.MustParseAddrPort("127.0.0.1:80")
	alice = identity.MustParse("spiffe://td/ns/from/sa/alice")
	bob   = identity.MustParse("spiffe://td2/ns/other/sa/bob")

	plain    = policy.Connection{SourceIP: netip.MustParseAddr("127.0.0.2"), Destination: here}
	tls      = policy.Connection{Source: alice, SourceIP: netip.MustParseAddr("127.0.0.2"), Destination: here}
	otherTLS = policy.Connection{
		Source: bob, SourceIP: netip.MustParseAddr("127.0.0.3"),
		Destination: netip.MustParseAddrPort("127.0.0.4:8080"),
	}
	server = &workload.Workload{UID: "u", Namespace: "ns", Name: "server"}
)

func one(m policy.Match) [][][]policy.Match { return [][][]policy.Match{{{m}}} }

func exact(ss ...string) (out []policy.StringMatch) {
	for _, s := range ss {
		out = append(out, policy.StringMatch{Kind: policy.Exact, Value: s})
	}
	return out
}

func blocks(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// matches asks a Set with only this policy as a Deny.
func matches(rules [][][]policy.Match, c policy.Connection) bool {
	set := policy.New()
	set.Apply([]*policy.Policy{{Namespace: "ns", Name: "p", Scope: policy.Namespace, Action: policy.Deny, Rules: rules}}, nil)
	return !set.Snapshot().Evaluate(server, c).Allowed
}

func TestDegenerateForms(t *testing.T) {
	yes := policy.Match{DestinationPorts: []uint16{80}}
	no := policy.Match{DestinationPorts: []uint16{81}}
	type clause = []policy.Match
	type rule = [][]policy.Match
	for _, tc := range []struct {
		name  string
		rules [][][]policy.Match
		want  bool
	}{
		{"no-rules", nil, false},
		{"rule-without-clauses", []rule{{}}, true},
		{"clause-without-matches", []rule{{clause{}}}, true},
		{"empty-match", []rule{{clause{{}}}}, false},
		{"empty-match-beside-a-true-one", []rule{{clause{{}, yes}}}, true},
		{"empty-match-clause-in-and", []rule{{clause{yes}, clause{{}}}}, false},
		{"empty-clause-in-and", []rule{{clause{no}, clause{}}}, false},
		{"or-of-matches", []rule{{clause{no, yes}}}, true},
		{"or-of-matches-none", []rule{{clause{no, no}}}, false},
		{"and-of-clauses", []rule{{clause{yes}, clause{yes}}}, true},
		{"and-of-clauses-one-false", []rule{{clause{yes}, clause{no}}}, false},
		{"and-of-ors", []rule{{clause{no, yes}, clause{yes, no}}}, true},
		{"and-of-ors-one-false", []rule{{clause{no, yes}, clause{no, no}}}, false},
		{"or-of-rules", []rule{{clause{no}}, {clause{yes}}}, true},
		{"or-of-rules-none", []rule{{clause{no}}, {clause{no}}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := matches(tc.rules, plain); got != tc.want {
				t.Errorf("matches = %t, want %t", got, tc.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	sa := []policy.ServiceAccount{{Namespace: "from", Name: "alice"}}
	type want struct{ plain, tls, other bool }
	for _, tc := range []struct {
		name string
		m    policy.Match
		want want
	}{
		{"namespaces", policy.Match{Namespaces: exact("from")}, want{false, true, false}},
		{"not-namespaces", policy.Match{NotNamespaces: exact("from")}, want{true, false, true}},
		{"namespaces-empty-string", policy.Match{Namespaces: exact("")}, want{true, false, false}},
		{"service-accounts", policy.Match{ServiceAccounts: sa}, want{false, true, false}},
		{"not-service-accounts", policy.Match{NotServiceAccounts: sa}, want{true, false, true}},
		{"principals", policy.Match{Principals: exact("td/ns/from/sa/alice")}, want{false, true, false}},
		{"principals-with-scheme", policy.Match{Principals: exact("spiffe://td/ns/from/sa/alice")}, want{false, false, false}},
		{"not-principals", policy.Match{NotPrincipals: exact("td/ns/from/sa/alice")}, want{true, false, true}},
		{"principals-presence", policy.Match{Principals: []policy.StringMatch{{Kind: policy.Presence}}}, want{false, true, true}},
		{"not-principals-presence", policy.Match{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}}, want{true, false, false}},
		{"principals-prefix", policy.Match{Principals: []policy.StringMatch{{Kind: policy.Prefix, Value: "td2/"}}}, want{false, false, true}},
		{"principals-empty-prefix", policy.Match{Principals: []policy.StringMatch{{Kind: policy.Prefix}}}, want{false, true, true}},
		{"principals-suffix", policy.Match{Principals: []policy.StringMatch{{Kind: policy.Suffix, Value: "/alice"}}}, want{false, true, false}},
		{"source-ips", policy.Match{SourceIPs: blocks("127.0.0.2/32")}, want{true, true, false}},
		{"not-source-ips", policy.Match{NotSourceIPs: blocks("127.0.0.2/32")}, want{false, false, true}},
		{"destination-ips", policy.Match{DestinationIPs: blocks("127.0.0.1/32")}, want{true, true, false}},
		{"not-destination-ips", policy.Match{NotDestinationIPs: blocks("127.0.0.1/32")}, want{false, false, true}},
		{"cidr-range", policy.Match{DestinationIPs: blocks("127.0.0.0/8")}, want{true, true, true}},
		{"cidr-host-bits", policy.Match{SourceIPs: blocks("127.0.0.3/31")}, want{true, true, true}},
		{"cidr-all", policy.Match{SourceIPs: blocks("0.0.0.0/0")}, want{true, true, true}},
		{"cidr-mapped", policy.Match{SourceIPs: blocks("::ffff:127.0.0.2/128")}, want{true, true, false}},
		{"cidr-other-family", policy.Match{SourceIPs: blocks("::/0")}, want{false, false, false}},
		{"destination-ports", policy.Match{DestinationPorts: []uint16{80}}, want{true, true, false}},
		{"not-destination-ports", policy.Match{NotDestinationPorts: []uint16{80}}, want{false, false, true}},
		{"values-are-alternatives", policy.Match{Namespaces: exact("from", "other")}, want{false, true, true}},
		{"fields-are-conjoined", policy.Match{Namespaces: exact("from"), DestinationPorts: []uint16{8080}}, want{false, false, false}},
		{"positive-and-negative", policy.Match{DestinationPorts: []uint16{80, 8080}, NotSourceIPs: blocks("127.0.0.3/32")}, want{true, true, false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := want{matches(one(tc.m), plain), matches(one(tc.m), tls), matches(one(tc.m), otherTLS)}
			if got != tc.want {
				t.Errorf("plain, tls, other = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestStringMatch(t *testing.T) {
	ns := func(s string) policy.Connection {
		if s == "" {
			return plain
		}
		return policy.Connection{Source: identity.MustParse("spiffe://td/ns/" + s + "/sa/x"), Destination: here}
	}
	for _, tc := range []struct {
		name  string
		kind  policy.MatchKind
		value string
		in    string
		want  bool
	}{
		{"exact-match", policy.Exact, "foo", "foo", true},
		{"exact-mismatch", policy.Exact, "foo", "bar", false},
		{"exact-case", policy.Exact, "Foo", "foo", false},
		{"exact-empty", policy.Exact, "foo", "", false},
		{"prefix-match", policy.Prefix, "fo", "foo", true},
		{"prefix-mismatch", policy.Prefix, "fo", "bar", false},
		{"prefix-empty", policy.Prefix, "fo", "", false},
		{"suffix-match", policy.Suffix, "oo", "foo", true},
		{"suffix-mismatch", policy.Suffix, "oo", "bar", false},
		{"suffix-empty", policy.Suffix, "oo", "", false},
		{"presence-match", policy.Presence, "", "foo", true},
		{"presence-mismatch", policy.Presence, "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := policy.Match{Namespaces: []policy.StringMatch{{Kind: tc.kind, Value: tc.value}}}
			if got := matches(one(m), ns(tc.in)); got != tc.want {
				t.Errorf("matches = %t, want %t", got, tc.want)
			}
		})
	}
}
