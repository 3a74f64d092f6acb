package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
)

// flowTable is the set of live flows of one pod. Links are in the flows, so joining and leaving allocates nothing.
type flowTable struct {
	mu    sync.Mutex
	first *Flow
	count int
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
	f.next = t.first
	if f.next != nil {
		f.next.prev = f
	}
	t.first = f
	t.count++
	t.holdLocked(f.charged(), 1)
}

func (t *flowTable) remove(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		t.first = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
	t.count--
	t.holdLocked(f.charged(), -1)
}

// all returns the flows, those that are not open yet included.
func (t *flowTable) all() []*Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	flows := make([]*Flow, 0, t.count)
	for f := t.first; f != nil; f = f.next {
		flows = append(flows, f)
	}
	return flows
}

// Flows returns the pod's live flows whose ends are known, oldest first. Their outcome must not be read.
func (p *Pod) Flows() []*Flow {
	flows := slices.DeleteFunc(p.flows.all(), func(f *Flow) bool { return !f.opened.Load() })
	slices.SortFunc(flows, func(a, b *Flow) int { return cmp.Compare(a.ID, b.ID) })
	return flows
}
