package workload

import (
	"context"
	"sync"
	"sync/atomic"
)

// Event is one change of a batch. Exactly one field is set.
type Event struct {
	// Workload is inserted, or replaces the one with its UID.
	Workload *Workload
	// Service is inserted, or replaces the one with its Key.
	Service *Service
	// Remove is the UID of a workload or, when no workload has it, the
	// "namespace/hostname" of a service. An unknown key is ignored.
	Remove string
}

// Upsert returns the event that inserts or replaces a workload.
func Upsert(w *Workload) Event { return Event{Workload: w} }

// UpsertService returns the event that inserts or replaces a service.
func UpsertService(s *Service) Event { return Event{Service: s} }

// Removal returns the event that removes a workload or service by key.
func Removal(key string) Event { return Event{Remove: key} }

// Store holds the mesh's workloads and services.
//
// Writers (Apply, Replace) are serialised; each publishes one new Snapshot.
// Readers take the newest Snapshot with one atomic load and are never blocked.
// An update costs time in proportion to what it changes, whatever the Store
// holds.
type Store struct {
	mu     sync.Mutex
	intern *interner // guarded by mu

	snapshot atomic.Pointer[Snapshot]
}

// New returns an empty Store.
func New() *Store {
	s := &Store{intern: newInterner()}
	s.snapshot.Store(&Snapshot{changed: make(chan struct{})})
	return s
}

// Snapshot returns the newest consistent view. Use one for all questions of
// one decision.
func (s *Store) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed at the next change. To miss
// nothing, take it (or use Snapshot.Changed) before reading.
func (s *Store) Changed() <-chan struct{} { return s.Snapshot().Changed() }

// Apply makes the batch visible at once, in one new Snapshot. A batch is a set
// and not a sequence: removals are done first, so a key that is both removed
// and upserted is there afterwards; of several upserts of one key the last
// wins. The Store keeps its own copies of the structs; what they point to must
// not be changed any more by the caller. Apply reports whether anything
// changed; events that say what is known already change nothing.
func (s *Store) Apply(batch []Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.beginLocked()
	for _, e := range batch {
		if e.Remove != "" {
			w.remove(e.Remove)
		}
	}
	for _, e := range batch {
		switch {
		case e.Workload != nil:
			w.upsertWorkload(e.Workload)
		case e.Service != nil:
			w.upsertService(e.Service)
		}
	}
	return s.publishLocked(w)
}

// Replace makes the Store hold exactly what is given. Objects that are equal
// to the ones held already stay as they are.
func (s *Store) Replace(workloads []*Workload, services []*Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.beginLocked()
	w.removeOthers(workloads, services)
	for _, o := range services {
		w.upsertService(o)
	}
	for _, o := range workloads {
		w.upsertWorkload(o)
	}
	return s.publishLocked(w)
}

func (s *Store) beginLocked() *writer { return newWriter(s.Snapshot(), s.intern) }

func (s *Store) publishLocked(w *writer) bool {
	if !w.dirty {
		return false
	}
	old := s.Snapshot()
	next := w.finish()
	next.version = old.version + 1
	next.changed = make(chan struct{})
	s.snapshot.Store(next)
	close(old.changed)
	return true
}

// Wait returns what find answers for a snapshot as soon as it answers true: at
// once, or after a change. It gives up with ctx and returns its cause.
func Wait[T any](ctx context.Context, s *Store, find func(*Snapshot) (T, bool)) (T, error) {
	for {
		snap := s.Snapshot()
		if v, ok := find(snap); ok {
			return v, nil
		}
		select {
		case <-snap.Changed():
		case <-ctx.Done():
			var zero T
			return zero, context.Cause(ctx)
		}
	}
}
