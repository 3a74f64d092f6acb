package kube

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	securityv1 "istio.io/api/security/v1"
	typev1beta1 "istio.io/api/type/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// Types and reasons of conditions (reference, section 4.10).
const (
	conditionZtunnel   = "ZtunnelAccepted"
	conditionWaypoint  = "WaypointAccepted"
	conditionBound     = "istio.io/WaypointBound"
	conditionMissing   = "istio.io/WaypointMissing"
	reasonAccepted     = "Accepted"
	reasonUnsupported  = "UnsupportedValue"
	reasonInvalid      = "Invalid"
	messageAttached    = "attached to ztunnel"
	l7Message          = "agents do not enforce HTTP attributes (found: %s); a waypoint does, for policies with targetRefs. %s"
	l7Allow            = "Rules of an ALLOW policy with HTTP attributes never match."
	l7Deny             = "Rules of a DENY policy with HTTP attributes deny by what remains of them."
	l7DenyLenient      = "Rules of a DENY policy with HTTP attributes deny by what remains of them, if anything does."
	customMessage      = "the CUSTOM action needs a waypoint; agents deny what this policy selects"
	auditMessage       = "agents do not support the AUDIT action; the policy decides nothing"
	invalidMessage     = "the policy denies everything that it governs: "
	annotationWarning  = "annotation " + annotationDryRun + " is no boolean; the policy is enforced"
	maxRules           = 4096 // of one policy, and values of one field
	policyTooLarge     = "too large"
	keySourceIP        = "source.ip"
	keySourceNamespace = "source.namespace"
	keySourcePrincipal = "source.principal"
	keyDestinationIP   = "destination.ip"
	keyDestinationPort = "destination.port"
)

// managed reports whether a condition is one that this program writes.
func managed(conditionType string) bool {
	switch conditionType {
	case conditionZtunnel, conditionWaypoint, conditionBound, conditionMissing:
		return true
	}
	return false
}

// translateAuthorization makes the policy that agents enforce of an
// AuthorizationPolicy (reference, section 4.7), fail closed.
func translateAuthorization(u *unstructured.Unstructured, s *settings) *authorizationObject {
	o := &authorizationObject{header: makeHeader(u), conditions: istioConditions(u)}
	o.verdict = Condition{Type: conditionZtunnel, Status: true, Reason: reasonAccepted, Message: messageAttached}
	var spec securityv1.AuthorizationPolicy
	if err := decodeSpec(u, &spec, true); err != nil {
		// Who is selected is not known either: all that it could have been.
		o.invalid(&policy.Policy{Namespace: o.namespace, Name: o.name, Action: policy.Deny, Scope: o.scope(s)}, err)
		return o
	}
	if o.targets = targetsOf(&spec, o.namespace); len(o.targets) > 0 {
		o.verdict = Condition{} // waypoints enforce it, not agents
		return o
	}
	o.selector = makePairs(spec.GetSelector().GetMatchLabels())
	p := &policy.Policy{Namespace: o.namespace, Name: o.name, Scope: o.scope(s)}
	text := u.GetAnnotations()[annotationDryRun]
	dryRun, err := strconv.ParseBool(text)
	p.DryRun = dryRun
	if text != "" && err != nil {
		o.verdict.Message = annotationWarning
	}
	switch spec.GetAction() {
	case securityv1.AuthorizationPolicy_ALLOW:
		p.Action = policy.Allow
	case securityv1.AuthorizationPolicy_DENY:
		p.Action = policy.Deny
	case securityv1.AuthorizationPolicy_CUSTOM:
		p.Action = policy.Deny
		o.verdict = Condition{Type: conditionZtunnel, Reason: reasonUnsupported, Message: customMessage}
	case securityv1.AuthorizationPolicy_AUDIT:
		o.verdict = Condition{Type: conditionZtunnel, Reason: reasonUnsupported, Message: auditMessage}
		return o
	default:
		p.Action = policy.Deny
		o.invalid(p, fmt.Errorf("action %d is not known", spec.GetAction()))
		return o
	}
	o.translateRules(p, &spec, s)
	return o
}

// scope is that of a policy with the object's selector. An empty selector
// selects everything, as none does.
func (o *authorizationObject) scope(s *settings) policy.Scope {
	switch {
	case !o.selector.empty():
		return policy.WorkloadSelector
	case o.namespace == s.root:
		return policy.Global
	default:
		return policy.Namespace
	}
}

func (o *authorizationObject) invalid(p *policy.Policy, cause error) {
	p.Invalid = bounded(cause.Error())
	p.Rules, p.DryRun = nil, false
	o.policy = p
	o.verdict = Condition{Type: conditionZtunnel, Reason: reasonInvalid, Message: invalidMessage + p.Invalid}
}

// targetsOf returns what the policy is attached to instead of workloads.
func targetsOf(spec *securityv1.AuthorizationPolicy, namespace string) []targetRef {
	refs := spec.GetTargetRefs()
	if len(refs) == 0 && spec.GetTargetRef() != nil {
		refs = []*typev1beta1.PolicyTargetReference{spec.GetTargetRef()}
	}
	var out []targetRef
	for _, r := range refs {
		t := targetRef{r.GetGroup(), r.GetKind(), r.GetNamespace(), r.GetName()}
		if t.namespace == "" {
			t.namespace = namespace
		}
		out = append(out, t)
	}
	return out
}

func (o *authorizationObject) translateRules(p *policy.Policy, spec *securityv1.AuthorizationPolicy, s *settings) {
	c := ruleReader{namespace: o.namespace, deny: p.Action == policy.Deny, lenient: s.lenientL7}
	if len(spec.GetRules()) > maxRules {
		c.fail("rules", policyTooLarge)
	}
	for i, r := range spec.GetRules() {
		if c.err != nil {
			break
		}
		c.at = "rule " + strconv.Itoa(i) + ": "
		if rule, ok := c.rule(r); ok {
			p.Rules = append(p.Rules, rule)
		}
	}
	if c.err != nil {
		o.invalid(p, c.err)
		return
	}
	o.policy = p
	if len(c.l7) == 0 || o.verdict.Reason == reasonUnsupported {
		return
	}
	slices.Sort(c.l7)
	consequence := l7Allow
	switch {
	case c.deny && c.lenient:
		consequence = l7DenyLenient
	case c.deny:
		consequence = l7Deny
	}
	o.verdict = Condition{
		Type: conditionZtunnel, Status: true, Reason: reasonUnsupported,
		Message: fmt.Sprintf(l7Message, bounded(strings.Join(slices.Compact(c.l7), ", ")), consequence),
	}
}

// ruleReader reads the rules of one policy.
type ruleReader struct {
	namespace     string
	deny, lenient bool
	l7            []string // fields and keys that agents do not enforce
	at            string
	err           error // the first fault
}

func (c *ruleReader) fail(field, text string) {
	if c.err == nil {
		c.err = fmt.Errorf("%s%s: %s", c.at, field, text)
	}
}

// clauseReader collects the matches of one clause.
type clauseReader struct {
	matches []policy.Match
	always  bool // one of its matches is met by everything
}

// add takes a match. What nothing remains of is, in a DENY rule, met by
// everything; an empty match in the result is met by nothing.
func (c *ruleReader) add(cl *clauseReader, m policy.Match, empty bool) {
	if empty && c.deny && !c.lenient {
		cl.always = true
	}
	cl.matches = append(cl.matches, m)
}

// rule returns the rule's clauses: operations, sources, conditions. It reports
// false for one that can never match.
func (c *ruleReader) rule(r *securityv1.Rule) ([][]policy.Match, bool) {
	before := len(c.l7)
	var clauses [][]policy.Match
	keep := func(cl clauseReader) {
		if !cl.always {
			clauses = append(clauses, cl.matches)
		}
	}
	if len(r.GetTo())+len(r.GetFrom())+len(r.GetWhen()) > maxRules {
		c.fail("clauses", policyTooLarge)
		return nil, false
	}
	if len(r.GetTo()) > 0 {
		var cl clauseReader
		for _, to := range r.GetTo() {
			m := c.operation(to.GetOperation())
			c.add(&cl, m, emptyMatch(&m))
		}
		keep(cl)
	}
	if len(r.GetFrom()) > 0 {
		var cl clauseReader
		for _, from := range r.GetFrom() {
			m := c.source(from.GetSource())
			c.add(&cl, m, emptyMatch(&m))
		}
		keep(cl)
	}
	for _, when := range r.GetWhen() {
		var cl clauseReader
		m := c.condition(when)
		c.add(&cl, m, emptyMatch(&m))
		keep(cl)
	}
	if !c.deny && len(c.l7) > before {
		return nil, false
	}
	return clauses, true
}

// emptyMatch reports whether the match has no values.
func emptyMatch(m *policy.Match) bool {
	return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
		len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
		len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
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
	account := func(v string) (policy.ServiceAccount, error) { return parseAccount(v, c.namespace) }
	m := policy.Match{
		Namespaces:         each(c, "namespaces", s.GetNamespaces(), parseMatch),
		NotNamespaces:      each(c, "notNamespaces", s.GetNotNamespaces(), parseMatch),
		Principals:         each(c, "principals", s.GetPrincipals(), parseMatch),
		NotPrincipals:      each(c, "notPrincipals", s.GetNotPrincipals(), parseMatch),
		ServiceAccounts:    each(c, "serviceAccounts", s.GetServiceAccounts(), account),
		NotServiceAccounts: each(c, "notServiceAccounts", s.GetNotServiceAccounts(), account),
		SourceIPs:          each(c, "ipBlocks", s.GetIpBlocks(), parseBlock),
		NotSourceIPs:       each(c, "notIpBlocks", s.GetNotIpBlocks(), parseBlock),
	}
	// A trust domain is the beginning of a principal.
	domains := each(c, "trustDomains", s.GetTrustDomains(), parseTrustDomain)
	if len(domains) > 0 && len(m.Principals) > 0 {
		c.fail("trustDomains", "cannot be combined with principals")
	}
	m.Principals = append(m.Principals, domains...)
	m.NotPrincipals = append(m.NotPrincipals, each(c, "notTrustDomains", s.GetNotTrustDomains(), parseTrustDomain)...)
	return m
}

func (c *ruleReader) condition(w *securityv1.Condition) policy.Match {
	values, not := w.GetValues(), w.GetNotValues()
	switch w.GetKey() {
	case keySourceIP:
		return policy.Match{SourceIPs: each(c, w.GetKey(), values, parseBlock), NotSourceIPs: each(c, w.GetKey(), not, parseBlock)}
	case keySourceNamespace:
		return policy.Match{Namespaces: each(c, w.GetKey(), values, parseMatch), NotNamespaces: each(c, w.GetKey(), not, parseMatch)}
	case keySourcePrincipal:
		return policy.Match{Principals: each(c, w.GetKey(), values, parseMatch), NotPrincipals: each(c, w.GetKey(), not, parseMatch)}
	case keyDestinationIP:
		return policy.Match{DestinationIPs: each(c, w.GetKey(), values, parseBlock), NotDestinationIPs: each(c, w.GetKey(), not, parseBlock)}
	case keyDestinationPort:
		return policy.Match{DestinationPorts: each(c, w.GetKey(), values, parsePort), NotDestinationPorts: each(c, w.GetKey(), not, parsePort)}
	default:
		c.l7 = append(c.l7, bounded(w.GetKey()))
		return policy.Match{}
	}
}
