package kube

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	securityv1 "istio.io/api/security/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// trimPeerAuthentication reads a PeerAuthentication. One that cannot be read
// asks for the strictest, of all that it selects or, when that cannot be read
// either, of all that it could have selected.
func trimPeerAuthentication(u *unstructured.Unstructured) *peerAuthenticationObject {
	o := &peerAuthenticationObject{header: makeHeader(u), conditions: istioConditions(u)}
	var spec securityv1.PeerAuthentication
	err := decodeSpec(u, &spec, true)
	if err != nil {
		o.vague = !decodeSelection(u, &spec, "selector")
	}
	o.selector = makePairs(spec.GetSelector().GetMatchLabels())
	if err != nil {
		return o.strict(err.Error())
	}
	var ok bool
	if o.mode, ok = parseMode(spec.GetMtls()); !ok {
		return o.strict("mode is not known")
	}
	if len(spec.GetPortLevelMtls()) > 0 && o.selector.empty() {
		return o.strict("portLevelMtls needs a selector")
	}
	for port, m := range spec.GetPortLevelMtls() {
		portMode, ok := parseMode(m)
		if !ok || !validPort(port) {
			return o.strict("port " + strconv.Itoa(int(port)) + " or its mode is not known")
		}
		if o.ports == nil {
			o.ports = make(map[uint16]mode)
		}
		o.ports[uint16(port)] = portMode
	}
	return o
}

func (o *peerAuthenticationObject) strict(fault string) *peerAuthenticationObject {
	o.fault, o.mode, o.ports = fault, modeStrict, nil
	return o
}

func parseMode(m *securityv1.PeerAuthentication_MutualTLS) (mode, bool) {
	switch m.GetMode() {
	case securityv1.PeerAuthentication_MutualTLS_UNSET:
		return modeUnset, true
	case securityv1.PeerAuthentication_MutualTLS_DISABLE:
		return modeDisable, true
	case securityv1.PeerAuthentication_MutualTLS_PERMISSIVE:
		return modePermissive, true
	case securityv1.PeerAuthentication_MutualTLS_STRICT:
		return modeStrict, true
	default:
		return modeUnset, false
	}
}

// effective chooses among PeerAuthentications of one level: one that could not
// be read, else the oldest.
func effective(level []*peerAuthenticationObject) *peerAuthenticationObject {
	var best *peerAuthenticationObject
	for _, o := range level {
		switch {
		case best == nil,
			o.fault != "" && best.fault == "",
			(o.fault != "") == (best.fault != "") && older(&o.header, &best.header):
			best = o
		}
	}
	return best
}

// inherit returns the mode below a level: its own if it sets one.
func inherit(above mode, o *peerAuthenticationObject) mode {
	if o == nil || o.mode == modeUnset {
		return above
	}
	return o.mode
}

// peerPolicy says what PeerAuthentication means for one workload.
type peerPolicy struct {
	// policy is the key of the policy that the workload names, or nothing.
	policy string
	// disabled workloads are announced without HBONE (peers send plaintext).
	disabled bool
}

// translatePeer resolves a workload's mode from those of mesh, namespace and
// workload (reference, section 4.8). One with a STRICT port stays announced: a
// port is reached through the tunnel or, being strict, not at all.
func translatePeer(inherited mode, own *peerAuthenticationObject, s *settings) peerPolicy {
	effective := inherit(inherited, own)
	p := peerPolicy{disabled: effective == modeDisable && (own == nil || !own.hasStrictPort())}
	switch {
	case own != nil && own.differs(effective):
		p.policy = own.namespace + "/" + convertedPrefix + own.name
	case effective == modeStrict:
		p.policy = s.root + "/" + staticStrict
	}
	return p
}

func (o *peerAuthenticationObject) hasStrictPort() bool {
	for _, m := range o.ports {
		if m == modeStrict {
			return true
		}
	}
	return false
}

// differs reports whether a port is treated differently than the workload.
func (o *peerAuthenticationObject) differs(effective mode) bool {
	for _, m := range o.ports {
		if m != modeUnset && (m == modeStrict) != (effective == modeStrict) {
			return true
		}
	}
	return false
}

// converted returns the policy that the ports of a PeerAuthentication make, or
// nil when none is needed. It carries the strictness of the other ports too:
// a workload names it instead of the static policy.
func (o *peerAuthenticationObject) converted(inherited mode) *policy.Policy {
	effective := inherit(inherited, o)
	if o.selector.empty() || !o.differs(effective) {
		return nil
	}
	p := &policy.Policy{
		Namespace: o.namespace, Name: convertedPrefix + o.name,
		Scope: policy.WorkloadSelector, Action: policy.Deny,
	}
	nobody := []policy.StringMatch{{Kind: policy.Presence}}
	ports := slices.Sorted(maps.Keys(o.ports))
	if effective != modeStrict {
		for _, port := range ports {
			if o.ports[port] == modeStrict {
				p.Rules = append(p.Rules, [][]policy.Match{{{NotPrincipals: nobody, DestinationPorts: []uint16{port}}}})
			}
		}
		return p
	}
	rule := [][]policy.Match{{{NotPrincipals: nobody}}}
	for _, port := range ports {
		if m := o.ports[port]; m == modePermissive || m == modeDisable {
			rule = append(rule, []policy.Match{{NotDestinationPorts: []uint16{port}}})
		}
	}
	p.Rules = [][][]policy.Match{rule}
	return p
}

// peerConditions are what the user is to be told of a PeerAuthentication;
// nothing when all of it is in force. Istio has no condition for it, so it gets
// one only then. Winner is what is in force in place of it, or itself.
func peerConditions(o, winner *peerAuthenticationObject, s *settings) []Condition {
	c := Condition{Type: conditionZtunnel}
	switch {
	case o.fault != "":
		c.Reason, c.Message = reasonInvalid, peerInvalid+bounded(o.fault)
	case winner != o:
		c.Reason, c.Message = reasonOverruled, fmt.Sprintf(peerOverruled, winner.key)
	case !o.selector.empty() && o.namespace == s.root:
		c.Status, c.Reason, c.Message = true, reasonAccepted, peerRootSelector
	default:
		return nil
	}
	return []Condition{c}
}

// What users are told of a PeerAuthentication.
const (
	reasonOverruled  = "Overruled"
	peerInvalid      = "STRICT is enforced instead: "
	peerOverruled    = "%s selects the same workloads and is in force"
	peerRootSelector = "a selector in the root namespace selects workloads of that namespace only"
)

// strictPolicy denies whoever has no identity. Only workloads that name it are
// governed.
func strictPolicy(s *settings) *policy.Policy {
	return &policy.Policy{
		Namespace: s.root, Name: staticStrict, Scope: policy.WorkloadSelector, Action: policy.Deny,
		Rules: [][][]policy.Match{{{{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}}}}},
	}
}
