package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// asked is the connection of the benchmarks. No rule matches it, so that none can be skipped.
var asked = policy.Connection{
	Source:   identity.MustParse("spiffe://cluster.local/ns/shop/sa/frontend"),
	SourceIP: netip.MustParseAddr("10.1.2.3"), Destination: netip.MustParseAddrPort("10.4.5.6:8080"),
}

// shape writes one match of a rule.
type shape struct {
	name string
	rule func(rng *rand.Rand, n int) policy.Match
}

// shapes are kinds of rules: values that nobody has, values that the connection has in all fields but one, the same as all
// patterns hold it, and fields that only exclude.
var shapes = []shape{
	{"mixed", mixedRule},
	{"one-field", oneField},
	{"nearly", func(_ *rand.Rand, n int) policy.Match {
		return policy.Match{
			Namespaces: exact("shop"), NotPrincipals: exact("cluster.local/ns/other/sa/other"), SourceIPs: blocks("10.1.0.0/16"),
			DestinationPorts: []uint16{8080}, NotDestinationIPs: blocks("10.4.0.0/16"),
		}
	}},
	{"nested", nestedRule},
	{"excluding", func(_ *rand.Rand, n int) policy.Match {
		return policy.Match{
			NotNamespaces: exact("shop", fmt.Sprintf("ns-%d", n)), NotSourceIPs: blocks("10.1.0.0/16"), NotDestinationPorts: []uint16{8080, uint16(n)},
		}
	}},
}

// mixedRule has three fields. Each is a negation or a pattern in one case of ten, and what it says is not so.
func mixedRule(rng *rand.Rand, n int) (m policy.Match) {
	not, pattern := rng.IntN(10) == 0, rng.IntN(10) == 0
	switch {
	case not:
		m.NotPrincipals = exact("cluster.local/ns/shop/sa/frontend")
	case pattern:
		m.Principals = []policy.StringMatch{{Kind: policy.Prefix, Value: fmt.Sprintf("cluster.local/ns/team-%d/", n)}}
	default:
		m.Principals = exact(fmt.Sprintf("cluster.local/ns/team-%d/sa/client-%d", n/10, n%10))
	}
	if not, pattern = rng.IntN(10) == 0, rng.IntN(10) == 0; not {
		m.NotSourceIPs = blocks("10.1.2.0/24")
	} else {
		m.SourceIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100, byte(n >> 8), byte(n)}), 32)}
		if pattern {
			m.SourceIPs[0] = netip.PrefixFrom(m.SourceIPs[0].Addr(), 28)
		}
	}
	if rng.IntN(10) == 0 {
		m.NotDestinationPorts = []uint16{8080}
	} else {
		m.DestinationPorts = []uint16{uint16(10000 + n%1000)}
	}
	return m
}

// nestedRule has patterns in the same places as mixedRule, but all of them hold the connection's values.
func nestedRule(rng *rand.Rand, n int) policy.Match {
	const p = "cluster.local/ns/shop/sa/frontend"
	m := mixedRule(rng, n)
	m.DestinationPorts, m.NotDestinationPorts, m.NotDestinationIPs = nil, nil, blocks("10.4.5.6/32")
	switch rng.IntN(10) {
	case 0:
		m.Principals = []policy.StringMatch{{Kind: policy.Prefix, Value: p[:n%len(p)+1]}}
	case 1:
		m.Principals = []policy.StringMatch{{Kind: policy.Suffix, Value: p[n%len(p):]}}
	}
	if rng.IntN(10) == 0 {
		m.SourceIPs = []netip.Prefix{netip.PrefixFrom(asked.SourceIP, n%33)}
	}
	return m
}

// oneField keeps one field of a mixed rule, so that a tenth of the rules has nothing that is asked for.
func oneField(rng *rand.Rand, n int) policy.Match {
	m := mixedRule(rng, n)
	switch n % 3 {
	case 0:
		return policy.Match{Principals: m.Principals, NotPrincipals: m.NotPrincipals}
	case 1:
		return policy.Match{SourceIPs: m.SourceIPs, NotSourceIPs: m.NotSourceIPs}
	default:
		return policy.Match{DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts}
	}
}

// mesh makes policies of ten rules, of which the first so many apply to a workload, and the workload.
func mesh(sh shape, all, applicable int, scopes []policy.Scope, actions []policy.Action) (*policy.Set, *workload.Workload) {
	rng := rand.New(rand.NewPCG(3, 4))
	dst := &workload.Workload{UID: "u", Namespace: "shop"}
	var policies []*policy.Policy
	for i := range all {
		p := &policy.Policy{Namespace: "shop", Name: fmt.Sprintf("policy-%d", i), Scope: scopes[i%len(scopes)], Action: actions[i/len(scopes)%len(actions)]}
		if i >= applicable {
			p.Scope, p.Namespace = policy.Namespace, fmt.Sprintf("team-%d", i%500)
		}
		if p.Scope == policy.WorkloadSelector {
			dst.AuthorizationPolicies = append(dst.AuthorizationPolicies, p.Key())
		}
		for j := range 10 {
			p.Rules = append(p.Rules, one(sh.rule(rng, 10*i+j))...)
		}
		policies = append(policies, p)
	}
	set := policy.New()
	set.Apply(policies, nil)
	return set, dst
}

func benchmarkPolicies(b *testing.B, all, applicable int) {
	type mix struct {
		name    string
		scopes  []policy.Scope
		actions []policy.Action
	}
	deny, both := []policy.Action{policy.Deny}, []policy.Action{policy.Allow, policy.Deny}
	mixes := []mix{
		{"global-deny", []policy.Scope{policy.Global}, deny},
		{"namespace-allow", []policy.Scope{policy.Namespace}, []policy.Action{policy.Allow}},
		{"named-deny", []policy.Scope{policy.WorkloadSelector}, deny},
		{"all-scopes-both", []policy.Scope{policy.Global, policy.Namespace, policy.WorkloadSelector}, both},
	}
	for _, mx := range mixes {
		for _, sh := range shapes {
			b.Run(mx.name+"/"+sh.name, func(b *testing.B) {
				set, dst := mesh(sh, all, applicable, mx.scopes, mx.actions)
				snap := set.Snapshot()
				if d := snap.Evaluate(dst, asked); d.Policy != "" {
					b.Fatalf("%+v", d)
				}
				b.ReportAllocs()
				for b.Loop() {
					snap.Evaluate(dst, asked)
				}
			})
		}
	}
}

// BenchmarkPolicy1000Applicable: 1,000 policies of ten rules govern the workload.
func BenchmarkPolicy1000Applicable(b *testing.B) { benchmarkPolicies(b, 1000, 1000) }

// BenchmarkPolicy10Of10000: of 10,000 policies in the mesh ten govern the workload.
func BenchmarkPolicy10Of10000(b *testing.B) { benchmarkPolicies(b, 10_000, 10) }

// BenchmarkPolicyUpdate changes one of 10,000 policies that govern a workload: what the writer does, and what the first
// question behind it costs.
func BenchmarkPolicyUpdate(b *testing.B) {
	for _, sc := range []policy.Scope{policy.Global, policy.Namespace, policy.WorkloadSelector} {
		for _, first := range []bool{false, true} {
			name := sc.String() + "/apply"
			if first {
				name = sc.String() + "/apply-and-first-question"
			}
			b.Run(name, func(b *testing.B) {
				set, dst := mesh(shapes[0], 10_000, 10_000, []policy.Scope{sc}, []policy.Action{policy.Deny})
				set.Snapshot().Evaluate(dst, asked)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					p := *set.Snapshot().Policy(fmt.Sprintf("shop/policy-%d", i%10_000))
					p.Rules = append(p.Rules[:9:9], one(policy.Match{DestinationPorts: []uint16{1, uint16(i)}})...)
					set.Apply([]*policy.Policy{&p}, nil)
					if first {
						set.Snapshot().Evaluate(dst, asked)
					}
				}
			})
		}
	}
}
