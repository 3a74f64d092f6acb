package policy

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// Set holds all policies that a node knows.
//
// Writers (Apply, Replace) are serialised; each publishes one new Snapshot. An
// update costs time in proportion to the policies it changes.
type Set struct {
	mu       sync.Mutex
	snapshot atomic.Pointer[Snapshot]
}

// Snapshot is one consistent state of a Set. It never changes and may be read
// by any number of goroutines.
type Snapshot struct {
	changed chan struct{}
	version uint64
	byKey   hamt.Map[string, *compiled]
	byScope hamt.Map[scopeKey, *scope]
	// What was worked out about workloads: for this state, and for all.
	plans *plans
	names *names
}

// scopeKey says which workloads a set of policies governs: all, or those of a
// namespace.
type scopeKey struct {
	global    bool
	namespace string
}

// New returns an empty Set.
func New() *Set {
	s := new(Set)
	s.snapshot.Store(&Snapshot{changed: make(chan struct{}), plans: new(plans), names: new(names)})
	return s
}

// Snapshot returns the newest state.
func (s *Set) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed at the next change. To miss
// nothing, take it (or use Snapshot.Changed) before reading.
func (s *Set) Changed() <-chan struct{} { return s.Snapshot().Changed() }

// Apply removes and then inserts policies in one step; removals are keys
// ("namespace/name"). A policy replaces the one with its key, and one that is
// equal to it changes nothing. Apply reports whether anything changed.
func (s *Set) Apply(upserts []*Policy, removals []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changeLocked(upserts, removals)
}

// Replace makes the Set hold exactly the given policies.
func (s *Set) Replace(policies []*Policy) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := make(map[string]bool)
	for key := range s.Snapshot().byKey.All() {
		gone[key] = true
	}
	for _, p := range policies {
		delete(gone, p.Key())
	}
	return s.changeLocked(policies, slices.Collect(maps.Keys(gone)))
}

func (s *Set) changeLocked(upserts []*Policy, removals []string) bool {
	old := s.Snapshot()
	next := *old
	owner := new(hamt.Owner)
	dirty := false
	for _, key := range removals {
		if c := next.byKey.At(key); c != nil {
			next.drop(owner, c)
			dirty = true
		}
	}
	for _, p := range upserts {
		c := next.byKey.At(p.Key())
		if c != nil {
			if reflect.DeepEqual(c.policy, p) {
				continue
			}
			next.drop(owner, c)
		}
		next.add(owner, compile(p))
		dirty = true
	}
	if !dirty {
		return false
	}
	next.version++
	next.changed = make(chan struct{})
	next.plans = new(plans)
	s.snapshot.Store(&next)
	close(old.changed)
	return true
}

func (s *Snapshot) add(o *hamt.Owner, c *compiled) {
	s.byKey = s.byKey.With(o, c.key, c)
	s.place(o, c.policy, nil, c)
}

func (s *Snapshot) drop(o *hamt.Owner, c *compiled) {
	s.byKey = s.byKey.Without(o, c.key)
	s.place(o, c.policy, c, nil)
}

// place changes the scope that a policy belongs to, if it belongs to one.
func (s *Snapshot) place(o *hamt.Owner, p *Policy, before, after *compiled) {
	key, ok := keyOf(p)
	if !ok {
		return
	}
	if next := s.byScope.At(key).change(before, after); next != nil {
		s.byScope = s.byScope.With(o, key, next)
	} else {
		s.byScope = s.byScope.Without(o, key)
	}
}

// keyOf reports false for a policy that is reached only by name.
func keyOf(p *Policy) (scopeKey, bool) {
	switch p.Scope {
	case Global:
		return scopeKey{global: true}, true
	case Namespace:
		return scopeKey{namespace: p.Namespace}, true
	case WorkloadSelector:
		return scopeKey{}, false
	default:
		// Nobody knows what it was to govern: its own namespace at least.
		return scopeKey{namespace: p.Namespace}, true
	}
}

// Version counts the changes of the Set; it is 0 before the first.
func (s *Snapshot) Version() uint64 { return s.version }

// Changed returns a channel that is closed when the Set has a newer state.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Len returns the number of policies.
func (s *Snapshot) Len() int { return s.byKey.Len() }

// Policy returns the policy with the key ("namespace/name"), or nil.
func (s *Snapshot) Policy(key string) *Policy {
	if c := s.byKey.At(key); c != nil {
		return c.policy
	}
	return nil
}

// Fault returns why the policy with the key denies everything that it governs,
// or nil when it is sound or unknown.
func (s *Snapshot) Fault(key string) error {
	if c := s.byKey.At(key); c != nil {
		return c.fault
	}
	return nil
}

// Policies returns all policies, ordered by key.
func (s *Snapshot) Policies() []*Policy {
	out := make([]*Policy, 0, s.byKey.Len())
	for c := range s.byKey.Values() {
		out = append(out, c.policy)
	}
	slices.SortFunc(out, func(a, b *Policy) int { return strings.Compare(a.Key(), b.Key()) })
	return out
}
