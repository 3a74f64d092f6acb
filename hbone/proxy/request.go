package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/route"
)

// inbound is one CONNECT of a peer. It lives on the loop of its tunnel, where it is decided at once in the order of the
// reference (section 3.1); only what has to wait runs in a goroutine, which comes back with back.
type inbound struct {
	Flow
	peer     *peer
	st       *tunnel.Stream
	relay    *relay.Relay
	head     *h2.Header // until the request has been looked at
	local    *localState
	upstream route.Upstream
	appFD    int  // the application's socket, for what goes ahead of the payload
	anyPort  bool // the application is called again, see startCall
	over     bool
}

const (
	// mostRequests is how many requests of one tunnel are looked at in one round of its loop. One read may bring 20,000 of
	// them, and each is worth many microseconds; those that wait count against the limit of streams, so that the rest is
	// refused for little and soon taken for an attack (see h2).
	mostRequests = 16
	// maxAuthority bounds what is read, kept and logged of an authority: a host name has 253 characters at most.
	maxAuthority = 300
	// maxBaggage bounds what is kept of the baggage of peers that nobody else knows: eight names of Kubernetes.
	maxBaggage = 2 << 10
)

// turn reports whether the tunnel may have another request looked at in this round of the loop.
func (pr *peer) turn() bool {
	if now := pr.t.Loop().Now(); now != pr.round {
		pr.round, pr.looked = now, 0
	}
	pr.looked++
	return pr.looked <= mostRequests
}

// request is the tunnel's OnRequest.
func (pr *peer) request(st *tunnel.Stream, h *h2.Header) {
	c := &inbound{peer: pr, st: st, head: h}
	c.init(pr.pod, Inbound, c, pr.t.Remote, pr.t.Local)
	c.Protocol, c.Authority, c.Source.ID = HBONE, h.Authority, pr.trust.peer
	if len(c.Authority) > maxAuthority {
		c.Authority = strings.Clone(c.Authority[:maxAuthority])
	}
	c.relay = relay.New(pr.t.Loop(), c.done)
	c.relay.Linger = pr.pod.proxy.cfg.Linger
	c.relay.Serve(st)
	if len(pr.waiting) == 0 && pr.turn() {
		c.look()
		return
	}
	if pr.waiting = append(pr.waiting, c); len(pr.waiting) == 1 {
		pr.t.Loop().RunLater(pr)
	}
}

// Run implements loop.Runner: the requests that wait get their turn.
func (pr *peer) Run() {
	at := 0
	for at < len(pr.waiting) && pr.turn() {
		if c := pr.waiting[at]; !c.over {
			c.look()
		}
		pr.waiting[at] = nil
		at++
	}
	if pr.waiting = pr.waiting[at:]; len(pr.waiting) > 0 {
		pr.t.Loop().RunLater(pr)
	} else {
		pr.waiting = nil
	}
}

// look decides what becomes of a request, as far as that is possible at once.
func (c *inbound) look() {
	pr, h := c.peer, c.head
	c.head = nil
	switch {
	case h.Method != "CONNECT":
		c.refuse(400, ErrMethod)
		return
	case len(h.Authority) > maxAuthority:
		c.refuse(400, ErrLongAuthority)
		return
	}
	snap := pr.pod.proxy.cfg.Store.Snapshot()
	if c.local = pr.pod.localIn(snap); c.local != nil {
		c.route(snap, h)
		return
	}
	if _, err := route.Inbound(c.question(snap, &localState{workload: &workload.Workload{}})); errors.Is(err, route.ErrBadAuthority) {
		c.refuse(400, err)
		return
	}
	c.pod.spawn(func() { c.waitLocal(h) })
}

func (c *inbound) waitLocal(h *h2.Header) {
	local, err := c.pod.waitLocal(c.pod.ctx)
	c.back(func() {
		if err != nil {
			c.refuse(503, err)
			return
		}
		c.local = local
		c.route(c.pod.proxy.cfg.Store.Snapshot(), h)
	})
}

// back goes on with f on the loop, unless the stream is over.
func (c *inbound) back(f func()) {
	posted := c.peer.t.Post(func() {
		if !c.over {
			f()
		}
	})
	if !posted {
		c.finish(loop.ErrClosed) // loops outlive their pods but for the end of the process
	}
}

func (c *inbound) question(snap *workload.Snapshot, local *localState) route.InboundInput {
	return route.InboundInput{
		Snapshot: snap, Local: local.workload, Authority: c.Authority, LocalAddr: c.peer.t.Local,
		Network: c.pod.proxy.cfg.Network, IllegalPorts: c.pod.own, Candidates: local.services,
	}
}

// route finds where the request leads.
func (c *inbound) route(snap *workload.Snapshot, h *h2.Header) {
	up, err := route.Inbound(c.question(snap, c.local))
	if err != nil {
		status := 503
		if ie, ok := errors.AsType[*route.InboundError](err); ok {
			status = ie.Status
		}
		c.refuse(status, err)
		return
	}
	c.upstream = up
	c.ActualDst = up.Addr
	c.Service = up.Service(c.local.workload, forwardedHost(h.Get(fieldForwarded)))
	c.Destination.Workload, c.Destination.ID = c.local.workload, c.local.id
	c.nameSource(snap, h)
	c.facts = policy.Connection{Source: c.Source.ID, SourceIP: c.Source.Addr.Addr(), Destination: up.Addr}
	c.open(&c.relay.ToApp, &c.relay.FromApp)
	c.judge()
}

// nameSource finds out whose connection it is, for telemetry only: the address counts, unless the peer is a gateway that
// forwards for another network, and what the peer says of itself where the address is unknown.
func (c *inbound) nameSource(snap *workload.Snapshot, h *h2.Header) {
	network := c.pod.proxy.cfg.Network
	if from := h.Get(fieldNetwork); from == "" || strings.EqualFold(from, network) {
		c.Source.Workload = snap.WorkloadByAddress(workload.NewNetworkAddress(network, c.Source.Addr.Addr()))
	}
	if c.Source.Workload != nil {
		return
	}
	said := h.Values(fieldBaggage)
	size := 0
	for _, line := range said {
		size += len(line)
	}
	if size > maxBaggage {
		return
	}
	if b, err := workload.ParseBaggage(said...); err == nil && b != (workload.Baggage{}) {
		c.Source.Baggage = &b
	}
}

// judge asks policy. The flow is in the pod's table and open by now, so a policy or workload that changes meanwhile finds
// it there.
func (c *inbound) judge() {
	if newer := c.pod.localNow(); newer != nil {
		c.local = newer
	}
	policies, local := c.pod.proxy.cfg.Policies.Snapshot(), c.local
	if policies.Prepared(local.workload) {
		if d := policies.Evaluate(local.workload, c.facts); settled(d) {
			c.decided(d)
			return
		}
	}
	c.pod.spawn(func() {
		d := c.pod.awaitPolicies(c.pod.ctx, local, c.facts)
		c.back(func() { c.decided(d) })
	})
}

// decided does what policy has said.
func (c *inbound) decided(d policy.Decision) {
	c.noted(d)
	if !d.Allowed {
		c.refuse(401, &DeniedError{Policy: d.Policy, Reason: d.Reason})
		return
	}
	c.admit()
}

// admit asks network policies, which decide besides.
func (c *inbound) admit() {
	n := c.pod.proxy.networks
	if n == nil {
		c.connect()
		return
	}
	switch v := n.incoming(c.local.workload, &c.Flow); {
	case v.denied == nil:
		c.connect()
	case !v.open:
		c.refuse(401, v.denied)
	default:
		local := c.local
		c.pod.spawn(func() {
			err := c.pod.admitted(c.pod.ctx, local, &c.Flow)
			c.back(func() {
				if err != nil {
					c.refuse(401, err)
				} else {
					c.connect()
				}
			})
		})
	}
}

// settled reports whether a decision does not depend on policies that are missing.
func settled(d policy.Decision) bool { return d.Allowed || d.Denied || len(d.Missing) == 0 }

// noted keeps what policies say without deciding. Before the outcome, by whoever has the flow.
func (f *Flow) noted(d policy.Decision) {
	if f.DryRun, f.Audit = d.DryRun, d.Audit; len(f.DryRun)+len(f.Audit) > 0 {
		f.pod.proxy.cfg.Observer.Noted(f)
	}
}

// awaitPolicies waits until policies that the workload names are known, as long as Config says, and returns the decision.
func (p *Pod) awaitPolicies(ctx context.Context, local *localState, facts policy.Connection) policy.Decision {
	ctx, cancel := context.WithTimeout(ctx, p.proxy.cfg.WorkloadTimeout)
	defer cancel()
	for {
		policies, snap := p.proxy.cfg.Policies.Snapshot(), p.proxy.cfg.Store.Snapshot()
		if newer := p.localIn(snap); newer != nil {
			local = newer
		}
		d := policies.Evaluate(local.workload, facts)
		if settled(d) {
			return d
		}
		select {
		case <-policies.Changed():
		case <-snap.Changed():
		case <-ctx.Done():
			return d
		}
	}
}

// refuse answers a request whose ends are not known yet.
func (c *inbound) refuse(status int, err error) {
	c.over = true
	c.st.Respond(status, nil, true)
	c.finish(err)
}

// connect takes a socket that is ready, or has one made.
func (c *inbound) connect() {
	dst := c.appAddr()
	if fd := c.pod.stash.take(loop.Family(dst.Addr())); fd >= 0 {
		c.dial(fd, dst)
		return
	}
	c.pod.spawn(func() {
		fd, err := c.pod.appSocket(loop.Family(dst.Addr()))
		posted := c.peer.t.Post(func() {
			switch {
			case c.over && err == nil:
				loop.CloseFD(fd)
			case c.over:
			case err != nil:
				c.refuse(503, err)
			default:
				c.dial(fd, dst)
			}
		})
		if !posted {
			if err == nil {
				loop.CloseFD(fd)
			}
			c.finish(loop.ErrClosed)
		}
	})
}

// appAddr is what is dialled: a PROXY tunnel's server is reached over loopback.
func (c *inbound) appAddr() netip.AddrPort {
	dst := c.upstream.Addr
	if t := c.upstream.Tunnel; t != nil && t.Protocol == workload.TunnelProxy {
		return netip.AddrPortFrom(loopback(dst.Addr()), dst.Port())
	}
	return dst
}

func loopback(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// dial connects to the application. On the loop.
func (c *inbound) dial(fd int, dst netip.AddrPort) {
	if c.pod.crowds(fd, c.Source.Addr.Addr()) {
		loop.CloseFD(fd)
		c.refuse(503, ErrCrowded)
		return
	}
	err := c.pod.startCall(fd, c.Source.Addr.Addr(), dst, c.anyPort)
	if err != nil {
		loop.CloseFD(fd)
		if inUse(err) && !c.anyPort {
			c.anyPort = true
			c.connect()
			return
		}
		c.refuse(503, err)
		return
	}
	c.appFD = fd
	c.relay.Connect(fd, c.pod.proxy.cfg.ConnectTimeout, c.connected)
}

// connected answers the peer. On the loop.
func (c *inbound) connected(err error) {
	if err != nil {
		c.refuse(503, err)
		return
	}
	var fields []h2.Field
	if !c.pod.proxy.cfg.HideWorkload && c.local.baggage != "" {
		fields = []h2.Field{{Name: fieldBaggage, Value: c.local.baggage}}
	}
	c.st.Respond(200, fields, false)
	if t := c.upstream.Tunnel; t != nil && t.Protocol == workload.TunnelProxy {
		header := proxyHeader(c.Source.Addr, c.upstream.TunnelTarget, c.Source.ID)
		if err := loop.WriteFD(c.appFD, header); err != nil {
			c.relay.Abort(err)
			return
		}
	}
	c.upstream = route.Upstream{}
}

// cut implements cutter.
func (c *inbound) cut(err error) {
	c.peer.t.Post(func() {
		if !c.over {
			c.relay.Abort(err)
		}
	})
}

// done is the relay's.
func (c *inbound) done(err error) {
	if c.over {
		return
	}
	c.over = true
	c.finish(ended(err))
}
