package kube

import (
	"encoding/binary"
	"iter"
	"maps"
	"math"
	"slices"
	"unique"
)

// pairs is a small map of strings, such as labels, that shares its memory with
// all others of the same content: the pods of one ReplicaSet have one set of
// labels. It is comparable and never changes; the zero value is empty.
type pairs struct{ h unique.Handle[string] }

// makePairs returns the pairs of m. Texts longer than 64 KiB, which no label
// can be, are left out.
func makePairs(m map[string]string) pairs {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := m[k]
		if len(k) > math.MaxUint16 || len(v) > math.MaxUint16 {
			continue
		}
		b = appendText(appendText(b, k), v)
	}
	if len(b) == 0 {
		return pairs{}
	}
	return pairs{unique.Make(string(b))}
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// cutText splits the first text off; s was made by appendText.
func cutText(s string) (text, rest string) {
	n := int(s[0])<<8 | int(s[1])
	return s[2 : 2+n], s[2+n:]
}

func (p pairs) empty() bool { return p == pairs{} }

// all iterates in the order of the keys.
func (p pairs) all() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if p.empty() {
			return
		}
		var k, v string
		for s := p.h.Value(); s != ""; {
			k, s = cutText(s)
			v, s = cutText(s)
			if !yield(k, v) {
				return
			}
		}
	}
}

// get returns the value of the key.
func (p pairs) get(key string) (string, bool) {
	for k, v := range p.all() {
		if k >= key {
			return v, k == key
		}
	}
	return "", false
}

// value returns the value of the key, or nothing.
func (p pairs) value(key string) string {
	v, ok := p.get(key)
	if !ok {
		return ""
	}
	return v
}

// first returns the value of the first of the keys that there is.
func (p pairs) first(keys ...string) (string, bool) {
	for _, k := range keys {
		if v, ok := p.get(k); ok {
			return v, true
		}
	}
	return "", false
}

// contains reports whether all pairs of the selector are in p. An empty
// selector is contained in everything.
func (p pairs) contains(selector pairs) bool {
	if p == selector || selector.empty() {
		return true
	}
	for k, v := range selector.all() {
		if got, ok := p.get(k); !ok || got != v {
			return false
		}
	}
	return true
}

// toMap returns a new map with the content.
func (p pairs) toMap() map[string]string { return maps.Collect(p.all()) }

// intern returns the one copy of s that all objects share.
func intern(s string) text {
	if s == "" {
		return text{}
	}
	return text{unique.Make(s)}
}

// text is a string that shares its memory with all equal ones.
type text struct{ h unique.Handle[string] }

func (t text) String() string {
	if t == (text{}) {
		return ""
	}
	return t.h.Value()
}
