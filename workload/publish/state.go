package publish

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/internal/hamt"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// catalogue holds the resources of one type by name; its versions share what they
// have in common, so that what a client lacks is found in proportion to it.
type catalogue = hamt.Map[string, *resource]

// state is one version of everything that is published. It never changes.
type state struct {
	version uint64
	seen    time.Time // when the first of its changes was seen
	changed chan struct{}
	snapshots

	addresses, authorizations, networkPolicies catalogue
}

// of returns the catalogue of a type.
func (st *state) of(typeURL string) catalogue {
	switch typeURL {
	case AuthorizationType:
		return st.authorizations
	case NetworkPolicyType:
		return st.networkPolicies
	default:
		return st.addresses
	}
}

// snapshots are what a state is made of.
type snapshots struct {
	workloads *workload.Snapshot
	policies  *policy.Snapshot
	networks  *netpol.Snapshot // or nil
}

// next makes the state that follows from newer snapshots, or returns st when no
// resource differs. st may be nil.
func (st *state) next(from snapshots, seen time.Time, log *slog.Logger) *state {
	n := &state{version: 1, seen: seen, changed: make(chan struct{}), snapshots: from}
	if st == nil {
		st = new(state)
	} else {
		n.version = st.version + 1
	}
	b := builder{log: log}
	n.addresses = b.addresses(st, from.workloads)
	n.authorizations = b.authorizations(st, from.policies)
	n.networkPolicies = b.networkPolicies(st, from.networks)
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
		r.byName = p.Scope == policy.WorkloadSelector
		c = b.put(c, r)
	}
	for _, key := range removals {
		c = b.drop(c, key)
	}
	return c
}

// networkPolicies brings what network policies are made of up to date. A client
// gets all of a change in one response: labels that no policy uses any more go
// together with the last policy that did.
func (b *builder) networkPolicies(st *state, snap *netpol.Snapshot) catalogue {
	c := st.networkPolicies
	if snap == nil {
		return c
	}
	upserts, removals := snap.Changes(st.networks)
	for _, o := range upserts {
		name := wire.Name(o.Key())
		r, err := newResource(name, NetworkPolicyType, wire.ToMessage(o))
		if p, ok := o.(*netpol.Policy); err != nil && ok {
			b.log.Error("network policy cannot be published as it is and denies instead", "policy", cut(strconv.Quote(name)), "error", err)
			r, err = newResource(name, NetworkPolicyType, wire.ToMessage(wire.Spoilt(p, "it cannot be told")))
		}
		if err != nil {
			c = b.unfit(c, name, err)
			continue
		}
		c = b.put(c, r)
	}
	for _, k := range removals {
		c = b.drop(c, wire.Name(k))
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
		from := s.together()
		var networks <-chan struct{} // nil blocks for ever
		if s.cfg.NetworkPolicies != nil {
			from.networks = s.cfg.NetworkPolicies.Snapshot()
			networks = from.networks.Changed()
		}
		if next := st.next(from, seen, s.cfg.Logger); next != st {
			s.publish(st, next)
			st = next
		}
		select {
		case <-from.workloads.Changed():
		case <-from.policies.Changed():
		case <-networks:
		case <-ctx.Done():
			return nil
		}
		seen = time.Now()
		if err := s.debounce(ctx); err != nil {
			return nil //nolint:nilerr // stopping
		}
	}
}

// together returns workloads and policies that were there at one moment. A source
// writes policies before the workloads that name them, and after where they are to
// govern less than before: any other pair could let somebody in.
func (s *Server) together() snapshots {
	for {
		from := snapshots{workloads: s.cfg.Store.Snapshot(), policies: s.cfg.Policies.Snapshot()}
		if s.cfg.Store.Snapshot() == from.workloads {
			return from
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
		var networks <-chan struct{}
		if s.cfg.NetworkPolicies != nil {
			networks = s.cfg.NetworkPolicies.Changed()
		}
		select {
		case <-quiet.C:
			return nil
		case <-limit.C:
			return nil
		case <-workloads:
		case <-policies:
		case <-networks:
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
