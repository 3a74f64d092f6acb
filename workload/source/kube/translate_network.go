package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// networkObject is a NetworkPolicy or ClusterNetworkPolicy.
type networkObject struct {
	header
	policy *netpol.Policy
}

// fault says what of the policy cannot be understood.
func (o *networkObject) fault() string {
	if err := o.policy.Validate(); err != nil {
		return oneLine(err)
	}
	return ""
}

func oneLine(err error) string { return plain(strings.ReplaceAll(err.Error(), "\n", "; ")) }

// translateNetworkPolicy reads a NetworkPolicy. What of it cannot be read allows
// nothing.
func translateNetworkPolicy(p *networkingv1.NetworkPolicy) *networkObject {
	o := &networkObject{header: makeHeader(p)}
	out := &netpol.Policy{
		Tier: netpol.Namespaced, Namespace: p.Namespace, Name: p.Name, Pods: *networkSelector(&p.Spec.PodSelector),
		IngressRules: networkRules(p.Spec.Ingress, func(r *networkingv1.NetworkPolicyIngressRule) netpol.Rule { return networkRule(r.From, r.Ports) }),
		EgressRules:  networkRules(p.Spec.Egress, func(r *networkingv1.NetworkPolicyEgressRule) netpol.Rule { return networkRule(r.To, r.Ports) }),
	}
	for _, t := range p.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			out.Ingress = true
		case networkingv1.PolicyTypeEgress:
			out.Egress = true
		default:
			out.Ingress, out.Egress, out.Invalid = true, true, fmt.Sprintf("policyTypes: %q is not known", bounded(string(t)))
		}
	}
	if len(p.Spec.PolicyTypes) == 0 {
		out.Ingress, out.Egress = true, len(p.Spec.Egress) > 0
	}
	o.policy = out
	return o
}

func networkRules[R any](rules []R, translate func(*R) netpol.Rule) []netpol.Rule {
	if len(rules) == 0 {
		return nil
	}
	out := make([]netpol.Rule, len(rules))
	for i := range rules {
		out[i] = translate(&rules[i])
	}
	return out
}

func networkRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) netpol.Rule {
	r := netpol.Rule{AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	var errs []error
	for i := range peers {
		p, err := networkPeer(&peers[i])
		r.Peers, errs = append(r.Peers, p), append(errs, err)
	}
	for i := range ports {
		p, err := networkPort(&ports[i])
		r.Ports, errs = append(r.Ports, p), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		r.Invalid = oneLine(err)
	}
	return r
}

func networkPeer(p *networkingv1.NetworkPolicyPeer) (out netpol.Peer, err error) {
	out = netpol.Peer{Namespaces: networkSelector(p.NamespaceSelector), Pods: networkSelector(p.PodSelector)}
	if p.IPBlock == nil {
		return out, nil
	}
	if out.Block, err = networkPrefix(p.IPBlock.CIDR); err != nil {
		return out, fmt.Errorf("ipBlock: %w", err)
	}
	for _, e := range p.IPBlock.Except {
		except, err := networkPrefix(e)
		if err != nil {
			return out, fmt.Errorf("ipBlock: except: %w", err)
		}
		out.Except = append(out.Except, except)
	}
	return out, nil
}

func networkPrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no block of addresses", bounded(text))
	}
	return p, nil
}

func networkPort(p *networkingv1.NetworkPolicyPort) (out netpol.Port, err error) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil && *p.Protocol != "" {
		protocol = *p.Protocol
	}
	switch protocol {
	case corev1.ProtocolTCP:
	case corev1.ProtocolUDP:
		out.Protocol = netpol.UDP
	case corev1.ProtocolSCTP:
		out.Protocol = netpol.SCTP
	default:
		return out, fmt.Errorf("protocol %q is not known", bounded(string(protocol)))
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return out, errors.New("endPort without port")
	case p.Port == nil:
		return out, nil
	case p.Port.Type == intstr.String && (p.EndPort != nil || p.Port.StrVal == ""):
		return out, fmt.Errorf("port %q: a range begins with a number, and a name is not empty", bounded(p.Port.StrVal))
	case p.Port.Type == intstr.String:
		out.Name = p.Port.StrVal
		return out, nil
	}
	end := p.Port.IntVal
	if p.EndPort != nil {
		end = *p.EndPort
	}
	return out, setRange(&out, p.Port.IntVal, end)
}

// setRange sets the port, or the range when the end is another one.
func setRange(p *netpol.Port, from, to int32) error {
	if !validPort(from) || !validPort(to) || to < from {
		return fmt.Errorf("port %d to %d", from, to)
	}
	p.Port = uint16(from)
	if to != from {
		p.End = uint16(to)
	}
	return nil
}

// networkSelector converts a selector; nil stays nil. An operator that nobody
// knows is kept as one that is none, with which a policy is at fault.
func networkSelector(s *metav1.LabelSelector) *netpol.Selector {
	if s == nil {
		return nil
	}
	out := new(netpol.Selector)
	for _, l := range netpol.MakeLabels(s.MatchLabels) {
		out.Requirements = append(out.Requirements, netpol.Requirement{Key: l.Key, Op: netpol.In, Values: []string{l.Value}})
	}
	for _, e := range s.MatchExpressions {
		r := netpol.Requirement{Key: e.Key, Values: append([]string(nil), e.Values...)}
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			r.Op = netpol.In
		case metav1.LabelSelectorOpNotIn:
			r.Op = netpol.NotIn
		case metav1.LabelSelectorOpExists:
			r.Op = netpol.Exists
		case metav1.LabelSelectorOpDoesNotExist:
			r.Op = netpol.DoesNotExist
		}
		out.Requirements = append(out.Requirements, r)
	}
	return out
}
