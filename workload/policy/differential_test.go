package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// dice chooses: at random, or as the bytes of a fuzzer say.
type dice interface{ IntN(n int) int }

// tape chooses by bytes, and 0 behind their end.
type tape struct{ bytes []byte }

func (t *tape) IntN(n int) int {
	if len(t.bytes) == 0 {
		return 0
	}
	b := t.bytes[0]
	t.bytes = t.bytes[1:]
	return int(b) % n
}

// compare drives a Set and a plain map through changes, and asks both about connections after each.
func compare(t *testing.T, d dice, changes, policies, questions int) {
	t.Helper()
	set := policy.New()
	model := map[string]*policy.Policy{}
	for range changes {
		var ups []*policy.Policy
		var gone []string
		for range d.IntN(policies) {
			p := randomPolicy(d)
			if d.IntN(4) == 0 {
				gone = append(gone, p.Key())
				continue
			}
			ups = append(ups, p)
		}
		set.Apply(ups, gone)
		for _, k := range gone {
			delete(model, k)
		}
		for _, p := range ups {
			model[p.Key()] = p
		}
		for range questions {
			dst := &workload.Workload{Namespace: pick(d, "ns", "ns2")}
			for range d.IntN(4) {
				dst.AuthorizationPolicies = append(dst.AuthorizationPolicies, fmt.Sprintf("ns/p%d", d.IntN(12)))
			}
			c := randomConnection(d)
			got, want := set.Snapshot().Evaluate(dst, c), plainDecision(model, dst, c)
			got.Reason, _, _ = strings.Cut(got.Reason, " (invalid: ")
			equalDecision(t, got, want)
			if t.Failed() {
				t.Fatalf("connection %+v to %+v, policies %+v", c, dst, set.Snapshot().Policies())
			}
		}
	}
}

// TestAgainstPlainReading compares decisions of random sets, changed at random, with a reading of the rules that knows no
// index.
func TestAgainstPlainReading(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { compare(t, rand.New(rand.NewPCG(seed, 7)), 6, 12, 20) })
	}
}

// TestManyAgainstPlainReading does the same with policies by the thousand, which fill more than one index.
func TestManyAgainstPlainReading(t *testing.T) {
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 11))
		set := policy.New()
		model := map[string]*policy.Policy{}
		dst := &workload.Workload{Namespace: "ns"}
		for i := range 1500 {
			p := randomPolicy(rng)
			// Hardly any rule matches always, and a policy denies nobody for a fault of another.
			p.Name, p.Invalid, p.Rules = fmt.Sprintf("p%d", i), "", nil
			p.Scope, p.Action = p.Scope%3, p.Action%3
			for range 3 {
				m := randomMatch(rng)
				m.DestinationPorts, m.NotSourceIPs = append(m.DestinationPorts, uint16(1000+rng.IntN(5000))), nil
				p.Rules = append(p.Rules, [][]policy.Match{{m}, {{Principals: exact("td/ns/a/sa/x", "td/ns/b/sa/y")}, {SourceIPs: blocks("10.0.0.0/9")}}})
			}
			model[p.Key()] = p
			if rng.IntN(3) == 0 {
				dst.AuthorizationPolicies = append(dst.AuthorizationPolicies, p.Key())
			}
		}
		set.Apply(slices.Collect(func(yield func(*policy.Policy) bool) {
			for _, p := range model {
				if !yield(p) {
					return
				}
			}
		}), nil)
		for range 25 {
			// Some go and come again, so that indexes are split and joined.
			for range 5 {
				key := fmt.Sprintf("%s/p%d", pick(rng, "ns", "ns2"), rng.IntN(1500))
				if p := model[key]; p != nil {
					set.Apply(nil, []string{key})
					if rng.IntN(3) == 0 {
						set.Apply([]*policy.Policy{p}, nil)
					} else {
						delete(model, key)
						dst = &workload.Workload{Namespace: "ns", AuthorizationPolicies: slices.DeleteFunc(slices.Clone(dst.AuthorizationPolicies), func(k string) bool { return k == key })}
					}
				}
			}
			c := randomConnection(rng)
			c.Destination = netip.AddrPortFrom(c.Destination.Addr(), uint16(1000+rng.IntN(5000)))
			equalDecision(t, set.Snapshot().Evaluate(dst, c), plainDecision(model, dst, c))
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// FuzzCompile makes policies, changes of them and connections of bytes: what was compiled answers as the plain reading
// does, so it is never wider, and nothing panics.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 200+rng.IntN(400))
		for i := range b {
			b[i] = byte(rng.IntN(256))
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { compare(t, &tape{b}, 2, 6, 4) })
}

func pick[T any](d dice, vs ...T) T { return vs[d.IntN(len(vs))] }

func some[T any](d dice, vs ...T) []T {
	if d.IntN(3) > 0 {
		return nil
	}
	return vs[:1+d.IntN(len(vs))]
}

func randomPolicy(d dice) *policy.Policy {
	p := &policy.Policy{
		Namespace: pick(d, "ns", "ns2"), Name: fmt.Sprintf("p%d", d.IntN(10)),
		Scope:  pick(d, policy.Global, policy.Namespace, policy.WorkloadSelector),
		Action: pick(d, policy.Allow, policy.Deny, policy.Allow, policy.Deny, policy.Audit), DryRun: d.IntN(5) == 0,
	}
	switch d.IntN(60) {
	case 1:
		p.Invalid = "told by the source"
	case 2:
		p.Scope = 9
	case 3:
		p.Action = 9
	case 4:
		p.Rules = append(p.Rules, one(policy.Match{Namespaces: []policy.StringMatch{{Value: "a"}}})...)
	case 5:
		p.Rules = append(p.Rules, one(policy.Match{NotSourceIPs: []netip.Prefix{{}}})...)
	case 6:
		p.Rules = append(p.Rules, one(policy.Match{SourceIPs: blocks("::ffff:10.0.0.0/90")})...)
	}
	most := pick(d, 4, 4, 4, 4, 4, 4, 9) // clauses of many matches are not multiplied out
	for range d.IntN(4) {
		var r [][]policy.Match
		for range d.IntN(most) {
			var c []policy.Match
			for range d.IntN(most) {
				c = append(c, randomMatch(d))
			}
			r = append(r, c)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func randomMatch(d dice) policy.Match {
	str := func() policy.StringMatch {
		return policy.StringMatch{
			Kind: pick(d, policy.Exact, policy.Exact, policy.Prefix, policy.Suffix, policy.Presence),
			Value: pick(d, "a", "b", "ab", "td/ns/a/sa/x", "td/ns/b/sa/x", "td/", "td/ns/", "td/ns/a", "td/ns/a/", "td/ns/b/sa/", "te",
				"/sa/y", "y", "a/sa/y", "b/sa/x", "/ns/ab/sa/x", ""),
		}
	}
	acc := func() policy.ServiceAccount {
		return policy.ServiceAccount{Namespace: pick(d, "a", "b", "ab", ""), Name: pick(d, "x", "y", "")}
	}
	block := func() netip.Prefix {
		a := randomAddr(d)
		bits := pick(d, 0, 7, 8, 23, 24, 30, 31, 32)
		if a.Is6() {
			bits += 96
			if d.IntN(2) == 0 && !a.Is4In6() {
				bits = pick(d, 0, 8, 15, 16, 120, 127)
			}
		}
		return netip.PrefixFrom(a, bits)
	}
	port := func() uint16 { return pick(d, uint16(80), 81, 0) }
	return policy.Match{
		Namespaces: some(d, str(), str()), NotNamespaces: some(d, str(), str()),
		Principals: some(d, str(), str(), str()), NotPrincipals: some(d, str()),
		ServiceAccounts: some(d, acc(), acc()), NotServiceAccounts: some(d, acc()),
		SourceIPs: some(d, block(), block(), block()), NotSourceIPs: some(d, block()),
		DestinationIPs: some(d, block(), block()), NotDestinationIPs: some(d, block(), block()),
		DestinationPorts: some(d, port(), port()), NotDestinationPorts: some(d, port()),
	}
}

func randomAddr(d dice) netip.Addr {
	four := [4]byte{10, 0, byte(d.IntN(2)), byte(d.IntN(4))}
	switch d.IntN(6) {
	case 0:
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(d.IntN(2)), 15: byte(d.IntN(3))})
	case 1:
		return netip.AddrFrom16(netip.AddrFrom4(four).As16()) // IPv4-mapped
	case 2:
		return netip.AddrFrom16([16]byte{12: 10, 15: byte(d.IntN(3))}) // looks like one, and is none
	default:
		return netip.AddrFrom4(four)
	}
}

func randomConnection(d dice) policy.Connection {
	c := policy.Connection{SourceIP: randomAddr(d), Destination: netip.AddrPortFrom(randomAddr(d), pick(d, uint16(80), 81, 82))}
	switch d.IntN(8) {
	case 0, 1:
	case 2:
		c.Source = identity.MustParse("spiffe://te/ns/a/sa/x")
	default:
		c.Source = identity.MustParse("spiffe://td/ns/" + pick(d, "a", "b", "ab") + "/sa/" + pick(d, "x", "y"))
	}
	if d.IntN(20) == 1 {
		c.SourceIP = netip.Addr{}
	}
	return c
}
