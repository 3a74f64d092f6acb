package nft

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
)

const (
	savedChain     = "saved"
	savedSeparator = "="
)

// Family is the family of a table, as nft(8) calls it.
type Family string

// The families that are used. FamilyInet is both versions of IP.
const (
	FamilyInet   Family = "inet"
	FamilyBridge Family = "bridge"
)

// Table is a table, either desired or read from the kernel. It must not be changed
// once it was returned.
type Table struct {
	Family Family // empty means FamilyInet
	Name   string
	Flags  uint32 // NFT_TABLE_F_*: 1 is dormant (no chain is hooked in), 2 and 4 are owned by a process
	Sets   []Set
	Chains []Chain

	cut bool // the kernel has more of it than was read
}

// String returns "table FAMILY NAME".
func (t *Table) String() string {
	return fmt.Sprintf("table %s %s", cmp.Or(t.Family, FamilyInet), t.Name)
}

// Chain is a chain of a Table. Type, Hook and Priority are those of a base chain;
// in a regular chain Type and Hook are empty.
type Chain struct {
	Name     string
	Type     string // "filter", "nat" or "route"
	Hook     string // "prerouting", "input", "output", …
	Priority int
	Drop     bool // policy drop instead of accept
	Rules    []Rule
}

// Rule is a rule in the canonical text. Counters have no values in it.
type Rule struct {
	Text    string
	Comment string

	exprs []expr.Any // of a desired rule
}

// match is a part of a rule, and nil one that matches everything.
type match []expr.Any

func (c *Chain) add(parts ...match) {
	var r Rule
	for _, part := range parts {
		r.exprs = append(r.exprs, part...)
	}
	c.Rules = append(c.Rules, r)
}

// encode fills in the text of all rules, through the bytes that the kernel will get.
func (t *Table) encode() error {
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			if !PlainComment(e.Comment) {
				return fmt.Errorf("comment %q of %s: too long or not plain", e.Comment, e.Addr)
			}
		}
	}
	for i := range t.Chains {
		for j := range t.Chains[i].Rules {
			r := &t.Chains[i].Rules[j]
			if !PlainComment(r.Comment) {
				return fmt.Errorf("comment %q: too long or not plain", r.Comment)
			}
			var elems []element
			for _, e := range r.exprs {
				raw, err := expr.Marshal(t.Family.number(), e)
				if err != nil {
					return fmt.Errorf("encode rule of chain %s: %w", t.Chains[i].Name, err)
				}
				elem, err := parseElement(raw)
				if err != nil {
					return fmt.Errorf("encode rule of chain %s: %w", t.Chains[i].Name, err)
				}
				elems = append(elems, elem)
			}
			r.Text = render(elems)
		}
	}
	return nil
}

// Text returns the table as text that nft(8) can read, the same for the same rules:
// chains in the order of DESIGN's packet path, marks in hexadecimal, nothing
// abbreviated, no handles and no counter values. A nil Table is the empty text.
func (t *Table) Text() string {
	if t == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s {\n", t)
	if t.Flags != 0 {
		fmt.Fprintf(&b, "\tflags %#x;\n\n", t.Flags)
	}
	for i, s := range t.Sets {
		if i > 0 {
			b.WriteByte('\n')
		}
		s.text(&b)
	}
	for i, c := range t.Chains {
		if i > 0 || len(t.Sets) > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\t%s\n", c.Head())
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// String returns the rule as one line of Table.Text.
func (r Rule) String() string {
	switch {
	case r.Comment == "":
		return r.Text
	case r.Text == "":
		return fmt.Sprintf("comment %q", r.Comment)
	}
	return fmt.Sprintf("%s comment %q", r.Text, r.Comment)
}

// Head returns the line that says where a base chain is hooked in, or the empty
// text for a regular chain.
func (c Chain) Head() string {
	if c.Hook == "" {
		return ""
	}
	policy := "accept"
	if c.Drop {
		policy = "drop"
	}
	return fmt.Sprintf("type %s hook %s priority %d; policy %s;", c.Type, c.Hook, c.Priority, policy)
}

// Chain returns the chain called name, or nil.
func (t *Table) Chain(name string) *Chain {
	if t == nil {
		return nil
	}
	i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &t.Chains[i]
}

// Saved returns what was given to Desired as saved. The caller owns the map, which
// is empty and not nil when there is nothing.
func (t *Table) Saved() map[string]string {
	saved := map[string]string{}
	c := t.Chain(savedChain)
	if c == nil {
		return saved
	}
	for _, r := range c.Rules {
		if key, value, ok := strings.Cut(r.Comment, savedSeparator); ok {
			saved[key] = value
		}
	}
	return saved
}

// Diff says in words how the table have differs from want, one line for each
// difference, nothing when they are equal. nil stands for an absent table. Of many or
// long lines the rest is cut off: what stands in them is somebody else's.
func Diff(want, have *Table) []string {
	var out []string
	switch {
	case want == nil && have == nil:
		return nil
	case want == nil:
		return []string{have.String() + " is there and should not be"}
	case have == nil:
		return []string{want.String() + " is missing"}
	case have.cut:
		out = append(out, fmt.Sprintf("%s has more than the %d bytes of it that are looked at", have, maxTable))
	}
	if want.Flags != have.Flags {
		out = append(out, fmt.Sprintf("%s has flags %#x instead of %#x", want, have.Flags, want.Flags))
	}
	out = append(out, diffSets(want.Sets, have.Sets)...)
	for _, w := range want.Chains {
		h := have.Chain(w.Name)
		if h == nil {
			out = append(out, fmt.Sprintf("chain %s is missing", w.Name))
			continue
		}
		if w.Head() != h.Head() {
			out = append(out, fmt.Sprintf("chain %s is %q instead of %q", w.Name, h.Head(), w.Head()))
		}
		out = append(out, diffRules(w, *h)...)
	}
	for _, h := range have.Chains {
		if want.Chain(h.Name) == nil {
			out = append(out, fmt.Sprintf("chain %s does not belong here", h.Name))
		}
	}
	return abridged(out)
}

// Bounds of what Diff says.
const (
	maxLines = 32
	maxLine  = 400
)

func abridged(lines []string) []string {
	if n := len(lines) - maxLines; n > 0 {
		lines = append(lines[:maxLines:maxLines], fmt.Sprintf("and %d differences more", n))
	}
	for i, line := range lines {
		if len(line) > maxLine {
			lines[i] = line[:maxLine] + "…"
		}
	}
	return lines
}

// maxCompared bounds the pairs of rules that are compared. Ours have chains of some
// hundred rules at most.
const maxCompared = 1 << 20

// diffRules compares rules as a sequence: rules in the longest common run are the
// same, the others are missing or foreign.
func diffRules(want, have Chain) []string {
	w, h := lines(want), lines(have)
	if slices.Equal(w, h) {
		return nil
	}
	if len(w)*len(h) > maxCompared {
		return []string{fmt.Sprintf("chain %s has %d rules instead of %d, or others", want.Name, len(h), len(w))}
	}
	common := make([][]int, len(w)+1) // common[i][j]: length of the common sequence of w[i:] and h[j:]
	for i := range common {
		common[i] = make([]int, len(h)+1)
	}
	for i := len(w) - 1; i >= 0; i-- {
		for j := len(h) - 1; j >= 0; j-- {
			if w[i] == h[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(w) || j < len(h) {
		switch {
		case i < len(w) && j < len(h) && w[i] == h[j]:
			i, j = i+1, j+1
		case j == len(h) || i < len(w) && common[i+1][j] >= common[i][j+1]:
			out = append(out, fmt.Sprintf("chain %s: rule %q is missing", want.Name, w[i]))
			i++
		default:
			out = append(out, fmt.Sprintf("chain %s: rule %q does not belong here", want.Name, h[j]))
			j++
		}
	}
	return out
}

func lines(c Chain) []string {
	out := make([]string, len(c.Rules))
	for i, r := range c.Rules {
		out[i] = r.String()
	}
	return out
}
