package netpol

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Texts of Decision.Reason.
const (
	reasonNone      = "no network policy governs it"
	reasonAllowed   = "allowed by a rule"
	reasonDenied    = "denied by a rule"
	reasonSelf      = "a pod may reach itself"
	reasonNode      = "a pod's own node may reach it, and it its node"
	reasonUnproven  = "denied by a rule that may mean the peer: nobody has proven who that is"
	reasonNoSubject = "the pod or its namespace is not known to network policy yet"
	reasonDirection = "no such direction"
)

// selected are the policies that select one pod, in the order of evaluation.
// It is valid as long as both domains are the ones that it was made from.
type selected struct {
	domain, cluster *domain
	by              [2]tiers // by Direction
}

// tiers are policies of one direction.
type tiers struct {
	admin, namespaced, baseline []*compiled
	index                       *index // of the rules of namespaced, if they are many
}

// selecting returns what selects the pod.
func (s *Snapshot) selecting(p *podState, d *domain) *selected {
	if have := p.selected.Load(); have != nil && have.domain == d && have.cluster == s.cluster {
		return have
	}
	out := &selected{domain: d, cluster: s.cluster}
	for _, policies := range [2][]*compiled{s.cluster.policies, d.policies} {
		for _, c := range policies {
			if !c.selects(p.pod, d.namespace) {
				continue
			}
			for dir := range out.by {
				if c.governs[dir] {
					out.by[dir].add(c)
				}
			}
		}
	}
	for dir := range out.by {
		t := &out.by[dir]
		t.admin, t.namespaced, t.baseline = slices.Clip(t.admin), slices.Clip(t.namespaced), slices.Clip(t.baseline)
		t.index = newIndex(t.namespaced, Direction(dir))
	}
	p.selected.Store(out)
	return out
}

func (t *tiers) add(c *compiled) {
	switch c.tier {
	case Admin:
		t.admin = append(t.admin, c)
	case Baseline:
		t.baseline = append(t.baseline, c)
	default:
		t.namespaced = append(t.namespaced, c)
	}
}

// Selecting returns the keys of the policies that select the pod for a
// direction, in the order in which they decide; none for an unknown pod.
func (s *Snapshot) Selecting(uid string, d Direction) []Key {
	p, dom := s.pod(uid)
	if p == nil || d > Egress {
		return nil
	}
	t := &s.selecting(p, dom).by[d]
	var out []Key
	for _, c := range slices.Concat(t.admin, t.namespaced, t.baseline) {
		out = append(out, c.key)
	}
	return out
}

// pod returns nil when the pod or its namespace is not in the Set.
func (s *Snapshot) pod(uid string) (*podState, *domain) {
	p := s.pods.At(uid)
	if p == nil {
		return nil, nil
	}
	d := s.domains.At(p.pod.Namespace)
	if d == nil || d.namespace == nil {
		return nil, nil
	}
	return p, d
}

// Evaluate decides whether the connection may be. It allocates nothing when it
// allows, but on the first query about a pod after a change of the policies
// that may select it.
//
// Of the tier Admin the first rule that matches decides, by priority of its
// policy and its place there; Pass goes to the next tier. Then, if any policy
// of Namespaced selects the subject, the connection is allowed exactly when a
// rule of any of these matches, or when the peer is the subject itself or its
// node. Then comes Baseline, like Admin. What nothing decides is allowed, and
// without any policy so is everything, whether the Set knows the pods or not.
func (s *Snapshot) Evaluate(q Query) Decision {
	if q.Direction > Egress {
		return Decision{Reason: reasonDirection}
	}
	if s.policies.Len() == 0 {
		return Decision{Allowed: true, Reason: reasonNone}
	}
	subject, dom := s.pod(q.Subject)
	if subject == nil {
		return Decision{Unknown: true, Reason: reasonNoSubject}
	}
	f := facts{snapshot: s, query: q}
	f.query.PeerAddr = q.PeerAddr.Unmap().WithZone("")
	unknown := false
	if q.Peer != "" && !q.PeerUnproven {
		if p, d := s.pod(q.Peer); p != nil {
			f.peer, f.peerNamespace = p.pod, d.namespace
		} else {
			unknown, f.query.PeerUnproven = true, true
		}
	}
	f.destination = subject.pod
	if q.Direction == Egress {
		f.destination = f.peer
	}
	d := f.decide(&s.selecting(subject, dom).by[q.Direction])
	d.Unknown = unknown && f.doubted && !d.Allowed
	return d
}

func (f *facts) decide(t *tiers) Decision {
	if d, final := f.ordered(t.admin); final {
		return d
	}
	if len(t.namespaced) > 0 {
		return f.namespaced(t)
	}
	if d, final := f.ordered(t.baseline); final {
		return d
	}
	return Decision{Allowed: true, Reason: reasonNone}
}

// ordered decides by the first rule that matches; false when there is none or
// that says Pass.
func (f *facts) ordered(policies []*compiled) (Decision, bool) {
	for _, c := range policies {
		rules := c.rules[f.query.Direction]
		for i := range rules {
			r := &rules[i]
			m := f.match(r)
			switch {
			case m == no, m == maybe && r.action == Allow:
				continue
			case m == maybe:
				return Decision{Policy: c.name, Rule: r.name, Reason: reasonUnproven}, true
			case r.action == Pass:
				return Decision{}, false
			case r.action == Allow:
				return Decision{Allowed: true, Policy: c.name, Rule: r.name, Reason: reasonAllowed}, true
			case r.reason != "":
				return Decision{Policy: c.name, Rule: r.name, Reason: r.reason}, true
			default:
				return Decision{Policy: c.name, Rule: r.name, Reason: reasonDenied}, true
			}
		}
	}
	return Decision{}, false
}

// namespaced decides for a pod that is isolated by the policies. They add up:
// one rule that matches is enough.
func (f *facts) namespaced(t *tiers) Decision {
	q := &f.query
	if f.peer != nil && f.peer.UID == q.Subject {
		return Decision{Allowed: true, Reason: reasonSelf}
	}
	if q.PeerIsNode {
		return Decision{Allowed: true, Reason: reasonNode}
	}
	if p := f.firstMatch(t); p.rule != nil {
		return Decision{Allowed: true, Policy: p.policy.name, Rule: p.rule.name, Reason: reasonAllowed}
	}
	d := Decision{Policy: t.namespaced[0].name, Reason: "selected by a network policy, and no rule allows it"}
	if n := len(t.namespaced); n > 1 {
		d.Reason = fmt.Sprintf("selected by %d network policies, and no rule allows it", n)
	}
	for _, c := range t.namespaced {
		if c.fault != nil {
			d.Policy, d.Reason = c.name, d.Reason+" ("+c.name+" is "+invalid(c.fault)+")"
			break
		}
	}
	return d
}

// firstMatch returns the first rule of Namespaced that surely matches, if any.
func (f *facts) firstMatch(t *tiers) placed {
	if t.index != nil && !f.query.PeerUnproven {
		return t.index.first(f)
	}
	for _, c := range t.namespaced {
		rules := c.rules[f.query.Direction]
		for i := range rules {
			if f.match(&rules[i]) == yes {
				return placed{c, &rules[i]}
			}
		}
	}
	return placed{}
}

// facts are a query with what the snapshot knows about it.
type facts struct {
	snapshot      *Snapshot
	query         Query
	peer          *Pod // nil when it is none, or unproven
	peerNamespace *Namespace
	destination   *Pod // whose named ports count; nil like peer
	doubted       bool // a match was maybe
}

// certainty is whether something matches. A match that depends on which pod an
// unproven peer is, is maybe.
type certainty uint8

const (
	no certainty = iota
	maybe
	yes
)

func (f *facts) match(r *rule) certainty {
	m := yes
	if !r.anyPort {
		if m = f.matchPorts(r.ports); m == no {
			return no
		}
	}
	if !r.anyPeer {
		m = min(m, f.matchPeers(r.peers))
	}
	if m == maybe {
		f.doubted = true
	}
	return m
}

func (f *facts) matchPorts(ports []Port) certainty {
	best := no
	for i := range ports {
		p := &ports[i]
		switch {
		case p.Protocol != f.query.Protocol && p.Protocol != AnyProtocol:
		case p.Name != "":
			best = max(best, f.matchNamed(p))
		case p.Port == 0, p.Port == f.query.Port, p.Port <= f.query.Port && f.query.Port <= p.End:
			return yes
		}
	}
	return best
}

func (f *facts) matchNamed(p *Port) certainty {
	if f.destination == nil {
		if f.query.PeerUnproven {
			return maybe
		}
		return no
	}
	for i := range f.destination.Ports {
		n := &f.destination.Ports[i]
		if n.Name == p.Name && n.Port == f.query.Port && n.Protocol == f.query.Protocol {
			return yes
		}
	}
	return no
}

func (f *facts) matchPeers(peers []peer) certainty {
	best := no
	for i := range peers {
		if m := f.matchPeer(&peers[i]); m == yes {
			return yes
		} else if m == maybe {
			best = maybe
		}
	}
	return best
}

func (f *facts) matchPeer(p *peer) certainty {
	switch {
	case p.kind == kindPods:
		if f.peer == nil {
			if f.query.PeerUnproven {
				return maybe
			}
			return no
		}
		return certain(p.pods.matches(f.peer.Labels) && (p.own == "" || p.own == f.peer.Namespace) &&
			p.namespaces.matches(f.peerNamespace.Labels))
	case p.kind == kindDomains:
		return certain(matchDomain(p.domains, f.query.PeerDomain))
	case !f.query.PeerAddr.IsValid():
		return maybe // an address that nobody told
	case p.kind == kindNodes:
		return certain(slices.ContainsFunc(f.snapshot.byAddr.At(f.query.PeerAddr), func(n *Node) bool { return p.nodes.matches(n.Labels) }))
	default:
		return certain(contains(p.blocks, f.query.PeerAddr) && !contains(p.except, f.query.PeerAddr))
	}
}

func certain(b bool) certainty {
	if b {
		return yes
	}
	return no
}

func contains(blocks []netip.Prefix, a netip.Addr) bool {
	for _, b := range blocks {
		if b.Contains(a) {
			return true
		}
	}
	return false
}

func matchDomain(domains []string, name string) bool {
	if name == "" {
		return false
	}
	for _, d := range domains {
		if below, ok := strings.CutPrefix(d, "*"); ok && strings.HasSuffix(name, below) || d == name {
			return true
		}
	}
	return false
}
