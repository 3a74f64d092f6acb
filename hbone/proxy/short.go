package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/route"
)

// short is the destination's end of a connection between two pods of this agent that takes no tunnel: the bytes go from
// the one application to the other in a relay.Pair. What a tunnel and a CONNECT would have asked is asked all the same, in
// the same order (see inbound), and each pod has its own flow.
//
// A goroutine of the outbound end decides; then it belongs to the same loop as the outbound end.
type short struct {
	Flow
	from *outbound
	*credentials
	cancel context.CancelCauseFunc // of what the goroutine waits for

	mu    sync.Mutex
	ended error // what cut it
	given bool  // to the loop
	over  bool
}

// shorten is an attempt at a target in a pod of this agent, which is held and let go here.
func (o *outbound) shorten(ctx context.Context, dest neighbour, t *route.Target) error {
	defer dest.work.Done()
	o.Protocol, o.Authority = SameNode, ""
	shown, err := o.introduce(ctx, dest, t)
	if err != nil {
		return err
	}
	o.Destination.ID = shown.destination.ID
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &short{from: o, credentials: shown, cancel: cancel}
	c.Protocol, c.Source.ID, c.Destination.ID = SameNode, shown.source.ID, shown.destination.ID
	c.init(dest.Pod, Inbound, c, o.Source.Addr, t.Dial)
	if dest.ctx.Err() != nil { // stopped before it was in the table
		c.cut(context.Cause(dest.ctx))
	}
	c.recheck() // lists may have changed meanwhile
	fd, err := c.prepare(ctx, dest.local, t)
	if err != nil {
		return err
	}
	if err := c.give(fd); err != nil {
		loop.CloseFD(fd)
		return err
	}
	return nil
}

// prepare decides, and starts to connect to the application. A failure has been reported for the destination; the error
// is the source's.
func (c *short) prepare(ctx context.Context, local *localState, t *route.Target) (fd int, err error) {
	p, cfg := c.pod, &c.pod.proxy.cfg
	up, err := route.Inbound(route.InboundInput{
		Snapshot: cfg.Store.Snapshot(), Local: local.workload, Authority: t.Authority, LocalAddr: t.Dial, Network: cfg.Network, IllegalPorts: p.own,
		Candidates: local.services,
	})
	if err != nil {
		status := 503
		if ie, ok := errors.AsType[*route.InboundError](err); ok {
			status = ie.Status
		}
		return -1, c.refuse(status, err)
	}
	c.describe(local, up)
	c.open(nil, nil)
	d := p.awaitPolicies(ctx, local, c.facts)
	c.noted(d)
	denied := &DeniedError{Policy: d.Policy, Reason: d.Reason}
	switch {
	case !d.Allowed && settled(d): // whether or not a watch has found the open flow before and cut it
		_ = c.end() // the denial is why it ends, not the cut
		c.finish(denied)
		return -1, &StatusError{401}
	case ctx.Err() != nil:
		return -1, c.leave(context.Cause(ctx))
	case !d.Allowed:
		return -1, c.refuse(401, denied)
	}
	if err := p.admitted(ctx, local, &c.Flow); err != nil {
		if ctx.Err() != nil {
			return -1, c.leave(context.Cause(ctx))
		}
		return -1, c.refuse(401, err)
	}
	if fd, err = p.call(c.Source.Addr.Addr(), up.Addr); err != nil {
		return -1, c.refuse(503, err)
	}
	return fd, nil
}

// describe fills in both flows' ends.
func (c *short) describe(local *localState, up route.Upstream) {
	o := c.from
	c.Source.Workload, c.Destination.Workload = o.local.workload, local.workload
	c.Destination.Addr, c.OriginalDst, c.ActualDst = up.Addr, o.OriginalDst, up.Addr
	o.Destination.Addr, o.ActualDst = up.Addr, up.Addr
	asked := ""
	if o.Service != nil {
		asked = o.Service.Hostname
	}
	c.Service = up.Service(local.workload, asked)
	c.facts = policy.Connection{Source: c.Source.ID, SourceIP: c.Source.Addr.Addr(), Destination: up.Addr}
}

// refuse ends the flow, as an answer of that status would, and returns the source's error.
func (c *short) refuse(status int, err error) error {
	if cut := c.end(); cut != nil {
		c.finish(cut)
		return &otherSide{cut}
	}
	c.finish(err)
	return &StatusError{status}
}

// leave ends the flow because the source has given up, and returns why.
func (c *short) leave(err error) error {
	if cut := c.end(); cut != nil {
		c.finish(cut)
		return &otherSide{cut}
	}
	c.finish(ended(&otherSide{err}))
	return err
}

// end makes later cuts mean nothing and returns what the flow was cut with, nil when it was not.
func (c *short) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	return c.ended
}

// give hands the connection to a loop. fd stays the caller's after an error.
func (c *short) give(fd int) error {
	o := c.from
	c.mu.Lock()
	c.given = true
	cut := c.ended
	c.mu.Unlock()
	if cut != nil {
		return c.leave(cut)
	}
	l, budget := o.pod.proxy.quietest(), o.budget()
	if err := o.give(l, func() { c.join(l, fd, budget) }); err != nil {
		return c.leave(err)
	}
	return nil
}

// join waits for the connect of fd. On the loop.
func (c *short) join(l *loop.Loop, fd int, budget time.Duration) {
	o := c.from
	if err := o.cutBy(); err != nil {
		loop.CloseFD(fd)
		o.missed(c.leave(err))
		return
	}
	failed := false
	pair := relay.NewPair(l, o.fd, fd, budget, func(err error) {
		if failed = err != nil; failed {
			o.missed(c.refuse(503, err))
			return
		}
		o.fd = -1
		c.count(&o.pair.AToB, &o.pair.BToA)
		o.established(o.pair)
	}, c.done)
	if !failed {
		o.pair = pair
	}
}

// done is the pair's. On the loop.
func (c *short) done(err error) {
	theirs := err
	if cut := c.end(); cut != nil {
		err = cut
	} else if o := c.from.cutBy(); o != nil {
		err = &otherSide{o}
	}
	c.finish(ended(err))
	c.from.done(theirs)
}

// cut implements cutter. Before the connection is given to a loop only this attempt ends.
func (c *short) cut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.ended == nil {
		c.ended = err
	}
	c.cancel(err)
	if c.given {
		c.from.cut(&otherSide{err})
	}
}

// recheck ends the connection if one of the pods has been revoked.
func (c *short) recheck() {
	source, destination := c.check(c.pod.proxy.cfg.Revocation)
	if source != nil {
		c.cut(source)
	}
	if destination != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.over {
			c.from.cut(destination)
			c.cancel(destination)
		}
	}
}

// recheckShort ends the connections without a tunnel to this pod for which one of the pods has been revoked.
func (p *Pod) recheckShort() {
	for _, f := range p.flows.all() {
		if c, ok := f.owner.(*short); ok {
			c.recheck()
		}
	}
}
