package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
)

// flowTable is the set of live flows of one pod. Their places are in the flows, so that leaving is quick, and they lie in
// one piece, so that taking them all out holds the lock for microseconds.
type flowTable struct {
	mu    sync.Mutex
	flows []*Flow
	by    map[netip.Addr]int // flows, and inbound tunnels, of one owner: see Flow.charged
}

// charged is whom the flow's descriptors are for: the address that comes to the pod, or, as the zero address, the pod's own
// applications.
func (f *Flow) charged() netip.Addr {
	if f.Direction == Outbound {
		return netip.Addr{}
	}
	return f.Source.Addr.Addr()
}

// hold counts something of an owner that is no flow, for n of -1 for the last time.
func (t *flowTable) hold(owner netip.Addr, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holdLocked(owner, n)
}

func (t *flowTable) holdLocked(owner netip.Addr, n int) {
	if t.by == nil {
		t.by = make(map[netip.Addr]int)
	}
	if t.by[owner] += n; t.by[owner] == 0 {
		delete(t.by, owner)
	}
}

// share returns how much an owner has.
func (t *flowTable) share(owner netip.Addr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[owner]
}

func (t *flowTable) add(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.place = len(t.flows)
	t.flows = append(t.flows, f)
	t.holdLocked(f.charged(), 1)
}

func (t *flowTable) remove(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	end := len(t.flows) - 1
	last := t.flows[end]
	last.place = f.place
	t.flows[f.place], t.flows[end] = last, nil
	t.flows = t.flows[:end]
	if end == 0 {
		t.flows = nil // it may have been long
	}
	t.holdLocked(f.charged(), -1)
}

// all returns the flows, those that are not open yet included.
func (t *flowTable) all() []*Flow {
	t.mu.Lock()
	n := len(t.flows)
	t.mu.Unlock()
	flows := make([]*Flow, 0, n+n/8) // not under the lock, for which loops wait
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(flows, t.flows...)
}

// Flows returns the pod's live flows whose ends are known, oldest first. Their outcome must not be read.
func (p *Pod) Flows() []*Flow {
	flows := slices.DeleteFunc(p.flows.all(), func(f *Flow) bool { return !f.opened.Load() })
	slices.SortFunc(flows, func(a, b *Flow) int { return cmp.Compare(a.ID, b.ID) })
	return flows
}
