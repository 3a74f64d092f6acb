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
	l7Audit            = "Rules of an AUDIT policy with HTTP attributes audit by what remains of them."
	customMessage      = "the CUSTOM action needs a waypoint; agents deny what this policy selects"
	auditMessage       = "attached to ztunnel: agents log the connections that this policy matches; it decides nothing"
	dryRunMessage      = "dry run: what it would decide is counted and logged, nothing is enforced"
	invalidMessage     = "the policy denies everything that it governs: "
	invalidNothing     = "the policy decides nothing: "
	vacantAllow        = "empty lists match nothing (found: %s)"
	vacantOther        = "empty lists are passed over (found: %s)"
	annotationWarning  = "annotation " + annotationDryRun + " is no boolean; the policy is enforced"
	maxRules           = 4096 // of one policy, and values of one field
	policyTooLarge     = "too large"
	keySourceIP        = "source.ip"
	keySourceNamespace = "source.namespace"
	keySourceAccount   = "source.serviceAccount"
	keySourceDomain    = "source.trustDomain"
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
	o, _ := readAuthorization(u, s)
	return o
}

// readAuthorization is translateAuthorization, with what was found in the rules.
func readAuthorization(u *unstructured.Unstructured, s *settings) (*authorizationObject, *ruleReader) {
	o := &authorizationObject{header: makeHeader(u), conditions: istioConditions(u)}
	var spec securityv1.AuthorizationPolicy
	unreadable := decodeSpec(u, &spec, true)
	if unreadable != nil {
		// It governs whom it would have, or all that it could have governed.
		decodeSelection(u, &spec, "selector", "targetRef", "targetRefs", "action")
	}
	o.targets = targetsOf(&spec, o.namespace)
	o.selector = makePairs(spec.GetSelector().GetMatchLabels())
	p := &policy.Policy{Namespace: o.namespace, Name: o.name, Scope: o.scope(s)}
	c := ruleReader{namespace: o.namespace, domains: s.domains(), written: writtenRules(u)}
	if text := u.GetAnnotations()[annotationDryRun]; text != "" {
		var err error
		if p.DryRun, err = strconv.ParseBool(text); err != nil {
			c.note(annotationWarning)
		} else if p.DryRun {
			c.note(dryRunMessage)
		}
	}
	switch spec.GetAction() {
	case securityv1.AuthorizationPolicy_ALLOW:
		p.Action, c.allow, c.consequence = policy.Allow, true, l7Allow
	case securityv1.AuthorizationPolicy_DENY:
		p.Action, c.consequence = policy.Deny, l7Deny
		if s.lenientL7 {
			c.lenient, c.consequence = true, l7DenyLenient
		}
	case securityv1.AuthorizationPolicy_CUSTOM:
		p.Action, c.custom = policy.Deny, true
	case securityv1.AuthorizationPolicy_AUDIT:
		p.Action, c.consequence = policy.Audit, l7Audit
		p.DryRun = false // it decides nothing anyway
	default:
		p.Action = policy.Deny
		c.fail("action", strconv.Itoa(int(spec.GetAction()))+" is not known")
	}
	if unreadable != nil {
		c.err = unreadable
	}
	if len(o.targets) == 0 { // else waypoints enforce it, not agents
		c.readRules(p, spec.GetRules())
	}
	o.conclude(p, &c)
	return o, &c
}

// conclude says what becomes of the policy whose rules were read.
func (o *authorizationObject) conclude(p *policy.Policy, c *ruleReader) {
	if c.err != nil {
		o.fault = bounded(c.err.Error())
	}
	switch {
	case len(o.targets) > 0:
		return
	case o.fault != "":
		p.Invalid, p.Rules = o.fault, nil
		message := invalidMessage
		if p.DryRun || p.Action == policy.Audit {
			message = invalidNothing
		}
		o.policy, o.verdict = p, Condition{Type: conditionZtunnel, Reason: reasonInvalid, Message: message + o.fault}
		return
	}
	o.policy = p
	o.verdict = c.verdict(p)
}

// verdict is the condition of a policy that is understood.
func (c *ruleReader) verdict(p *policy.Policy) Condition {
	v := Condition{Type: conditionZtunnel, Status: true, Reason: reasonAccepted, Message: messageAttached}
	switch {
	case c.custom:
		v.Status, v.Reason, v.Message = false, reasonUnsupported, customMessage
	case len(c.l7) > 0:
		v.Reason, v.Message = reasonUnsupported, c.unenforced()
	case p.Action == policy.Audit:
		v.Message = auditMessage
	}
	if len(c.vacant) > 0 {
		v.Reason = reasonUnsupported
		text := vacantOther
		if c.allow {
			text = vacantAllow
		}
		c.note(fmt.Sprintf(text, bounded(strings.Join(c.vacant, ", "))))
	}
	for _, text := range c.notes {
		v.Message = strings.TrimSuffix(v.Message, ".") + "; " + text
	}
	return v
}

// unenforced says what agents do not enforce; empty when they enforce all.
func (c *ruleReader) unenforced() string {
	switch {
	case c.custom:
		return customMessage
	case len(c.l7) == 0:
		return ""
	}
	slices.Sort(c.l7)
	return fmt.Sprintf(l7Message, bounded(strings.Join(slices.Compact(c.l7), ", ")), c.consequence)
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
