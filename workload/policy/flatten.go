package policy

import "slices"

// conjunction is a rule, or one of its alternatives, in the form that an index
// takes: tests that all must pass, at most one that asks for a value and at most
// one that excludes values of each field.
type conjunction struct {
	owner *compiled
	want  [numFields]*test
	avoid [numFields]*test
	// check is the rule, where the tests above are necessary but not sufficient.
	check *rule
}

// A rule whose clauses have several matches each is multiplied out, up to this
// many conjunctions; a longer list of alternatives may have a few times as many
// as it has matches. What goes beyond is checked after the index.
const (
	mostProducts   = 64
	productsAMatch = 8
)

// flatten returns the conjunctions of a policy: it matches when one of them does.
func (c *compiled) flatten() []conjunction {
	if c.fault != nil {
		return []conjunction{{owner: c}}
	}
	var out []conjunction
	for _, r := range c.policy.Rules {
		if r, ok := compileRule(r); ok {
			out = append(out, r.flatten(c)...)
		}
	}
	return out
}

func (r *rule) flatten(owner *compiled) []conjunction {
	matches := 0
	for _, c := range r.clauses {
		matches += len(c)
	}
	most := max(mostProducts, productsAMatch*matches)
	out := []conjunction{{owner: owner}}
	partial := false
	for _, c := range slices.SortedFunc(slices.Values(r.clauses), func(a, b clause) int { return len(a) - len(b) }) {
		if len(out)*len(c) > most {
			partial = true
			continue
		}
		out = product(out, c, r)
	}
	if partial {
		for i := range out {
			out[i].check = r
		}
	}
	return out
}

// product joins each conjunction with each match of a clause.
func product(cs []conjunction, c clause, r *rule) []conjunction {
	out := make([]conjunction, 0, len(cs)*len(c))
	for _, left := range cs {
		for _, m := range c {
			joined := left
			for i := range m {
				joined.add(&m[i], r)
			}
			out = append(out, joined)
		}
	}
	return out
}

// add joins a test. Exclusions of one field are united. Of two tests that both
// ask for a value of one field the index gets the first, which is necessary, and
// the rule itself is checked besides.
func (c *conjunction) add(t *test, r *rule) {
	switch {
	case t.not && c.avoid[t.field] != nil:
		c.avoid[t.field] = c.avoid[t.field].union(t)
	case t.not:
		c.avoid[t.field] = t
	case c.want[t.field] != nil:
		c.check = r
	default:
		c.want[t.field] = t
	}
}

// union returns a test with the values of both, which are of one field.
func (t *test) union(u *test) *test {
	out := *t
	out.accounts = slices.Concat(t.accounts, u.accounts)
	out.blocks = slices.Concat(t.blocks, u.blocks)
	out.ports = slices.Concat(t.ports, u.ports)
	if t.strings != nil {
		out.strings = &stringSet{
			exact:    slices.Concat(t.strings.exact, u.strings.exact),
			prefix:   slices.Concat(t.strings.prefix, u.strings.prefix),
			suffix:   slices.Concat(t.strings.suffix, u.strings.suffix),
			presence: t.strings.presence || u.strings.presence,
		}
	}
	return &out
}
