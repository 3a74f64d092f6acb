package policy

import (
	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// group holds the rules of policies of one scope and one effect, indexed by
// their anchors. It is a persistent value: changed copies share structure.
type group struct {
	policies int
	index    hamt.Map[anchor, bucket]
	patterns lengths
}

// bucket holds what one anchor leads to. Nearly always that is one policy.
type bucket struct {
	one  *anchored
	many hamt.Map[string, *anchored] // by policy key, when there are several
}

// anchored are the rules of one policy that share an anchor.
type anchored struct {
	owner *compiled
	rules []*rule
}

func (g group) with(o *hamt.Owner, c *compiled) group {
	g.policies++
	for a, rules := range c.byAnchor() {
		b, known := g.index.Get(a)
		if !known {
			g.patterns = g.patterns.counted(a, 1)
		}
		g.index = g.index.With(o, a, b.with(o, &anchored{owner: c, rules: rules}))
	}
	return g
}

func (g group) without(o *hamt.Owner, c *compiled) group {
	g.policies--
	for a := range c.byAnchor() {
		b := g.index.At(a).without(o, c.key)
		if b.one == nil && b.many.Len() == 0 {
			g.index = g.index.Without(o, a)
			g.patterns = g.patterns.counted(a, -1)
			continue
		}
		g.index = g.index.With(o, a, b)
	}
	return g
}

func (c *compiled) byAnchor() map[anchor][]*rule {
	m := make(map[anchor][]*rule)
	for i := range c.rules {
		r := &c.rules[i]
		for _, a := range r.anchors {
			m[a] = append(m[a], r)
		}
	}
	return m
}

func (b bucket) with(o *hamt.Owner, e *anchored) bucket {
	switch {
	case b.one == nil && b.many.Len() == 0:
		b.one = e
	case b.one != nil:
		b.many = b.many.With(o, b.one.owner.key, b.one).With(o, e.owner.key, e)
		b.one = nil
	default:
		b.many = b.many.With(o, e.owner.key, e)
	}
	return b
}

func (b bucket) without(o *hamt.Owner, key string) bucket {
	if b.one != nil {
		if b.one.owner.key == key {
			b.one = nil
		}
		return b
	}
	b.many = b.many.Without(o, key)
	if b.many.Len() == 1 {
		for e := range b.many.Values() {
			b.one = e
		}
		b.many = hamt.Map[string, *anchored]{}
	}
	return b
}

// candidates calls look for every policy that may match, with the rules to
// look at, until look returns false.
func (g group) candidates(f *facts, look func(*anchored) bool) {
	if g.index.Len() == 0 {
		return
	}
	keep := true
	at := func(a anchor) bool {
		b, ok := g.index.Get(a)
		if !ok {
			return true
		}
		if b.one != nil {
			keep = look(b.one)
			return keep
		}
		for e := range b.many.Values() {
			if keep = look(e); !keep {
				break
			}
		}
		return keep
	}
	if !at(anchor{kind: anchorAlways}) {
		return
	}
	if f.known && (!at(anchor{kind: anchorPrincipal, a: f.principal}) ||
		!at(anchor{kind: anchorServiceAccount, a: f.serviceAccount.Namespace, b: f.serviceAccount.Name})) {
		return
	}
	if !at(anchor{kind: anchorNamespace, a: f.namespace}) || !at(anchor{kind: anchorPort, port: f.port}) {
		return
	}
	for _, p := range g.patterns {
		if a, ok := p.anchorFor(f); ok && !at(a) {
			return
		}
	}
	at(anchor{kind: anchorNone})
}

// first returns the policy with the lowest key below limit that matches, so
// that the answer does not depend on the order of the index. An empty limit is
// none.
func (g group) first(f *facts, best *compiled) *compiled {
	g.candidates(f, func(e *anchored) bool {
		if (best == nil || e.owner.key < best.key) && e.matches(f) {
			best = e.owner
		}
		return true
	})
	return best
}

// every calls found for each policy that matches, once or more.
func (g group) every(f *facts, found func(*compiled)) {
	g.candidates(f, func(e *anchored) bool {
		if e.matches(f) {
			found(e.owner)
		}
		return true
	})
}

func (e *anchored) matches(f *facts) bool {
	for _, r := range e.rules {
		if r.matches(f) {
			return true
		}
	}
	return false
}

func (c *compiled) matches(f *facts) bool {
	for i := range c.rules {
		if c.rules[i].matches(f) {
			return true
		}
	}
	return false
}
