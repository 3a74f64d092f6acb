package proxy

import (
	"cmp"
	"context"
	"errors"
	"net/netip"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/route"
)

// errNetworkUnknown refuses a connection while it is not known which network policies there are.
var errNetworkUnknown = &DeniedError{Reason: "network policies are not known yet"}

// networks judges flows of both directions by network policies: the destination's for what comes in, the source's for
// what goes out, each by the real peer and the port that the application is reached at.
//
// Who the peer is follows from its address, as with a packet filter. In a tunnel it has a certificate besides: if that is
// another's than that of the pod with the address, nobody has proven which pod it is.
type networks struct {
	set     *netpol.Set
	network string // that the addresses belong to
	ownNode func(netip.Addr) bool
	store   *workload.Store
}

// verdict is the answer about one connection.
type verdict struct {
	denied *DeniedError // nil: it may be
	// open says that the answer may change within moments, when the peer becomes known.
	open bool
}

// ask evaluates a question.
func (n *networks) ask(snap *netpol.Snapshot, q netpol.Query) verdict {
	if !snap.Ready() {
		return verdict{errNetworkUnknown, true}
	}
	d := snap.Evaluate(q)
	if d.Allowed {
		return verdict{}
	}
	return verdict{denial(q.Direction, &d), d.Unknown}
}

// denial words a decision.
func denial(direction netpol.Direction, d *netpol.Decision) *DeniedError {
	reason := direction.String() + " denied: " + d.Reason
	if d.Policy != "" {
		reason = direction.String() + " denied by " + d.Policy
		if d.Rule != "" {
			reason += ", rule " + d.Rule
		}
		reason += ": " + d.Reason
	}
	return &DeniedError{Policy: d.Policy, Reason: reason}
}

// free reports whether there is no need to ask: there are no policies, or the workload is none that they can select.
func free(snap *netpol.Snapshot, local *workload.Workload) bool {
	return snap.Ready() && snap.Policies() == 0 || podUID(local) == ""
}

// incoming asks about a flow that has come to the pod.
func (n *networks) incoming(local *workload.Workload, f *Flow) verdict {
	snap := n.set.Snapshot()
	if free(snap, local) {
		return verdict{}
	}
	q, stranger := n.ingress(local, f)
	v := n.ask(snap, q)
	v.open = v.denied != nil && (v.open || stranger)
	return v
}

// ingress makes the question about an inbound flow. stranger says that its peer has a certificate and an address that
// nobody knows: a pod whose workload is still on its way, probably.
func (n *networks) ingress(local *workload.Workload, f *Flow) (q netpol.Query, stranger bool) {
	q = netpol.Query{
		Direction: netpol.Ingress, Port: f.facts.Destination.Port(), Subject: local.UID, PeerAddr: f.Source.Addr.Addr(),
	}
	peer := f.Source.Workload
	if podUID(peer) == "" { // what was known of the address then may have been somebody's declaration, or nothing
		peer = cmp.Or(n.at(q.PeerAddr), peer)
	}
	proven := f.Protocol != TCP
	switch {
	case peer == nil && proven:
		q.PeerUnproven, stranger = true, true
	case peer == nil:
	case proven && peer.Identity() != f.Source.ID:
		q.PeerUnproven = true
	default:
		q.Peer = podUID(peer)
	}
	q.PeerIsNode = q.Peer == "" && !q.PeerUnproven && n.ownNode(q.PeerAddr)
	return q, stranger
}

// at is whose address it is now, nil if the mesh does not know.
func (n *networks) at(addr netip.Addr) *workload.Workload {
	return n.store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress(n.network, addr))
}

// podUID is the UID of a pod with an address of its own, and empty for others.
func podUID(w *workload.Workload) string {
	if w == nil || !w.IsPod() || w.NetworkMode == workload.HostNetwork {
		return ""
	}
	return w.UID
}

// outgoing asks about a connection of the pod to a target.
func (n *networks) outgoing(local *workload.Workload, t *route.Target) verdict {
	snap := n.set.Snapshot()
	if free(snap, local) {
		return verdict{}
	}
	return n.ask(snap, n.egress(local, t.Workload, reach(t.Authority, t.Dial, t.Waypoint)))
}

// egress makes the question about an outbound connection; peer is nil for an address that the mesh does not know. What users
// declare as workloads hides no pod: whose address it is counts.
func (n *networks) egress(local, peer *workload.Workload, dst netip.AddrPort) netpol.Query {
	q := netpol.Query{
		Direction: netpol.Egress, Port: dst.Port(), Subject: local.UID, Peer: podUID(peer), PeerAddr: dst.Addr(),
	}
	if peer != nil && len(peer.Addresses) == 0 {
		// The address is what this name was resolved to just now. The name of a service says nothing of the kind: whoever
		// may declare services chooses it, and its addresses.
		q.PeerDomain = peer.Hostname
	}
	if q.Peer == "" {
		q.Peer = podUID(n.at(q.PeerAddr))
	}
	q.PeerIsNode = q.Peer == "" && n.ownNode(q.PeerAddr)
	return q
}

// concerns implements judge.
func (n *networks) concerns(Direction) bool { return true }

// changed implements judge.
func (n *networks) changed() <-chan struct{} { return n.set.Changed() }

// sit implements judge. What is not known, of the policies or of a pod, ends nothing.
func (n *networks) sit(_ *Pod, local *localState) (basis any, look func(*Flow) error) {
	snap := n.set.Snapshot()
	if !snap.Ready() || free(snap, local.workload) {
		return snap, allowed
	}
	return snap, func(f *Flow) error {
		if f.waiting.Load() {
			return nil
		}
		return live(snap, n.about(local.workload, f))
	}
}

// about makes the question about a flow that goes on.
func (n *networks) about(local *workload.Workload, f *Flow) netpol.Query {
	if f.Direction == Outbound {
		return n.egress(local, f.Destination.Workload, reach(f.Authority, f.Destination.Addr, f.waypoint))
	}
	q, _ := n.ingress(local, f)
	return q
}

// live returns what a flow that goes on has to end with.
func live(snap *netpol.Snapshot, q netpol.Query) error {
	if d := snap.Evaluate(q); !d.Allowed && !d.Unknown {
		return &policyChange{d.Policy}
	}
	return nil
}

func allowed(*Flow) error { return nil }

// newcomers is the judge, by network policies, of flows whose other end was no pod for all that was known when they came. The
// store tells later that it is one, which changes no policy, and may come after all that policies are made of.
type newcomers struct{ *networks }

// changed implements judge.
func (n *newcomers) changed() <-chan struct{} { return nil } // the store is followed

// sit implements judge.
func (n *newcomers) sit(_ *Pod, local *localState) (basis any, look func(*Flow) error) {
	known := n.store.Snapshot().Version()
	snap := n.set.Snapshot()
	if !snap.Ready() || free(snap, local.workload) {
		return known, allowed
	}
	return known, func(f *Flow) error {
		other := f.Source.Workload
		if f.Direction == Outbound {
			other = f.Destination.Workload
		}
		if f.waiting.Load() || podUID(other) != "" {
			return nil
		}
		q := n.about(local.workload, f)
		if q.Peer == "" {
			return nil
		}
		return live(snap, q)
	}
}

// awaitNetworks asks again and again, as long as Config says, while the answer is open. It returns nil or why not.
func (p *Pod) awaitNetworks(ctx context.Context, ask func() verdict) error {
	v := ask()
	if v.denied != nil && v.open {
		ctx, cancel := context.WithTimeout(ctx, p.proxy.cfg.WorkloadTimeout)
		defer cancel()
		for v.denied != nil && v.open && ctx.Err() == nil {
			policies, workloads := p.proxy.networks.set.Changed(), p.proxy.cfg.Store.Changed()
			if v = ask(); v.denied == nil || !v.open {
				break
			}
			select {
			case <-policies:
			case <-workloads:
			case <-ctx.Done():
			}
		}
	}
	if v.denied == nil {
		return nil
	}
	return v.denied
}

// admitted reports why network policies do not let an inbound flow in; nil when they do. It waits for what is not known
// yet.
func (p *Pod) admitted(ctx context.Context, local *localState, f *Flow) error {
	n := p.proxy.networks
	if n == nil {
		return nil
	}
	ask := func() verdict {
		if newer := p.localNow(); newer != nil {
			local = newer
		}
		return n.incoming(local.workload, f)
	}
	// While it waits nobody else ends the flow, so that its client gets an answer; what has passed it by meanwhile is asked
	// for in the end.
	f.waiting.Store(true)
	err := p.awaitNetworks(ctx, ask)
	f.waiting.Store(false)
	if v := ask(); err == nil && v.denied != nil {
		err = v.denied
	}
	return err
}

// reach is the address and port by which network policies know a target: the application's own, which the authority names,
// or the one that is dialled where there is no tunnel, or where it ends in a waypoint first.
func reach(authority string, dial netip.AddrPort, waypoint bool) netip.AddrPort {
	if asked, err := netip.ParseAddrPort(authority); err == nil && !waypoint {
		return asked
	}
	return dial
}

// mayReach asks whether network policies let the connection go to the target, whose address is known.
func (o *outbound) mayReach(t *route.Target) verdict {
	n := o.pod.proxy.networks
	if n == nil {
		return verdict{}
	}
	return n.outgoing(o.local.workload, t)
}

// errGone ends waiting for a pod whose workload is gone.
var errGone = errors.New("destination is gone")

// released reports why network policies do not let the connection go to the target; nil when they do. It waits for what
// is not known yet, unless the target is gone meanwhile.
func (o *outbound) released(ctx context.Context, t *route.Target) error {
	if o.pod.proxy.networks == nil {
		return nil
	}
	gone := false
	err := o.pod.awaitNetworks(ctx, func() verdict {
		if newer := o.pod.localNow(); newer != nil {
			o.local = newer
		}
		v := o.mayReach(t)
		if v.open && t.Workload != nil && o.pod.proxy.cfg.Store.Snapshot().Workload(t.Workload.UID) == nil {
			gone, v.open = true, false
		}
		return v
	})
	if err != nil && gone {
		return errGone
	}
	return err
}
