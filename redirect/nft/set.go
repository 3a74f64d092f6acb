package nft

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Set is a named set of a Table.
type Set struct {
	Name     string
	Type     string // "ipv4_addr", "ipv6_addr", or the kernel's number of another one
	Flags    uint32 // NFT_SET_*; ours have none
	Elements []Element
}

// Element is a member of a Set.
type Element struct {
	Addr    netip.Addr
	Comment string
	other   string // what is no plain address, in the set of somebody else
}

// String returns the element as nft(8) writes it.
func (e Element) String() string {
	text := e.other
	if text == "" {
		text = e.Addr.String()
	}
	if e.Comment != "" {
		text += fmt.Sprintf(" comment %q", e.Comment)
	}
	return text
}

func addrType(family byte) string {
	if family == unix.NFPROTO_IPV4 {
		return nftables.TypeIPAddr.Name
	}
	return nftables.TypeIP6Addr.Name
}

// addrSet returns the set of addrs, which are of one family; twice is once.
func addrSet(name string, family byte, addrs []netip.Addr) Set {
	s := Set{Name: name, Type: addrType(family)}
	for _, a := range addrs {
		s.Elements = append(s.Elements, Element{Addr: a})
	}
	s.sort()
	s.Elements = slices.Compact(s.Elements)
	return s
}

func (s *Set) sort() {
	slices.SortFunc(s.Elements, func(a, b Element) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return strings.Compare(a.String(), b.String())
	})
}

func (s Set) text(b *strings.Builder) {
	fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n", s.Name, s.Type)
	if s.Flags != 0 {
		fmt.Fprintf(b, "\t\tflags %#x\n", s.Flags)
	}
	if len(s.Elements) > 0 {
		var list []string
		for _, e := range s.Elements {
			list = append(list, e.String())
		}
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(list, ", "))
	}
	b.WriteString("\t}\n")
}

// spareElements is room in a set for what people add to it by hand.
const spareElements = 64

// maxChunk is how many elements one message holds; a netlink attribute ends at 64 KiB.
const maxChunk = 256

// queue adds the set to a transaction. id is its number in it.
func (s Set) queue(c *nftables.Conn, table *nftables.Table, id int) error {
	// A set of known size does not grow. The kernel's dump of one that does, which goes on
	// after the transaction, repeats elements or passes some by.
	size := uint32(len(s.Elements) + spareElements)
	set := &nftables.Set{Table: table, Name: s.Name, ID: uint32(id), KeyType: nftables.TypeIPAddr, Size: size}
	if s.Type == nftables.TypeIP6Addr.Name {
		set.KeyType = nftables.TypeIP6Addr
	}
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	for chunk := range slices.Chunk(s.Elements, maxChunk) {
		var elems []nftables.SetElement
		for _, e := range chunk {
			elems = append(elems, nftables.SetElement{Key: e.Addr.AsSlice(), Comment: e.Comment})
		}
		if err := c.SetAddElements(set, elems); err != nil {
			return err
		}
	}
	return nil
}

func parseSet(f fields) Set {
	s := Set{Name: f.text(unix.NFTA_SET_NAME), Flags: f.uint32(unix.NFTA_SET_FLAGS)}
	switch kind := f.uint32(unix.NFTA_SET_KEY_TYPE); kind {
	case nftables.TypeIPAddr.GetNFTMagic():
		s.Type = nftables.TypeIPAddr.Name
	case nftables.TypeIP6Addr.GetNFTMagic():
		s.Type = nftables.TypeIP6Addr.Name
	default:
		s.Type = fmt.Sprint(kind)
	}
	return s
}

// parseElements reads an NFTA_SET_ELEM_LIST_ELEMENTS.
func parseElements(b []byte) []Element {
	var list []Element
	for _, data := range attrs(b) {
		f := parseFields(data)
		var e Element
		plain := true
		for _, a := range f {
			switch a.kind {
			case unix.NFTA_SET_ELEM_KEY:
				value := parseFields(a.data).bytes(unix.NFTA_DATA_VALUE)
				var ok bool
				if e.Addr, ok = netip.AddrFromSlice(value); !ok {
					plain = false
				}
			case unix.NFTA_SET_ELEM_USERDATA:
				e.Comment = parseComment(a.data)
			default:
				plain = false
			}
		}
		if !plain || !e.Addr.IsValid() {
			e.other = "unknown(" + hex.EncodeToString(data) + ")"
		}
		list = append(list, e)
	}
	return list
}

// diffSets says how the sets have differ from want.
func diffSets(want, have []Set) []string {
	var out []string
	find := func(list []Set, name string) *Set {
		i := slices.IndexFunc(list, func(s Set) bool { return s.Name == name })
		if i < 0 {
			return nil
		}
		return &list[i]
	}
	for _, w := range want {
		h := find(have, w.Name)
		if h == nil {
			out = append(out, fmt.Sprintf("set %s is missing", w.Name))
			continue
		}
		if w.Type != h.Type || w.Flags != h.Flags {
			out = append(out, fmt.Sprintf("set %s is of type %s, flags %#x instead of %s, %#x", w.Name, h.Type, h.Flags, w.Type, w.Flags))
		}
		out = append(out, diffElements(w, *h)...)
	}
	for _, h := range have {
		if find(want, h.Name) == nil {
			out = append(out, fmt.Sprintf("set %s does not belong here", h.Name))
		}
	}
	return out
}

func diffElements(want, have Set) []string {
	there := map[string]bool{}
	for _, e := range have.Elements {
		there[e.String()] = true
	}
	var out []string
	for _, e := range want.Elements {
		if !there[e.String()] {
			out = append(out, fmt.Sprintf("set %s: element %s is missing", want.Name, e))
		}
		delete(there, e.String())
	}
	for _, e := range have.Elements {
		if there[e.String()] {
			out = append(out, fmt.Sprintf("set %s: element %s does not belong here", want.Name, e))
		}
	}
	return out
}

// PlainComment reports whether the kernel keeps a comment, and text shows it, as it is.
// Tables with another one cannot be made.
func PlainComment(s string) bool {
	return len(s) <= 120 && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
}
