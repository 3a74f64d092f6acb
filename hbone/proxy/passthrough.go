package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// passthrough is one plaintext connection that somebody outside the mesh made to the pod. A goroutine of its own decides;
// then it belongs to the loop.
type passthrough struct {
	Flow
	fd   int // the client's socket until the pair has it
	loop *loop.Loop
	pair *relay.Pair // on the loop
	over bool        // on the loop

	ended atomic.Pointer[error] // what cut it
}

// servePassthrough takes over an accepted plaintext connection.
func (p *Pod) servePassthrough(fd int, client netip.AddrPort) {
	c := &passthrough{fd: fd, loop: p.proxy.quietest()}
	dst, err := p.cfg.OriginalDst(fd)
	c.init(p, Inbound, c, client, dst)
	c.ActualDst = dst
	switch {
	case err != nil:
		c.fail(err)
	case p.ctx.Err() != nil: // stopped before it was in the table
		c.fail(context.Cause(p.ctx))
	case slices.Contains(p.own, dst.Port()):
		c.fail(ErrSelfCall)
	case p.crowds(fd, client.Addr()):
		c.fail(ErrCrowded)
	default:
		p.spawn(c.run)
	}
}

// run decides in the order of the reference (section 3.3) and starts to connect.
func (c *passthrough) run() {
	p, cfg := c.pod, &c.pod.proxy.cfg
	local, err := p.waitLocal(p.ctx)
	if err != nil {
		c.fail(err)
		return
	}
	c.Destination.Workload = local.workload
	c.Source.Workload = cfg.Store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress(cfg.Network, c.Source.Addr.Addr()))
	c.facts = policy.Connection{SourceIP: c.Source.Addr.Addr(), Destination: c.OriginalDst}
	c.open(nil, nil) // the denied count as opened too
	d := p.awaitPolicies(p.ctx, local, c.facts)
	c.noted(d)
	if !d.Allowed {
		c.fail(&DeniedError{Policy: d.Policy, Reason: d.Reason})
		return
	}
	if err := p.admitted(p.ctx, local, &c.Flow); err != nil {
		c.fail(err)
		return
	}
	fd, err := p.call(c.Source.Addr.Addr(), c.OriginalDst)
	if err != nil {
		c.fail(err)
		return
	}
	if !c.loop.Post(func() { c.join(fd) }) {
		loop.CloseFD(fd)
		c.fail(loop.ErrClosed)
	}
}

// join waits for the connect of fd. On the loop.
func (c *passthrough) join(fd int) {
	if err := c.cutBy(); err != nil {
		loop.CloseFD(fd)
		c.fail(err)
		return
	}
	pair := relay.NewPair(c.loop, c.fd, fd, c.pod.proxy.cfg.ConnectTimeout, c.connected, c.done)
	if !c.over {
		c.pair = pair
	}
}

// connected is the pair's. On the loop.
func (c *passthrough) connected(err error) {
	if err != nil {
		c.over = true
		c.fail(err)
		return
	}
	c.fd = -1
	c.count(&c.pair.AToB, &c.pair.BToA)
}

// fail ends a connection that was not established: its client sees a reset.
func (c *passthrough) fail(err error) {
	loop.AbortFD(c.fd)
	c.finish(err)
}

// done is the pair's. On the loop.
func (c *passthrough) done(err error) {
	c.over = true
	c.finish(ended(err))
}

// cut implements cutter.
func (c *passthrough) cut(err error) {
	c.ended.CompareAndSwap(nil, &err)
	c.loop.Post(func() {
		if c.pair != nil && !c.over {
			c.pair.Abort(err)
		}
	})
}

// cutBy returns what the connection was cut with, nil when it was not.
func (c *passthrough) cutBy() error {
	if err := c.ended.Load(); err != nil {
		return *err
	}
	return nil
}
