package policy

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/identity"
)

// compiled is a policy in the form that is evaluated.
type compiled struct {
	policy *Policy
	key    string
	action Action // Deny for an invalid policy, whatever it says
	fault  error  // not nil for an invalid policy
	rules  []rule // only those that can match
}

// rule matches when all of its clauses do; without any it always matches.
type rule struct {
	clauses []clause
	anchors []anchor
}

// clause matches when one of its matches does. It is never empty: clauses that
// always match are dropped, and so are rules with one that never does.
type clause []match

// match holds one test for each field that says something; all must pass.
type match []test

// facts are a Connection, prepared for comparing.
type facts struct {
	known          bool // the source has an identity
	principal      string
	namespace      string
	serviceAccount ServiceAccount
	source         netip.Addr
	destination    netip.Addr
	port           uint16
}

func factsOf(c Connection) facts {
	f := facts{
		source:      c.SourceIP.Unmap().WithZone(""),
		destination: c.Destination.Addr().Unmap().WithZone(""),
		port:        c.Destination.Port(),
	}
	if c.Source != (identity.ID{}) {
		f.known = true
		f.principal = c.Source.Principal()
		f.namespace = c.Source.Namespace()
		f.serviceAccount = ServiceAccount{Namespace: c.Source.Namespace(), Name: c.Source.ServiceAccount()}
	}
	return f
}

func compile(p *Policy) *compiled {
	c := &compiled{policy: p, key: p.Key(), action: p.Action, fault: p.Validate()}
	if c.fault != nil {
		c.action = Deny
		c.rules = []rule{{anchors: []anchor{{kind: anchorAlways}}}}
		return c
	}
	for _, r := range p.Rules {
		if compiled, ok := compileRule(r); ok {
			c.rules = append(c.rules, compiled)
		}
	}
	return c
}

// compileRule reports false for a rule that can never match.
func compileRule(clauses [][]Match) (rule, bool) {
	var r rule
	for _, matches := range clauses {
		if len(matches) == 0 {
			continue
		}
		var c clause
		for i := range matches {
			if !matches[i].empty() {
				c = append(c, compileMatch(&matches[i]))
			}
		}
		if len(c) == 0 {
			return rule{}, false
		}
		r.clauses = append(r.clauses, c)
	}
	r.anchors = chooseAnchors(r.clauses)
	return r, true
}

func (m *Match) empty() bool {
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
