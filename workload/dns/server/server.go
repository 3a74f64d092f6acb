// Package server answers the DNS questions of one captured pod over UDP and TCP.
//
// Known names are answered as package dns decides; everything else is forwarded
// unchanged, with a fresh transaction id, by the protocol that it came by, to the
// server that the application asked, and that server's answer goes back unchanged.
// The sockets are handed in already bound (in the pod's network namespace), and
// dialling is a function, so the package knows neither namespaces nor marks nor
// conntrack.
//
// A Server is used for one Run. All work of a pod is bounded: a number of
// questions at a time, a smaller number of them forwarded, a number of TCP
// connections, and a deadline for each question.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/workload/dns"
)

// Resolver decides about one question. An error means that the client itself is
// unknown; the answer is then SERVFAIL. *dns.Lookup is one. Called concurrently.
type Resolver interface {
	Resolve(ctx context.Context, name string, qtype uint16) (dns.Answer, error)
}

// Observer is told about each answered question. Called concurrently, must not
// block. qtype is a mnemonic ("A", "TYPE4711"), proto "udp" or "tcp".
type Observer interface {
	// Query counts a question; forwarded says that an upstream server was asked,
	// which took the duration and failed when no usable answer came.
	Query(qtype, proto string, forwarded, failed bool, took time.Duration)
}

// Config configures a Server.
type Config struct {
	// UDP and TCP are the sockets to serve, bound to specific addresses (an answer
	// from a wildcard socket could leave with another source address than the one
	// that was asked). Run closes them. At least one is required.
	UDP []net.PacketConn
	TCP []net.Listener

	// Resolver is required.
	Resolver Resolver
	// Dial connects to an upstream server from the pod's own namespace; network is
	// "udp" or "tcp". A UDP connection must be connected, so that the kernel
	// delivers only what that server sent. Required.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// OriginalDst returns the server that the client asked, before redirection.
	// proto is "udp" or "tcp". Nil or false: Nameservers are asked.
	OriginalDst func(client netip.AddrPort, proto string) (netip.AddrPort, bool)
	// Nameservers returns the servers of the pod's resolv.conf, in order. Nil means
	// none. Called for each forwarded question that needs it.
	Nameservers func() []netip.AddrPort

	// Timeout bounds one question from its receipt to its answer. Zero means 5 s.
	Timeout time.Duration
	// IdleTimeout closes a TCP connection without questions. Zero means 5 s.
	IdleTimeout time.Duration
	// Grace is how long questions in flight may go on after Run's ctx has ended.
	// Zero means 1 s.
	Grace time.Duration
	// MaxForwards bounds the questions being forwarded; more get SERVFAIL at once.
	// Zero means 256.
	MaxForwards int
	// MaxConnections bounds TCP connections; further ones are closed on accept.
	// Zero means 64.
	MaxConnections int

	// Observer is optional.
	Observer Observer
	// Logger gets one debug line a question. Nil discards.
	Logger *slog.Logger
}

// withDefaults returns a copy with every zero replaced, or what is missing.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	if len(c.UDP)+len(c.TCP) == 0 {
		errs = append(errs, errors.New("no socket given"))
	}
	if c.Resolver == nil {
		errs = append(errs, errors.New("no resolver given"))
	}
	if c.Dial == nil {
		errs = append(errs, errors.New("no dial function given"))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("configure dns server: %w", err)
	}
	setDefault(&c.Timeout, 5*time.Second)
	setDefault(&c.IdleTimeout, 5*time.Second)
	setDefault(&c.Grace, time.Second)
	setDefault(&c.MaxForwards, 256)
	setDefault(&c.MaxConnections, 64)
	if c.OriginalDst == nil {
		c.OriginalDst = func(netip.AddrPort, string) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
	}
	if c.Nameservers == nil {
		c.Nameservers = func() []netip.AddrPort { return nil }
	}
	if c.Observer == nil {
		c.Observer = discard{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

type discard struct{}

func (discard) Query(string, string, bool, bool, time.Duration) {}

// Server serves one pod.
type Server struct {
	cfg   Config
	local map[netip.AddrPort]bool // our own addresses, never an upstream

	questions chan struct{} // one token a question in work
	forwards  chan struct{} // one token a question being forwarded
	conns     chan struct{} // one token a TCP connection
	work      sync.WaitGroup
}

// New returns a Server that owns the sockets of the Config; it closes them when
// it refuses the Config too.
func New(cfg Config) (*Server, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		closeAll(cfg)
		return nil, err
	}
	s := &Server{
		cfg:   c,
		local: make(map[netip.AddrPort]bool),
		// Twice as many as may be forwarded, so that known names are still
		// answered while every place for forwarding waits for a dead server.
		questions: make(chan struct{}, 2*c.MaxForwards),
		forwards:  make(chan struct{}, c.MaxForwards),
		conns:     make(chan struct{}, c.MaxConnections),
	}
	for _, p := range c.UDP {
		s.local[addrPort(p.LocalAddr())] = true
	}
	for _, l := range c.TCP {
		s.local[addrPort(l.Addr())] = true
	}
	return s, nil
}

// Run serves until ctx ends or a socket fails, then lets questions in flight go on
// for the grace period. It returns after everything it started has ended; the
// error is nil when ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// Questions outlive serving by the grace period.
	asking, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()

	var readers sync.WaitGroup
	for _, p := range s.cfg.UDP {
		readers.Go(func() { stop(s.serveUDP(serving, asking, p)) })
	}
	for _, l := range s.cfg.TCP {
		readers.Go(func() { stop(s.serveTCP(serving, asking, l)) })
	}
	readers.Wait()

	timer := time.AfterFunc(s.cfg.Grace, cut)
	s.work.Wait()
	timer.Stop()
	closeAll(s.cfg)
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(serving)
}

// Close releases the sockets of a Server that is never run.
func (s *Server) Close() { closeAll(s.cfg) }

func closeAll(c Config) {
	for _, p := range c.UDP {
		_ = p.Close()
	}
	for _, l := range c.TCP {
		_ = l.Close()
	}
}

// addrPort converts the address of a socket; the zero value for other kinds.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		return unmap(a.AddrPort())
	case *net.TCPAddr:
		return unmap(a.AddrPort())
	}
	return netip.AddrPort{}
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
