package hamt

import (
	"hash/maphash"
	"testing"
)

// TestBuckets looks inside: two keys with the same 64 bits of hash meet below
// the last level, which no test can bring about from outside.
func TestBuckets(t *testing.T) {
	seed := maphash.MakeSeed()
	const below = maxShift + chunk
	for _, owner := range []*Owner{nil, new(Owner)} {
		n := &node[string, int]{owner: owner}
		var added bool
		for i, k := range []string{"a", "b", "c"} {
			if n, added = n.with(seed, owner, below, 0, entry[string, int]{k, i}); !added {
				t.Errorf("%q is not new", k)
			}
		}
		if n, added = n.with(seed, owner, below, 0, entry[string, int]{"b", 7}); added || n.entries[1].value != 7 {
			t.Error("a known key was added again")
		}
		if _, removed := n.without(owner, below, 0, "z"); removed {
			t.Error("a missing key was removed")
		}
		n, removed := n.without(owner, below, 0, "a")
		if !removed || len(n.entries) != 2 {
			t.Error("a key was not removed")
		}
	}
}
