package admin

import (
	"maps"
	"slices"
	"sync"
)

// Readiness is the set of things that a program still waits for. The zero value is ready.
type Readiness struct {
	mu      sync.Mutex
	pending map[string]struct{}
}

// Block makes the program not ready until the name is cleared. Blocking twice under one name is the same as once.
func (r *Readiness) Block(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		r.pending = make(map[string]struct{})
	}
	r.pending[name] = struct{}{}
}

// Clear takes the name's block away.
func (r *Readiness) Clear(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, name)
}

// Pending returns the names that block, sorted; none means ready.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.pending))
}
