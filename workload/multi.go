package workload

import (
	"iter"
	"slices"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// multi is a persistent index in which nearly every key has one value. Only
// keys with several pay for a list, which is kept in a given order.
type multi[K, V comparable] struct {
	one  hamt.Map[K, V]
	many hamt.Map[K, []V]
}

// first returns the first value of key, or the zero value.
func (m multi[K, V]) first(key K) V {
	if v, ok := m.one.Get(key); ok {
		return v
	}
	if vs := m.many.At(key); len(vs) > 0 {
		return vs[0]
	}
	var zero V
	return zero
}

// all iterates over the values of key in order.
func (m multi[K, V]) all(key K) iter.Seq[V] {
	return func(yield func(V) bool) {
		if v, ok := m.one.Get(key); ok {
			yield(v)
			return
		}
		for _, v := range m.many.At(key) {
			if !yield(v) {
				return
			}
		}
	}
}

func (m multi[K, V]) with(o *hamt.Owner, key K, v V, compare func(a, b V) int) multi[K, V] {
	if vs, ok := m.many.Get(key); ok {
		vs = append(slices.Clone(vs), v)
		slices.SortStableFunc(vs, compare)
		m.many = m.many.With(o, key, vs)
		return m
	}
	if old, ok := m.one.Get(key); ok {
		if old == v {
			return m
		}
		vs := []V{old, v}
		slices.SortStableFunc(vs, compare)
		m.one = m.one.Without(o, key)
		m.many = m.many.With(o, key, vs)
		return m
	}
	m.one = m.one.With(o, key, v)
	return m
}

func (m multi[K, V]) without(o *hamt.Owner, key K, v V) multi[K, V] {
	if old, ok := m.one.Get(key); ok {
		if old == v {
			m.one = m.one.Without(o, key)
		}
		return m
	}
	vs, ok := m.many.Get(key)
	if !ok {
		return m
	}
	vs = slices.DeleteFunc(slices.Clone(vs), func(x V) bool { return x == v })
	switch len(vs) {
	case 0:
		m.many = m.many.Without(o, key)
	case 1:
		m.many = m.many.Without(o, key)
		m.one = m.one.With(o, key, vs[0])
	default:
		m.many = m.many.With(o, key, vs)
	}
	return m
}
