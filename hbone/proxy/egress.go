package proxy

import (
	"context"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/route"
)

// watchOutbound ends live connections to destinations that are not in the registry, when a namespace comes to ask for
// that or a destination goes, until ctx ends.
func (p *Proxy) watchOutbound(ctx context.Context) {
	for {
		// Both before the look: what changes during it is looked at again.
		modes, snap := p.cfg.Outbound.Changed(), p.cfg.Store.Snapshot()
		changed := snap.Changed()
		if p.cfg.Outbound.Strict() {
			for _, pod := range p.Pods() {
				pod.recheckOutbound(snap)
			}
		} else {
			changed = nil
		}
		select {
		case <-changed:
			pause := time.NewTimer(storePause)
			select {
			case <-pause.C:
			case <-modes:
				pause.Stop()
			case <-ctx.Done():
				pause.Stop()
				return
			}
		case <-modes:
		case <-ctx.Done():
			return
		}
	}
}

// recheckOutbound ends the pod's connections that its outbound policy does not allow any more. Those that are not
// established yet look for themselves when they are.
func (p *Pod) recheckOutbound(snap *workload.Snapshot) {
	if p.proxy.cfg.Outbound.Of(p.cfg.Namespace) != egress.RegistryOnly {
		return
	}
	local := p.localIn(snap)
	if local == nil {
		return
	}
	for _, f := range p.flows.all() {
		if f.Direction == Outbound && f.opened.Load() && f.leaves() && !p.registered(snap, local, f) {
			f.owner.cut(ErrOutboundPolicy)
		}
	}
}

// leaves reports whether the flow goes to somebody who is not a member of the mesh: the registry's word alone is what
// allows that. A connection to a member is the members' own to judge, and outlives the service that it was made through.
func (f *Flow) leaves() bool {
	w := f.Destination.Workload
	return w == nil || w.External()
}

func (p *Pod) registered(snap *workload.Snapshot, local *localState, f *Flow) bool {
	return route.Registered(route.Input{
		Snapshot: snap, Source: local.workload, Destination: f.OriginalDst, Network: p.proxy.cfg.Network,
	})
}

// recheckOutbound is for a connection that has just been opened: a change while it was being established passed it by.
func (o *outbound) recheckOutbound() {
	p := o.pod
	if p.proxy.cfg.Outbound.Of(p.cfg.Namespace) == egress.RegistryOnly && o.leaves() && !p.registered(p.proxy.cfg.Store.Snapshot(), o.local, &o.Flow) {
		o.cut(ErrOutboundPolicy)
	}
}
