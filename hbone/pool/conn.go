package pool

import (
	"math"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// Conn is a tunnel of a pool. Whoever got one from Take or Get has a stream reserved on it and calls Release when that
// stream is over, or was not opened.
type Conn struct {
	// User is what Dial returned with the tunnel.
	User any

	pool *Pool
	key  Key
	loop *loop.Loop
	t    *tunnel.Tunnel

	// On the loop: the peer's stream limit as of the last Observe, if there was one.
	observed bool
	seen     uint32

	// Guarded by Pool.mu.
	streams int // reserved
	limit   int
	since   time.Time // when streams became 0
	gone    bool      // left its group, takes no further streams
	ended   bool      // the tunnel is no more
	cause   error     // what ended it
}

// Tunnel returns the tunnel.
func (c *Conn) Tunnel() *tunnel.Tunnel { return c.t }

// Key returns the key that the tunnel was made for.
func (c *Conn) Key() Key { return c.key }

// Release gives back the reserved stream. It never blocks.
func (c *Conn) Release() {
	p := c.pool
	p.mu.Lock()
	c.streams--
	drain := false
	if !c.gone {
		if g := p.groups[c.key]; g != nil && len(g.waiters) > 0 {
			g.serveLocked(false)
		}
		drain = p.restLocked(c)
	}
	p.mu.Unlock()
	if drain {
		c.drain()
	}
}

// Observe tells the pool what the peer allows; the caller calls it after each attempt to open a stream. A tunnel whose
// peer allows no stream at all is retired: each connection would make another one, and all of them would be kept. On the
// loop.
func (c *Conn) Observe() {
	n := c.t.PeerStreams()
	if c.observed && n == c.seen {
		return
	}
	c.observed, c.seen = true, n
	p := c.pool
	p.mu.Lock()
	c.limit = min(int(min(n, math.MaxInt32)), p.cfg.MaxStreams)
	if g := p.groups[c.key]; g != nil && !c.gone {
		g.serveLocked(false)
	}
	p.mu.Unlock()
	if n == 0 {
		c.Retire()
	}
}

// Retire takes the tunnel out of the pool: streams that it has go on, it gets no others.
func (c *Conn) Retire() {
	p := c.pool
	p.mu.Lock()
	was := c.gone
	p.removeLocked(c)
	p.mu.Unlock()
	if !was {
		c.drain()
	}
}

func (c *Conn) drain() { c.t.Post(c.t.Drain) }

// close ends the tunnel at once.
func (c *Conn) close(err error) {
	if !c.t.Post(func() { c.t.Close(err) }) {
		c.onClose(c.t, err) // its loop has stopped, and closed the socket
	}
}

// onDrain is the tunnel's: nobody may open streams on it any more.
func (c *Conn) onDrain(*tunnel.Tunnel) {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.pool.removeLocked(c)
}

func (c *Conn) onClose(_ *tunnel.Tunnel, err error) {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.ended, c.cause = true, err
	c.pool.removeLocked(c)
	delete(c.pool.all, c)
	c.pool.signalLocked()
}

// removeLocked takes a tunnel out of its group. Who waits there goes on waiting for the establishment under way.
func (p *Pool) removeLocked(c *Conn) {
	c.gone = true
	g := p.groups[c.key]
	if g == nil {
		return
	}
	for i := range g.conns {
		if g.conns[i] == c {
			g.conns = append(g.conns[:i:i], g.conns[i+1:]...)
			break
		}
	}
	p.tidyLocked(c.key, g)
}

// restLocked sees to a tunnel that may have become idle. It reports that the tunnel is to be drained now.
func (p *Pool) restLocked(c *Conn) (drain bool) {
	if c.streams > 0 || c.gone {
		return false
	}
	if p.draining || p.cfg.Idle < 0 {
		p.removeLocked(c)
		return true
	}
	c.since = time.Now()
	if p.sweep == nil {
		p.sweep = time.AfterFunc(p.cfg.Idle, p.evict)
	}
	return false
}

// evict drains the tunnels that have been idle for too long, and comes back when the next one may be.
func (p *Pool) evict() {
	p.mu.Lock()
	p.sweep = nil
	if p.closed {
		p.mu.Unlock()
		return
	}
	now, next := time.Now(), time.Duration(math.MaxInt64)
	var old []*Conn
	for _, g := range p.groups {
		for _, c := range g.conns {
			if c.streams > 0 {
				continue
			}
			if left := p.cfg.Idle - now.Sub(c.since); left > 0 {
				next = min(next, left)
			} else {
				old = append(old, c)
			}
		}
	}
	for _, c := range old {
		p.removeLocked(c)
	}
	if next != math.MaxInt64 {
		p.sweep = time.AfterFunc(max(next, p.cfg.Idle/16), p.evict)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.drain()
	}
}
