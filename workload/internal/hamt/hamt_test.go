package hamt_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// TestAgainstMap drives versions at random, with and without an owner, and
// checks that every version ever taken still equals its model.
func TestAgainstMap(t *testing.T) {
	type version struct {
		m     hamt.Map[int, int]
		model map[int]int
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var versions []version
	var m hamt.Map[int, int]
	model := map[int]int{}
	for range 300 {
		var owner *hamt.Owner
		if rng.IntN(2) == 0 {
			owner = new(hamt.Owner)
		}
		for range rng.IntN(50) {
			k := rng.IntN(400)
			if rng.IntN(3) == 0 {
				m = m.Without(owner, k)
				delete(model, k)
			} else {
				v := rng.Int()
				m = m.With(owner, k, v)
				model[k] = v
			}
		}
		versions = append(versions, version{m, maps.Clone(model)})
	}
	for i, v := range versions {
		if v.m.Len() != len(v.model) {
			t.Fatalf("version %d: Len() = %d, want %d", i, v.m.Len(), len(v.model))
		}
		if got := maps.Collect(v.m.All()); !maps.Equal(got, v.model) {
			t.Fatalf("version %d differs from its model", i)
		}
		for k := range 400 {
			got, ok := v.m.Get(k)
			want, wantOK := v.model[k]
			if got != want || ok != wantOK {
				t.Fatalf("version %d: Get(%d) = %d, %t, want %d, %t", i, k, got, ok, want, wantOK)
			}
		}
	}
}

func TestZeroAndMissing(t *testing.T) {
	var m hamt.Map[string, int]
	if _, ok := m.Get("a"); ok || m.Len() != 0 {
		t.Fatal("zero map is not empty")
	}
	m = m.Without(nil, "a")
	m = m.With(nil, "a", 1)
	if m2 := m.Without(nil, "b"); m2.Len() != 1 {
		t.Fatal("removing a missing key changed the map")
	}
	if m = m.Without(nil, "a"); m.Len() != 0 {
		t.Fatal("map is not empty after its last key went")
	}
	for range m.Values() {
		t.Fatal("empty map has a value")
	}
}

func TestIterationStops(t *testing.T) {
	var m hamt.Map[int, int]
	for i := range 1000 {
		m = m.With(nil, i, i)
	}
	n := 0
	for range m.All() {
		if n++; n == 10 {
			break
		}
	}
	if n != 10 {
		t.Fatalf("visited %d entries, want 10", n)
	}
}

func BenchmarkGet(b *testing.B) {
	var m hamt.Map[int, int]
	owner := new(hamt.Owner)
	for i := range 100_000 {
		m = m.With(owner, i, i)
	}
	i := 0
	for b.Loop() {
		m.Get(i % 100_000)
		i++
	}
}

func BenchmarkWith(b *testing.B) {
	var m hamt.Map[int, int]
	owner := new(hamt.Owner)
	for i := range 100_000 {
		m = m.With(owner, i, i)
	}
	i := 0
	for b.Loop() {
		m = m.With(nil, i%100_000, i)
		i++
	}
}
