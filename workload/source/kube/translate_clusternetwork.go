package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// clusterSpec is the spec of a ClusterNetworkPolicy, whose rules are read one by
// one: a fault in one of them spoils no other.
type clusterSpec struct {
	Tier     v1alpha2.Tier                        `json:"tier"`
	Priority int32                                `json:"priority"`
	Subject  v1alpha2.ClusterNetworkPolicySubject `json:"subject"`
	Ingress  []json.RawMessage                    `json:"ingress"`
	Egress   []json.RawMessage                    `json:"egress"`
}

// translateClusterNetworkPolicy reads a ClusterNetworkPolicy strictly: a field that
// this version does not know could be a condition. A rule that cannot be read
// allows nothing, and denies everything if it does not allow.
func translateClusterNetworkPolicy(u *unstructured.Unstructured) *networkObject {
	o := &networkObject{header: makeHeader(u)}
	var spec clusterSpec
	err := strict(u.Object["spec"], &spec)
	out := &netpol.Policy{
		Name: u.GetName(), Priority: spec.Priority, Namespaces: new(netpol.Selector),
		Ingress: len(spec.Ingress) > 0, Egress: len(spec.Egress) > 0,
		IngressRules: networkRules(spec.Ingress, func(raw *json.RawMessage) netpol.Rule {
			return clusterRule(*raw, func(r v1alpha2.ClusterNetworkPolicyIngressRule) (clusterRuleParts, []netpol.Peer, error) {
				peers, err := convertEach(r.From, ingressPeer)
				return clusterRuleParts{r.Name, r.Action, r.Protocols}, peers, err
			})
		}),
		EgressRules: networkRules(spec.Egress, func(raw *json.RawMessage) netpol.Rule {
			return clusterRule(*raw, func(r v1alpha2.ClusterNetworkPolicyEgressRule) (clusterRuleParts, []netpol.Peer, error) {
				peers, err := convertEach(r.To, egressPeer)
				return clusterRuleParts{r.Name, r.Action, r.Protocols}, peers, err
			})
		}),
	}
	switch spec.Tier {
	case v1alpha2.AdminTier:
		out.Tier = netpol.Admin
	case v1alpha2.BaselineTier:
		out.Tier = netpol.Baseline
	default:
		err = errors.Join(err, fmt.Errorf("tier %q is not known", bounded(string(spec.Tier))))
	}
	switch s := &spec.Subject; {
	case s.Namespaces != nil && s.Pods == nil:
		out.Namespaces = networkSelector(s.Namespaces)
	case s.Pods != nil && s.Namespaces == nil:
		out.Namespaces, out.Pods = networkSelector(&s.Pods.NamespaceSelector), *networkSelector(&s.Pods.PodSelector)
	default:
		err = errors.Join(err, errors.New("subject is not exactly one of namespaces and pods"))
	}
	if err != nil {
		// Which rules there are is not known either.
		out.Ingress, out.Egress, out.Invalid = true, true, oneLine(err)
	}
	o.policy = out
	return o
}

// clusterRuleParts are what rules of both directions have.
type clusterRuleParts struct {
	name      string
	action    v1alpha2.ClusterNetworkPolicyRuleAction
	protocols []v1alpha2.ClusterNetworkPolicyProtocol
}

// clusterRule reads a rule. With an action that cannot be read it denies.
func clusterRule[R any](raw json.RawMessage, split func(R) (clusterRuleParts, []netpol.Peer, error)) netpol.Rule {
	var typed R
	unread := strict(raw, &typed)
	parts, peers, err := split(typed)
	out := netpol.Rule{Name: parts.name, Action: netpol.Deny, Peers: peers, AnyPort: len(parts.protocols) == 0}
	err = errors.Join(unread, err)
	switch parts.action {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept:
		out.Action = netpol.Allow
	case v1alpha2.ClusterNetworkPolicyRuleActionDeny:
	case v1alpha2.ClusterNetworkPolicyRuleActionPass:
		out.Action = netpol.Pass
	default:
		err = errors.Join(err, fmt.Errorf("action %q is not known", bounded(string(parts.action))))
	}
	if len(peers) == 0 {
		err = errors.Join(err, errors.New("no peers"))
	}
	ports, wrong := convertEach(parts.protocols, clusterPort)
	out.Ports = ports
	if err = errors.Join(err, wrong); err != nil {
		out.Invalid = oneLine(err)
	}
	return out
}

func ingressPeer(p *v1alpha2.ClusterNetworkPolicyIngressPeer) (netpol.Peer, error) {
	return podsPeer(p.Namespaces, p.Pods)
}

// podsPeer converts the two ways to name pods.
func podsPeer(namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod) (netpol.Peer, error) {
	switch {
	case namespaces != nil && pods == nil:
		return netpol.Peer{Namespaces: networkSelector(namespaces)}, nil
	case pods != nil && namespaces == nil:
		return netpol.Peer{Namespaces: networkSelector(&pods.NamespaceSelector), Pods: networkSelector(&pods.PodSelector)}, nil
	default:
		return netpol.Peer{}, errors.New("peer is not of exactly one known kind")
	}
}

func egressPeer(p *v1alpha2.ClusterNetworkPolicyEgressPeer) (netpol.Peer, error) {
	kinds := 0
	for _, is := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, len(p.Networks) > 0, len(p.DomainNames) > 0} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return netpol.Peer{}, errors.New("peer is not of exactly one known kind")
	case p.Nodes != nil:
		return netpol.Peer{Nodes: networkSelector(p.Nodes)}, nil
	case len(p.DomainNames) > 0:
		var out netpol.Peer
		for _, d := range p.DomainNames {
			out.Domains = append(out.Domains, string(d))
		}
		return out, nil
	case len(p.Networks) > 0:
		networks, err := convertEach(p.Networks, func(c *v1alpha2.CIDR) (netip.Prefix, error) { return networkPrefix(string(*c)) })
		return netpol.Peer{Networks: networks}, err
	default:
		return podsPeer(p.Namespaces, p.Pods)
	}
}

func clusterPort(p *v1alpha2.ClusterNetworkPolicyProtocol) (out netpol.Port, err error) {
	var number *v1alpha2.Port
	kinds := 0
	if p.TCP != nil {
		kinds, number = kinds+1, p.TCP.DestinationPort
	}
	if p.UDP != nil {
		kinds, number, out.Protocol = kinds+1, p.UDP.DestinationPort, netpol.UDP
	}
	if p.SCTP != nil {
		kinds, number, out.Protocol = kinds+1, p.SCTP.DestinationPort, netpol.SCTP
	}
	if p.DestinationNamedPort != "" {
		kinds, out.Protocol, out.Name = kinds+1, netpol.AnyProtocol, p.DestinationNamedPort
	}
	switch {
	case kinds != 1:
		return out, errors.New("protocol is not of exactly one known kind")
	case number == nil && out.Name == "":
		return out, errors.New("protocol without a port")
	case number == nil:
		return out, nil
	case (number.Number != 0) == (number.Range != nil):
		return out, errors.New("port is not exactly one of number and range")
	case number.Range != nil:
		return out, setRange(&out, number.Range.Start, number.Range.End)
	default:
		return out, setRange(&out, number.Number, number.Number)
	}
}

// convertEach converts all that can be converted.
func convertEach[T, N any](in []T, convert func(*T) (N, error)) ([]N, error) {
	var out []N
	var errs []error
	for i := range in {
		n, err := convert(&in[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, n)
	}
	return out, errors.Join(errs...)
}

// strict reads a value of JSON into a type that has all of its fields.
func strict(value, into any) error {
	raw, ok := value.(json.RawMessage)
	if !ok {
		var err error
		if raw, err = json.Marshal(value); err != nil {
			return fmt.Errorf("read spec: %w", err)
		}
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read spec: more than one value")
	}
	return nil
}
