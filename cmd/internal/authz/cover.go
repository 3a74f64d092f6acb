package authz

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// maxAlternatives bounds how far a rule is multiplied out.
const maxAlternatives = 512

// rule is what policy.Policy calls one: clauses that all must match, each a list of matches of which one must.
type rule = [][]policy.Match

// conjunction is one way to match a rule: all of its matches must.
type conjunction []*policy.Match

// alternatives returns the ways to match a rule that do not contradict themselves: none for a rule that never matches. It
// reports false when there are too many to look at.
func alternatives(r rule) ([]conjunction, bool) {
	out := []conjunction{nil}
	for _, clause := range r {
		if len(clause) == 0 {
			continue
		}
		var next []conjunction
		for _, c := range out {
			for i := range clause {
				if clause[i].Empty() {
					continue
				}
				if with := append(slices.Clone(c), &clause[i]); !with.contradictory() {
					next = append(next, with)
				}
				if len(next) > maxAlternatives {
					return nil, false
				}
			}
		}
		out = next
	}
	return out, true
}

// never reports whether the rule certainly matches nothing.
func never(r rule) bool {
	a, ok := alternatives(r)
	return ok && len(a) == 0
}

// covers reports whether a matches whatever b matches. It may miss that, but when it says so it is so.
func covers(a, b rule) bool {
	all, few := alternatives(b)
	return ways{all, few}.coveredBy(a)
}

// coversWays reports whether the rule matches in each of the ways.
func coversWays(a rule, ways []conjunction) bool {
	for _, way := range ways {
		for _, clause := range a {
			if len(clause) > 0 && !way.impliesOneOf(clause) {
				return false
			}
		}
	}
	return true
}

// impliesOneOf reports whether one of the matches follows from the conjunction.
func (c conjunction) impliesOneOf(clause []policy.Match) bool {
	for i := range clause {
		if m := &clause[i]; !m.Empty() && c.implies(m) {
			return true
		}
	}
	return false
}

// implies reports whether every field of the match follows from the conjunction.
func (c conjunction) implies(m *policy.Match) bool {
	return c.impliesIdentity(m) &&
		every(m.NotNamespaces, c.excludesNamespace) && every(m.NotPrincipals, c.excludesPrincipal) && every(m.NotServiceAccounts, c.excludesAccount) &&
		c.within(m.SourceIPs, sourceIPs, blockWithin) && every(m.NotSourceIPs, excluder(c, sourceIPs, blockWithin, blocksApart)) &&
		c.withinDestination(m) &&
		within(c, m.DestinationPorts, ports, equal[uint16]) && every(m.NotDestinationPorts, excluder(c, ports, equal[uint16], differ[uint16]))
}

func (c conjunction) withinDestination(m *policy.Match) bool {
	return c.within(m.DestinationIPs, destinationIPs, blockWithin) && every(m.NotDestinationIPs, excluder(c, destinationIPs, blockWithin, blocksApart))
}

func (c conjunction) within(want []netip.Prefix, of field[netip.Prefix], sub func(a, b netip.Prefix) bool) bool {
	return within(c, want, of, sub)
}

// impliesIdentity is implies for the fields that want something of the source's identity.
func (c conjunction) impliesIdentity(m *policy.Match) bool {
	if len(m.Principals) > 0 && !within(c, m.Principals, principals, stringWithin) && !(hasPresence(m.Principals) && c.identified()) {
		return false
	}
	if len(m.Namespaces) > 0 && !within(c, m.Namespaces, namespaces, stringWithin) &&
		!slices.ContainsFunc(c, func(t *policy.Match) bool {
			return len(t.ServiceAccounts) > 0 && every(t.ServiceAccounts, func(a policy.ServiceAccount) bool { return anyMatches(m.Namespaces, a.Namespace) }) ||
				len(t.Principals) > 0 && every(t.Principals, func(p policy.StringMatch) bool {
					a, ok := accountOf(p)
					return ok && anyMatches(m.Namespaces, a.Namespace)
				})
		}) {
		return false
	}
	return len(m.ServiceAccounts) == 0 || within(c, m.ServiceAccounts, accounts, equal[policy.ServiceAccount]) ||
		slices.ContainsFunc(c, func(t *policy.Match) bool {
			return len(t.Principals) > 0 && every(t.Principals, func(p policy.StringMatch) bool {
				a, ok := accountOf(p)
				return ok && slices.Contains(m.ServiceAccounts, a)
			})
		})
}

// identified reports whether only sources with an identity match.
func (c conjunction) identified() bool {
	return slices.ContainsFunc(c, func(t *policy.Match) bool {
		return len(t.Principals) > 0 || len(t.ServiceAccounts) > 0 ||
			len(t.Namespaces) > 0 && every(t.Namespaces, func(s policy.StringMatch) bool { return s.Kind == policy.Presence || s.Value != "" })
	})
}

// anonymous reports whether only sources without an identity match.
func (c conjunction) anonymous() bool {
	return slices.ContainsFunc(c, func(t *policy.Match) bool { return hasPresence(t.NotPrincipals) })
}

// excludesNamespace reports whether no source in a namespace that s matches is matched.
func (c conjunction) excludesNamespace(s policy.StringMatch) bool {
	return excluder(c, namespaces, stringWithin, stringsApart)(s) || !matches(s, "") && c.anonymous() ||
		slices.ContainsFunc(c, func(t *policy.Match) bool {
			return len(t.ServiceAccounts) > 0 && every(t.ServiceAccounts, func(a policy.ServiceAccount) bool { return !matches(s, a.Namespace) }) ||
				len(t.Principals) > 0 && every(t.Principals, func(p policy.StringMatch) bool {
					a, ok := accountOf(p)
					return ok && !matches(s, a.Namespace)
				})
		})
}

// excludesPrincipal and excludesAccount do the same for the other parts of an identity.
func (c conjunction) excludesPrincipal(s policy.StringMatch) bool {
	return c.anonymous() || excluder(c, principals, stringWithin, stringsApart)(s)
}

func (c conjunction) excludesAccount(a policy.ServiceAccount) bool {
	return c.anonymous() || excluder(c, accounts, equal[policy.ServiceAccount], differ[policy.ServiceAccount])(a) ||
		slices.ContainsFunc(c, func(t *policy.Match) bool {
			return len(t.Principals) > 0 && every(t.Principals, func(p policy.StringMatch) bool {
				b, ok := accountOf(p)
				return ok && a != b
			})
		})
}

// contradictory reports whether the conjunction certainly matches nothing: what one match wants another excludes.
func (c conjunction) contradictory() bool {
	for _, m := range c {
		if impossible(m.Namespaces, c.excludesNamespace) || impossible(m.Principals, c.excludesPrincipal) ||
			impossible(m.ServiceAccounts, c.excludesAccount) ||
			impossible(m.SourceIPs, excluder(c, sourceIPs, blockWithin, blocksApart)) ||
			impossible(m.DestinationIPs, excluder(c, destinationIPs, blockWithin, blocksApart)) ||
			impossible(m.DestinationPorts, excluder(c, ports, equal[uint16], differ[uint16])) {
			return true
		}
	}
	return false
}

func impossible[T any](values []T, excluded func(T) bool) bool {
	return len(values) > 0 && every(values, excluded)
}

// field gives the wanted and the excluded values of one field.
type field[T any] func(*policy.Match) (want, not []T)

func namespaces(m *policy.Match) (want, not []policy.StringMatch) {
	return m.Namespaces, m.NotNamespaces
}
func principals(m *policy.Match) (want, not []policy.StringMatch) {
	return m.Principals, m.NotPrincipals
}
func accounts(m *policy.Match) (want, not []policy.ServiceAccount) {
	return m.ServiceAccounts, m.NotServiceAccounts
}
func sourceIPs(m *policy.Match) (want, not []netip.Prefix) { return m.SourceIPs, m.NotSourceIPs }
func destinationIPs(m *policy.Match) (want, not []netip.Prefix) {
	return m.DestinationIPs, m.NotDestinationIPs
}
func ports(m *policy.Match) (want, not []uint16) { return m.DestinationPorts, m.NotDestinationPorts }

// within reports whether some match of the conjunction wants nothing but what is wanted here; nothing wanted is always met.
func within[T any](c conjunction, want []T, of field[T], sub func(a, b T) bool) bool {
	return len(want) == 0 || slices.ContainsFunc(c, func(t *policy.Match) bool {
		have, _ := of(t)
		return len(have) > 0 && every(have, func(a T) bool { return slices.ContainsFunc(want, func(b T) bool { return sub(a, b) }) })
	})
}

// excluder returns whether the conjunction matches nothing that has the value.
func excluder[T any](c conjunction, of field[T], sub, apart func(a, b T) bool) func(T) bool {
	return func(v T) bool {
		return slices.ContainsFunc(c, func(t *policy.Match) bool {
			want, not := of(t)
			return slices.ContainsFunc(not, func(n T) bool { return sub(v, n) }) ||
				len(want) > 0 && every(want, func(a T) bool { return apart(a, v) })
		})
	}
}

func every[T any](all []T, ok func(T) bool) bool {
	return !slices.ContainsFunc(all, func(v T) bool { return !ok(v) })
}

func equal[T comparable](a, b T) bool  { return a == b }
func differ[T comparable](a, b T) bool { return a != b }

// blockWithin reports whether all addresses of a are in b.
func blockWithin(a, b netip.Prefix) bool { return b.Bits() <= a.Bits() && b.Contains(a.Addr()) }

func blocksApart(a, b netip.Prefix) bool { return !a.Overlaps(b) }

// matches reports whether the pattern matches the text.
func matches(s policy.StringMatch, text string) bool {
	switch s.Kind {
	case policy.Exact:
		return text == s.Value
	case policy.Prefix:
		return strings.HasPrefix(text, s.Value)
	case policy.Suffix:
		return strings.HasSuffix(text, s.Value)
	default:
		return text != ""
	}
}

func anyMatches(all []policy.StringMatch, text string) bool {
	return slices.ContainsFunc(all, func(s policy.StringMatch) bool { return matches(s, text) })
}

// stringWithin reports whether every text that a matches is matched by b.
func stringWithin(a, b policy.StringMatch) bool {
	switch {
	case a.Kind == policy.Exact:
		return matches(b, a.Value)
	case b.Kind == policy.Presence:
		return a.Kind == policy.Presence || a.Value != ""
	case a.Kind == policy.Prefix && b.Kind == policy.Prefix:
		return strings.HasPrefix(a.Value, b.Value)
	case a.Kind == policy.Suffix && b.Kind == policy.Suffix:
		return strings.HasSuffix(a.Value, b.Value)
	}
	return false
}

// stringsApart reports whether no text is matched by both.
func stringsApart(a, b policy.StringMatch) bool {
	switch {
	case a.Kind == policy.Exact:
		return !matches(b, a.Value)
	case b.Kind == policy.Exact:
		return !matches(a, b.Value)
	case a.Kind == policy.Prefix && b.Kind == policy.Prefix:
		return !strings.HasPrefix(a.Value, b.Value) && !strings.HasPrefix(b.Value, a.Value)
	case a.Kind == policy.Suffix && b.Kind == policy.Suffix:
		return !strings.HasSuffix(a.Value, b.Value) && !strings.HasSuffix(b.Value, a.Value)
	}
	return false
}

// accountOf reads the service account out of a principal without a pattern: trust-domain/ns/NAMESPACE/sa/NAME.
func accountOf(p policy.StringMatch) (policy.ServiceAccount, bool) {
	if p.Kind != policy.Exact {
		return policy.ServiceAccount{}, false
	}
	parts := strings.Split(p.Value, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return policy.ServiceAccount{}, false
	}
	return policy.ServiceAccount{Namespace: parts[2], Name: parts[4]}, true
}
