package hamt

import (
	"iter"
	"math/bits"
)

// Change is a key whose value differs between two versions. A value that is
// absent is the zero one, so V should be a type whose zero value is no value.
type Change[K comparable, V comparable] struct {
	Key           K
	Before, After V
}

// Diff iterates over the keys whose values differ, in no particular order. Of
// two versions of one Map it looks only at what does not belong to both, so it
// costs time in proportion to the differences; of unrelated Maps it looks at
// everything.
func Diff[K comparable, V comparable](before, after Map[K, V]) iter.Seq[Change[K, V]] {
	return func(yield func(Change[K, V]) bool) {
		switch {
		case before.root == after.root:
		case before.root == nil, after.root == nil, before.seed != after.seed:
			diffAll(before, after, yield)
		default:
			diffNodes(before.root, after.root, 0, yield)
		}
	}
}

// diffAll compares key by key.
func diffAll[K comparable, V comparable](before, after Map[K, V], yield func(Change[K, V]) bool) {
	for k, v := range before.All() {
		if now := after.At(k); now != v && !yield(Change[K, V]{k, v, now}) {
			return
		}
	}
	for k, v := range after.All() {
		if _, ok := before.Get(k); !ok && !yield(Change[K, V]{Key: k, After: v}) {
			return
		}
	}
}

// diffNodes compares two nodes of one place in their tries.
func diffNodes[K comparable, V comparable](a, b *node[K, V], shift uint, yield func(Change[K, V]) bool) bool {
	if a == b {
		return true
	}
	if shift > maxShift {
		return diffSets(a, b, yield)
	}
	for rest := a.data | a.kids | b.data | b.kids; rest != 0; rest &= rest - 1 {
		bit := uint32(1) << bits.TrailingZeros32(rest)
		left, right := a.at(bit), b.at(bit)
		var ok bool
		if left != nil && right != nil && a.kids&b.kids&bit != 0 {
			ok = diffNodes(left, right, shift+chunk, yield)
		} else {
			ok = diffSets(left, right, yield)
		}
		if !ok {
			return false
		}
	}
	return true
}

// at returns what is below a bit: the child, a node made of the one entry, or
// nil.
func (n *node[K, V]) at(bit uint32) *node[K, V] {
	switch {
	case n.kids&bit != 0:
		return n.childs[index(n.kids, bit)]
	case n.data&bit != 0:
		i := index(n.data, bit)
		return &node[K, V]{entries: n.entries[i : i+1]}
	default:
		return nil
	}
}

// diffSets compares two nodes as sets of keys; of at least one, or in the last
// level of both, there are only few.
func diffSets[K comparable, V comparable](a, b *node[K, V], yield func(Change[K, V]) bool) bool {
	left, right := a.collect(), b.collect()
	for k, v := range left {
		if now := right[k]; now != v && !yield(Change[K, V]{k, v, now}) {
			return false
		}
	}
	for k, v := range right {
		if _, ok := left[k]; !ok && !yield(Change[K, V]{Key: k, After: v}) {
			return false
		}
	}
	return true
}

func (n *node[K, V]) collect() map[K]V {
	if n == nil {
		return nil
	}
	out := make(map[K]V, len(n.entries))
	n.all(func(k K, v V) bool {
		out[k] = v
		return true
	})
	return out
}
