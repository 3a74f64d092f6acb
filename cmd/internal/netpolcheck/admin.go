package netpolcheck

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	adminv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// adminRule is a rule of a ClusterNetworkPolicy, in either direction.
type adminRule struct {
	policy    *adminv1alpha2.ClusterNetworkPolicy
	direction Direction
	index     int
	action    adminv1alpha2.ClusterNetworkPolicyRuleAction
	subject   peer
	peers     []peer
	protocols []adminv1alpha2.ClusterNetworkPolicyProtocol
	ports     ports
}

const (
	accept = adminv1alpha2.ClusterNetworkPolicyRuleActionAccept
	deny   = adminv1alpha2.ClusterNetworkPolicyRuleActionDeny
	pass   = adminv1alpha2.ClusterNetworkPolicyRuleActionPass
)

// adminRules returns the rules of a policy in their order.
func adminRules(p *adminv1alpha2.ClusterNetworkPolicy) []adminRule {
	subject := podsOf(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods)
	var out []adminRule
	for i, r := range p.Spec.Ingress {
		out = append(out, adminRule{
			policy: p, direction: Ingress, index: i, action: r.Action, subject: subject,
			peers: sourcesOf(r.From), protocols: r.Protocols, ports: protocolsOf(r.Protocols, r.Action == deny),
		})
	}
	for i, r := range p.Spec.Egress {
		out = append(out, adminRule{
			policy: p, direction: Egress, index: i, action: r.Action, subject: subject,
			peers: destinationsOf(r.To), protocols: r.Protocols, ports: protocolsOf(r.Protocols, r.Action == deny),
		})
	}
	return out
}

// admin judges ClusterNetworkPolicies. What one denies nothing below it can allow, and what one accepts by port alone does
// not get through as HBONE where something else denies that.
func (v *view) admin(granted map[string][]grant) []Finding {
	policies := slices.Clone(v.in.ClusterPolicies)
	slices.SortStableFunc(policies, func(a, b *adminv1alpha2.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Spec.Tier, b.Spec.Tier), cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	var all []adminRule
	for _, p := range policies {
		all = append(all, adminRules(p)...)
	}
	var out []Finding
	for _, p := range policies {
		f := Finding{Kind: "ClusterNetworkPolicy", Name: p.Name, State: Fine}
		if !v.holds(podsOf(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods)) {
			f.State, f.Why = Outside, "it holds for no pod of the mesh"
			out = append(out, f)
			continue
		}
		for _, r := range adminRules(p) {
			why, lacks := v.judgeAdmin(r, all, granted)
			f.Rules = append(f.Rules, Rule{r.direction, r.index + 1, r.text(), why, lacks})
			if lacks {
				f.State = Cut
				f.Patch = append(f.Patch, r.proposal()...)
			}
		}
		out = append(out, f)
	}
	return out
}

// holds reports whether pods of the mesh may be among a policy's subject.
func (v *view) holds(subject peer) bool {
	if subject.namespaces == nil {
		return subject.unknown
	}
	pods := subject.pods
	if pods == nil {
		pods = &metav1.LabelSelector{}
	}
	found := false
	for name := range v.in.Namespaces {
		if !matches(subject.namespaces, v.labelsOf(name)) {
			continue
		}
		found = true
		if _, may, _ := v.members(name, pods); may {
			return true
		}
	}
	return !v.in.Whole && !found && v.mayJoin(subject)
}

// judgeAdmin says what a rule needs, and whether it cuts HBONE.
func (v *view) judgeAdmin(r adminRule, all []adminRule, granted map[string][]grant) (why string, lacks bool) {
	hbone := r.ports.hbone(unnamed)
	switch {
	case r.ports.none():
		return "nothing: it is not about TCP", false
	case r.direction == Egress && v.in.Mesh.DNS && r.ports.onlyDNS():
		return "nothing: DNS goes from the pod to its nameserver as it is", false
	case !slices.ContainsFunc(r.peers, func(p peer) bool { return p.unknown && r.action == deny || v.mayJoin(p) }):
		return "nothing: no pod of the mesh is among these peers", false
	case r.action == deny && !hbone:
		return fmt.Sprintf("nothing: it does not deny TCP %d; what is in HBONE the agents judge by the same policy", Port), false
	case r.action == deny && r.ports.every():
		return "nothing: it denies all TCP, so nothing is lost that was allowed", false
	case r.action == deny:
		if v.admitted(r, &r, all) {
			return fmt.Sprintf("nothing: a rule before it lets TCP %d of the same peers through", Port), false
		}
		return fmt.Sprintf("denies TCP %d but not all of TCP: the mesh is cut where other ports are allowed, and no NetworkPolicy can allow it. Leave %d out of its protocols, or accept it in a rule before", Port, Port), true
	case hbone:
		return fmt.Sprintf("nothing: it takes TCP %d too", Port), false
	}
	if by := v.denier(r, all, granted); by != "" {
		return fmt.Sprintf("TCP %d is missing in its protocols: %s denies it, and no other policy can allow it", Port, by), true
	}
	return fmt.Sprintf("nothing: no policy denies TCP %d to these peers", Port), false
}

// denier names what denies HBONE to the peers of a rule that lets them through by other ports; "" when nothing does.
func (v *view) denier(r adminRule, all []adminRule, granted map[string][]grant) string {
	final := r.action == accept && r.policy.Spec.Tier == adminv1alpha2.AdminTier // else what is below decides on any port alike
	for i := range all {
		d := &all[i]
		sameTier := d.policy.Spec.Tier == r.policy.Spec.Tier
		switch {
		case d.action != deny || d.direction != r.direction || !d.ports.hbone(unnamed):
		case sameTier && !before(&r, d), !sameTier && (!final || d.policy.Spec.Tier != adminv1alpha2.BaselineTier):
		case v.overlap(d.subject, r.subject) && v.overlapAny(d.peers, r.peers) && !v.admitted(r, d, all):
			return fmt.Sprintf("%s rule %d of %s", d.direction, d.index+1, d.policy.Name)
		}
	}
	if !final || v.admitted(r, nil, all) {
		return ""
	}
	for _, p := range v.in.Policies {
		at := peer{namespaces: namespaceNamed(p.Namespace), pods: &p.Spec.PodSelector}
		if !selects(p, r.direction) || IsCompanion(p) || !v.overlap(at, r.subject) {
			continue
		}
		if _, may, _ := v.members(p.Namespace, &p.Spec.PodSelector); !may {
			continue
		}
		var through []peer
		for _, g := range granted[p.Namespace] {
			if g.direction == r.direction && covers(&g.policy.Spec.PodSelector, &p.Spec.PodSelector) {
				through = append(through, g.peers...)
			}
		}
		if !v.coversAll(through, r.peers) {
			return fmt.Sprintf("NetworkPolicy %s/%s", p.Namespace, p.Name)
		}
	}
	return ""
}

// before reports whether a is asked before b may be, both of one tier; of policies with the same priority any may be first.
func before(a, b *adminRule) bool {
	if a.policy == b.policy {
		return a.index < b.index
	}
	return a.policy.Spec.Priority <= b.policy.Spec.Priority
}

// admitted reports whether another rule lets HBONE of the same peers to the same subject through before a denial is asked, of the
// denial's tier; with none (nil) whether one of the rule's tier accepts it for good.
func (v *view) admitted(r adminRule, denial *adminRule, all []adminRule) bool {
	return slices.ContainsFunc(all, func(a adminRule) bool {
		if a.direction != r.direction || !a.ports.hbone(unnamed) || !v.coversPeer(a.subject, r.subject) || !v.coversAll(a.peers, r.peers) {
			return false
		}
		if denial == nil {
			return a.action == accept && a.policy.Spec.Tier == r.policy.Spec.Tier
		}
		first := a.policy == denial.policy || a.policy.Spec.Priority < denial.policy.Spec.Priority
		return (a.action == accept || a.action == pass) && a.policy.Spec.Tier == denial.policy.Spec.Tier && first && before(&a, denial)
	})
}

func (v *view) overlapAny(a, b []peer) bool {
	return slices.ContainsFunc(a, func(x peer) bool {
		return slices.ContainsFunc(b, func(y peer) bool { return v.overlap(x, y) })
	})
}

// proposal is a patch that adds HBONE's port to a rule that lets peers through; of a denial only a person can say what is meant.
func (r adminRule) proposal() []Operation {
	if r.action == deny {
		return nil
	}
	path := fmt.Sprintf("/spec/%s/%d/protocols", r.direction, r.index)
	entry := adminv1alpha2.ClusterNetworkPolicyProtocol{TCP: &adminv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: &adminv1alpha2.Port{Number: Port}}}
	return []Operation{{"test", path, r.protocols}, {"add", path + "/-", entry}}
}

func (r adminRule) text() string {
	var all []string
	for _, p := range r.protocols {
		all = append(all, protocolText(p))
	}
	return strings.ToLower(string(r.action)) + " " + sentence(all, r.direction, peersText(r.peers))
}

func protocolText(p adminv1alpha2.ClusterNetworkPolicyProtocol) string {
	number := func(protocol string, port *adminv1alpha2.Port) string {
		switch {
		case port == nil:
			return "all of " + protocol
		case port.Range != nil:
			return fmt.Sprintf("%s %d-%d", protocol, port.Range.Start, port.Range.End)
		}
		return fmt.Sprintf("%s %d", protocol, port.Number)
	}
	switch {
	case p.TCP != nil:
		return number("TCP", p.TCP.DestinationPort)
	case p.UDP != nil:
		return number("UDP", p.UDP.DestinationPort)
	case p.SCTP != nil:
		return number("SCTP", p.SCTP.DestinationPort)
	case p.DestinationNamedPort != "":
		return "port " + p.DestinationNamedPort
	}
	return "an unknown protocol"
}
