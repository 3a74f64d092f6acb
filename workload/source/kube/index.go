package kube

import (
	"iter"
	"net/netip"
	"slices"
	"sync"
)

// table holds the objects of one kind by namespace and name.
type table[T any] map[string]map[string]T

func (t table[T]) get(k key) T { return t[k.namespace][k.name] }

func (t table[T]) put(k key, v T) {
	if t[k.namespace] == nil {
		t[k.namespace] = make(map[string]T)
	}
	t[k.namespace][k.name] = v
}

func (t table[T]) drop(k key) {
	delete(t[k.namespace], k.name)
	if len(t[k.namespace]) == 0 {
		delete(t, k.namespace)
	}
}

// in iterates over the objects of a namespace; of all without a namespace.
func (t table[T]) in(namespace string) iter.Seq[T] {
	return func(yield func(T) bool) {
		for ns, objects := range t {
			if namespace != "" && ns != namespace {
				continue
			}
			for _, o := range objects {
				if !yield(o) {
					return
				}
			}
			if namespace != "" {
				return
			}
		}
	}
}

// podTable holds the pods. It is written by the goroutine of Run, which may
// read it without the lock; everybody else reads with it.
type podTable struct {
	mu     sync.RWMutex
	byKey  table[*podObject]
	byNode map[text]map[key]*podObject
}

func newPodTable() *podTable {
	return &podTable{byKey: make(table[*podObject]), byNode: make(map[text]map[key]*podObject)}
}

// set replaces the pod; nil removes it.
func (t *podTable) set(k key, p *podObject) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey.get(k); old != nil && old.node != (text{}) {
		delete(t.byNode[old.node], k)
		if len(t.byNode[old.node]) == 0 {
			delete(t.byNode, old.node)
		}
	}
	if p == nil {
		t.byKey.drop(k)
		return
	}
	t.byKey.put(k, p)
	if p.node == (text{}) {
		return
	}
	if t.byNode[p.node] == nil {
		t.byNode[p.node] = make(map[key]*podObject)
	}
	t.byNode[p.node][k] = p
}

// labelPair is one label with its value.
type labelPair struct{ key, value string }

// selectorIndex finds the objects whose selector could match a set of labels.
// Each is filed under one pair of its selector, the rarest there is.
type selectorIndex struct {
	at    map[string]map[labelPair]map[ref]pairs // by namespace; the values are selectors
	filed map[ref]filed
}

type filed struct {
	namespace string
	pair      labelPair
}

func newSelectorIndex() *selectorIndex {
	return &selectorIndex{at: make(map[string]map[labelPair]map[ref]pairs), filed: make(map[ref]filed)}
}

// set files the object's selector for the namespace in place of what was filed
// for it. An empty selector is not filed.
func (x *selectorIndex) set(r ref, namespace string, selector pairs) {
	if f, ok := x.filed[r]; ok {
		delete(x.filed, r)
		bucket := x.at[f.namespace][f.pair]
		delete(bucket, r)
		if len(bucket) == 0 {
			delete(x.at[f.namespace], f.pair)
		}
		if len(x.at[f.namespace]) == 0 {
			delete(x.at, f.namespace)
		}
	}
	if selector.empty() {
		return
	}
	buckets := x.at[namespace]
	if buckets == nil {
		buckets = make(map[labelPair]map[ref]pairs)
		x.at[namespace] = buckets
	}
	best, size := labelPair{}, -1
	for k, v := range selector.all() {
		p := labelPair{k, v}
		if n := len(buckets[p]); size < 0 || n < size {
			best, size = p, n
		}
	}
	if buckets[best] == nil {
		buckets[best] = make(map[ref]pairs)
	}
	buckets[best][r] = selector
	x.filed[r] = filed{namespace, best}
}

// matching iterates over the objects filed for the namespace whose selector
// matches the labels, in no particular order.
func (x *selectorIndex) matching(namespace string, labels pairs) iter.Seq[ref] {
	return func(yield func(ref) bool) {
		buckets := x.at[namespace]
		if len(buckets) == 0 {
			return
		}
		for k, v := range labels.all() {
			for r, selector := range buckets[labelPair{k, v}] {
				if labels.contains(selector) && !yield(r) {
					return
				}
			}
		}
	}
}

// links is a relation of many to many, seen from one side.
type links[K comparable] map[K]map[ref]struct{}

func (l links[K]) add(k K, r ref) {
	if l[k] == nil {
		l[k] = make(map[ref]struct{})
	}
	l[k][r] = struct{}{}
}

func (l links[K]) remove(k K, r ref) {
	delete(l[k], r)
	if len(l[k]) == 0 {
		delete(l, k)
	}
}

// move replaces an object's links.
func (l links[K]) move(r ref, old, next []K) {
	for _, k := range old {
		l.remove(k, r)
	}
	for _, k := range next {
		l.add(k, r)
	}
}

// claims says which pods have an address. Nearly always it is one.
type claims map[netip.Addr][]key

func (c claims) add(a netip.Addr, k key) {
	if !slices.Contains(c[a], k) {
		c[a] = append(c[a], k)
	}
}

func (c claims) remove(a netip.Addr, k key) {
	left := slices.DeleteFunc(c[a], func(x key) bool { return x == k })
	if len(left) == 0 {
		delete(c, a)
		return
	}
	c[a] = left
}
