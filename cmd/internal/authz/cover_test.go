package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

func exact(all ...string) []policy.StringMatch {
	out := make([]policy.StringMatch, len(all))
	for i, v := range all {
		out[i] = policy.StringMatch{Kind: policy.Exact, Value: v}
	}
	return out
}

func one(kind policy.MatchKind, value string) []policy.StringMatch {
	return []policy.StringMatch{{Kind: kind, Value: value}}
}

func blocks(all ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(all))
	for i, v := range all {
		out[i] = netip.MustParsePrefix(v)
	}
	return out
}

func TestCovers(t *testing.T) {
	web := policy.Match{Principals: exact("cluster.local/ns/shop/sa/web")}
	from := func(m ...policy.Match) rule { return rule{m} }
	for _, tt := range []struct {
		name string
		a, b rule
		want bool
	}{
		{"everything", nil, from(web), true},
		{"not-everything", from(web), nil, false},
		{"same", from(web), from(web), true},
		{"one-of-two", from(web, policy.Match{Namespaces: exact("x")}), from(web), true},
		{"two-of-one", from(web), from(web, policy.Match{Namespaces: exact("x")}), false},
		{"narrower-by-port", from(web), rule{{web}, {{DestinationPorts: []uint16{80}}}}, true},
		{"wider-by-port", rule{{web}, {{DestinationPorts: []uint16{80}}}}, from(web), false},
		{"namespace-of-principal", from(policy.Match{Namespaces: exact("shop")}), from(web), true},
		{"namespace-of-pattern", from(policy.Match{Namespaces: exact("shop")}), from(policy.Match{Principals: one(policy.Suffix, "/sa/web")}), false},
		{"namespace-pattern", from(policy.Match{Namespaces: one(policy.Prefix, "sh")}), from(web), true},
		{"account-of-principal", from(policy.Match{ServiceAccounts: []policy.ServiceAccount{{Namespace: "shop", Name: "web"}}}), from(web), true},
		{"principal-of-account", from(web), from(policy.Match{ServiceAccounts: []policy.ServiceAccount{{Namespace: "shop", Name: "web"}}}), false},
		{"anybody-known", from(policy.Match{Principals: one(policy.Presence, "")}), from(policy.Match{Namespaces: exact("shop")}), true},
		{"plaintext-is-not-known", from(policy.Match{Principals: one(policy.Presence, "")}), from(policy.Match{SourceIPs: blocks("10.0.0.0/8")}), false},
		{"inner-block", from(policy.Match{SourceIPs: blocks("10.0.0.0/8")}), from(policy.Match{SourceIPs: blocks("10.1.0.0/16", "10.2.3.4/32")}), true},
		{"outer-block", from(policy.Match{SourceIPs: blocks("10.1.0.0/16")}), from(policy.Match{SourceIPs: blocks("10.0.0.0/8")}), false},
		{"outer-block-that-begins-alike", from(policy.Match{SourceIPs: blocks("10.0.0.0/16")}), from(policy.Match{SourceIPs: blocks("10.0.0.0/8")}), false},
		{"block-of-other-family", from(policy.Match{SourceIPs: blocks("0.0.0.0/0")}), from(policy.Match{SourceIPs: blocks("2001:db8::/32")}), false},
		{"except-what-is-not-asked", rule{{{NotDestinationPorts: []uint16{9}}}}, rule{{{DestinationPorts: []uint16{80}}}}, true},
		{"except-more", rule{{{NotDestinationPorts: []uint16{9}}}}, rule{{{NotDestinationPorts: []uint16{9, 10}}}}, true},
		{"except-less", rule{{{NotDestinationPorts: []uint16{9, 10}}}}, rule{{{NotDestinationPorts: []uint16{9}}}}, false},
		{"strict-covers-not-principals", rule{{{NotPrincipals: one(policy.Presence, "")}}}, rule{{{NotPrincipals: one(policy.Presence, ""), DestinationPorts: []uint16{1}}}}, true},
		{"clauses-together", rule{{{Namespaces: exact("a")}, {Namespaces: exact("b")}}}, rule{{{Namespaces: exact("a", "b")}}}, false}, // true, but not seen
		{"other-clause", rule{{{DestinationPorts: []uint16{80}}}}, rule{{web}, {{DestinationPorts: []uint16{80}}}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := covers(tt.a, tt.b); got != tt.want {
				t.Errorf("covers(%s | %s) = %v", ruleText(tt.a), ruleText(tt.b), got)
			}
		})
	}
}

func TestNever(t *testing.T) {
	nobody := one(policy.Presence, "")
	for _, tt := range []struct {
		name string
		rule rule
		want bool
	}{
		{"always", nil, false},
		{"empty-match", rule{{{}}}, true},
		{"one-empty-match", rule{{{}, {DestinationPorts: []uint16{1}}}}, false},
		{"port-and-not", rule{{{DestinationPorts: []uint16{1, 2}, NotDestinationPorts: []uint16{2, 1}}}}, true},
		{"port-and-one-not", rule{{{DestinationPorts: []uint16{1, 2}, NotDestinationPorts: []uint16{2}}}}, false},
		{"two-ports", rule{{{DestinationPorts: []uint16{1}}}, {{DestinationPorts: []uint16{2}}}}, true},
		{"principal-of-other-namespace", rule{{{Principals: exact("td/ns/a/sa/x"), Namespaces: exact("b")}}}, true},
		{"principal-and-plaintext", rule{{{Principals: exact("td/ns/a/sa/x")}}, {{NotPrincipals: nobody}}}, true},
		{"block-inside-of-not", rule{{{SourceIPs: blocks("10.1.0.0/16"), NotSourceIPs: blocks("10.0.0.0/8")}}}, true},
		{"block-around-not", rule{{{SourceIPs: blocks("10.0.0.0/8"), NotSourceIPs: blocks("10.1.0.0/16")}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := never(tt.rule); got != tt.want {
				t.Errorf("never(%s) = %v", ruleText(tt.rule), got)
			}
		})
	}
}

// What covers and never say is true of the evaluator that agents use: rules of few values are compared on every connection
// that can tell them apart.
func TestCoversAgreesWithTheEvaluator(t *testing.T) {
	const seed = 42
	random := rand.New(rand.NewPCG(seed, seed))
	connections := allConnections()
	said, nothing := 0, 0
	for range 2500 {
		a, b := randomRule(random), randomRule(random)
		ina, inb := evaluator(t, a), evaluator(t, b)
		saysCovers, saysNever := covers(a, b), never(b)
		if !saysCovers && !saysNever {
			continue
		}
		matched := false
		for _, c := range connections {
			m := inb(c)
			matched = matched || m
			if saysCovers && m && !ina(c) {
				t.Fatalf("%s does not cover %s: connection %+v", ruleText(a), ruleText(b), c)
			}
			if saysNever && m {
				t.Fatalf("%s matches connection %+v", ruleText(b), c)
			}
		}
		switch {
		case saysNever:
			nothing++
		case matched:
			said++
		}
	}
	if said < 80 || nothing < 20 {
		t.Errorf("only %d rules were covered and %d never matched: the values are too many", said, nothing)
	}
}

// evaluator returns whether a connection matches the rule.
func evaluator(t *testing.T, r rule) func(policy.Connection) bool {
	t.Helper()
	set := policy.New()
	set.Apply([]*policy.Policy{{Namespace: "n", Name: "p", Scope: policy.Global, Action: policy.Deny, Rules: [][][]policy.Match{r}}}, nil)
	snapshot := set.Snapshot()
	if err := snapshot.Fault("n/p"); err != nil {
		t.Fatal(err)
	}
	return func(c policy.Connection) bool { return snapshot.Evaluate(&workload.Workload{Namespace: "n"}, c).Denied }
}

func allConnections() []policy.Connection {
	var out []policy.Connection
	sources := []identity.ID{{}}
	for _, td := range []string{"td", "other"} {
		for _, ns := range []string{"a", "ab", "b"} {
			for _, sa := range []string{"x", "y"} {
				sources = append(sources, identity.MustParse(fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", td, ns, sa)))
			}
		}
	}
	for _, source := range sources {
		for _, addr := range []string{"10.0.0.1", "10.1.0.1", "11.0.0.1", "2001:db8::1"} {
			for _, port := range []uint16{1, 2, 3} {
				out = append(out, policy.Connection{Source: source, SourceIP: netip.MustParseAddr(addr), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), port)})
			}
		}
	}
	return out
}

func randomRule(r *rand.Rand) rule {
	out := make(rule, r.IntN(3))
	for i := range out {
		for range 1 + r.IntN(2) {
			out[i] = append(out[i], randomMatch(r))
		}
	}
	return out
}

func randomMatch(r *rand.Rand) policy.Match {
	texts := func(exacts []string) []policy.StringMatch {
		var out []policy.StringMatch
		for range 1 + r.IntN(2) {
			v := exacts[r.IntN(len(exacts))]
			switch cut := r.IntN(len(v)); r.IntN(6) {
			case 0:
				out = append(out, policy.StringMatch{Kind: policy.Prefix, Value: v[:cut+1]})
			case 1:
				out = append(out, policy.StringMatch{Kind: policy.Suffix, Value: v[cut:]})
			case 2:
				out = append(out, policy.StringMatch{Kind: policy.Presence})
			default:
				out = append(out, policy.StringMatch{Kind: policy.Exact, Value: v})
			}
		}
		return out
	}
	names := []string{"a", "ab", "b"}
	ids := []string{"td/ns/a/sa/x", "td/ns/ab/sa/x", "other/ns/b/sa/y"}
	addresses := []string{"10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.1.0.1/32", "0.0.0.0/0", "::/0"}
	some := func() []policy.ServiceAccount {
		return []policy.ServiceAccount{{Namespace: names[r.IntN(3)], Name: "x"}}
	}
	block := func() []netip.Prefix { return blocks(addresses[r.IntN(len(addresses))]) }
	numbers := func() []uint16 { return [][]uint16{{1}, {2}, {1, 2}, {3}}[r.IntN(4)] }
	var m policy.Match
	for range 1 + r.IntN(2) {
		switch r.IntN(10) {
		case 0:
			m.Namespaces = texts(names)
		case 1:
			m.NotNamespaces = texts(names)
		case 2:
			m.Principals = texts(ids)
		case 3:
			m.NotPrincipals = texts(ids)
		case 4:
			m.ServiceAccounts = some()
		case 5:
			m.NotServiceAccounts = some()
		case 6:
			m.SourceIPs = block()
		case 7:
			m.NotSourceIPs = block()
		case 8:
			m.DestinationPorts = numbers()
		case 9:
			m.NotDestinationPorts = numbers()
		}
	}
	return m
}
