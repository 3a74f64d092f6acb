package policy

import "strings"

// compiled is a policy as a Set holds it.
type compiled struct {
	policy *Policy
	key    string
	action Action // Deny for an invalid policy that would decide
	fault  error  // not nil for an invalid policy, which matches everything
	reason string // of a refusal by the policy
	weight int    // about how many conjunctions it has
}

// rule matches when all of its clauses do; without any it always matches.
type rule struct {
	clauses []clause
}

// clause matches when one of its matches does. It is never empty: clauses that
// always match are dropped, and so are rules with one that never does.
type clause []match

// match holds one test for each field that says something; all must pass.
type match []test

func compile(p *Policy) *compiled {
	c := &compiled{policy: p, key: p.Key(), action: p.Action, fault: p.Validate(), weight: 1}
	c.reason = reasonDenied + c.key
	if c.fault != nil {
		c.reason += " (invalid: " + strings.ReplaceAll(c.fault.Error(), "\n", "; ") + ")"
		if c.action != Audit {
			c.action = Deny
		}
		return c
	}
	for _, r := range p.Rules {
		for _, clause := range r {
			c.weight += len(clause)
		}
	}
	return c
}

// effect is what it means for a connection when a policy matches.
type effect uint8

const (
	effectDeny effect = iota
	effectAllow
	effectNote // dry-run and audit policies never decide
	numEffects
)

func (c *compiled) effect() effect {
	switch {
	case c.policy.DryRun || c.action == Audit:
		return effectNote
	case c.action == Deny:
		return effectDeny
	default:
		return effectAllow
	}
}

// compileRule reports false for a rule that can never match.
func compileRule(clauses [][]Match) (*rule, bool) {
	r := new(rule)
	for _, matches := range clauses {
		if len(matches) == 0 {
			continue
		}
		var c clause
		for i := range matches {
			if !matches[i].Empty() {
				c = append(c, compileMatch(&matches[i]))
			}
		}
		if len(c) == 0 {
			return nil, false
		}
		r.clauses = append(r.clauses, c)
	}
	return r, true
}

// Empty reports whether the match has no values; such a one never matches.
func (m *Match) Empty() bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}

func (r *rule) matches(f *facts) bool {
	for _, c := range r.clauses {
		if !c.matches(f) {
			return false
		}
	}
	return true
}

func (c clause) matches(f *facts) bool {
	for i := range c {
		if c[i].matches(f) {
			return true
		}
	}
	return false
}

func (m match) matches(f *facts) bool {
	for i := range m {
		if !m[i].passes(f) {
			return false
		}
	}
	return true
}
