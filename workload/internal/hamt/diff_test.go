package hamt_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// TestDiffAgainstMap compares random versions of one Map, and versions of
// different Maps, with what plain maps say. Zero stands for absent.
func TestDiffAgainstMap(t *testing.T) {
	type version struct {
		m     hamt.Map[int, int]
		model map[int]int
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var versions []version
	for range 3 { // three unrelated maps
		var m hamt.Map[int, int]
		model := map[int]int{}
		for range 40 {
			owner := new(hamt.Owner)
			for range rng.IntN(60) {
				k := rng.IntN(300)
				if rng.IntN(2) == 0 {
					m = m.Without(owner, k)
					delete(model, k)
				} else {
					v := 1 + rng.IntN(3)
					m = m.With(owner, k, v)
					model[k] = v
				}
			}
			versions = append(versions, version{m, maps.Clone(model)})
		}
	}
	for range 5_000 {
		a, b := versions[rng.IntN(len(versions))], versions[rng.IntN(len(versions))]
		got := maps.Clone(a.model)
		for c := range hamt.Diff(a.m, b.m) {
			if c.Before != a.model[c.Key] || c.After != b.model[c.Key] || c.Before == c.After {
				t.Fatalf("change %+v, but the models say %d and %d", c, a.model[c.Key], b.model[c.Key])
			}
			if c.After == 0 {
				delete(got, c.Key)
			} else {
				got[c.Key] = c.After
			}
		}
		if !maps.Equal(got, b.model) {
			t.Fatal("the changes do not lead from one version to the other")
		}
	}
}

// TestDiffStops: a caller that has seen enough is not called again.
func TestDiffStops(t *testing.T) {
	var a, b, other hamt.Map[int, int]
	for k := range 1000 {
		a = a.With(nil, k, 1)
		other = other.With(nil, k, 2)
	}
	b = a
	for k := range 1000 {
		b = b.With(nil, k, 2)
	}
	for _, to := range []hamt.Map[int, int]{b, other, {}} {
		n := 0
		for range hamt.Diff(a, to) {
			if n++; n == 7 {
				break
			}
		}
		if n != 7 {
			t.Errorf("%d changes seen, want 7", n)
		}
	}
}

// BenchmarkDiff finds one change among 100,000 keys.
func BenchmarkDiff(b *testing.B) {
	var m hamt.Map[int, int]
	owner := new(hamt.Owner)
	for k := range 100_000 {
		m = m.With(owner, k, 1)
	}
	next := m.With(nil, 4711, 2)
	b.ReportAllocs()
	for b.Loop() {
		for range hamt.Diff(m, next) {
			continue // only the walk is of interest
		}
	}
}
