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

// TestAgainstPlainReading compares decisions of random sets, changed at
// random, with a reading of the rules that knows no index.
func TestAgainstPlainReading(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		set := policy.New()
		model := map[string]*policy.Policy{}
		for range 6 {
			var ups []*policy.Policy
			var gone []string
			for range rng.IntN(12) {
				p := randomPolicy(rng)
				if rng.IntN(4) == 0 {
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
			for range 20 {
				dst := &workload.Workload{Namespace: pick(rng, "ns", "ns2"), AuthorizationPolicies: []string{fmt.Sprintf("ns/p%d", rng.IntN(10))}}
				c := randomConnection(rng)
				equalDecision(t, set.Snapshot().Evaluate(dst, c), plainDecision(model, dst, c))
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func pick[T any](rng *rand.Rand, vs ...T) T { return vs[rng.IntN(len(vs))] }

func some[T any](rng *rand.Rand, vs ...T) []T {
	if rng.IntN(3) > 0 {
		return nil
	}
	return vs[:1+rng.IntN(len(vs))]
}

func randomPolicy(rng *rand.Rand) *policy.Policy {
	p := &policy.Policy{
		Namespace: pick(rng, "ns", "ns2"), Name: fmt.Sprintf("p%d", rng.IntN(10)),
		Scope: pick(rng, policy.Global, policy.Namespace, policy.WorkloadSelector), Action: pick(rng, policy.Allow, policy.Deny),
		DryRun: rng.IntN(5) == 0,
	}
	for range rng.IntN(4) {
		var r [][]policy.Match
		for range rng.IntN(4) {
			var c []policy.Match
			for range rng.IntN(4) {
				c = append(c, randomMatch(rng))
			}
			r = append(r, c)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func randomMatch(rng *rand.Rand) policy.Match {
	str := func() policy.StringMatch {
		return policy.StringMatch{
			Kind:  pick(rng, policy.Exact, policy.Exact, policy.Exact, policy.Prefix, policy.Suffix, policy.Presence),
			Value: pick(rng, "a", "b", "td/ns/a/sa/x", "td/ns/b/sa/x", "td/", "/sa/y", ""),
		}
	}
	acc := func() policy.ServiceAccount {
		return policy.ServiceAccount{Namespace: pick(rng, "a", "b"), Name: pick(rng, "x", "y")}
	}
	block := func() netip.Prefix {
		return netip.PrefixFrom(randomAddr(rng), pick(rng, 8, 24, 31, 32))
	}
	return policy.Match{
		Namespaces: some(rng, str(), str()), NotNamespaces: some(rng, str()),
		Principals: some(rng, str(), str()), NotPrincipals: some(rng, str()),
		ServiceAccounts: some(rng, acc(), acc()), NotServiceAccounts: some(rng, acc()),
		SourceIPs: some(rng, block(), block()), NotSourceIPs: some(rng, block()),
		DestinationIPs: some(rng, block(), block()), NotDestinationIPs: some(rng, block()),
		DestinationPorts: some(rng, uint16(80), uint16(81)), NotDestinationPorts: some(rng, uint16(80)),
	}
}

func randomAddr(rng *rand.Rand) netip.Addr {
	if rng.IntN(3) == 0 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(rng.IntN(2)), 15: byte(rng.IntN(3))})
	}
	return netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(2)), byte(rng.IntN(4))})
}

func randomConnection(rng *rand.Rand) policy.Connection {
	c := policy.Connection{SourceIP: randomAddr(rng), Destination: netip.AddrPortFrom(randomAddr(rng), pick(rng, uint16(80), 81, 82))}
	if rng.IntN(4) > 0 {
		c.Source = identity.MustParse("spiffe://td/ns/" + pick(rng, "a", "b") + "/sa/" + pick(rng, "x", "y"))
	}
	return c
}

func plainDecision(all map[string]*policy.Policy, dst *workload.Workload, c policy.Connection) policy.Decision {
	var d policy.Decision
	var keys []string
	for k, p := range all {
		if p.Scope == policy.Global || p.Scope == policy.Namespace && p.Namespace == dst.Namespace ||
			slices.Contains(dst.AuthorizationPolicies, k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range dst.AuthorizationPolicies {
		if all[k] == nil {
			d.Missing = append(d.Missing, k)
		}
	}
	var denied, allowed string
	allows := false
	for _, k := range keys {
		p := all[k]
		hit := plainMatches(p, c)
		switch {
		case p.DryRun && hit && p.Action == policy.Deny:
			d.DryRun = append(d.DryRun, policy.DryRun{Action: policy.Deny, Policy: k})
		case p.DryRun && hit:
			d.DryRun = append(d.DryRun, policy.DryRun{Policy: k})
		case p.DryRun:
		case p.Action == policy.Deny && hit && denied == "":
			denied = k
		case p.Action == policy.Allow:
			allows = true
			if hit && allowed == "" {
				allowed = k
			}
		}
	}
	switch {
	case denied != "":
		d.Denied, d.Policy, d.Reason = true, denied, "explicitly denied by: "+denied
	case len(d.Missing) > 0:
		d.Reason = "policies not known yet: " + strings.Join(d.Missing, ", ")
	case !allows:
		d.Allowed = true
	case allowed != "":
		d.Allowed, d.Policy = true, allowed
	default:
		d.Reason = "allow policies exist, but none allowed"
	}
	return d
}

func plainMatches(p *policy.Policy, c policy.Connection) bool {
	return slices.ContainsFunc(p.Rules, func(r [][]policy.Match) bool {
		return !slices.ContainsFunc(r, func(cl []policy.Match) bool {
			return len(cl) > 0 && !slices.ContainsFunc(cl, func(m policy.Match) bool { return plainMatch(m, c) })
		})
	})
}

func plainMatch(m policy.Match, c policy.Connection) bool {
	empty := true
	ok := true
	str := func(pos, neg []policy.StringMatch, v string, known bool) {
		has := func(s policy.StringMatch) bool {
			if !known {
				return false
			}
			switch s.Kind {
			case policy.Exact:
				return v == s.Value
			case policy.Prefix:
				return strings.HasPrefix(v, s.Value)
			case policy.Suffix:
				return strings.HasSuffix(v, s.Value)
			default:
				return v != ""
			}
		}
		plainField(&empty, &ok, pos, neg, has)
	}
	known := !c.Source.IsZero()
	str(m.Namespaces, m.NotNamespaces, c.Source.Namespace(), true)
	str(m.Principals, m.NotPrincipals, strings.TrimPrefix(c.Source.String(), "spiffe://"), known)
	plainField(&empty, &ok, m.ServiceAccounts, m.NotServiceAccounts, func(a policy.ServiceAccount) bool {
		return known && a.Namespace == c.Source.Namespace() && a.Name == c.Source.ServiceAccount()
	})
	plainField(&empty, &ok, m.SourceIPs, m.NotSourceIPs, func(b netip.Prefix) bool { return b.Contains(c.SourceIP) })
	plainField(&empty, &ok, m.DestinationIPs, m.NotDestinationIPs, func(b netip.Prefix) bool { return b.Contains(c.Destination.Addr()) })
	plainField(&empty, &ok, m.DestinationPorts, m.NotDestinationPorts, func(p uint16) bool { return p == c.Destination.Port() })
	return ok && !empty
}

func plainField[T any](empty, ok *bool, pos, neg []T, is func(T) bool) {
	if len(pos)+len(neg) > 0 {
		*empty = false
	}
	if len(pos) > 0 && !slices.ContainsFunc(pos, is) || slices.ContainsFunc(neg, is) {
		*ok = false
	}
}
