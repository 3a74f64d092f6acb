package authz

import (
	"fmt"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// shadows looks for rules that change nothing because of others.
func (l *linter) shadows(a *authorization) {
	for i, w := range l.ways[a] {
		if !w.few || w.never() {
			continue
		}
		if text, check, remedy := l.shadow(a, i); text != "" {
			l.add(Warning, check, a, i, text, remedy)
		}
	}
}

// shadow says which other rule makes a rule pointless, if one does: one of the same action that matches all that it
// matches, or, for what an ALLOW policy lets in, one of a DENY policy.
func (l *linter) shadow(a *authorization, i int) (text, check, remedy string) {
	r, ways := a.rules[i].Clauses, l.ways[a][i]
	for _, b := range l.authz {
		if !b.enforced() || b.invalid() || !l.governsAll(b, a) {
			continue
		}
		denied := a.policy.Action == policy.Allow && b.policy.Action == policy.Deny
		if !denied && a.policy.Action != b.policy.Action {
			continue
		}
		for j := range b.rules {
			other := b.rules[j].Clauses
			if a == b && i == j || l.ways[b][j].never() || !ways.coveredBy(other) {
				continue
			}
			name := fmt.Sprintf("rule %d of policy %s", j, b.key())
			if denied {
				return fmt.Sprintf("it lets nobody in: %s refuses all that it allows (%s)", name, ruleText(other)), "denied", "make one of the two narrower: DENY goes before ALLOW"
			}
			// Of two that match the same, the later one is pointless.
			first := b.key() < a.key() || a == b && j < i
			if first || !l.ways[b][j].coveredBy(r) || !l.governsAll(a, b) {
				return fmt.Sprintf("it changes nothing: %s matches all that it matches (%s)", name, ruleText(other)), "shadowed", "remove the rule, or make the other one narrower"
			}
		}
	}
	if a.policy.Action == policy.Allow && l.strictCovers(a, r) {
		return "it lets nobody in: it is for plaintext, and a STRICT PeerAuthentication refuses that on all pods that it governs", "denied", "remove the rule, or make the mode PERMISSIVE for its port"
	}
	return "", "", ""
}

// governsAll reports whether b is for every workload that a is for.
func (l *linter) governsAll(b, a *authorization) bool {
	return (b.namespace == a.namespace || b.namespace == l.settings.RootNamespace) && contains(a.selector, b.selector)
}

// strictCovers reports whether PeerAuthentication refuses what the rule matches on all pods that the policy governs.
func (l *linter) strictCovers(a *authorization, r rule) bool {
	governed := false
	for _, p := range l.pods {
		if !p.in || !l.translation.Governs(a.namespace, a.name, p.namespace, p.labels) {
			continue
		}
		governed = true
		d := l.derived(p)
		if d == nil {
			return false
		}
		covered := false
		for _, rule := range d.Rules {
			covered = covered || covers(rule, r)
		}
		if !covered {
			return false
		}
	}
	return governed
}
