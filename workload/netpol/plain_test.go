package netpol_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// plain answers a query as the texts of the APIs are read, without any index, cache or compilation: for every query it goes
// through all objects. It shares no code with the package.
type plain struct {
	policies   []*netpol.Policy
	pods       map[string]*netpol.Pod
	namespaces map[string]map[string]string
	nodes      []*netpol.Node
}

func newPlain(objects []netpol.Object) *plain {
	w := &plain{pods: map[string]*netpol.Pod{}, namespaces: map[string]map[string]string{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *netpol.Policy:
			w.policies = append(w.policies, o)
		case *netpol.Pod:
			w.pods[o.UID] = o
		case *netpol.Namespace:
			w.namespaces[o.Name] = asMap(o.Labels)
		case *netpol.Node:
			w.nodes = append(w.nodes, o)
		}
	}
	return w
}

func asMap(l netpol.Labels) map[string]string {
	m := map[string]string{}
	for _, e := range l {
		m[e.Key] = e.Value
	}
	return m
}

// answer is what both must agree in.
type answer struct {
	allowed      bool
	policy, rule string
}

func (w *plain) decide(q netpol.Query) answer {
	if len(w.policies) == 0 {
		return answer{allowed: true}
	}
	subject := w.pods[q.Subject]
	if subject == nil || w.namespaces[subject.Namespace] == nil {
		return answer{}
	}
	if q.PeerUnproven || q.Peer != "" && (w.pods[q.Peer] == nil || w.namespaces[w.pods[q.Peer].Namespace] == nil) {
		q.PeerUnproven, q.Peer = true, ""
	}
	if a, ok := w.tier(q, netpol.Admin); ok {
		return a
	}
	if a, ok := w.networkPolicies(q); ok {
		return a
	}
	if a, ok := w.tier(q, netpol.Baseline); ok {
		return a
	}
	return answer{allowed: true}
}

// networkPolicies: "v1.NetworkPolicy always makes a final decision for selected pods."
func (w *plain) networkPolicies(q netpol.Query) (answer, bool) {
	var selecting []*netpol.Policy
	for _, p := range w.policies {
		subject := w.pods[q.Subject]
		if p.Namespace != "" && p.Namespace == subject.Namespace && governs(p, q.Direction) && w.subjectMatches(&p.Pods, asMap(subject.Labels)) {
			selecting = append(selecting, p)
		}
	}
	if len(selecting) == 0 {
		return answer{}, false
	}
	slices.SortFunc(selecting, func(a, b *netpol.Policy) int { return strings.Compare(a.Name, b.Name) })
	// "A Pod cannot block access to itself", and "traffic to and from the node where a Pod is running is always allowed".
	if q.Peer != "" && q.Peer == q.Subject || q.PeerIsNode {
		return answer{allowed: true}, true
	}
	for _, p := range selecting {
		if policyFault(p) {
			continue
		}
		for i, r := range rulesOf(p, q.Direction) {
			if sure, _ := w.ruleMatches(q, p, r); sure && !ruleFault(p, r) {
				return answer{true, "netpol " + p.Namespace + "/" + p.Name, ruleName(r, q.Direction, i)}, true
			}
		}
	}
	a := answer{policy: "netpol " + selecting[0].Namespace + "/" + selecting[0].Name}
	for _, p := range selecting {
		if p.Validate() != nil { // which one is named is a courtesy to people
			a.policy = "netpol " + p.Namespace + "/" + p.Name
			break
		}
	}
	return a, true
}

func (w *plain) tier(q netpol.Query, tier netpol.Tier) (answer, bool) {
	subject := w.pods[q.Subject]
	var selecting []*netpol.Policy
	for _, p := range w.policies {
		isBaseline := p.Tier == netpol.Baseline
		if p.Namespace != "" || isBaseline != (tier == netpol.Baseline) || !governs(p, q.Direction) {
			continue
		}
		if p.Namespaces != nil && !w.subjectMatches(p.Namespaces, w.namespaces[subject.Namespace]) {
			continue
		}
		if w.subjectMatches(&p.Pods, asMap(subject.Labels)) {
			selecting = append(selecting, p)
		}
	}
	slices.SortFunc(selecting, func(a, b *netpol.Policy) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Name, b.Name))
	})
	for _, p := range selecting {
		if policyFault(p) {
			return answer{policy: "cluster-netpol " + p.Name}, true
		}
		for i, r := range rulesOf(p, q.Direction) {
			sure, possible := w.ruleMatches(q, p, r)
			named := answer{policy: "cluster-netpol " + p.Name, rule: ruleName(r, q.Direction, i)}
			switch {
			case r.Action == netpol.Allow && ruleFault(p, r), r.Action == netpol.Allow && !sure:
				continue
			case r.Action == netpol.Allow:
				named.allowed = true
				return named, true
			case ruleFault(p, r), possible && !sure:
				return named, true
			case !sure:
				continue
			case r.Action == netpol.Pass:
				return answer{}, false
			default:
				return named, true
			}
		}
	}
	return answer{}, false
}

func ruleName(r netpol.Rule, d netpol.Direction, i int) string {
	if r.Name != "" {
		return r.Name
	}
	return fmt.Sprintf("%s %d", d, i)
}

func rulesOf(p *netpol.Policy, d netpol.Direction) []netpol.Rule {
	if d == netpol.Ingress {
		return p.IngressRules
	}
	return p.EgressRules
}

func governs(p *netpol.Policy, d netpol.Direction) bool {
	if policyFault(p) && !p.Ingress && !p.Egress {
		return true
	}
	return d == netpol.Ingress && p.Ingress || d == netpol.Egress && p.Egress
}

func policyFault(p *netpol.Policy) bool {
	namespaced := p.Namespace != ""
	return p.Invalid != "" || p.Tier < netpol.Admin || p.Tier > netpol.Baseline || namespaced != (p.Tier == netpol.Namespaced) ||
		namespaced != (p.Namespaces == nil) || selectorFault(p.Namespaces) || selectorFault(&p.Pods)
}

func selectorFault(s *netpol.Selector) bool {
	return s != nil && slices.ContainsFunc(s.Requirements, requirementFault)
}

func requirementFault(r netpol.Requirement) bool {
	switch r.Op {
	case netpol.In, netpol.NotIn:
		return r.Key == "" || len(r.Values) == 0
	case netpol.Exists, netpol.DoesNotExist:
		return r.Key == "" || len(r.Values) != 0
	default:
		return true
	}
}

func ruleFault(p *netpol.Policy, r netpol.Rule) bool {
	namespaced := p.Namespace != ""
	if r.Invalid != "" || r.Action > netpol.Pass || namespaced && r.Action != netpol.Allow ||
		r.AnyPeer && len(r.Peers) > 0 || !r.AnyPeer && len(r.Peers) == 0 || r.AnyPort && len(r.Ports) > 0 || !r.AnyPort && len(r.Ports) == 0 {
		return true
	}
	for _, port := range r.Ports {
		if port.Protocol > netpol.AnyProtocol || port.Name != "" && (port.Port != 0 || port.End != 0) || port.End != 0 && (port.Port == 0 || port.End < port.Port) {
			return true
		}
	}
	return slices.ContainsFunc(r.Peers, func(peer netpol.Peer) bool { return peerFault(peer, r.Action, namespaced) })
}

func peerFault(p netpol.Peer, action netpol.Action, namespaced bool) bool {
	kinds := 0
	for _, has := range []bool{
		p.Pods != nil || p.Namespaces != nil, p.Block != (netip.Prefix{}) || p.Except != nil,
		p.Networks != nil, p.Nodes != nil, p.Domains != nil,
	} {
		if has {
			kinds++
		}
	}
	switch {
	case kinds != 1, selectorFault(p.Pods), selectorFault(p.Namespaces), selectorFault(p.Nodes):
		return true
	case namespaced && (p.Networks != nil || p.Nodes != nil || p.Domains != nil):
		return true
	case !namespaced && p.Pods != nil && p.Namespaces == nil:
		return true
	case p.Domains != nil && action != netpol.Allow:
		return true
	case p.Except != nil && p.Block == (netip.Prefix{}):
		return true
	}
	for _, b := range slices.Concat([]netip.Prefix{p.Block}, p.Except, p.Networks) {
		if b.Addr().Is4In6() && b.Bits() < 96 {
			return true
		}
	}
	return false
}

// subjectMatches leaves out what cannot be understood.
func (w *plain) subjectMatches(s *netpol.Selector, labels map[string]string) bool {
	for _, r := range s.Requirements {
		if !requirementFault(r) && !satisfies(r, labels) {
			return false
		}
	}
	return true
}

func satisfies(r netpol.Requirement, labels map[string]string) bool {
	v, has := labels[r.Key]
	in := has && slices.Contains(r.Values, v)
	return map[netpol.Op]bool{netpol.In: in, netpol.NotIn: !in, netpol.Exists: has, netpol.DoesNotExist: !has}[r.Op]
}

func selects(s *netpol.Selector, labels map[string]string) bool {
	return s == nil || !slices.ContainsFunc(s.Requirements, func(r netpol.Requirement) bool { return !satisfies(r, labels) })
}

// ruleMatches says whether the rule surely matches, and whether it would if the peer were some pod, or some address, that
// nobody has proven it not to be.
func (w *plain) ruleMatches(q netpol.Query, p *netpol.Policy, r netpol.Rule) (sure, possible bool) {
	surePeer, possiblePeer := r.AnyPeer, r.AnyPeer
	for _, peer := range r.Peers {
		s, m := w.peerMatches(q, p, peer)
		surePeer, possiblePeer = surePeer || s, possiblePeer || m
	}
	surePort, possiblePort := r.AnyPort, r.AnyPort
	for _, port := range r.Ports {
		s, m := w.portMatches(q, port)
		surePort, possiblePort = surePort || s, possiblePort || m
	}
	return surePeer && surePort, possiblePeer && possiblePort
}

func (w *plain) peerMatches(q netpol.Query, p *netpol.Policy, peer netpol.Peer) (sure, possible bool) {
	addr := q.PeerAddr.WithZone("").Unmap()
	switch {
	case peer.Pods != nil || peer.Namespaces != nil:
		pod := w.pods[q.Peer]
		if pod == nil {
			return false, q.PeerUnproven
		}
		is := selects(peer.Pods, asMap(pod.Labels))
		if peer.Namespaces == nil {
			is = is && pod.Namespace == p.Namespace
		} else {
			is = is && selects(peer.Namespaces, w.namespaces[pod.Namespace])
		}
		return is, is
	case peer.Domains != nil:
		for _, d := range peer.Domains {
			d = strings.ToLower(strings.TrimSuffix(d, "."))
			below := strings.TrimPrefix(d, "*")
			if q.PeerDomain != "" && (d == q.PeerDomain || d != below && strings.HasSuffix(q.PeerDomain, below)) {
				return true, true
			}
		}
		return false, false
	case !addr.IsValid():
		return false, true
	case peer.Nodes != nil:
		for _, n := range w.nodes {
			if selects(peer.Nodes, asMap(n.Labels)) && slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return a.Unmap() == addr }) {
				return true, true
			}
		}
		return false, false
	default:
		in := inAny(append([]netip.Prefix{peer.Block}, peer.Networks...), addr) && !inAny(peer.Except, addr)
		return in, in
	}
}

// inAny compares as IPv6, with IPv4 as mapped addresses: then a block of mapped ones needs no conversion, and ::/0 must be
// kept from them.
func inAny(blocks []netip.Prefix, addr netip.Addr) bool {
	for _, b := range blocks {
		if !b.IsValid() {
			continue
		}
		bits := b.Bits()
		if b.Addr().Is4() {
			bits += 96
		}
		if addr.Is4() != (b.Addr().Is4() || b.Addr().Is4In6()) {
			continue
		}
		x, y := addr.As16(), b.Addr().As16()
		same := 0
		for same < 128 && (x[same/8]^y[same/8])>>(7-same%8)&1 == 0 {
			same++
		}
		if same >= bits {
			return true
		}
	}
	return false
}

func (w *plain) portMatches(q netpol.Query, p netpol.Port) (sure, possible bool) {
	if p.Protocol != netpol.AnyProtocol && p.Protocol != q.Protocol {
		return false, false
	}
	if p.Name == "" {
		last := max(p.Port, p.End)
		ok := last == 0 || q.Port >= p.Port && q.Port <= last
		return ok, ok
	}
	destination := w.pods[q.Subject]
	if q.Direction == netpol.Egress {
		destination = w.pods[q.Peer]
		if destination == nil {
			return false, q.PeerUnproven
		}
	}
	ok := slices.Contains(destination.Ports, netpol.NamedPort{Name: p.Name, Protocol: q.Protocol, Port: q.Port})
	return ok, ok
}
