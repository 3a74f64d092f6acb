package proxy

import (
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/workload/route"
)

// give hands the connection to a loop, where f goes on with it.
func (o *outbound) give(l *loop.Loop, f func()) error {
	o.mu.Lock()
	o.loop = l
	o.attempt++
	o.mu.Unlock()
	if l.Post(f) {
		return nil
	}
	o.leave()
	return loop.ErrClosed
}

// leave takes the connection from its loop.
func (o *outbound) leave() {
	o.mu.Lock()
	o.loop = nil
	o.mu.Unlock()
}

// cut implements cutter. A goroutine that works for the connection is ended by the pod's context.
func (o *outbound) cut(err error) {
	o.mu.Lock()
	if o.ended == nil {
		o.ended = err
	}
	l, n := o.loop, o.attempt
	o.mu.Unlock()
	if l != nil {
		l.Post(func() { o.cutOnLoop(n) })
	}
}

// cutBy returns what the connection was cut with, nil when it was not.
func (o *outbound) cutBy() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ended
}

// cutOnLoop ends the n-th attempt, or what came of it, if the connection is still here.
func (o *outbound) cutOnLoop(n int) {
	o.mu.Lock()
	here, err := o.loop != nil && o.attempt == n, o.ended
	o.mu.Unlock()
	switch {
	case !here || o.over:
	case o.pair != nil:
		o.fd = -1
		o.pair.Abort(err)
	case o.relay != nil && o.up:
		o.relay.Abort(err)
	case o.relay != nil:
		o.relay.Stream().Reset(h2.Cancel)
		o.missed(err)
	}
}

// request asks for a stream on a tunnel, where one is reserved.
func (o *outbound) request(conn *pool.Conn, fresh bool) error {
	o.conn, o.fresh = conn, fresh
	err := o.give(conn.Tunnel().Loop(), o.send)
	if err != nil {
		conn.Release()
	}
	return err
}

// send opens the stream. On the loop.
func (o *outbound) send() {
	if err := o.cutBy(); err != nil {
		o.missed(err)
		return
	}
	t := o.conn.Tunnel()
	o.relay = relay.New(t.Loop(), o.done)
	o.relay.Linger = o.pod.proxy.cfg.Linger
	head := connectHeader(o.Authority, o.local.baggage, o.Source.Addr, o.Service)
	err := o.relay.Request(t, head, o.answered)
	o.conn.Observe()
	if err != nil {
		o.missed(err)
		return
	}
	t.Loop().After(&o.timer, max(0, o.budget()), o.unanswered)
}

// answered gets the peer's answer, or why there is none. On the loop.
func (o *outbound) answered(h *h2.Header, err error) {
	switch {
	case err != nil:
		o.missed(err)
	case h.Status != 200:
		st := o.relay.Stream()
		st.End()
		st.Reset(h2.Cancel) // only if the peer has not ended its direction
		o.missed(&StatusError{h.Status})
	default:
		o.conn.Tunnel().Loop().Stop(&o.timer)
		if trust, ok := o.conn.User.(*trust); ok {
			o.Destination.ID = trust.peer
		}
		r := o.relay
		o.established(nil)
		o.open(&r.FromApp, &r.ToApp)
		o.reconsider()
		fd := o.fd
		o.fd = -1
		r.Start(fd)
	}
}

// unanswered ends a request that got no answer in time. On the loop.
func (o *outbound) unanswered() {
	o.relay.Stream().Reset(h2.Cancel)
	o.missed(ErrConnectTimeout)
}

// missed ends an attempt that has failed on its loop, which the connection leaves. On the loop.
func (o *outbound) missed(err error) {
	if o.conn != nil {
		o.conn.Tunnel().Loop().Stop(&o.timer)
		o.conn.Release()
	}
	o.relay, o.pair = nil, nil
	o.leave()
	if o.another(err) {
		o.pod.spawn(o.run)
		return
	}
	o.fail(err)
}

// established notes that the current target works, and drops what is needed only until then. On the loop.
func (o *outbound) established(pair *relay.Pair) {
	o.up = true
	if t := &o.plan.Targets[o.at]; t.Workload != nil {
		o.pod.suspended.works(t.Workload.UID, t.Endpoint)
	}
	o.plan = route.Plan{}
	if pair != nil {
		o.open(&pair.AToB, &pair.BToA)
		o.reconsider()
	}
}

// done ends an established connection, or one whose plain connect was cut. On the loop.
func (o *outbound) done(err error) {
	o.over = true
	if o.conn != nil {
		o.conn.Release()
	}
	if !o.up {
		o.open(nil, nil)
	}
	o.charge("")
	o.finish(ended(err))
}

// ended marks the end of an established flow.
func ended(err error) error {
	if err == nil {
		return nil
	}
	return &endedError{err}
}

// dial connects to a target without a tunnel.
func (o *outbound) dial(t *route.Target) error {
	fd, err := o.pod.socket(loop.Family(t.Dial.Addr()))
	if err != nil {
		return err
	}
	loop.NoDelay(fd)
	loop.ResetOnClose(fd)
	loop.KeepAlive(fd, keepAliveIdle, keepAliveInterval, keepAliveProbes) // the application's own ends at its agent
	if err := loop.StartConnect(fd, t.Dial); err != nil {
		loop.CloseFD(fd)
		return err
	}
	l, budget := o.pod.proxy.quietest(), o.budget()
	if err := o.give(l, func() { o.join(l, fd, budget) }); err != nil {
		loop.CloseFD(fd)
		return err
	}
	return nil
}

// join waits for the connect of fd. On the loop.
func (o *outbound) join(l *loop.Loop, fd int, budget time.Duration) {
	if err := o.cutBy(); err != nil {
		loop.CloseFD(fd)
		o.missed(err)
		return
	}
	failed := false
	pair := relay.NewPair(l, o.fd, fd, budget, func(err error) {
		if failed = err != nil; failed {
			o.missed(err)
			return
		}
		o.fd = -1
		o.established(o.pair)
	}, o.done)
	if !failed {
		o.pair = pair
	}
}
