package policy_test

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// This file is a reading of the rules that knows no index, no order of fields and none of the code that it is compared
// with: policies are gone through one by one, addresses are compared bit by bit.

// plainDecision is what the policies, by key, mean for a connection.
func plainDecision(all map[string]*policy.Policy, dst *workload.Workload, c policy.Connection) policy.Decision {
	var d policy.Decision
	for _, k := range dst.AuthorizationPolicies {
		if all[k] == nil {
			d.Missing = append(d.Missing, k)
		}
	}
	slices.Sort(d.Missing)
	d.Missing = slices.Compact(d.Missing)
	var keys []string
	for k, p := range all {
		if plainGoverns(p, k, dst) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var denied, allowed string
	allows := false
	for _, k := range keys {
		p := all[k]
		faulty := plainFaulty(p)
		hit := faulty || plainMatches(p, c)
		action := p.Action
		if faulty && action != policy.Audit {
			action = policy.Deny
		}
		switch {
		case p.DryRun && hit:
			d.DryRun = append(d.DryRun, policy.DryRun{Action: action, Policy: k})
		case p.DryRun:
		case action == policy.Audit && hit:
			d.Audit = append(d.Audit, k)
		case action == policy.Deny && hit && denied == "":
			denied = k
		case action == policy.Allow:
			allows = true
			if hit && allowed == "" {
				allowed = k
			}
		}
	}
	d.DryRun, d.Audit = d.DryRun[:min(len(d.DryRun), 16)], d.Audit[:min(len(d.Audit), 16)]
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

// plainGoverns: a scope that nobody knows is the policy's own namespace.
func plainGoverns(p *policy.Policy, key string, dst *workload.Workload) bool {
	switch {
	case slices.Contains(dst.AuthorizationPolicies, key), p.Scope == policy.Global:
		return true
	case p.Scope == policy.WorkloadSelector:
		return false
	default:
		return p.Namespace == dst.Namespace
	}
}

func plainFaulty(p *policy.Policy) bool {
	if p.Invalid != "" || p.Action > policy.Audit || p.Scope > policy.WorkloadSelector {
		return true
	}
	for _, r := range p.Rules {
		for _, c := range r {
			for _, m := range c {
				for _, s := range slices.Concat(m.Namespaces, m.NotNamespaces, m.Principals, m.NotPrincipals) {
					if s.Kind == 0 || s.Kind > policy.Presence {
						return true
					}
				}
				for _, b := range slices.Concat(m.SourceIPs, m.NotSourceIPs, m.DestinationIPs, m.NotDestinationIPs) {
					if !b.IsValid() || b.Addr().Is4In6() && b.Bits() < 96 {
						return true
					}
				}
			}
		}
	}
	return false
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
		plainField(&empty, &ok, pos, neg, func(s policy.StringMatch) bool {
			switch s.Kind {
			case policy.Exact:
				return known && v == s.Value
			case policy.Prefix:
				return known && strings.HasPrefix(v, s.Value)
			case policy.Suffix:
				return known && strings.HasSuffix(v, s.Value)
			default:
				return known && v != ""
			}
		})
	}
	known := !c.Source.IsZero()
	str(m.Namespaces, m.NotNamespaces, c.Source.Namespace(), true)
	str(m.Principals, m.NotPrincipals, strings.TrimPrefix(c.Source.String(), "spiffe://"), known)
	plainField(&empty, &ok, m.ServiceAccounts, m.NotServiceAccounts, func(a policy.ServiceAccount) bool {
		return known && a.Namespace == c.Source.Namespace() && a.Name == c.Source.ServiceAccount()
	})
	plainField(&empty, &ok, m.SourceIPs, m.NotSourceIPs, func(b netip.Prefix) bool { return plainHolds(b, c.SourceIP) })
	plainField(&empty, &ok, m.DestinationIPs, m.NotDestinationIPs, func(b netip.Prefix) bool { return plainHolds(b, c.Destination.Addr()) })
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

// plainHolds compares the leading bits, of the IPv4 address where that is what an IPv6 form maps.
func plainHolds(b netip.Prefix, a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	base, n, addr := b.Addr().AsSlice(), b.Bits(), a.AsSlice()
	if b.Addr().Is4In6() {
		base, n = base[12:], n-96
	}
	if a.Is4In6() {
		addr = addr[12:]
	}
	if len(base) != len(addr) {
		return false
	}
	for i := range n {
		if (base[i/8]^addr[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}
