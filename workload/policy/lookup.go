package policy

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// stringIndex finds the values that match a string.
type stringIndex struct {
	used               bool
	exact              map[string]found
	present            found    // by a string that is not empty
	prefix, suffix     []string // sorted, suffixes from their ends
	prefixes, suffixes nest
}

func (x *stringIndex) find(v []byte, s *search) {
	if len(x.exact) > 0 {
		s.hit(x.exact[string(v)])
	}
	if len(v) > 0 {
		s.hit(x.present)
	}
	for i := lastForward(x.prefix, v); i >= 0; i = int(x.prefixes.outer[i]) {
		if p := x.prefix[i]; len(v) >= len(p) && string(v[:len(p)]) == p {
			s.hit(x.prefixes.found[i])
			break
		}
	}
	for i := lastBackward(x.suffix, v); i >= 0; i = int(x.suffixes.outer[i]) {
		if p := x.suffix[i]; len(v) >= len(p) && string(v[len(v)-len(p):]) == p {
			s.hit(x.suffixes.found[i])
			break
		}
	}
}

// lastForward returns the place of the last of the sorted prefixes that does not
// come after v, or -1.
func lastForward(prefixes []string, v []byte) int {
	low, high := 0, len(prefixes)
	for low < high {
		if mid := (low + high) / 2; prefixes[mid] <= string(v) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1
}

// lastBackward does the same for suffixes.
func lastBackward(suffixes []string, v []byte) int {
	low, high := 0, len(suffixes)
	for low < high {
		if mid := (low + high) / 2; compareBackward(suffixes[mid], v) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1
}

// blockIndex finds the blocks that hold an address.
type blockIndex struct {
	blocks []netip.Prefix // sorted by address, larger ones first
	nest   nest
}

func (x *blockIndex) find(addr netip.Addr, s *search) {
	for i := lastBlock(x.blocks, addr); i >= 0; i = int(x.nest.outer[i]) {
		if x.blocks[i].Contains(addr) {
			s.hit(x.nest.found[i])
			return
		}
	}
}

// nest orders patterns of which any two either exclude each other or one holds
// the other: prefixes of strings, suffixes, address blocks. In sorted order a
// pattern comes before what it holds. So all patterns that hold a value are the
// last one that is not behind the value, if it does, and those around it.
type nest struct {
	outer []int32 // by pattern: the smallest one around it; -1 for none
	found []found // by pattern: what it leads to together with all those around it
}

// newNest makes the nest of patterns in order.
func newNest[P comparable](x *index, patterns []P, by map[P]*uses, holds func(outer, inner P) bool) nest {
	n := nest{outer: make([]int32, len(patterns)), found: make([]found, len(patterns))}
	all := make([]*uses, len(patterns))
	around := int32(-1)
	for i, p := range patterns {
		for around >= 0 && !holds(patterns[around], p) {
			around = n.outer[around]
		}
		all[i] = by[p]
		if around >= 0 {
			all[i] = all[around].with(by[p])
		}
		n.outer[i], n.found[i] = around, x.found(all[i])
		around = int32(i)
	}
	return n
}

// compareBackward compares from the ends.
func compareBackward[V string | []byte](pattern string, v V) int {
	for i, j := len(pattern)-1, len(v)-1; i >= 0 && j >= 0; i, j = i-1, j-1 {
		if pattern[i] != v[j] {
			return cmp.Compare(pattern[i], v[j])
		}
	}
	return cmp.Compare(len(pattern), len(v))
}

// lastBlock returns the place of the last of the sorted blocks that does not
// begin after the address, or -1.
func lastBlock(blocks []netip.Prefix, addr netip.Addr) int {
	low, high := 0, len(blocks)
	for low < high {
		if mid := (low + high) / 2; blocks[mid].Addr().Compare(addr) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1
}

// sortedBlocks returns the blocks in the order of a nest.
func sortedBlocks(blocks iter.Seq[netip.Prefix]) []netip.Prefix {
	return slices.SortedFunc(blocks, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}
