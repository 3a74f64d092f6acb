package netpol

import (
	"net/netip"
	"slices"
)

// smallIndex is the number of rules up to which going through all of them is
// as quick as looking them up.
const smallIndex = 8

// index finds among many rules of Namespaced those that may match a peer: each
// is listed under a fact that one of its peers demands. It is made for one pod
// and one direction and never changed.
type index struct {
	rules []placed // in the order of evaluation
	// Places in rules, ascending.
	byLabel     map[Label][]int32 // of the pod
	byNamespace map[string][]int32
	byBlock     map[netip.Prefix][]int32
	widths      []int   // of the keys of byBlock
	others      []int32 // that may match whatever the peer is
}

// placed is a rule with the policy that it belongs to.
type placed struct {
	policy *compiled
	rule   *rule
}

// newIndex returns nil when there are too few rules to need one.
func newIndex(policies []*compiled, d Direction) *index {
	n := 0
	for _, c := range policies {
		n += len(c.rules[d])
	}
	if n <= smallIndex {
		return nil
	}
	x := &index{
		rules: make([]placed, 0, n), byLabel: make(map[Label][]int32),
		byNamespace: make(map[string][]int32), byBlock: make(map[netip.Prefix][]int32),
	}
	for _, c := range policies {
		for i := range c.rules[d] {
			x.rules = append(x.rules, placed{c, &c.rules[d][i]})
			x.add(int32(len(x.rules) - 1))
		}
	}
	for p := range x.byBlock {
		if !slices.Contains(x.widths, p.Bits()) {
			x.widths = append(x.widths, p.Bits())
		}
	}
	return x
}

func (x *index) add(place int32) {
	r := x.rules[place].rule
	if r.anyPeer {
		x.others = append(x.others, place)
		return
	}
	for i := range r.peers {
		x.addPeer(&r.peers[i], place)
	}
}

func (x *index) addPeer(p *peer, place int32) {
	switch p.kind {
	case kindPods:
		if l, ok := p.pods.demands(); ok {
			x.byLabel[l] = append(x.byLabel[l], place)
			return
		}
		if p.own != "" {
			x.byNamespace[p.own] = append(x.byNamespace[p.own], place)
			return
		}
	case kindBlocks:
		for _, b := range p.blocks {
			x.byBlock[b] = append(x.byBlock[b], place)
		}
		return
	}
	x.others = append(x.others, place)
}

// demands returns a label without which the selector does not match.
func (s selector) demands() (Label, bool) {
	for i := range s {
		if c := &s[i]; c.op == In && c.values == nil {
			return Label{c.key, c.value}, true
		}
	}
	return Label{}, false
}

// first returns the first rule that surely matches, if any. The peer is not
// unproven: that one might match any rule about pods.
func (x *index) first(f *facts) placed {
	best := len(x.rules)
	look := func(places []int32) {
		for _, place := range places {
			if int(place) >= best {
				return
			}
			if f.match(x.rules[place].rule) == yes {
				best = int(place)
				return
			}
		}
	}
	look(x.others)
	if f.peer != nil {
		for _, l := range f.peer.Labels {
			look(x.byLabel[l])
		}
		look(x.byNamespace[f.peer.Namespace])
	}
	if a := f.query.PeerAddr; a.IsValid() {
		for _, w := range x.widths {
			if b, err := a.Prefix(w); err == nil {
				look(x.byBlock[b])
			}
		}
	}
	if best == len(x.rules) {
		return placed{}
	}
	return x.rules[best]
}
