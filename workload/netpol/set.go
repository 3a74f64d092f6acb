package netpol

import (
	"sync"
	"sync/atomic"
)

// Set holds the policies that a node knows and what they select by.
//
// Writers (Apply, SetReady) are serialised; each publishes one new Snapshot.
type Set struct {
	mu       sync.Mutex
	snapshot atomic.Pointer[Snapshot]
}

// Snapshot is one consistent state of a Set. It may be read by any number of
// goroutines.
type Snapshot struct {
	changed chan struct{}
	version uint64
	ready   bool
}

// New returns an empty Set that is not ready.
func New() *Set {
	s := new(Set)
	s.snapshot.Store(&Snapshot{changed: make(chan struct{})})
	return s
}

// Snapshot returns the newest state.
func (s *Set) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed at the next change. To miss
// nothing, take it (or use Snapshot.Changed) before reading.
func (s *Set) Changed() <-chan struct{} { return s.Snapshot().Changed() }

// Apply removes and then inserts objects in one step. An object replaces the
// one with its key, and one that is equal to it changes nothing. Apply reports
// whether anything changed.
func (s *Set) Apply(upserts []Object, removals []Key) bool { return false }

// Replace makes the Set hold exactly the given objects.
func (s *Set) Replace(objects []Object) bool { return false }

// SetReady says whether the Set holds all that there is, so that it can be
// relied on. A source calls it when it has received everything once.
func (s *Set) SetReady(ready bool) {}

// Ready reports what SetReady was told last; false before. What a Snapshot
// answers that is not ready may be wider than the policies that exist: the
// caller waits, and refuses.
func (s *Snapshot) Ready() bool { return s.ready }

// Version counts the changes of the Set; it is 0 before the first.
func (s *Snapshot) Version() uint64 { return s.version }

// Changed returns a channel that is closed when the Set has a newer state.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Object returns the object with the key, or nil.
func (s *Snapshot) Object(k Key) Object { return nil }

// Objects returns all objects, ordered by kind, namespace and name.
func (s *Snapshot) Objects() []Object { return nil }

// Fault returns what of the policy with the key cannot be understood, or nil
// when all of it can or the policy is not in the Set.
func (s *Snapshot) Fault(k Key) error { return nil }

// Changes returns what leads from an older snapshot of the same Set to this
// one, as Apply takes it, in no particular order. It costs time in proportion
// to what has changed; since may be nil, which stands for the empty Set.
func (s *Snapshot) Changes(since *Snapshot) (upserts []Object, removals []Key) { return nil, nil }

// Selecting returns the keys of the policies that select the pod for a
// direction, in the order in which they decide.
func (s *Snapshot) Selecting(uid string, d Direction) []Key { return nil }

// Evaluate decides whether the connection may be. It allocates nothing but on
// the first query about a pod after a change of the policies that may select
// it.
//
// Of the tier Admin the first rule that matches decides, by priority of its
// policy and its place there; Pass goes to the next tier. Then, if any policy
// of Namespaced selects the subject, the connection is allowed exactly when a
// rule of any of these matches, or when the peer is the subject itself or its
// node. Then comes Baseline, like Admin. What nothing decides is allowed.
func (s *Snapshot) Evaluate(q Query) Decision { return Decision{Reason: "not implemented"} }

// Validate reports every part of the policy that cannot be understood. One
// with faults may still be given to a Set.
func (p *Policy) Validate() error { return nil }
