package relay

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// Pair joins two TCP sockets on one loop: A, whose connection was accepted, and B, which is dialled.
type Pair struct {
	// AToB and BToA count payload bytes written. They may be read from anywhere.
	AToB, BToA atomic.Int64

	loop      *loop.Loop
	done      func(error)
	connected func(error)
	timer     loop.Timer
	a, b      end
	fdA       int // A before bytes move
	over      bool
}

// end is one socket of a pair and the direction that is read from it.
type end struct {
	pair    *Pair
	other   *end
	fd      loop.FD
	count   *atomic.Int64
	name    string
	pending backlog // read from here, not taken by other
	ended   bool    // its end was read
	passed  bool    // and passed on to other
	drain   bool
	queued  bool
	broken  error // the socket is gone, see lost
}

// NewPair returns a pair on l that takes over the sockets: a is connected, the connect of b has been started and may
// take d. connected is called once when it is over; after an error of it, which ends the pair, a is still the caller's.
// done is called once when both directions have ended, nil for an orderly end. All on the loop.
func NewPair(l *loop.Loop, a, b int, d time.Duration, connected, done func(error)) *Pair {
	p := &Pair{loop: l, done: done, connected: connected, fdA: a}
	p.a = end{pair: p, other: &p.b, count: &p.AToB, name: "application"}
	p.b = end{pair: p, other: &p.a, count: &p.BToA, name: "destination"}
	if err := p.b.fd.AttachConnecting(l, b, &p.b); err != nil {
		loop.CloseFD(b)
		p.over = true
		connected(err)
		return p
	}
	l.After(&p.timer, d, func() { p.connectDone(ErrConnectTimeout) })
	return p
}

func (p *Pair) connectDone(err error) {
	connected := p.connected
	p.connected = nil
	p.loop.Stop(&p.timer)
	if err == nil {
		if err = p.a.fd.Attach(p.loop, p.fdA, &p.a); err == nil {
			p.fdA = -1
		}
	}
	if err != nil {
		p.over = true
		p.b.fd.Close()
		connected(err)
		return
	}
	connected(nil)
	if !p.over {
		p.b.read()
	}
	if !p.over {
		p.a.read()
	}
}

// Abort ends the pair at once: both sides see a reset. Before connected was called it closes the accepted socket too.
// On the loop.
func (p *Pair) Abort(err error) {
	if p.over {
		return
	}
	p.over = true
	p.loop.Stop(&p.timer)
	if p.fdA >= 0 {
		loop.AbortFD(p.fdA)
		p.fdA = -1
	}
	p.connected = nil
	p.a.fd.Abort()
	p.b.fd.Abort()
	p.a.pending.free(p.loop)
	p.b.pending.free(p.loop)
	p.done(err)
}

// Event implements loop.Handler.
func (e *end) Event(ev loop.Events) {
	p := e.pair
	if p.connected != nil {
		// A destination that answers and ends at once says all of that in one event, which does not come again.
		e.drain = e.drain || ev.Ended()
		if ev.Writable() {
			p.connectDone(e.fd.SocketError())
		}
		return
	}
	if ev.Failed() {
		if err := e.fd.SocketError(); err != nil {
			e.lost(err)
			return
		}
	}
	if ev.Writable() && !e.other.pending.empty() {
		if e.other.flush(); !p.over && e.other.pending.empty() {
			e.other.read()
		}
	}
	if ev.Readable() && !p.over {
		e.drain = e.drain || ev.Ended()
		e.read()
	}
}

// Run implements loop.Runner.
func (e *end) Run() {
	e.queued = false
	if !e.pair.over {
		e.read()
	}
}

// lost is told that the socket is gone. What came from it before still counts, see Relay.lost.
func (e *end) lost(err error) {
	err = fmt.Errorf("%s: %w", e.name, err)
	if e.ended || e.other.broken != nil {
		e.pair.Abort(err)
		return
	}
	e.broken, e.drain = err, true
	e.other.pending.free(e.pair.loop)
	e.pair.loop.After(&e.pair.timer, defaultLinger, func() { e.pair.Abort(err) })
	e.readLater()
}

func (e *end) readLater() {
	if !e.queued {
		e.queued = true
		e.pair.loop.RunLater(e)
	}
}

// read moves at most one turn from here to the other side. What the other side does not take is kept, and nothing more
// is read until it has.
func (e *end) read() {
	if e.ended || !e.pending.empty() || !e.other.fd.Attached() || e.other.broken != nil {
		return
	}
	buf := e.pair.loop.Buffer
	n, err := e.fd.Read(buf)
	switch {
	case e.broken != nil && (err != nil || n == 0):
		e.pair.Abort(e.broken)
		return
	case err != nil && loop.Again(err):
		return
	case err != nil:
		e.pair.Abort(fmt.Errorf("%s: %w", e.name, err))
		return
	case n == 0:
		e.ended = true
		e.passEnd()
		return
	}
	took, ok := e.write(buf[:n])
	if !ok {
		return
	}
	if took < n {
		e.pending.add(e.pair.loop, buf[took:n], n-took)
		e.other.fd.ArmWrite()
		return
	}
	if n == len(buf) || e.drain {
		e.readLater()
	}
}

// write gives p to the other side. When that is gone, nothing more goes this way.
func (e *end) write(p []byte) (took int, ok bool) {
	n, err := e.other.fd.Write(p)
	if err != nil && !loop.Again(err) {
		e.other.lost(err)
		return 0, false
	}
	n = max(n, 0)
	e.count.Add(int64(n))
	return n, true
}

// flush writes what is pending to the other side and passes on the end behind it.
func (e *end) flush() {
	n, ok := e.write(e.pending.left)
	if !ok {
		return
	}
	e.pending.took(e.pair.loop, n)
	e.passEnd()
}

// passEnd ends the other side's input when everything before the end is there.
func (e *end) passEnd() {
	if e.ended && !e.passed && e.pending.empty() {
		e.passed = true
		if !e.other.passed { // else the close that comes now says it
			e.other.fd.CloseWrite()
		}
		e.pair.finishIfDone()
	}
}

func (p *Pair) finishIfDone() {
	if p.over || !p.a.passed || !p.b.passed {
		return
	}
	p.over = true
	p.a.fd.Finish()
	p.b.fd.Finish()
	p.done(nil)
}
