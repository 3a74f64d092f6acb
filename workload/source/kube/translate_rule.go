package kube

import (
	"fmt"
	"strconv"

	securityv1 "istio.io/api/security/v1"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// ruleReader reads the rules of one policy.
type ruleReader struct {
	namespace   string
	domains     domains
	written     written
	allow       bool // else what cannot be judged is taken for met
	lenient     bool // but what nothing remains of is met by nothing, as in Istio
	custom      bool
	consequence string // of HTTP attributes

	at     string
	l7     []string // fields and keys that agents do not enforce
	vacant []string // lists that are empty
	notes  []string // what else the user is to be told
	err    error    // the first fault
}

func (c *ruleReader) fail(field, text string) {
	if c.err == nil {
		c.err = fmt.Errorf("%s%s: %s", c.at, field, text)
	}
}

func (c *ruleReader) note(text string) { c.notes = append(c.notes, text) }

// readRules adds the rules to the policy, but for those that never match.
func (c *ruleReader) readRules(p *policy.Policy, rules []*securityv1.Rule) {
	if len(rules) > maxRules {
		c.fail("rules", policyTooLarge)
	}
	for i, r := range rules {
		if c.err != nil {
			return
		}
		c.at = atRule(i)
		if rule, ok := c.rule(r, c.written.rule(i)); ok {
			p.Rules = append(p.Rules, rule)
		}
	}
}

// atRule is before what is said of one rule among others.
func atRule(i int) string { return "rule " + strconv.Itoa(i) + ": " }

// clauseReader collects the matches of one clause.
type clauseReader struct {
	matches []policy.Match
	always  bool // one of its matches is met by everything
}

// add takes a match. What nothing remains of is met by everything, but in an
// ALLOW rule by nothing, as an empty match is in the result.
func (c *ruleReader) add(cl *clauseReader, m policy.Match) {
	if !c.allow && !c.lenient && m.Empty() {
		cl.always = true
	}
	cl.matches = append(cl.matches, m)
}

// rule returns the rule's clauses: operations, sources, conditions. It reports
// false for one that can never match.
func (c *ruleReader) rule(r *securityv1.Rule, as writtenRule) ([][]policy.Match, bool) {
	if len(r.GetTo())+len(r.GetFrom())+len(r.GetWhen()) > maxRules {
		c.fail("clauses", policyTooLarge)
		return nil, false
	}
	before := len(c.l7)
	var clauses [][]policy.Match
	keep := func(cl clauseReader) {
		if len(cl.matches) > 0 && !cl.always {
			clauses = append(clauses, cl.matches)
		}
	}
	var to, from clauseReader
	for i, operation := range r.GetTo() {
		c.add(&to, c.unless(as.operation(i), c.operation(operation.GetOperation())))
	}
	keep(to)
	for i, source := range r.GetFrom() {
		c.add(&from, c.unless(as.source(i), c.source(source.GetSource())))
	}
	keep(from)
	for i, when := range r.GetWhen() {
		var cl clauseReader
		c.add(&cl, c.unless(as.condition(i), c.condition(when)))
		keep(cl)
	}
	none := c.unmet(as.vacant()...)
	return clauses, !c.allow || !none && len(c.l7) == before
}

// unless returns the match. In an ALLOW rule it is one that nothing meets when a
// list of alternatives is written down but empty.
func (c *ruleReader) unless(vacant []string, m policy.Match) policy.Match {
	if c.unmet(vacant...) && c.allow {
		return policy.Match{}
	}
	return m
}

// unmet notes empty lists and reports whether there are any.
func (c *ruleReader) unmet(vacant ...string) bool {
	for _, field := range vacant {
		c.vacant = append(c.vacant, c.at+field)
	}
	return len(vacant) > 0
}

func (c *ruleReader) operation(op *securityv1.Operation) policy.Match {
	c.http("hosts", op.GetHosts())
	c.http("notHosts", op.GetNotHosts())
	c.http("methods", op.GetMethods())
	c.http("notMethods", op.GetNotMethods())
	c.http("paths", op.GetPaths())
	c.http("notPaths", op.GetNotPaths())
	return policy.Match{
		DestinationPorts:    each(c, "ports", op.GetPorts(), parsePort),
		NotDestinationPorts: each(c, "notPorts", op.GetNotPorts(), parsePort),
	}
}

func (c *ruleReader) http(field string, values []string) {
	if len(values) > 0 {
		c.l7 = append(c.l7, field)
	}
}

func (c *ruleReader) source(s *securityv1.Source) policy.Match {
	c.http("remoteIpBlocks", s.GetRemoteIpBlocks())
	c.http("notRemoteIpBlocks", s.GetNotRemoteIpBlocks())
	c.http("requestPrincipals", s.GetRequestPrincipals())
	c.http("notRequestPrincipals", s.GetNotRequestPrincipals())
	m := policy.Match{
		Namespaces:         each(c, "namespaces", s.GetNamespaces(), parseMatch),
		NotNamespaces:      each(c, "notNamespaces", s.GetNotNamespaces(), parseMatch),
		Principals:         c.principals("principals", s.GetPrincipals()),
		NotPrincipals:      c.principals("notPrincipals", s.GetNotPrincipals()),
		ServiceAccounts:    each(c, "serviceAccounts", s.GetServiceAccounts(), c.account),
		NotServiceAccounts: each(c, "notServiceAccounts", s.GetNotServiceAccounts(), c.account),
		SourceIPs:          each(c, "ipBlocks", s.GetIpBlocks(), parseBlock),
		NotSourceIPs:       each(c, "notIpBlocks", s.GetNotIpBlocks(), parseBlock),
	}
	// A trust domain is the beginning of a principal.
	switch in := c.trustDomains("trustDomains", s.GetTrustDomains()); {
	case len(in) == 0:
	case len(m.Principals) == 0:
		m.Principals = in
	default:
		var err error
		if m.Principals, err = within(m.Principals, in); err != nil {
			c.fail("trustDomains", err.Error())
		}
	}
	m.NotPrincipals = append(m.NotPrincipals, c.trustDomains("notTrustDomains", s.GetNotTrustDomains())...)
	return m
}

func (c *ruleReader) principals(field string, values []string) []policy.StringMatch {
	return c.domains.principals(each(c, field, values, parsePrincipal))
}

func (c *ruleReader) trustDomains(field string, values []string) []policy.StringMatch {
	return c.domains.expand(each(c, field, values, parseTrustDomain))
}

func (c *ruleReader) account(text string) (policy.ServiceAccount, error) {
	return parseAccount(text, c.namespace)
}

func (c *ruleReader) condition(w *securityv1.Condition) policy.Match {
	key, values, not := w.GetKey(), w.GetValues(), w.GetNotValues()
	switch key {
	case keySourceIP:
		return policy.Match{SourceIPs: each(c, key, values, parseBlock), NotSourceIPs: each(c, key, not, parseBlock)}
	case keySourceNamespace:
		return policy.Match{Namespaces: each(c, key, values, parseMatch), NotNamespaces: each(c, key, not, parseMatch)}
	case keySourceAccount:
		return policy.Match{ServiceAccounts: each(c, key, values, c.account), NotServiceAccounts: each(c, key, not, c.account)}
	case keySourceDomain:
		return policy.Match{Principals: c.trustDomains(key, values), NotPrincipals: c.trustDomains(key, not)}
	case keySourcePrincipal:
		return policy.Match{Principals: c.principals(key, values), NotPrincipals: c.principals(key, not)}
	case keyDestinationIP:
		return policy.Match{DestinationIPs: each(c, key, values, parseBlock), NotDestinationIPs: each(c, key, not, parseBlock)}
	case keyDestinationPort:
		return policy.Match{DestinationPorts: each(c, key, values, parsePort), NotDestinationPorts: each(c, key, not, parsePort)}
	default:
		c.l7 = append(c.l7, bounded(key))
		return policy.Match{}
	}
}
