package kube

import (
	"maps"
	"slices"
	"strconv"

	securityv1 "istio.io/api/security/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// trimPeerAuthentication reads a PeerAuthentication. One that cannot be read
// asks for the strictest, of all that it could have selected.
func trimPeerAuthentication(u *unstructured.Unstructured) *peerAuthenticationObject {
	o := &peerAuthenticationObject{header: makeHeader(u)}
	var spec securityv1.PeerAuthentication
	if err := decodeSpec(u, &spec, true); err != nil {
		o.fault, o.mode = err.Error(), modeStrict
		return o
	}
	o.selector = makePairs(spec.GetSelector().GetMatchLabels())
	var ok bool
	if o.mode, ok = parseMode(spec.GetMtls()); !ok {
		return o.strict("mode is not known")
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
// workload (reference, section 4.8).
func translatePeer(inherited mode, own *peerAuthenticationObject, s *settings) peerPolicy {
	effective := inherit(inherited, own)
	p := peerPolicy{disabled: effective == modeDisable}
	switch {
	case own != nil && own.differs(effective):
		p.policy = own.namespace + "/" + convertedPrefix + own.name
	case effective == modeStrict:
		p.policy = s.root + "/" + staticStrict
	}
	return p
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

// strictPolicy denies whoever has no identity. Only workloads that name it are
// governed.
func strictPolicy(s *settings) *policy.Policy {
	return &policy.Policy{
		Namespace: s.root, Name: staticStrict, Scope: policy.WorkloadSelector, Action: policy.Deny,
		Rules: [][][]policy.Match{{{{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}}}}},
	}
}
