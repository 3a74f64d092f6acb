package proxy

import (
	"cmp"
	"slices"
	"sync"
)

// flowTable is the set of live flows of one pod. Links are in the flows, so joining and leaving allocates nothing.
type flowTable struct {
	mu    sync.Mutex
	first *Flow
	count int
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
