package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// Dialer opens streams to HBONE servers. Streams to one server share a tunnel until its stream limit. Set the fields
// before the first Dial; a Dialer may be used by many goroutines.
type Dialer struct {
	// TLS is asked for the configuration of each new tunnel; it decides which identities are accepted (identity/mtls).
	// Required.
	TLS func() *tls.Config
	// Loop runs the tunnels. Required.
	Loop *loop.Loop
	// Timeout bounds connecting and the handshake; 0 means 10 s.
	Timeout time.Duration
	// Socket makes a non-blocking TCP socket for an address family; nil means in the current network namespace.
	Socket func(family int) (int, error)

	mu      sync.Mutex
	tunnels map[netip.AddrPort][]*tunnel.Tunnel
}

// Dial connects to the destination that r names by way of the server at addr. The error is a *StatusError when the
// server refused, a *tunnel.HandshakeError when it is not who it should be.
func (d *Dialer) Dial(ctx context.Context, addr netip.AddrPort, r Request) (*Conn, error) {
	for _, t := range d.known(addr) {
		c, err := d.open(ctx, t, r)
		if !errors.Is(err, h2.ErrStreamLimit) && !errors.Is(err, h2.ErrGoingAway) && !t.Closed() {
			return c, err
		}
	}
	t, err := d.connect(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return d.open(ctx, t, r)
}

// Close ends all tunnels and their streams.
func (d *Dialer) Close() {
	d.mu.Lock()
	all := d.tunnels
	d.tunnels = nil
	d.mu.Unlock()
	for _, ts := range all {
		for _, t := range ts {
			t.Post(func() { t.Close(nil) })
		}
	}
}

func (d *Dialer) known(addr netip.AddrPort) []*tunnel.Tunnel {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*tunnel.Tunnel(nil), d.tunnels[addr]...)
}

func (d *Dialer) connect(ctx context.Context, addr netip.AddrPort) (*tunnel.Tunnel, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	socket := d.Socket
	if socket == nil {
		socket = loop.TCPSocket
	}
	fd, err := socket(loop.Family(addr.Addr()))
	if err != nil {
		return nil, err
	}
	if fd, err = loop.Connect(ctx, fd, addr); err != nil {
		return nil, err
	}
	loop.NoDelay(fd)
	t, err := tunnel.Client(ctx, fd, d.TLS(), tunnel.Config{Loop: d.Loop, OnDrain: func(t *tunnel.Tunnel) { d.forget(addr, t) }})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	if d.tunnels == nil {
		d.tunnels = make(map[netip.AddrPort][]*tunnel.Tunnel)
	}
	d.tunnels[addr] = append(d.tunnels[addr], t)
	d.mu.Unlock()
	if t.Closed() {
		d.forget(addr, t)
	}
	return t, nil
}

func (d *Dialer) forget(addr netip.AddrPort, t *tunnel.Tunnel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var left []*tunnel.Tunnel
	for _, other := range d.tunnels[addr] {
		if other != t {
			left = append(left, other)
		}
	}
	if len(left) == 0 {
		delete(d.tunnels, addr)
		return
	}
	d.tunnels[addr] = left
}

func (d *Dialer) open(ctx context.Context, t *tunnel.Tunnel, r Request) (*Conn, error) {
	c := newConn(t, r)
	posted := t.Post(func() {
		st, err := t.Open(r.header(), (*handler)(c))
		if err != nil {
			c.answered <- &answer{err: err}
			return
		}
		c.stream = st
	})
	if !posted {
		return nil, loop.ErrClosed
	}
	select {
	case a := <-c.answered:
		if a.err != nil {
			return nil, a.err
		}
		if a.head.Status != int(StatusOK) {
			_ = c.Close()
			return nil, &StatusError{Status(a.head.Status)}
		}
		c.Baggage = a.head.Get("baggage")
		return c, nil
	case <-ctx.Done():
		t.Post(func() {
			if c.stream != nil {
				c.stream.Reset(h2.Cancel)
			}
		})
		return nil, context.Cause(ctx)
	}
}
