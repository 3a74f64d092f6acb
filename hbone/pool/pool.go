package pool

import (
	"cmp"
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// ErrClosed is returned by a pool that was closed.
var ErrClosed = errors.New("tunnel pool is closed")

// errEnded stands for a new tunnel that ended before anybody used it, and did not say why.
var errEnded = errors.New("tunnel ended at once")

const (
	defaultIdle  = 5 * time.Minute
	defaultDial  = 10 * time.Second
	assumedLimit = 100 // streams, until the peer's SETTINGS are known (as ztunnel assumes)
)

// Config is what a Pool needs. Loops is required.
type Config struct {
	// Loops are the event loops that new tunnels are spread over.
	Loops []*loop.Loop
	// Idle is how long a tunnel without streams is kept; 0 means 5 minutes, less not at all.
	Idle time.Duration
	// DialTimeout bounds one Dial; 0 means 10 s.
	DialTimeout time.Duration
	// MaxStreams bounds the streams of one tunnel below what its peer allows; 0 means no bound of our own.
	MaxStreams int
}

// Dial makes a tunnel: socket, connect, handshake. It passes cfg, which names the loop and the pool's callbacks, to
// tunnel.Client after adding to it what it likes. user is kept in Conn.User. ctx ends with the pool and at the timeout.
type Dial func(ctx context.Context, cfg tunnel.Config) (t *tunnel.Tunnel, user any, err error)

// Pool holds tunnels.
type Pool struct {
	cfg    Config
	ctx    context.Context // ends with Close; bounds the dials that the pool started
	cancel context.CancelCauseFunc
	dials  sync.WaitGroup

	mu       sync.Mutex
	groups   map[Key]*group
	sweep    *time.Timer        // set while a sweep is due
	all      map[*Conn]struct{} // tunnels that have not ended, also those that left their group
	pending  int                // dials under way
	draining bool
	closed   bool
	empty    chan struct{} // closed, and forgotten, when nothing is left; made by who waits for that
}

// group is what belongs to one key.
type group struct {
	conns   []*Conn
	waiters []*waiter // in order of arrival; not empty only while dialling
	dialing int       // dials under way
}

// waiter is a Get that found no room.
type waiter struct {
	dial  Dial
	ready chan result // of size 1
}

type result struct {
	conn  *Conn
	fresh bool
	err   error
}

// New returns an empty pool.
func New(cfg Config) *Pool {
	if cfg.Idle == 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = defaultDial
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = math.MaxInt32
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Pool{cfg: cfg, ctx: ctx, cancel: cancel, groups: make(map[Key]*group), all: make(map[*Conn]struct{})}
}

// Take reserves a stream on a tunnel that exists, or returns nil. It does not block and starts nothing: this is the way
// of nearly every connection.
func (p *Pool) Take(key Key) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.groups[key]; g != nil && len(g.waiters) == 0 {
		return g.takeLocked()
	}
	return nil
}

func (g *group) takeLocked() *Conn {
	for _, c := range g.conns {
		if c.streams < c.limit {
			c.streams++
			return c
		}
	}
	return nil
}

// Get reserves a stream like Take and, where there is no room, has dial make a tunnel: as many at a time for a key as those
// who wait need. fresh says that the tunnel is a new one, made for those who waited. An error of
// dial goes to all of them.
func (p *Pool) Get(ctx context.Context, key Key, dial Dial) (c *Conn, fresh bool, err error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, ErrClosed
	}
	g := p.groups[key]
	if g == nil {
		g = &group{}
		p.groups[key] = g
	}
	if len(g.waiters) == 0 {
		if c := g.takeLocked(); c != nil {
			p.mu.Unlock()
			return c, false, nil
		}
	}
	w := &waiter{dial: dial, ready: make(chan result, 1)}
	g.waiters = append(g.waiters, w)
	p.dialLocked(key, g)
	p.mu.Unlock()

	select {
	case r := <-w.ready:
		return r.conn, r.fresh, r.err
	case <-ctx.Done():
	}
	p.leave(key, w)
	select {
	case r := <-w.ready: // it was served in the same moment
		if r.conn != nil {
			r.conn.Release()
		}
	default:
	}
	return nil, false, context.Cause(ctx)
}

// leave takes a waiter that gave up out of its queue.
func (p *Pool) leave(key Key, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.groups[key]
	if g == nil {
		return
	}
	for i := range g.waiters {
		if g.waiters[i] == w {
			g.waiters = append(g.waiters[:i], g.waiters[i+1:]...)
			break
		}
	}
	p.tidyLocked(key, g)
}

// tidyLocked forgets a group that holds nothing.
func (p *Pool) tidyLocked(key Key, g *group) {
	if len(g.conns) == 0 && len(g.waiters) == 0 && g.dialing == 0 {
		delete(p.groups, key)
	}
}

// serveLocked gives waiters what room there is.
func (g *group) serveLocked(fresh bool) {
	for len(g.waiters) > 0 {
		c := g.takeLocked()
		if c == nil {
			return
		}
		g.waiters[0].ready <- result{conn: c, fresh: fresh}
		g.waiters = g.waiters[1:]
	}
	g.waiters = nil
}

// dialLocked starts the establishments that those who wait need beyond what is under way.
func (p *Pool) dialLocked(key Key, g *group) {
	for !p.closed && len(g.waiters) > g.dialing*p.firstLimit() {
		g.dialing++
		p.pending++
		dial := g.waiters[0].dial
		p.dials.Go(func() { p.establish(key, dial) })
	}
}

// firstLimit is how many streams a tunnel takes before its peer has said how many it allows.
func (p *Pool) firstLimit() int { return min(assumedLimit, p.cfg.MaxStreams) }

// establish runs one Dial and hands out what came of it.
func (p *Pool) establish(key Key, dial Dial) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	c := &Conn{pool: p, key: key, limit: p.firstLimit(), loop: leastLoaded(p.cfg.Loops)}
	t, user, err := dial(ctx, tunnel.Config{Loop: c.loop, OnDrain: c.onDrain, OnClose: c.onClose})
	p.mu.Lock()
	c.t, c.User = t, user
	drain, closed := p.admitLocked(c, err)
	p.mu.Unlock()
	switch {
	case closed:
		c.close(ErrClosed)
	case drain:
		c.drain()
	}
}

// admitLocked takes in what came of a dial. drain says that nobody may use the tunnel any more, closed that the pool is
// closed.
func (p *Pool) admitLocked(c *Conn, err error) (drain, closed bool) {
	g := p.groups[c.key]
	g.dialing--
	p.pending--
	if c.t != nil && !c.ended {
		p.all[c] = struct{}{}
		closed = p.closed
	}
	switch {
	case err != nil:
	case p.closed:
		err = ErrClosed
	case c.gone:
		err = cmp.Or(c.cause, errEnded)
	default:
		g.conns = append(g.conns, c)
		g.serveLocked(true)
		drain = p.restLocked(c)
	}
	if err != nil {
		for _, w := range g.waiters {
			w.ready <- result{err: err}
		}
		g.waiters = nil
	}
	p.dialLocked(c.key, g)
	p.tidyLocked(c.key, g)
	p.signalLocked()
	return drain, closed
}

func leastLoaded(loops []*loop.Loop) *loop.Loop {
	best, least := loops[0], int64(math.MaxInt64)
	for _, l := range loops {
		if n := l.Stats().Sockets; n < least {
			best, least = l, n
		}
	}
	return best
}

// emptyLocked returns a channel that is closed when the pool holds nothing.
func (p *Pool) emptyLocked() <-chan struct{} {
	if p.empty == nil {
		p.empty = make(chan struct{})
	}
	empty := p.empty
	p.signalLocked()
	return empty
}

func (p *Pool) signalLocked() {
	if p.empty != nil && len(p.all) == 0 && p.pending == 0 {
		close(p.empty)
		p.empty = nil
	}
}
