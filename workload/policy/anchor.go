package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// anchor is a fact that must hold for a rule to match, so that only rules with
// an anchor among the facts of a connection need to be looked at. The fields
// used depend on the kind; patterns hold the fixed part.
type anchor struct {
	kind  anchorKind
	port  uint16
	a, b  string
	block netip.Prefix
}

type anchorKind uint8

const (
	anchorNone   anchorKind = iota // the rule has to be looked at each time
	anchorAlways                   // the rule always matches
	anchorPrincipal
	anchorPrincipalPrefix
	anchorPrincipalSuffix
	anchorServiceAccount
	anchorSource
	anchorNamespace
	anchorNamespacePrefix
	anchorNamespaceSuffix
	anchorPort
	anchorDestination
)

// weight says how large a share of connections an anchor of the kind is likely
// to let through, relative to the others.
func (k anchorKind) weight() int {
	switch k {
	case anchorPrincipal, anchorServiceAccount:
		return 1
	case anchorSource:
		return 2
	case anchorPrincipalPrefix, anchorPrincipalSuffix:
		return 4
	case anchorNamespace:
		return 8
	case anchorNamespacePrefix, anchorNamespaceSuffix:
		return 16
	case anchorPort:
		return 32
	default:
		return 64
	}
}

// chooseAnchors takes the clause that is likely to match least often. Every
// match of it must have anchors, for any of them can make the clause match.
func chooseAnchors(clauses []clause) []anchor {
	if len(clauses) == 0 {
		return []anchor{{kind: anchorAlways}}
	}
	var best []anchor
	for _, c := range clauses {
		if as := c.anchors(); as != nil && (best == nil || weigh(as) < weigh(best)) {
			best = as
		}
	}
	if best == nil {
		return []anchor{{kind: anchorNone}}
	}
	// A value given twice must not index the rule twice.
	slices.SortFunc(best, anchor.compare)
	return slices.Compact(best)
}

func (c clause) anchors() []anchor {
	var all []anchor
	for _, m := range c {
		as := m.anchors()
		if as == nil {
			return nil
		}
		all = append(all, as...)
	}
	return all
}

func (m match) anchors() []anchor {
	var best []anchor
	for i := range m {
		if as := m[i].anchors(); as != nil && (best == nil || weigh(as) < weigh(best)) {
			best = as
		}
	}
	return best
}

// anchors returns nil when the test can pass without any of finitely many
// facts.
func (t *test) anchors() []anchor {
	if t.not {
		return nil
	}
	switch t.field {
	case fieldPort:
		return mapped(t.ports, func(p uint16) anchor { return anchor{kind: anchorPort, port: p} })
	case fieldSource:
		return mapped(t.blocks, func(p netip.Prefix) anchor { return anchor{kind: anchorSource, block: p} })
	case fieldDestination:
		return mapped(t.blocks, func(p netip.Prefix) anchor { return anchor{kind: anchorDestination, block: p} })
	case fieldServiceAccount:
		return mapped(t.accounts, func(s ServiceAccount) anchor {
			return anchor{kind: anchorServiceAccount, a: s.Namespace, b: s.Name}
		})
	case fieldNamespace:
		return t.strings.anchors(anchorNamespace, anchorNamespacePrefix, anchorNamespaceSuffix)
	default:
		return t.strings.anchors(anchorPrincipal, anchorPrincipalPrefix, anchorPrincipalSuffix)
	}
}

func (s *stringSet) anchors(exact, prefix, suffix anchorKind) []anchor {
	if s.presence {
		return nil
	}
	of := func(k anchorKind) func(string) anchor {
		return func(v string) anchor { return anchor{kind: k, a: v} }
	}
	return slices.Concat(mapped(s.exact, of(exact)), mapped(s.prefix, of(prefix)), mapped(s.suffix, of(suffix)))
}

func weigh(as []anchor) int {
	sum := 0
	for _, a := range as {
		sum += a.kind.weight()
	}
	return sum
}

func (a anchor) compare(b anchor) int {
	return cmp.Or(
		cmp.Compare(a.kind, b.kind), cmp.Compare(a.port, b.port), cmp.Compare(a.a, b.a), cmp.Compare(a.b, b.b),
		a.block.Addr().Compare(b.block.Addr()), cmp.Compare(a.block.Bits(), b.block.Bits()),
	)
}

func mapped[T, U any](in []T, f func(T) U) []U {
	out := make([]U, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

// lengths counts the anchors that are patterns by kind and length, so that a
// lookup tries only lengths that exist. It is sorted and never changed in
// place.
type lengths []lengthCount

type lengthCount struct {
	kind   anchorKind
	is4    bool // family of a block
	length int
	count  int
}

// pattern returns what lengths counts for the anchor, and false for an anchor
// that is looked up directly.
func (a anchor) pattern() (lengthCount, bool) {
	switch a.kind {
	case anchorSource, anchorDestination:
		return lengthCount{kind: a.kind, is4: a.block.Addr().Is4(), length: a.block.Bits()}, true
	case anchorPrincipalPrefix, anchorPrincipalSuffix, anchorNamespacePrefix, anchorNamespaceSuffix:
		return lengthCount{kind: a.kind, length: len(a.a)}, true
	default:
		return lengthCount{}, false
	}
}

func (l lengths) counted(a anchor, by int) lengths {
	p, ok := a.pattern()
	if !ok {
		return l
	}
	i, found := slices.BinarySearchFunc(l, p, func(x, y lengthCount) int {
		f := func(b bool) int {
			if b {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(f(x.is4), f(y.is4)), cmp.Compare(x.length, y.length))
	})
	l = slices.Clone(l)
	switch {
	case !found:
		p.count = by
		l = slices.Insert(l, i, p)
	case l[i].count+by == 0:
		l = slices.Delete(l, i, i+1)
	default:
		l[i].count += by
	}
	return l
}

// anchorFor returns the anchor of this kind and length that the facts have.
func (p lengthCount) anchorFor(f *facts) (anchor, bool) {
	a := anchor{kind: p.kind}
	switch p.kind {
	case anchorSource, anchorDestination:
		addr := f.source
		if p.kind == anchorDestination {
			addr = f.destination
		}
		if !addr.IsValid() || addr.Is4() != p.is4 {
			return a, false
		}
		block, err := addr.Prefix(p.length)
		a.block = block
		return a, err == nil
	case anchorPrincipalPrefix, anchorPrincipalSuffix:
		if !f.known {
			return a, false
		}
		return a.cut(f.principal, p.length, p.kind == anchorPrincipalPrefix)
	default:
		return a.cut(f.namespace, p.length, p.kind == anchorNamespacePrefix)
	}
}

func (a anchor) cut(s string, n int, front bool) (anchor, bool) {
	if len(s) < n {
		return a, false
	}
	a.a = s[len(s)-n:]
	if front {
		a.a = s[:n]
	}
	return a, true
}
