package policy

import "math/bits"

// mostConjunctions bounds an index, so that its sets fit on a reader's stack.
const (
	mostConjunctions = 4096
	mostWords        = mostConjunctions / 64
)

// bitset is a set of conjunctions of one index, by their numbers.
type bitset []uint64

func words(n int) int { return (n + 63) / 64 }

func (b bitset) add(n uint16) { b[n/64] |= 1 << (n % 64) }

func (b bitset) remove(n uint16) { b[n/64] &^= 1 << (n % 64) }

// fill makes the set hold the first n numbers.
func (b bitset) fill(n int) {
	for i := range b {
		b[i] = ^uint64(0)
	}
	if last := n % 64; last > 0 {
		b[len(b)-1] = 1<<last - 1
	}
}

// next returns the first number from at to below end, and false when there is
// none.
func (b bitset) next(at, end int) (int, bool) {
	for at < end {
		if w := b[at/64] >> (at % 64); w != 0 {
			at += bits.TrailingZeros64(w)
			return at, at < end
		}
		at = (at/64 + 1) * 64
	}
	return 0, false
}

// retain keeps what is in both sets and reports whether that is anything.
func (b bitset) retain(other bitset) bool {
	any := uint64(0)
	for i, w := range other[:len(b)] {
		b[i] &= w
		any |= b[i]
	}
	return any != 0
}

// members are a set as an index keeps it: a list while that is shorter than the
// bits, which makes the cost of a look-up independent of how many conjunctions
// share a value.
type members struct {
	at, n int32 // in index.lists, or for n of inBits in index.bits
}

const inBits = -1

// open returns the list or, of a set that is kept so, that many words of bits.
func (x *index) open(m members, words int) ([]uint16, bitset) {
	if m.n != inBits {
		return x.lists[m.at : m.at+m.n], nil
	}
	return nil, x.bits[m.at:][:words]
}

func (x *index) unite(m members, into bitset) {
	list, bits := x.open(m, len(into))
	for _, n := range list {
		into.add(n)
	}
	for i, w := range bits {
		into[i] |= w
	}
}

func (x *index) subtract(m members, from bitset) {
	list, bits := x.open(m, len(from))
	for _, n := range list {
		from.remove(n)
	}
	for i, w := range bits {
		from[i] &^= w
	}
}

// keep stores a list of numbers, which has no duplicates.
func (x *index) keep(numbers []uint16) members {
	if len(numbers) == 0 {
		return members{}
	}
	w := words(len(x.owners))
	if len(numbers) <= w {
		m := members{at: int32(len(x.lists)), n: int32(len(numbers))}
		x.lists = append(x.lists, numbers...)
		return m
	}
	m := members{at: int32(len(x.bits)), n: inBits}
	x.bits = append(x.bits, make([]uint64, w)...)
	for _, n := range numbers {
		bitset(x.bits[m.at:]).add(n)
	}
	return m
}
