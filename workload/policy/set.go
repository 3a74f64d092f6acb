package policy

import (
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/workload"
)

// Set holds all policies that a node knows.
type Set struct {
	mu       sync.Mutex
	snapshot atomic.Pointer[Snapshot]
}

// Snapshot is one consistent state of a Set. It never changes.
type Snapshot struct {
	changed chan struct{}
}

// New returns an empty Set.
func New() *Set {
	s := new(Set)
	s.snapshot.Store(&Snapshot{changed: make(chan struct{})})
	return s
}

// Snapshot returns the newest state.
func (s *Set) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed at the next change.
func (s *Set) Changed() <-chan struct{} { return s.Snapshot().Changed() }

// Apply removes and then inserts policies in one step; removals are keys
// ("namespace/name"). It reports whether anything changed.
func (s *Set) Apply(upserts []*Policy, removals []string) bool { return false }

// Replace makes the Set hold exactly the given policies.
func (s *Set) Replace(policies []*Policy) bool { return false }

// Changed returns a channel that is closed when the Set has a newer state.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Policies returns all policies, ordered by key.
func (s *Snapshot) Policies() []*Policy { return nil }

// Policy returns the policy with the key, or nil.
func (s *Snapshot) Policy(key string) *Policy { return nil }

// Evaluate decides whether the connection may enter the workload.
func (s *Snapshot) Evaluate(dst *workload.Workload, c Connection) Decision { return Decision{} }
