package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// newIndexes returns indexes of the policies' conjunctions, each with as many as
// it may have.
func newIndexes(policies []*compiled) []*index {
	var all []conjunction
	for _, c := range policies {
		all = append(all, c.flatten()...)
	}
	slices.SortStableFunc(all, func(a, b conjunction) int {
		return cmp.Or(cmp.Compare(a.owner.effect(), b.owner.effect()), cmp.Compare(a.owner.key, b.owner.key))
	})
	var out []*index
	for part := range slices.Chunk(all, mostConjunctions) {
		out = append(out, newIndex(part))
	}
	return out
}

// uses lists, for one value, the conjunctions that want it and that avoid it.
type uses struct{ want, avoid []uint16 }

// builder collects what the values of an index lead to.
type builder struct {
	ports                  map[uint16]*uses
	accounts               map[ServiceAccount]*uses
	principals, namespaces stringUses
	sources, destinations  map[netip.Prefix]*uses
}

type stringUses struct {
	exact, prefix, suffix map[string]*uses
	present               uses
}

func newIndex(cs []conjunction) *index {
	x := &index{owners: make([]*compiled, len(cs))}
	b := builder{
		ports: map[uint16]*uses{}, accounts: map[ServiceAccount]*uses{},
		principals: newStringUses(), namespaces: newStringUses(),
		sources: map[netip.Prefix]*uses{}, destinations: map[netip.Prefix]*uses{},
	}
	var wanting [numFields]bitset
	for i := range cs {
		c := &cs[i]
		x.owners[i] = c.owner
		x.ends[c.owner.effect()] = i + 1
		if c.check != nil {
			if x.checks == nil {
				x.checks = make([]*rule, len(cs))
			}
			x.checks[i] = c.check
		}
		for field := range numFields {
			if t := c.want[field]; t != nil {
				if wanting[field] == nil {
					wanting[field] = make(bitset, words(len(cs)))
				}
				wanting[field].add(uint16(i))
				b.add(t, uint16(i))
			}
			if t := c.avoid[field]; t != nil {
				b.add(t, uint16(i))
			}
		}
	}
	for e := 1; e < int(numEffects); e++ {
		x.ends[e] = max(x.ends[e], x.ends[e-1])
	}
	for field, wants := range wanting {
		if wants != nil {
			x.free[field] = make(bitset, len(wants))
			x.free[field].fill(len(cs))
			for i, w := range wants {
				x.free[field][i] &^= w
			}
		}
	}
	b.finish(x)
	return x
}

func newStringUses() stringUses {
	return stringUses{exact: map[string]*uses{}, prefix: map[string]*uses{}, suffix: map[string]*uses{}}
}

// add notes the values of a conjunction's test.
func (b *builder) add(t *test, n uint16) {
	switch t.field {
	case fieldPort:
		addAll(b.ports, t.ports, t.not, n)
	case fieldSource:
		addAll(b.sources, t.blocks, t.not, n)
	case fieldDestination:
		addAll(b.destinations, t.blocks, t.not, n)
	case fieldServiceAccount:
		addAll(b.accounts, t.accounts, t.not, n)
	case fieldNamespace:
		b.namespaces.add(t, n)
	default:
		b.principals.add(t, n)
	}
}

func (s *stringUses) add(t *test, n uint16) {
	addAll(s.exact, t.strings.exact, t.not, n)
	addAll(s.prefix, t.strings.prefix, t.not, n)
	addAll(s.suffix, t.strings.suffix, t.not, n)
	if t.strings.presence {
		s.present.add(t.not, n)
	}
}

func addAll[K comparable](m map[K]*uses, values []K, not bool, n uint16) {
	for _, v := range values {
		u := m[v]
		if u == nil {
			u = new(uses)
			m[v] = u
		}
		u.add(not, n)
	}
}

// add is called for one conjunction after the other, so that a value given twice
// is the last in the list already.
func (u *uses) add(not bool, n uint16) {
	list := &u.want
	if not {
		list = &u.avoid
	}
	if l := *list; len(l) == 0 || l[len(l)-1] != n {
		*list = append(l, n)
	}
}

// with returns the uses of two values together.
func (u *uses) with(v *uses) *uses {
	unite := func(a, b []uint16) []uint16 {
		out := slices.Concat(a, b)
		slices.Sort(out)
		return slices.Compact(out)
	}
	return &uses{want: unite(u.want, v.want), avoid: unite(u.avoid, v.avoid)}
}

func (b *builder) finish(x *index) {
	x.ports = keepAll(x, b.ports)
	x.accounts = keepAll(x, b.accounts)
	x.principals = b.principals.finish(x)
	x.namespaces = b.namespaces.finish(x)
	x.sources = newBlockIndex(x, b.sources)
	x.destinations = newBlockIndex(x, b.destinations)
}

func (x *index) found(u *uses) found {
	return found{wanted: x.keep(u.want), avoided: x.keep(u.avoid)}
}

func keepAll[K comparable](x *index, m map[K]*uses) map[K]found {
	out := make(map[K]found, len(m))
	for v, u := range m {
		out[v] = x.found(u)
	}
	return out
}

func (s *stringUses) finish(x *index) stringIndex {
	out := stringIndex{exact: keepAll(x, s.exact), present: x.found(&s.present)}
	out.prefix = slices.Sorted(maps.Keys(s.prefix))
	out.suffix = slices.SortedFunc(maps.Keys(s.suffix), compareBackward[string])
	out.prefixes = newNest(x, out.prefix, s.prefix, func(outer, inner string) bool { return strings.HasPrefix(inner, outer) })
	out.suffixes = newNest(x, out.suffix, s.suffix, func(outer, inner string) bool { return strings.HasSuffix(inner, outer) })
	present := len(s.present.want)+len(s.present.avoid) > 0
	out.used = present || len(s.exact)+len(s.prefix)+len(s.suffix) > 0
	return out
}

func newBlockIndex(x *index, m map[netip.Prefix]*uses) blockIndex {
	out := blockIndex{blocks: sortedBlocks(maps.Keys(m))}
	out.nest = newNest(x, out.blocks, m, func(outer, inner netip.Prefix) bool {
		return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
	})
	return out
}
