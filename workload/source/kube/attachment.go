package kube

import (
	"fmt"
	"strings"
)

const (
	reasonNotBound       = "AncestorNotBound"
	reasonTargetNotFound = "TargetNotFound"
	reasonPartly         = "PartiallyInvalid"
	gatewayGroup         = "gateway.networking.k8s.io"
	istioNetworking      = "networking.istio.io"
	meshController       = "istio.io/mesh-controller"
)

// targetRefs returns the objects that the policy is attached to, of kinds that
// can be.
func (o *authorizationObject) targetRefs() []ref {
	var out []ref
	for _, t := range o.targets {
		if r, ok := t.ref(); ok {
			out = append(out, r)
		}
	}
	return out
}

func (t targetRef) ref() (ref, bool) {
	switch {
	case (t.group == "" || t.group == "core") && t.kind == "Service":
		return ref{kindService, key{t.namespace, t.name}}, true
	case t.group == istioNetworking && t.kind == "ServiceEntry":
		return ref{kindServiceEntry, key{t.namespace, t.name}}, true
	case t.group == gatewayGroup && t.kind == "Gateway":
		return ref{kindGateway, key{t.namespace, t.name}}, true
	case t.group == gatewayGroup && t.kind == "GatewayClass":
		return ref{kindGatewayClass, key{name: t.name}}, true
	}
	return ref{}, false
}

// attachment says whether waypoints get to see a policy with targetRefs.
func (st *state) attachment(o *authorizationObject) Condition {
	type outcome struct{ reason, message string }
	outcomes := make([]outcome, 0, len(o.targets))
	var bad []string
	for _, t := range o.targets {
		reason, message := st.attach(t, o.namespace)
		outcomes = append(outcomes, outcome{reason, message})
		if reason != reasonAccepted {
			bad = append(bad, t.kind+"/"+t.namespace+"/"+t.name)
		}
	}
	c := Condition{Type: conditionWaypoint, Status: len(bad) < len(outcomes)}
	if len(outcomes) == 1 {
		c.Reason, c.Message = outcomes[0].reason, bounded(outcomes[0].message)
		return c
	}
	switch {
	case len(bad) == 0:
		c.Reason = reasonAccepted
	case c.Status:
		c.Reason = reasonPartly
	default:
		c.Reason = reasonInvalid
	}
	if len(bad) > 0 {
		c.Message = "Invalid targetRefs: " + bounded(strings.Join(bad, ", "))
	}
	return c
}

// attach resolves one target of a policy of the namespace.
func (st *state) attach(t targetRef, namespace string) (reason, message string) {
	r, ok := t.ref()
	notFound := func() (string, string) {
		return reasonTargetNotFound, fmt.Sprintf("%s %s/%s was not found", t.kind, t.namespace, t.name)
	}
	switch {
	case !ok:
		return reasonInvalid, fmt.Sprintf("kind %s of group %q cannot be a target", t.kind, t.group)
	case t.namespace != namespace && r.kind != kindGatewayClass:
		return reasonInvalid, "a target in another namespace is not allowed"
	}
	var labels pairs
	switch r.kind {
	case kindGateway:
		if st.gateways.get(r.key) == nil {
			return notFound()
		}
		return reasonAccepted, "bound to " + r.key.String()
	case kindGatewayClass:
		switch c := st.gatewayClasses[t.name]; {
		case namespace != st.root:
			return reasonInvalid, "policies for a GatewayClass live in the root namespace"
		case c == nil:
			return notFound()
		case c.controller != meshController:
			return reasonInvalid, fmt.Sprintf("GatewayClass %s is not one of waypoints", t.name)
		}
		return reasonAccepted, "bound to " + t.name
	case kindService:
		o := st.services.get(r.key)
		if o == nil {
			return notFound()
		}
		labels = o.labels
	case kindServiceEntry:
		o := st.serviceEntries.get(r.key)
		if o == nil {
			return notFound()
		}
		labels = o.labels
	}
	if ns := st.namespaces[namespace]; ns != nil {
		if b, _ := st.bind(labels, "", ns); b.waypoint != nil {
			return reasonAccepted, "bound to " + b.waypoint.key.String()
		}
	}
	return reasonNotBound, fmt.Sprintf("%s %s/%s is not bound to a waypoint", t.kind, t.namespace, t.name)
}
