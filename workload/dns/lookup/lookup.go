// Package lookup finds the addresses of host names outside of the mesh, for
// connections to endpoints that have no address: it asks the name servers of a
// resolv.conf and remembers the answers as long as these allow.
//
// Names are fully qualified; no search domain is tried. When the servers fail
// to answer, the last answer is used a while longer; that a name does not exist
// any more is an answer. What the mesh itself knows of names is package dns's
// business.
//
// A Resolver may be used by any number of goroutines. It has at most one
// question a name under way, and Close waits for all of them.
package lookup

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// least and most bound the life of an answer, whatever its TTL says.
	least = time.Second
	most  = time.Hour
	// denied is how long it is believed that a name does not exist, and failed
	// how long servers that failed are left alone.
	denied = 5 * time.Second
	failed = time.Second
	// patience is how long a caller waits for a new answer while there is an old
	// one.
	patience = time.Second
)

// ErrNotFound is that a name does not exist or has no address.
var ErrNotFound = errors.New("no such host")

// Config configures a Resolver.
type Config struct {
	// Nameservers returns the servers to ask, in order. It is called for each
	// question. Required.
	Nameservers func() []netip.AddrPort
	// Dial connects to a server; network is "udp" or "tcp". Nil dials as the
	// process does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds one question, over all servers. 0 means 5 s.
	Timeout time.Duration
	// Stale is how long an old answer is used when there is no new one. 0 means
	// an hour, less not at all.
	Stale time.Duration
	// MaxHosts bounds the names that are remembered; 0 means 4,096. Beyond, the
	// one that expires first is forgotten.
	MaxHosts int
}

// Resolver resolves host names. Make it with New, end it with Close.
type Resolver struct {
	cfg    Config
	ctx    context.Context // ends the questions under way
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu     sync.Mutex
	hosts  map[string]*host
	closed bool
}

// host is what is known of one name.
type host struct {
	addrs  []netip.Addr
	err    error
	until  time.Time // the answer is good
	latest time.Time // addrs may be used for want of better
	flight *flight   // nil when no question is under way
}

// flight is one question under way.
type flight struct{ done chan struct{} }

// New returns a Resolver that knows nothing yet.
func New(cfg Config) (*Resolver, error) {
	if cfg.Nameservers == nil {
		return nil, errors.New("new resolver: name servers are missing")
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Stale == 0 {
		cfg.Stale = time.Hour
	}
	if cfg.MaxHosts <= 0 {
		cfg.MaxHosts = 4096
	}
	r := &Resolver{cfg: cfg, hosts: make(map[string]*host)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close ends the questions under way and waits for them. Lookups fail then.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.asking.Wait()
}

// Lookup returns the addresses of the name, of both families, at least one
// unless there is an error, which does not repeat the name. The slice must not
// be changed.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, net.ErrClosed
	}
	h := r.hostLocked(name)
	now := time.Now()
	if now.Before(h.until) {
		addrs, err := h.addrs, h.err
		r.mu.Unlock()
		return addrs, err
	}
	if h.flight == nil {
		h.flight = &flight{done: make(chan struct{})}
		f := h.flight
		r.asking.Go(func() { r.refresh(name, h, f) })
	}
	f, old := h.flight, h.usable(now)
	r.mu.Unlock()
	return r.await(ctx, h, f, old)
}

// await waits for the question under way. old is what to return when it takes
// long.
func (r *Resolver) await(ctx context.Context, h *host, f *flight, old []netip.Addr) ([]netip.Addr, error) {
	var late <-chan time.Time
	if len(old) > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-f.done:
	case <-late:
		return old, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return h.addrs, h.err
}

// usable returns the addresses that may be used for want of better.
func (h *host) usable(now time.Time) []netip.Addr {
	if now.Before(h.latest) {
		return h.addrs
	}
	return nil
}

// hostLocked returns what is known of the name, and makes room for it.
func (r *Resolver) hostLocked(name string) *host {
	if h := r.hosts[name]; h != nil {
		return h
	}
	if len(r.hosts) >= r.cfg.MaxHosts {
		first := ""
		for n, h := range r.hosts {
			if h.flight == nil && (first == "" || h.until.Before(r.hosts[first].until)) {
				first = n
			}
		}
		delete(r.hosts, first)
	}
	h := new(host)
	r.hosts[name] = h
	return h
}

// refresh asks the servers and notes the answer.
func (r *Resolver) refresh(name string, h *host, f *flight) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Timeout)
	defer cancel()
	addrs, ttl, err := r.ask(ctx, name)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	h.flight = nil
	close(f.done)
	switch {
	case err == nil:
		life := min(max(ttl, least), most)
		*h = host{addrs: slices.Clip(addrs), until: now.Add(life), latest: now.Add(life + max(0, r.cfg.Stale))}
	case errors.Is(err, ErrNotFound):
		*h = host{err: err, until: now.Add(denied)}
	case len(h.usable(now)) > 0:
		// The old answer stands in until the servers are asked again.
		h.err, h.until = nil, now.Add(failed)
	default:
		*h = host{err: err, until: now.Add(failed)}
	}
}
