package workload

import (
	"iter"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// Changes iterates over the events that lead from an older snapshot of the same
// Store to this one, in no particular order. It costs time in proportion to
// what has changed; since may be nil, which stands for the empty Store.
func (s *Snapshot) Changes(since *Snapshot) iter.Seq[Event] {
	if since == nil {
		since = new(Snapshot)
	}
	return func(yield func(Event) bool) {
		for c := range hamt.Diff(since.workloads, s.workloads) {
			e := Event{Workload: c.After}
			if c.After == nil {
				e.Remove = c.Key
			}
			if !yield(e) {
				return
			}
		}
		for c := range hamt.Diff(since.services, s.services) {
			before, after := c.Before.known(), c.After.known()
			if before == after {
				continue // only its members changed
			}
			e := Event{Service: after}
			if after == nil {
				e.Remove = c.Key.String()
			}
			if !yield(e) {
				return
			}
		}
	}
}

// known returns the service of the entry, or nil when there is no entry or only
// workloads that claim to belong to it.
func (e *serviceEntry) known() *Service {
	if e == nil {
		return nil
	}
	return e.service
}

// Members iterates over all workloads that say they belong to the service,
// whatever their health and whether or not the service is known, in no
// particular order.
func (s *Snapshot) Members(key NamespacedHostname) iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		if e := s.services.At(key); e != nil {
			e.members.Values()(yield)
		}
	}
}
