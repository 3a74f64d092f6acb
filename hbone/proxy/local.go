package proxy

import (
	"context"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
)

// localState is what is known about the pod's own workload, and what follows from it.
type localState struct {
	version  uint64 // of the store's snapshot
	workload *workload.Workload
	id       identity.ID
	baggage  string
	services []workload.NamespacedHostname // what connections may be meant for
}

// localNow returns the pod's workload as of the newest snapshot, nil when it is not known.
func (p *Pod) localNow() *localState { return p.localIn(p.proxy.cfg.Store.Snapshot()) }

func (p *Pod) localIn(snap *workload.Snapshot) *localState {
	last := p.local.Load()
	if last != nil && last.version == snap.Version() {
		return last
	}
	w := snap.WorkloadByPod(p.cfg.Namespace, p.cfg.Name, p.cfg.ServiceAccount, p.proxy.cfg.Node)
	if w == nil {
		return nil
	}
	next := &localState{version: snap.Version(), workload: w}
	if last != nil && last.workload == w {
		next.id, next.baggage, next.services = last.id, last.baggage, last.services
	} else {
		next.id, next.baggage, next.services = w.Identity(), w.Baggage().String(), route.Candidates(w)
	}
	p.local.Store(next)
	return next
}

// waitLocal waits until the pod's workload is known, for as long as Config says.
func (p *Pod) waitLocal(ctx context.Context) (*localState, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.proxy.cfg.WorkloadTimeout, ErrLocalWorkload)
	defer cancel()
	return workload.Wait(ctx, p.proxy.cfg.Store, func(s *workload.Snapshot) (*localState, bool) {
		local := p.localIn(s)
		return local, local != nil
	})
}
