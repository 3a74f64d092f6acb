package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/netpolpb"
)

// unknown is a value of an enumeration that is none.
const unknown = math.MaxUint8

// FromMessage converts an object of the wire. A policy that cannot be understood
// as a whole is returned as one that allows nothing, without an error; an error
// says that the message is no object at all.
func FromMessage(m *netpolpb.Object) (netpol.Object, error) {
	if err := known(m); err != nil {
		return nil, err
	}
	switch o := m.GetObject().(type) {
	case *netpolpb.Object_Policy:
		if o.Policy.GetName() == "" {
			return nil, errors.New("policy without a name")
		}
		return policyFrom(o.Policy), nil
	case *netpolpb.Object_Pod:
		return podFrom(o.Pod)
	case *netpolpb.Object_Namespace:
		if o.Namespace.GetName() == "" {
			return nil, errors.New("namespace without a name")
		}
		return &netpol.Namespace{Name: o.Namespace.GetName(), Labels: netpol.MakeLabels(o.Namespace.GetLabels())}, nil
	case *netpolpb.Object_Node:
		return nodeFrom(o.Node)
	default:
		return nil, errors.New("object of no known kind")
	}
}

// known refuses a message with fields that this version does not know: what they
// say may be a condition.
func known(m proto.Message) error {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("it says what this version does not know")
	}
	return nil
}

// Of pods, namespaces and nodes unknown fields mean nothing: only a policy that
// uses them could make them matter, and that one is not understood then.

func podFrom(m *netpolpb.Pod) (netpol.Object, error) {
	p := &netpol.Pod{UID: m.GetUid(), Namespace: m.GetNamespace(), Labels: netpol.MakeLabels(m.GetLabels())}
	if p.UID == "" || p.Namespace == "" {
		return nil, errors.New("pod without uid or namespace")
	}
	for _, port := range m.GetPorts() {
		number, err := portNumber(port.GetPort())
		if err != nil {
			return nil, err
		}
		p.Ports = append(p.Ports, netpol.NamedPort{Name: port.GetName(), Protocol: protocolFrom(port.GetProtocol()), Port: number})
	}
	return p, nil
}

func nodeFrom(m *netpolpb.Node) (netpol.Object, error) {
	n := &netpol.Node{Name: m.GetName(), Labels: netpol.MakeLabels(m.GetLabels())}
	if n.Name == "" {
		return nil, errors.New("node without a name")
	}
	for _, text := range m.GetAddresses() {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("node: %w", err)
		}
		n.Addresses = append(n.Addresses, addr.Unmap())
	}
	return n, nil
}

// policyFrom converts a policy. A fault in a rule spoils that rule, any other one
// the policy.
func policyFrom(m *netpolpb.Policy) *netpol.Policy {
	p := &netpol.Policy{
		Tier: tierFrom(m.GetTier()), Namespace: m.GetNamespace(), Name: m.GetName(), Priority: m.GetPriority(),
		Ingress: m.GetIngress(), Egress: m.GetEgress(), Invalid: m.GetInvalid(),
		IngressRules: each(m.GetIngressRules(), ruleFrom), EgressRules: each(m.GetEgressRules(), ruleFrom),
	}
	if err := known(m); err != nil {
		return Spoilt(p, err.Error())
	}
	switch {
	case m.GetPods() == nil:
		return Spoilt(p, "it does not say which pods it governs")
	case p.Tier == netpol.Namespaced && !p.Ingress && !p.Egress:
		return Spoilt(p, "it does not say which directions it governs")
	}
	subject, err := selectorFrom(m.GetPods())
	if err != nil {
		return Spoilt(p, "subject: "+err.Error())
	}
	p.Pods = *subject
	if p.Namespaces, err = selectorFrom(m.GetNamespaces()); err != nil {
		return Spoilt(p, "subject: "+err.Error())
	}
	return p
}

func ruleFrom(m *netpolpb.Rule) netpol.Rule {
	r := netpol.Rule{
		Name: m.GetName(), Action: actionFrom(m.GetAction()), AnyPeer: m.GetAnyPeer(), AnyPort: m.GetAnyPort(), Invalid: m.GetInvalid(),
	}
	fault := func(err error) {
		if err != nil && r.Invalid == "" {
			r.Invalid = err.Error()
		}
	}
	fault(known(m))
	for _, peer := range m.GetPeers() {
		p, err := peerFrom(peer)
		fault(err)
		r.Peers = append(r.Peers, p)
	}
	for _, port := range m.GetPorts() {
		p, err := portFrom(port)
		fault(err)
		r.Ports = append(r.Ports, p)
	}
	return r
}

// peerFrom converts a peer. With an error it is of no kind, and spoils its rule.
func peerFrom(m *netpolpb.Peer) (netpol.Peer, error) {
	if err := known(m); err != nil {
		return netpol.Peer{}, err
	}
	switch kind := m.GetKind().(type) {
	case *netpolpb.Peer_Pods:
		return podsFrom(kind.Pods)
	case *netpolpb.Peer_Block:
		return blockFrom(kind.Block)
	case *netpolpb.Peer_Networks:
		networks, err := prefixes(kind.Networks.GetCidrs())
		return netpol.Peer{Networks: networks}, errors.Join(known(kind.Networks), err)
	case *netpolpb.Peer_Nodes:
		nodes, err := selectorFrom(kind.Nodes)
		return netpol.Peer{Nodes: nodes}, err
	case *netpolpb.Peer_Domains:
		return netpol.Peer{Domains: slices.Clone(kind.Domains.GetNames())}, known(kind.Domains)
	default:
		return netpol.Peer{}, errors.New("peer of no known kind")
	}
}

func podsFrom(m *netpolpb.Pods) (p netpol.Peer, err error) {
	if err := known(m); err != nil {
		return netpol.Peer{}, err
	}
	if p.Namespaces, err = selectorFrom(m.GetNamespaces()); err != nil {
		return netpol.Peer{}, err
	}
	if p.Pods, err = selectorFrom(m.GetPods()); err != nil {
		return netpol.Peer{}, err
	}
	return p, nil
}

func blockFrom(m *netpolpb.Block) (p netpol.Peer, err error) {
	if err := known(m); err != nil {
		return netpol.Peer{}, err
	}
	if p.Block, err = netip.ParsePrefix(m.GetCidr()); err != nil {
		return netpol.Peer{}, err
	}
	p.Except, err = prefixes(m.GetExcept())
	return p, err
}

func prefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func portFrom(m *netpolpb.Port) (netpol.Port, error) {
	p := netpol.Port{Protocol: protocolFrom(m.GetProtocol()), Name: m.GetName()}
	var faults [3]error
	faults[0] = known(m)
	p.Port, faults[1] = portNumber(m.GetPort())
	p.End, faults[2] = portNumber(m.GetEnd())
	return p, errors.Join(faults[:]...)
}

func portNumber(n uint32) (uint16, error) {
	if n > math.MaxUint16 {
		return 0, fmt.Errorf("port %d", n)
	}
	return uint16(n), nil
}

// selectorFrom converts a selector; nil stays nil.
func selectorFrom(m *netpolpb.Selector) (*netpol.Selector, error) {
	if m == nil {
		return nil, nil
	}
	if err := known(m); err != nil {
		return nil, err
	}
	s := new(netpol.Selector)
	for _, r := range m.GetRequirements() {
		if err := known(r); err != nil {
			return nil, err
		}
		s.Requirements = append(s.Requirements, netpol.Requirement{Key: r.GetKey(), Op: opFrom(r.GetOp()), Values: slices.Clone(r.GetValues())})
	}
	return s, nil
}

// value returns what a word of the wire stands for, or what is none.
func value[W ~int32, T ~uint8](w W, values ...T) T {
	if w < 0 || int(w) >= len(values) {
		return unknown
	}
	return values[w]
}

func tierFrom(t netpolpb.Tier) netpol.Tier {
	return value(t, unknown, netpol.Admin, netpol.Namespaced, netpol.Baseline)
}

func actionFrom(a netpolpb.Action) netpol.Action {
	return value(a, unknown, netpol.Allow, netpol.Deny, netpol.Pass)
}

func opFrom(o netpolpb.Op) netpol.Op {
	return value(o, unknown, netpol.In, netpol.NotIn, netpol.Exists, netpol.DoesNotExist)
}

func protocolFrom(p netpolpb.Protocol) netpol.Protocol {
	return value(p, unknown, netpol.TCP, netpol.UDP, netpol.SCTP, netpol.AnyProtocol)
}
