// Package hamt provides a persistent hash map: a hash array mapped trie whose
// versions share structure, so that a new version costs O(log n) and old
// versions stay readable.
//
// It knows nothing about what it stores. A Map is an immutable value and may
// be read by any number of goroutines; the With… methods return a new version.
// A writer that makes many versions in a row passes one Owner to all of them:
// nodes created under that Owner are then changed in place. Such intermediate
// versions must not be shared before the Owner is dropped.
package hamt

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

const (
	chunk    = 5
	mask     = 1<<chunk - 1
	maxShift = 60 // the 13th level uses the last four bits; below it, buckets
)

// Owner marks the nodes that one batch of changes created and may change in
// place. Use a fresh one (new(Owner)) for each batch.
type Owner struct{ _ byte }

// Map is one version of a persistent map. The zero Map is empty and usable.
type Map[K comparable, V any] struct {
	root *node[K, V]
	seed maphash.Seed
	n    int
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// node holds entries and children of one level, each packed in the order of
// their hash bits. On the level below maxShift, data and kids are unused and
// entries is a plain list.
type node[K comparable, V any] struct {
	owner   *Owner
	data    uint32
	kids    uint32
	entries []entry[K, V]
	childs  []*node[K, V]
}

// Len returns the number of keys.
func (m Map[K, V]) Len() int { return m.n }

// Get returns the value of key.
func (m Map[K, V]) Get(key K) (V, bool) {
	var zero V
	if m.root == nil {
		return zero, false
	}
	h := maphash.Comparable(m.seed, key)
	n := m.root
	for shift := uint(0); ; shift += chunk {
		if shift > maxShift {
			for i := range n.entries {
				if n.entries[i].key == key {
					return n.entries[i].value, true
				}
			}
			return zero, false
		}
		bit := uint32(1) << (h >> shift & mask)
		if n.data&bit != 0 {
			if e := &n.entries[index(n.data, bit)]; e.key == key {
				return e.value, true
			}
			return zero, false
		}
		if n.kids&bit == 0 {
			return zero, false
		}
		n = n.childs[index(n.kids, bit)]
	}
}

// At returns the value of key, or the zero value.
func (m Map[K, V]) At(key K) V {
	v, _ := m.Get(key)
	return v
}

// With returns a version in which key has the value. owner may be nil.
func (m Map[K, V]) With(owner *Owner, key K, value V) Map[K, V] {
	if m.root == nil {
		m.seed = maphash.MakeSeed()
		m.root = &node[K, V]{owner: owner}
	}
	h := maphash.Comparable(m.seed, key)
	root, added := m.root.with(m.seed, owner, 0, h, entry[K, V]{key, value})
	m.root = root
	if added {
		m.n++
	}
	return m
}

// Without returns a version that lacks key. owner may be nil.
func (m Map[K, V]) Without(owner *Owner, key K) Map[K, V] {
	if m.root == nil {
		return m
	}
	root, removed := m.root.without(owner, 0, maphash.Comparable(m.seed, key), key)
	if !removed {
		return m
	}
	m.n--
	m.root = root
	if m.n == 0 {
		m.root = nil
	}
	return m
}

// All iterates over keys and values in an order that is fixed for one version
// but otherwise unspecified.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.root != nil {
			m.root.all(yield)
		}
	}
}

// Values iterates over the values, in the order of All.
func (m Map[K, V]) Values() iter.Seq[V] {
	return func(yield func(V) bool) {
		m.All()(func(_ K, v V) bool { return yield(v) })
	}
}

func index(bitmap, bit uint32) int { return bits.OnesCount32(bitmap & (bit - 1)) }

func (n *node[K, V]) all(yield func(K, V) bool) bool {
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	for _, c := range n.childs {
		if !c.all(yield) {
			return false
		}
	}
	return true
}

// own returns n itself when the owner may change it, else a copy. Under an
// owner the copy's slices are its own too, because later changes of the batch
// will write into them.
func (n *node[K, V]) own(owner *Owner) *node[K, V] {
	if owner != nil && n.owner == owner {
		return n
	}
	c := *n
	c.owner = owner
	if owner != nil {
		c.entries = slices.Clone(n.entries)
		c.childs = slices.Clone(n.childs)
	}
	return &c
}

func (n *node[K, V]) with(seed maphash.Seed, owner *Owner, shift uint, h uint64, e entry[K, V]) (*node[K, V], bool) {
	if shift > maxShift {
		return n.withBucket(owner, e)
	}
	bit := uint32(1) << (h >> shift & mask)
	switch {
	case n.kids&bit != 0:
		i := index(n.kids, bit)
		child, added := n.childs[i].with(seed, owner, shift+chunk, h, e)
		if child == n.childs[i] {
			return n, added
		}
		c := n.own(owner)
		c.childs = replaced(c.childs, i, child, owner != nil)
		return c, added
	case n.data&bit == 0:
		c := n.own(owner)
		c.entries = inserted(c.entries, index(n.data, bit), e)
		c.data |= bit
		return c, true
	}
	i := index(n.data, bit)
	old := n.entries[i]
	c := n.own(owner)
	if old.key == e.key {
		c.entries = replaced(c.entries, i, e, owner != nil)
		return c, false
	}
	child := &node[K, V]{owner: owner}
	child, _ = child.with(seed, owner, shift+chunk, maphash.Comparable(seed, old.key), old)
	child, _ = child.with(seed, owner, shift+chunk, h, e)
	c.entries = deleted(c.entries, i)
	c.data &^= bit
	c.childs = inserted(c.childs, index(c.kids, bit), child)
	c.kids |= bit
	return c, true
}

func (n *node[K, V]) withBucket(owner *Owner, e entry[K, V]) (*node[K, V], bool) {
	c := n.own(owner)
	for i := range n.entries {
		if n.entries[i].key == e.key {
			c.entries = replaced(c.entries, i, e, owner != nil)
			return c, false
		}
	}
	c.entries = inserted(c.entries, len(n.entries), e)
	return c, true
}

func (n *node[K, V]) without(owner *Owner, shift uint, h uint64, key K) (*node[K, V], bool) {
	if shift > maxShift {
		for i := range n.entries {
			if n.entries[i].key == key {
				c := n.own(owner)
				c.entries = deleted(c.entries, i)
				return c, true
			}
		}
		return n, false
	}
	bit := uint32(1) << (h >> shift & mask)
	if n.data&bit != 0 {
		i := index(n.data, bit)
		if n.entries[i].key != key {
			return n, false
		}
		c := n.own(owner)
		c.entries = deleted(c.entries, i)
		c.data &^= bit
		return c, true
	}
	if n.kids&bit == 0 {
		return n, false
	}
	i := index(n.kids, bit)
	child, removed := n.childs[i].without(owner, shift+chunk, h, key)
	if !removed {
		return n, false
	}
	c := n.own(owner)
	if len(child.childs) == 0 && len(child.entries) <= 1 {
		// A child with one entry is folded in, so that equal contents have
		// equal depth whatever their history.
		c.childs = deleted(c.childs, i)
		c.kids &^= bit
		if len(child.entries) == 1 {
			c.entries = inserted(c.entries, index(n.data, bit), child.entries[0])
			c.data |= bit
		}
		return c, true
	}
	c.childs = replaced(c.childs, i, child, owner != nil)
	return c, true
}

// The slices of a node have no spare room: most nodes are never changed again.

func inserted[T any](s []T, i int, v T) []T {
	out := make([]T, len(s)+1)
	copy(out, s[:i])
	out[i] = v
	copy(out[i+1:], s[i:])
	return out
}

func deleted[T any](s []T, i int) []T {
	if len(s) == 1 {
		return nil
	}
	out := make([]T, len(s)-1)
	copy(out, s[:i])
	copy(out[i:], s[i+1:])
	return out
}

// replaced changes s[i], in place only when the slice belongs to the owner.
func replaced[T any](s []T, i int, v T, inPlace bool) []T {
	if !inPlace {
		s = append(make([]T, 0, len(s)), s...)
	}
	s[i] = v
	return s
}
