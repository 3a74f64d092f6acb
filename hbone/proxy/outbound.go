package proxy

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/route"
)

// outbound is one connection that the pod's application has dialled.
//
//	accepted ─► decided ─► attempt on a goroutine (tunnel, socket) ─► attempt on a loop (answer, connect) ─► relaying ─► over
//	                 ▲                     │                                   │
//	                 └──── next target ◄───┴───────────────────────────────────┘
//
// It belongs to one goroutine, or to one loop, at a time; only mu and what it guards are shared.
type outbound struct {
	Flow
	fd       int // the application's socket until a relay has it
	local    *localState
	plan     route.Plan
	counted  string // UID of the workload that the connection counts for
	at       int    // target that is tried
	again    int    // how often it was tried again
	deadline time.Time

	// The attempt on a loop.
	conn  *pool.Conn
	fresh bool // conn was made for this connection
	relay *relay.Relay
	pair  *relay.Pair
	timer loop.Timer
	up    bool // established
	over  bool

	mu      sync.Mutex
	loop    *loop.Loop // the loop that the connection belongs to, if it does
	attempt int        // counts the times that it was given to a loop
	ended   error      // what cut it
}

// serveOutbound decides about an accepted connection. Where a tunnel leads to its destination already, all that happens
// here is one post to the tunnel's loop.
func (p *Pod) serveOutbound(fd int, client netip.AddrPort) {
	dst, err := p.cfg.OriginalDst(fd)
	o := &outbound{fd: fd}
	o.init(p, Outbound, o, client, dst)
	o.deadline = o.Start.Add(p.proxy.cfg.ConnectTimeout)
	switch {
	case err != nil:
		o.fail(err)
	case p.ctx.Err() != nil:
		o.fail(context.Cause(p.ctx))
	case p.callsItself(dst):
		o.fail(ErrSelfCall)
	case p.crowds(fd, netip.Addr{}):
		o.fail(ErrCrowded)
	default:
		snap := p.proxy.cfg.Store.Snapshot()
		if o.local = p.localIn(snap); o.local == nil {
			p.spawn(o.waitLocal)
			return
		}
		o.decide()
	}
}

func (o *outbound) waitLocal() {
	var err error
	if o.local, err = o.pod.waitLocal(o.pod.ctx); err != nil {
		o.fail(err)
		return
	}
	o.deadline = time.Now().Add(o.pod.proxy.cfg.ConnectTimeout)
	o.decide()
}

// decide makes the plan and begins to follow it.
func (o *outbound) decide() {
	p, cfg := o.pod, &o.pod.proxy.cfg
	o.Source.Workload = o.local.workload
	o.plan = route.Make(route.Input{
		Snapshot: cfg.Store.Snapshot(), Source: o.local.workload, SourceIP: o.Source.Addr.Addr(), Destination: o.OriginalDst,
		Network: cfg.Network, HBONEPort: cfg.HBONEPort, Outbound: cfg.Outbound.Of(p.cfg.Namespace),
		Load: p.proxy.loads.of, Suspended: p.suspended.has,
	})
	o.Service = o.plan.Service
	if o.plan.Kind == route.Reject || len(o.plan.Targets) == 0 {
		o.fail(rejection(o.plan))
		return
	}
	t := &o.plan.Targets[0]
	_, near := o.neighbour(t)
	if t.Protocol == route.ProtocolHBONE && t.Dial.IsValid() && !near && o.mayReach(t).denied == nil {
		if conn := p.pool.Take(o.key(t)); conn != nil {
			o.begin()
			if err := o.request(conn, false); err != nil {
				o.fail(err)
			}
			return
		}
	}
	p.spawn(o.run)
}

// maxAgain is how often a target is tried again when it has not seen the request: its tunnel was going away, or full.
const maxAgain = 3

var errOtherNetwork = errors.New("destination is in another network, which is not supported yet")

// final reports an error that every other target would give too, or that must not be tried elsewhere.
func final(err error) bool {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.Status != 503
	}
	if _, ok := errors.AsType[*IdentityError](err); ok {
		return true
	}
	return errors.Is(err, pool.ErrClosed) || errors.Is(err, loop.ErrClosed)
}

// unseen reports an error that says that the peer has not looked at the request (RFC 9113 section 8.7), which is no fault
// of the endpoint.
func unseen(err error) bool {
	if reset, ok := errors.AsType[*tunnel.ResetError](err); ok {
		return reset.Code == h2.RefusedStream && reset.Fault == ""
	}
	return errors.Is(err, h2.ErrGoingAway) || errors.Is(err, h2.ErrStreamLimit)
}

// refusedHere reports a target that was not tried because policy does not let the pod connect to it.
func refusedHere(err error) bool {
	_, ok := errors.AsType[*DeniedError](err)
	return ok
}

func rejection(plan route.Plan) error {
	if plan.Err != nil {
		return plan.Err
	}
	if plan.Reason != "" {
		return errors.New(plan.Reason)
	}
	return errors.New("no route")
}

func (o *outbound) key(t *route.Target) pool.Key {
	return pool.NewKey(o.local.id, t.Expected, t.Workload.UID, t.Dial)
}

// run tries targets until one attempt has reached a loop, or none is left.
func (o *outbound) run() {
	for {
		o.begin()
		err := o.try()
		if err == nil {
			return
		}
		if !o.another(err) {
			o.fail(err)
			return
		}
	}
}

// begin notes the target that is going to be tried.
func (o *outbound) begin() {
	t := &o.plan.Targets[o.at]
	o.Attempts++
	o.Destination = Peer{Addr: t.Dial, Workload: t.Workload}
	o.waypoint = t.Waypoint
	o.ActualDst, o.Authority, o.Protocol, o.Source.ID = t.Dial, "", TCP, identity.ID{}
	if t.Protocol == route.ProtocolHBONE {
		o.Protocol, o.Authority, o.Source.ID = HBONE, t.Authority, o.local.id
		if len(t.Expected) > 0 {
			o.Destination.ID = t.Expected[0]
		}
	}
	uid := ""
	if t.Workload != nil {
		uid = t.Workload.UID
		o.pod.suspended.trying(uid, t.Endpoint)
	}
	o.charge(uid)
}

// charge moves the connection from the workload that it counted for to another one; empty is none.
func (o *outbound) charge(uid string) {
	if o.counted == uid {
		return
	}
	if o.counted != "" {
		o.pod.proxy.loads.add(o.counted, -1)
	}
	if uid != "" {
		o.pod.proxy.loads.add(uid, 1)
	}
	o.counted = uid
}

// try carries out what an attempt needs a goroutine for. Without an error the connection belongs to a loop now.
func (o *outbound) try() error {
	t := &o.plan.Targets[o.at]
	ctx, cancel := context.WithTimeoutCause(o.pod.ctx, o.budget(), ErrConnectTimeout)
	defer cancel()
	if !t.Dial.IsValid() {
		if err := o.resolve(ctx); err != nil {
			return err
		}
		t = &o.plan.Targets[o.at]
	}
	if err := o.released(ctx, t); err != nil {
		return err
	}
	switch t.Protocol {
	case route.ProtocolTCP:
		return o.dial(t)
	case route.ProtocolHBONE:
		if dest, ok := o.neighbour(t); ok && dest.hold() {
			return o.shorten(ctx, dest, t)
		}
		conn, fresh, err := o.pod.pool.Get(ctx, o.key(t), o.dialer(t))
		if err != nil {
			return err
		}
		if fresh {
			o.pod.recheckConn(conn) // lists may have changed since the handshake
		}
		return o.request(conn, fresh)
	default:
		return errOtherNetwork
	}
}

// budget is how long the attempt may take: all the time that is left, or half of it while there are other targets.
func (o *outbound) budget() time.Duration {
	left := time.Until(o.deadline)
	if o.at+1 < len(o.plan.Targets) {
		left /= 2
	}
	return left
}

// another decides whether there is something to try after err, and makes it the current target. Nothing of the
// application's bytes has left its socket, so trying again is safe.
func (o *outbound) another(err error) bool {
	reused := o.conn != nil && !o.fresh
	o.conn = nil
	if o.cutBy() != nil || time.Until(o.deadline) <= 0 || final(err) {
		return false
	}
	if o.again < maxAgain && (unseen(err) || reused && tunnelLost(err)) {
		o.again++
		return true
	}
	if t := &o.plan.Targets[o.at]; t.Workload != nil && !refusedHere(err) {
		o.pod.suspended.failed(t.Workload.UID, t.Endpoint)
	}
	if o.at+1 == len(o.plan.Targets) {
		return false
	}
	o.at, o.again = o.at+1, 0
	return true
}

// fail ends a connection that was not established: its application sees a reset, never a clean end.
func (o *outbound) fail(err error) {
	if cut := o.cutBy(); cut != nil {
		err = cut
	}
	if o.fd >= 0 {
		loop.AbortFD(o.fd)
		o.fd = -1
	}
	if o.Attempts > 0 {
		o.open(nil, nil)
	}
	o.charge("")
	o.finish(err)
}
