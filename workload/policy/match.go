package policy

import (
	"net/netip"
	"slices"
)

type fieldKind uint8

const (
	fieldNamespace fieldKind = iota
	fieldPrincipal
	fieldServiceAccount
	fieldSource
	fieldDestination
	fieldPort
	numFields
)

// test is one field of a Match: its values are alternatives. Only the list
// that belongs to the field's kind is set.
type test struct {
	field    fieldKind
	not      bool
	strings  *stringSet
	accounts []ServiceAccount
	blocks   []netip.Prefix
	ports    []uint16
}

func compileMatch(m *Match) match {
	var out match
	add := func(n int, t test) {
		if n > 0 {
			out = append(out, t)
		}
	}
	// The cheapest tests come first.
	add(len(m.DestinationPorts), test{field: fieldPort, ports: m.DestinationPorts})
	add(len(m.NotDestinationPorts), test{field: fieldPort, not: true, ports: m.NotDestinationPorts})
	add(len(m.SourceIPs), test{field: fieldSource, blocks: masked(m.SourceIPs)})
	add(len(m.NotSourceIPs), test{field: fieldSource, not: true, blocks: masked(m.NotSourceIPs)})
	add(len(m.DestinationIPs), test{field: fieldDestination, blocks: masked(m.DestinationIPs)})
	add(len(m.NotDestinationIPs), test{field: fieldDestination, not: true, blocks: masked(m.NotDestinationIPs)})
	add(len(m.ServiceAccounts), test{field: fieldServiceAccount, accounts: m.ServiceAccounts})
	add(len(m.NotServiceAccounts), test{field: fieldServiceAccount, not: true, accounts: m.NotServiceAccounts})
	add(len(m.Namespaces), test{field: fieldNamespace, strings: newStringSet(m.Namespaces)})
	add(len(m.NotNamespaces), test{field: fieldNamespace, not: true, strings: newStringSet(m.NotNamespaces)})
	add(len(m.Principals), test{field: fieldPrincipal, strings: newStringSet(m.Principals)})
	add(len(m.NotPrincipals), test{field: fieldPrincipal, not: true, strings: newStringSet(m.NotPrincipals)})
	return out
}

func (t *test) passes(f *facts) bool { return t.has(f) != t.not }

func (t *test) has(f *facts) bool {
	switch t.field {
	case fieldPort:
		return slices.Contains(t.ports, f.port)
	case fieldSource:
		return contains(t.blocks, f.source)
	case fieldDestination:
		return contains(t.blocks, f.destination)
	case fieldServiceAccount:
		return f.known && slices.Contains(t.accounts, f.serviceAccount)
	case fieldNamespace:
		return t.strings.has(f.namespace)
	default:
		return f.known && t.strings.has(f.principal)
	}
}

func contains(blocks []netip.Prefix, addr netip.Addr) bool {
	for _, b := range blocks {
		if b.Contains(addr) {
			return true
		}
	}
	return false
}

// masked clears host bits and unmaps IPv4-mapped blocks.
func masked(ps []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		if p.Addr().Is4In6() { // of at least 96 bits, see validate
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out
}

// stringSet is a list of StringMatches, sorted by kind.
type stringSet struct {
	exact, prefix, suffix []string
	presence              bool
}

func newStringSet(ms []StringMatch) *stringSet {
	s := new(stringSet)
	for _, m := range ms {
		switch m.Kind {
		case Exact:
			s.exact = append(s.exact, m.Value)
		case Prefix:
			s.prefix = append(s.prefix, m.Value)
		case Suffix:
			s.suffix = append(s.suffix, m.Value)
		case Presence:
			s.presence = true
		}
	}
	return s
}

func (s *stringSet) has(v []byte) bool {
	if s.presence && len(v) > 0 {
		return true
	}
	for _, e := range s.exact {
		if string(v) == e {
			return true
		}
	}
	for _, p := range s.prefix {
		if len(v) >= len(p) && string(v[:len(p)]) == p {
			return true
		}
	}
	for _, p := range s.suffix {
		if len(v) >= len(p) && string(v[len(v)-len(p):]) == p {
			return true
		}
	}
	return false
}
