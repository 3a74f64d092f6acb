package policy

import (
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Texts of Decision.Reason, as ztunnel words them.
const (
	reasonDenied     = "explicitly denied by: "
	reasonNotAllowed = "allow policies exist, but none allowed"
	reasonMissing    = "policies not known yet: "
)

// maxDryRun bounds Decision.DryRun.
const maxDryRun = 16

// Evaluate decides whether the connection may enter the workload.
//
// The policies that govern a workload are the global ones, those of its
// namespace and those that it names. A matching Deny refuses. Otherwise, with
// a name that the Set does not know, the connection is not allowed yet.
// Otherwise, when there is any Allow, one has to match. Dry-run policies are
// only reported. Of several policies that decide alike the one with the lowest
// key is named.
func (s *Snapshot) Evaluate(dst *workload.Workload, c Connection) Decision {
	f := factsOf(c)
	var named []*compiled
	var d Decision
	for _, key := range dst.AuthorizationPolicies {
		if p := s.byKey.At(key); p != nil {
			named = append(named, p)
		} else {
			d.Missing = append(d.Missing, key)
		}
	}
	global := s.byScope.At(scopeKey{global: true})
	local := s.byScope.At(scopeKey{namespace: dst.Namespace})
	d.DryRun = dryRun(&f, named, &global, &local)

	if p := firstOf(&f, Deny, named, global.deny, local.deny); p != nil {
		d.Denied, d.Policy = true, p.key
		d.Reason = reasonDenied + p.key
		if p.fault != nil {
			d.Reason += " (invalid: " + strings.ReplaceAll(p.fault.Error(), "\n", "; ") + ")"
		}
		return d
	}
	if len(d.Missing) > 0 {
		slices.Sort(d.Missing)
		d.Missing = slices.Compact(d.Missing)
		d.Reason = reasonMissing + strings.Join(d.Missing, ", ")
		return d
	}
	if global.allow.policies+local.allow.policies == 0 && !slices.ContainsFunc(named, (*compiled).allows) {
		d.Allowed = true
		return d
	}
	if p := firstOf(&f, Allow, named, global.allow, local.allow); p != nil {
		d.Allowed, d.Policy = true, p.key
		return d
	}
	d.Reason = reasonNotAllowed
	return d
}

func (c *compiled) allows() bool { return c.action == Allow && !c.policy.DryRun }

// firstOf returns the matching policy with the lowest key.
func firstOf(f *facts, action Action, named []*compiled, groups ...group) *compiled {
	var best *compiled
	for _, p := range named {
		if p.action == action && !p.policy.DryRun && (best == nil || p.key < best.key) && p.matches(f) {
			best = p
		}
	}
	for _, g := range groups {
		best = g.first(f, best)
	}
	return best
}

func dryRun(f *facts, named []*compiled, scopes ...*scoped) []string {
	var out []string
	found := func(p *compiled) {
		text := "would be allowed by: "
		if p.action == Deny {
			text = "would be denied by: "
		}
		out = append(out, text+p.key)
	}
	for _, p := range named {
		if p.policy.DryRun && p.matches(f) {
			found(p)
		}
	}
	for _, s := range scopes {
		s.dryDeny.every(f, found)
		s.dryAllow.every(f, found)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxDryRun):min(len(out), maxDryRun)]
}
