package publish

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/internal/hamt"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// catalogue holds the resources of one type by name; its versions share what they
// have in common, so that what a client lacks is found in proportion to it.
type catalogue = hamt.Map[string, *resource]

// state is one version of everything that is published. It never changes.
type state struct {
	version   uint64
	seen      time.Time // when the first of its changes was seen
	changed   chan struct{}
	workloads *workload.Snapshot
	policies  *policy.Snapshot

	addresses, authorizations catalogue
}

// of returns the catalogue of a type.
func (st *state) of(typeURL string) catalogue {
	if typeURL == AuthorizationType {
		return st.authorizations
	}
	return st.addresses
}

// next makes the state that follows from newer snapshots, or returns st when no
// resource differs. st may be nil.
func (st *state) next(workloads *workload.Snapshot, policies *policy.Snapshot, seen time.Time, log *slog.Logger) *state {
	n := &state{version: 1, seen: seen, changed: make(chan struct{}), workloads: workloads, policies: policies}
	if st == nil {
		st = new(state)
	} else {
		n.version = st.version + 1
	}
	b := builder{log: log}
	n.addresses = b.addresses(st, workloads)
	n.authorizations = b.authorizations(st, policies)
	if !b.dirty && st.version > 0 {
		return st
	}
	return n
}

// builder makes catalogues from their predecessors.
type builder struct {
	owner hamt.Owner
	log   *slog.Logger
	dirty bool
}

func (b *builder) addresses(st *state, snap *workload.Snapshot) catalogue {
	c := st.addresses
	for e := range snap.Changes(st.workloads) {
		switch {
		case e.Workload != nil:
			c = b.address(c, snap, e.Workload.UID)
		case e.Service != nil:
			c = b.address(c, snap, e.Service.Key().String())
		default:
			c = b.address(c, snap, e.Remove)
		}
	}
	return c
}

// address brings the resource of that name up to date. A workload and a service
// may have one name; the workload wins, as in a client's lookup.
func (b *builder) address(c catalogue, snap *workload.Snapshot, name string) catalogue {
	if w := snap.Workload(name); w != nil {
		r, err := newResource(name, AddressType, wireWorkload(w))
		if err != nil {
			return b.unfit(c, name, err)
		}
		r.workload = w
		return b.put(c, r)
	}
	key, err := workload.ParseNamespacedHostname(name)
	if err != nil {
		return b.drop(c, name)
	}
	svc := snap.Service(key)
	if svc == nil {
		return b.drop(c, name)
	}
	r, err := newResource(name, AddressType, wireService(svc))
	if err != nil {
		return b.unfit(c, name, err)
	}
	r.service = svc
	return b.put(c, r)
}

// unfit drops an object that cannot be encoded: a source let text through that is
// no UTF-8.
func (b *builder) unfit(c catalogue, name string, err error) catalogue {
	b.log.Error("object cannot be published", "name", cut(strconv.Quote(name)), "error", err)
	return b.drop(c, name)
}

func (b *builder) authorizations(st *state, snap *policy.Snapshot) catalogue {
	c := st.authorizations
	upserts, removals := snap.Changes(st.policies)
	for _, p := range upserts {
		r, err := newResource(p.Key(), AuthorizationType, wirePolicy(p))
		if err != nil { // what it says cannot be told, what it means to govern can
			b.log.Error("policy cannot be published as it is and denies instead", "policy", cut(strconv.Quote(p.Key())), "error", err)
			if r, err = newResource(p.Key(), AuthorizationType, denial(p)); err != nil {
				c = b.unfit(c, p.Key(), err)
				continue
			}
		}
		c = b.put(c, r)
	}
	for _, key := range removals {
		c = b.drop(c, key)
	}
	return c
}

// put adds a resource unless the one that is there says the same.
func (b *builder) put(c catalogue, r *resource) catalogue {
	if old := c.At(r.name); old != nil && old.version == r.version {
		return c
	}
	b.dirty = true
	return c.With(&b.owner, r.name, r)
}

func (b *builder) drop(c catalogue, name string) catalogue {
	if c.At(name) == nil {
		return c
	}
	b.dirty = true
	return c.Without(&b.owner, name)
}

// Run publishes the Store and the Set, from when they are ready until ctx ends,
// and then ends all streams. It returns nil.
func (s *Server) Run(ctx context.Context) error {
	defer s.stop()
	select {
	case <-s.cfg.Ready:
	case <-ctx.Done():
		return nil
	}
	var st *state
	seen := time.Now()
	for {
		// Workloads first: a policy that a workload names was there before it, so it
		// is not missing from a later look at the policies.
		workloads := s.cfg.Store.Snapshot()
		policies := s.cfg.Policies.Snapshot()
		if next := st.next(workloads, policies, seen, s.cfg.Logger); next != st {
			s.publish(st, next)
			st = next
		}
		select {
		case <-workloads.Changed():
		case <-policies.Changed():
		case <-ctx.Done():
			return nil
		}
		seen = time.Now()
		if err := s.debounce(ctx); err != nil {
			return nil //nolint:nilerr // stopping
		}
	}
}

func (s *Server) publish(old, next *state) {
	s.state.Store(next)
	if old == nil {
		close(s.first)
		return
	}
	close(old.changed)
}

// debounce returns when nothing has changed for a while or a change has waited
// long enough.
func (s *Server) debounce(ctx context.Context) error {
	limit := time.NewTimer(s.cfg.MaxDebounce)
	defer limit.Stop()
	quiet := time.NewTimer(s.cfg.Debounce)
	defer quiet.Stop()
	for {
		workloads, policies := s.cfg.Store.Changed(), s.cfg.Policies.Changed()
		select {
		case <-quiet.C:
			return nil
		case <-limit.C:
			return nil
		case <-workloads:
		case <-policies:
		case <-ctx.Done():
			return errors.New("stopping")
		}
		quiet.Reset(s.cfg.Debounce)
	}
}

// stop ends all streams and waits for their readers.
func (s *Server) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	close(s.stopping)
	s.readers.Wait()
}
