package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// ListenerConfig says how a Listener accepts. TLS and Loop are required.
type ListenerConfig struct {
	// TLS is asked for the configuration of each tunnel, so that rotated certificates take effect.
	TLS func() *tls.Config
	// Loop runs the tunnels.
	Loop *loop.Loop
	// Authorize decides about a CONNECT; nil accepts all. It gets the peer's verified chain. On the loop: it must not
	// block.
	Authorize func(peer []*x509.Certificate, r Request) Status
	// Failed is told about peers that did not get as far as a tunnel; may be nil.
	Failed func(peer netip.AddrPort, err error)
	// HandshakeTimeout bounds the TLS handshake; 0 means 10 s.
	HandshakeTimeout time.Duration
}

// acceptQueue is how many accepted streams wait for Accept; further ones are refused with 503.
const acceptQueue = 128

// Listener accepts CONNECT streams as connections (*Conn).
type Listener struct {
	cfg    ListenerConfig
	a      *loop.Acceptor
	conns  chan *Conn
	ctx    context.Context // bounds what Serve has started
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	tunnels map[*tunnel.Tunnel]struct{}
}

// NewListener serves HBONE on a listening socket that it owns from now on.
func NewListener(a *loop.Acceptor, cfg ListenerConfig) *Listener {
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	l := &Listener{cfg: cfg, a: a, conns: make(chan *Conn, acceptQueue), tunnels: make(map[*tunnel.Tunnel]struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.serve)
	return l
}

// Accept implements net.Listener; the connections are *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.a.Addr()) }

// Close implements net.Listener: it stops accepting, ends all tunnels and waits for what it has started.
func (l *Listener) Close() error {
	l.cancel()
	err := l.a.Close()
	l.mu.Lock()
	for t := range l.tunnels {
		t.Post(func() { t.Close(nil) })
	}
	l.mu.Unlock()
	l.wg.Wait()
	return err
}

func (l *Listener) serve() {
	for {
		fd, peer, err := l.a.Accept()
		switch {
		case err == nil:
			l.wg.Go(func() { l.handshake(fd, peer) })
		case errors.Is(err, os.ErrClosed):
			return
		case loop.Temporary(err):
			l.pause()
		default:
			l.failed(netip.AddrPort{}, err)
			return
		}
	}
}

// pause lets descriptors become free.
func (l *Listener) pause() {
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.ctx.Done():
	}
}

func (l *Listener) handshake(fd int, peer netip.AddrPort) {
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.HandshakeTimeout)
	defer cancel()
	loop.NoDelay(fd)
	cfg := tunnel.Config{Loop: l.cfg.Loop, OnRequest: l.request, OnClose: func(t *tunnel.Tunnel, _ error) {
		l.mu.Lock()
		delete(l.tunnels, t)
		l.mu.Unlock()
	}}
	_, err := tunnel.Server(ctx, fd, l.cfg.TLS(), cfg, func(t *tunnel.Tunnel) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ctx.Err() != nil {
			return net.ErrClosed
		}
		l.tunnels[t] = struct{}{}
		return nil
	})
	if err != nil {
		l.failed(peer, err)
	}
}

func (l *Listener) failed(peer netip.AddrPort, err error) {
	if l.cfg.Failed != nil && l.ctx.Err() == nil {
		l.cfg.Failed(peer, err)
	}
}

func (l *Listener) request(st *tunnel.Stream, head *h2.Header) {
	r := requestOf(head)
	status := StatusOK
	switch {
	case head.Method != "CONNECT" || r.Authority == "":
		status = StatusBadRequest
	case l.cfg.Authorize != nil:
		status = l.cfg.Authorize(st.Tunnel().Chain, r)
	}
	if status != StatusOK {
		st.Respond(int(status), nil, true)
		return
	}
	c := newConn(st.Tunnel(), r)
	c.stream = st
	st.Handler = (*handler)(c)
	select {
	case l.conns <- c:
		st.Respond(int(StatusOK), nil, false)
	default:
		st.Respond(int(StatusUnavailable), nil, true)
	}
}
