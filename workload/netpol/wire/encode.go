package wire

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/netpolpb"
)

// ToMessage converts an object to the wire; nil is returned for what is none. A
// value that the wire has no word for becomes its zero, which no decoder takes.
func ToMessage(o netpol.Object) *netpolpb.Object {
	switch o := o.(type) {
	case *netpol.Policy:
		return &netpolpb.Object{Object: &netpolpb.Object_Policy{Policy: policyTo(o)}}
	case *netpol.Pod:
		p := &netpolpb.Pod{Uid: o.UID, Namespace: o.Namespace, Labels: labelsTo(o.Labels)}
		for _, port := range o.Ports {
			p.Ports = append(p.Ports, &netpolpb.NamedPort{Name: port.Name, Protocol: protocolTo(port.Protocol), Port: uint32(port.Port)})
		}
		return &netpolpb.Object{Object: &netpolpb.Object_Pod{Pod: p}}
	case *netpol.Namespace:
		return &netpolpb.Object{Object: &netpolpb.Object_Namespace{Namespace: &netpolpb.Namespace{Name: o.Name, Labels: labelsTo(o.Labels)}}}
	case *netpol.Node:
		return &netpolpb.Object{Object: &netpolpb.Object_Node{Node: &netpolpb.Node{
			Name: o.Name, Labels: labelsTo(o.Labels), Addresses: each(o.Addresses, netip.Addr.String),
		}}}
	default:
		return nil
	}
}

func policyTo(p *netpol.Policy) *netpolpb.Policy {
	return &netpolpb.Policy{
		Tier: tierTo(p.Tier), Namespace: p.Namespace, Name: p.Name, Priority: p.Priority,
		Namespaces: selectorTo(p.Namespaces), Pods: selectorTo(&p.Pods), Ingress: p.Ingress, Egress: p.Egress,
		IngressRules: each(p.IngressRules, ruleTo), EgressRules: each(p.EgressRules, ruleTo), Invalid: p.Invalid,
	}
}

func ruleTo(r netpol.Rule) *netpolpb.Rule {
	return &netpolpb.Rule{
		Name: r.Name, Action: actionTo(r.Action), AnyPeer: r.AnyPeer, Peers: each(r.Peers, peerTo),
		AnyPort: r.AnyPort, Ports: each(r.Ports, portTo), Invalid: r.Invalid,
	}
}

// peerTo converts a peer. One of two kinds has no place on the wire: it becomes
// one of none, which cannot be understood either.
func peerTo(p netpol.Peer) *netpolpb.Peer {
	out := new(netpolpb.Peer)
	kinds := 0
	if p.Namespaces != nil || p.Pods != nil {
		kinds++
		out.Kind = &netpolpb.Peer_Pods{Pods: &netpolpb.Pods{Namespaces: selectorTo(p.Namespaces), Pods: selectorTo(p.Pods)}}
	}
	if p.Block.IsValid() || len(p.Except) > 0 {
		kinds++
		out.Kind = &netpolpb.Peer_Block{Block: &netpolpb.Block{Cidr: p.Block.String(), Except: each(p.Except, netip.Prefix.String)}}
	}
	if len(p.Networks) > 0 {
		kinds++
		out.Kind = &netpolpb.Peer_Networks{Networks: &netpolpb.Networks{Cidrs: each(p.Networks, netip.Prefix.String)}}
	}
	if p.Nodes != nil {
		kinds++
		out.Kind = &netpolpb.Peer_Nodes{Nodes: selectorTo(p.Nodes)}
	}
	if len(p.Domains) > 0 {
		kinds++
		out.Kind = &netpolpb.Peer_Domains{Domains: &netpolpb.Domains{Names: p.Domains}}
	}
	if kinds != 1 {
		out.Kind = nil
	}
	return out
}

func portTo(p netpol.Port) *netpolpb.Port {
	return &netpolpb.Port{Protocol: protocolTo(p.Protocol), Port: uint32(p.Port), End: uint32(p.End), Name: p.Name}
}

func selectorTo(s *netpol.Selector) *netpolpb.Selector {
	if s == nil {
		return nil
	}
	return &netpolpb.Selector{Requirements: each(s.Requirements, func(r netpol.Requirement) *netpolpb.Requirement {
		return &netpolpb.Requirement{Key: r.Key, Op: opTo(r.Op), Values: r.Values}
	})}
}

func labelsTo(l netpol.Labels) map[string]string {
	if len(l) == 0 {
		return nil
	}
	out := make(map[string]string, len(l))
	for _, label := range l {
		out[label.Key] = label.Value
	}
	return out
}

func each[T, W any](in []T, convert func(T) W) []W {
	if len(in) == 0 {
		return nil
	}
	out := make([]W, len(in))
	for i := range in {
		out[i] = convert(in[i])
	}
	return out
}

// word returns the wire's word for a value of an enumeration, or its zero, which
// is none.
func word[W ~int32, T ~uint8](v T, words ...W) W {
	if int(v) < len(words) {
		return words[v]
	}
	return 0
}

func tierTo(t netpol.Tier) netpolpb.Tier {
	return word(t, 0, netpolpb.Tier_ADMIN, netpolpb.Tier_NAMESPACED, netpolpb.Tier_BASELINE)
}

func actionTo(a netpol.Action) netpolpb.Action {
	return word(a, netpolpb.Action_ALLOW, netpolpb.Action_DENY, netpolpb.Action_PASS)
}

func opTo(o netpol.Op) netpolpb.Op {
	return word(o, 0, netpolpb.Op_IN, netpolpb.Op_NOT_IN, netpolpb.Op_EXISTS, netpolpb.Op_DOES_NOT_EXIST)
}

func protocolTo(p netpol.Protocol) netpolpb.Protocol {
	return word(p, netpolpb.Protocol_TCP, netpolpb.Protocol_UDP, netpolpb.Protocol_SCTP, netpolpb.Protocol_ANY)
}
