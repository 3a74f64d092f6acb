package netpolcheck

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// State sums up what was found about a policy.
type State string

// The states. Cut and Stale want somebody to act.
const (
	Fine      State = "fine"      // the mesh works under it as applications did
	Outside   State = "outside"   // it holds for no pod of the mesh
	Companion State = "companion" // it adds HBONE's port for another policy
	Cut       State = "cut"       // it cuts HBONE where it allows the application
	Stale     State = "stale"     // it is a companion that does not follow its policy, and may isolate pods that nothing isolates
)

// Direction of a rule.
type Direction string

// The directions, as they are called in a policy's spec.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Finding is what was found about one policy.
type Finding struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	State     State  `json:"state"`
	// Why says what decided on the state, or nothing when the rules say it.
	Why   string   `json:"why,omitempty"`
	Rules []Rule   `json:"rules,omitempty"`
	Notes []string `json:"notes,omitempty"`
	// Patch fills in what lacks, as a JSON patch (RFC 6902); it fails on a policy that has changed since. Of a
	// ClusterNetworkPolicy it is a proposal: it widens what the administrator has decided.
	Patch []Operation `json:"patch,omitempty"`
	// Policy is what was judged, as in the input; nil for ClusterNetworkPolicies.
	Policy *networkingv1.NetworkPolicy `json:"-"`
}

// Rule is what was found about one rule.
type Rule struct {
	Direction Direction `json:"direction"`
	// Number counts from 1.
	Number int `json:"number"`
	// What says what the rule is about, Why what it needs.
	What string `json:"what"`
	Why  string `json:"why"`
	// Missing says that HBONE's port is.
	Missing bool `json:"missing,omitempty"`
}

// About names the policy.
func (f *Finding) About() string {
	if f.Namespace == "" {
		return f.Kind + " " + f.Name
	}
	return f.Kind + " " + f.Namespace + "/" + f.Name
}

// Wrong reports whether somebody has to act.
func (f *Finding) Wrong() bool { return f.State == Cut || f.State == Stale }

// Check judges all policies. The findings are ordered: NetworkPolicies by namespace and name, then ClusterNetworkPolicies
// as they take precedence.
func Check(in Input) []Finding {
	v := newView(&in)
	policies := slices.Clone(in.Policies)
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	granted := v.grants(policies)
	out := []Finding{} // in JSON a list, even when it is empty
	for _, p := range policies {
		f := Finding{Kind: "NetworkPolicy", Namespace: p.Namespace, Name: p.Name, Policy: p}
		if IsCompanion(p) {
			f.State, f.Why = v.companion(p, policies)
		} else {
			v.policy(&f, p, granted[p.Namespace])
		}
		out = append(out, f)
	}
	return append(out, v.admin(granted)...)
}

// grant is a rule that lets HBONE through to (or from) the pods that a policy selects.
type grant struct {
	policy    *networkingv1.NetworkPolicy
	direction Direction
	peers     []peer
}

// grants gathers them by namespace.
func (v *view) grants(policies []*networkingv1.NetworkPolicy) map[string][]grant {
	out := make(map[string][]grant)
	for _, p := range policies {
		pods, _, _ := v.members(p.Namespace, &p.Spec.PodSelector)
		for _, r := range rulesOf(p) {
			if r.ports.hbone(v.naming(r, pods)) {
				out[p.Namespace] = append(out[p.Namespace], grant{p, r.direction, r.peers})
			}
		}
	}
	return out
}

// rule is one of a NetworkPolicy's, in either direction.
type rule struct {
	direction Direction
	index     int
	peers     []peer
	ports     ports
	list      []networkingv1.NetworkPolicyPort
	from      []networkingv1.NetworkPolicyPeer
}

// rulesOf returns the rules that count by the policy's types.
func rulesOf(p *networkingv1.NetworkPolicy) []rule {
	var out []rule
	for _, kind := range typesOf(&p.Spec) {
		switch kind {
		case networkingv1.PolicyTypeIngress:
			for i, r := range p.Spec.Ingress {
				out = append(out, rule{Ingress, i, peersOf(r.From, p.Namespace), portsOf(r.Ports), r.Ports, r.From})
			}
		case networkingv1.PolicyTypeEgress:
			for i, r := range p.Spec.Egress {
				out = append(out, rule{Egress, i, peersOf(r.To, p.Namespace), portsOf(r.Ports), r.Ports, r.To})
			}
		}
	}
	return out
}

// typesOf returns the policy's types after the API's default: ingress, and egress if it has such rules.
func typesOf(s *networkingv1.NetworkPolicySpec) []networkingv1.PolicyType {
	switch {
	case len(s.PolicyTypes) > 0:
		return s.PolicyTypes
	case len(s.Egress) > 0:
		return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
}

// naming tells which names of ports are 15008 in a rule: the destination's pods decide.
func (v *view) naming(r rule, pods []*Pod) func(string) bool {
	if len(r.ports.names) == 0 {
		return unnamed
	}
	if r.direction == Egress {
		return named(v.podsAmong(r.peers))
	}
	return named(pods)
}

// policy judges a user's NetworkPolicy.
func (v *view) policy(f *Finding, p *networkingv1.NetworkPolicy, granted []grant) {
	pods, may, why := v.members(p.Namespace, &p.Spec.PodSelector)
	if !may {
		f.State, f.Why = Outside, why
		return
	}
	if _, known := v.in.Namespaces[p.Namespace]; !known && !v.in.Whole {
		f.Notes = append(f.Notes, why)
	}
	f.State = Fine
	var missing []rule
	for _, r := range rulesOf(p) {
		why, lacks := v.judge(r, p, pods, granted)
		f.Rules = append(f.Rules, Rule{r.direction, r.index + 1, r.text(), why, lacks})
		if lacks {
			f.State, missing = Cut, append(missing, r)
		}
	}
	if len(f.Rules) == 0 {
		f.Why = "it allows nothing, so nothing is lost"
	}
	f.Patch = patch(missing)
	if note := v.dnsNote(p); note != "" {
		f.Notes = append(f.Notes, note)
	}
}

// judge says what a rule needs, and whether it lacks it.
func (v *view) judge(r rule, p *networkingv1.NetworkPolicy, pods []*Pod, granted []grant) (why string, lacks bool) {
	switch {
	case r.ports.none():
		return "nothing: it allows no TCP", false
	case r.ports.hbone(v.naming(r, pods)):
		return fmt.Sprintf("nothing: it allows TCP %d", Port), false
	case r.direction == Egress && v.in.Mesh.DNS && r.ports.onlyDNS():
		return "nothing: DNS goes from the pod to its nameserver as it is", false
	case !slices.ContainsFunc(r.peers, v.mayJoin):
		return "nothing: no pod of the mesh is among these peers", false
	}
	if by := v.grantor(r, p, granted); by != "" {
		return fmt.Sprintf("nothing: %s allows TCP %d for the same peers", by, Port), false
	}
	return fmt.Sprintf("TCP %d is missing: connections between pods of the mesh are cut", Port), true
}

// grantor names the policy that lets HBONE through for a rule that does not; "" when no single one does.
func (v *view) grantor(r rule, p *networkingv1.NetworkPolicy, granted []grant) string {
	var all []peer
	by := ""
	for _, g := range granted {
		if g.direction != r.direction || !covers(&g.policy.Spec.PodSelector, &p.Spec.PodSelector) {
			continue
		}
		if all = append(all, g.peers...); by == "" && slices.ContainsFunc(r.peers, func(q peer) bool { return v.coversAll(g.peers, []peer{q}) }) {
			if by = g.policy.Name; g.policy == p {
				by = "another rule"
			}
		}
	}
	needed := slices.DeleteFunc(slices.Clone(r.peers), func(q peer) bool { return !v.mayJoin(q) })
	if by == "" || !v.coversAll(all, needed) {
		return ""
	}
	return by
}

// dnsNote tells of pods that may not ask for names at all: as it was before the mesh, but people look for it here.
func (v *view) dnsNote(p *networkingv1.NetworkPolicy) string {
	if !slices.Contains(typesOf(&p.Spec), networkingv1.PolicyTypeEgress) {
		return ""
	}
	for _, other := range v.in.Policies {
		if other.Namespace != p.Namespace || !covers(&other.Spec.PodSelector, &p.Spec.PodSelector) {
			continue
		}
		if slices.ContainsFunc(rulesOf(other), func(r rule) bool { return r.direction == Egress && allowsUDP(r.list, dnsPort) }) {
			return ""
		}
	}
	return "no policy lets all of these pods ask a nameserver (UDP 53): as before the mesh, they get only the names that the agent itself answers"
}

// text says what the rule is about: "TCP 9080 from pods app=productpage of …".
func (r rule) text() string {
	var all []string
	for _, entry := range r.list {
		all = append(all, portText(entry))
	}
	peers := "everybody"
	if len(r.from) > 0 {
		peers = peersText(r.peers)
	}
	return sentence(all, r.direction, peers)
}

// sentence is what a rule of either kind is about.
func sentence(ports []string, d Direction, peers string) string {
	what, word := "all ports", " from "
	if len(ports) > 0 {
		what = strings.Join(ports, ", ")
	}
	if d == Egress {
		word = " to "
	}
	return what + word + peers
}

func peersText(peers []peer) string {
	var all []string
	for _, p := range peers {
		all = append(all, p.text())
	}
	return strings.Join(all, "; ")
}

func portText(entry networkingv1.NetworkPolicyPort) string {
	protocol := "TCP"
	if entry.Protocol != nil {
		protocol = string(*entry.Protocol)
	}
	switch {
	case entry.Port == nil:
		return "all of " + protocol
	case entry.EndPort != nil:
		return fmt.Sprintf("%s %s-%d", protocol, entry.Port.String(), *entry.EndPort)
	}
	return protocol + " " + entry.Port.String()
}

// selects reports whether a policy holds for a direction.
func selects(p *networkingv1.NetworkPolicy, d Direction) bool {
	kind := networkingv1.PolicyTypeIngress
	if d == Egress {
		kind = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(typesOf(&p.Spec), kind)
}
