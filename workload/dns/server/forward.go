package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxServers bounds the upstream servers tried, as resolvers do (MAXNS).
	maxServers = 3
	// maxStray bounds the messages skipped that are not the answer; more of them
	// mean that somebody guesses ids.
	maxStray = 16
)

var (
	errStray    = errors.New("too many responses that do not match the question")
	errBusy     = errors.New("too many questions are being forwarded")
	errNoServer = errors.New("no upstream server is known")
	// errTruncated is no answer to a client that has no other protocol to go to.
	errTruncated = errors.New("the answer over udp is truncated")
)

// forward asks the upstream server(s) and returns the response that answers q, in
// the upstream's words. Without one it returns an error when ctx ends.
func (s *Server) forward(ctx context.Context, q *query, client netip.AddrPort, p proto) ([]byte, error) {
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	default:
		return nil, errBusy
	}
	servers := s.upstreams(client, p)
	if len(servers) == 0 {
		return nil, errNoServer
	}
	return s.race(ctx, q, servers, p)
}

// upstreams returns the servers to ask: the one that the application asked, alone,
// because it chose it and tries its others itself; else those of resolv.conf.
func (s *Server) upstreams(client netip.AddrPort, p proto) []netip.AddrPort {
	if dst, ok := s.original(client, string(p)); ok {
		return []netip.AddrPort{dst}
	}
	var out []netip.AddrPort
	for _, server := range s.cfg.Nameservers() {
		if server = unmap(server); s.usable(server) && len(out) < maxServers {
			out = append(out, server)
		}
	}
	return out
}

// original returns the address that the client asked, if it is one that may be
// asked in its stead.
func (s *Server) original(client netip.AddrPort, proto string) (netip.AddrPort, bool) {
	dst, ok := s.cfg.OriginalDst(client, proto)
	dst = unmap(dst)
	return dst, ok && s.usable(dst)
}

// usable reports whether an address can be an upstream server: a real one, and
// not this server itself, which would be a loop.
func (s *Server) usable(dst netip.AddrPort) bool {
	return dst.IsValid() && dst.Port() != 0 && !dst.Addr().IsUnspecified() && !s.local[dst]
}

type result struct {
	response []byte
	err      error
}

// race asks the servers one after the other, each when the one before has failed
// or has been silent for its share of the time; earlier ones may still answer. A
// server that refuses or fails counts as failed as long as another may do better.
func (s *Server) race(ctx context.Context, q *query, servers []netip.AddrPort, p proto) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()

	results := make(chan result, len(servers))
	ask := func() {
		server := servers[0]
		servers = servers[1:]
		asking.Go(func() {
			response, err := s.exchange(ctx, server, q, p)
			if err != nil {
				err = fmt.Errorf("ask %s: %w", server, err)
			}
			results <- result{response, err}
		})
	}
	patience := s.cfg.Timeout / time.Duration(len(servers)+1)
	next := time.NewTicker(patience)
	defer next.Stop()

	var errs []error
	var second []byte // a refusal, for want of better
	ask()
	for running := 1; running > 0; {
		select {
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
			case refused(r.response) && (running > 0 || len(servers) > 0):
				second = r.response
			default:
				return r.response, nil
			}
			if len(servers) > 0 {
				ask()
				running++
				next.Reset(patience)
			}
		case <-next.C:
			if len(servers) > 0 {
				ask()
				running++
			}
		case <-ctx.Done():
			running = 0
		}
	}
	if second != nil {
		return second, nil
	}
	return nil, errors.Join(append(errs, ctx.Err())...)
}

// refused reports whether another server might know more.
func refused(response []byte) bool {
	switch int(response[3] & rcodeMask) {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return true
	}
	return false
}

// exchange asks one server as the client did: UDP may not come through, or the
// answer be too long for it. Where the server does not speak TCP, UDP may do all
// the same. A UDP client gets a truncated answer and decides itself.
func (s *Server) exchange(ctx context.Context, server netip.AddrPort, q *query, p proto) ([]byte, error) {
	sent := q.withID(newID())
	if p == protoUDP {
		return s.overUDP(ctx, server, sent)
	}
	response, errTCP := s.dialled(ctx, "tcp", server, func(c net.Conn) ([]byte, error) {
		return exchangeTCP(c, sent)
	})
	if errTCP == nil || ctx.Err() != nil {
		return response, errTCP
	}
	response, errUDP := s.overUDP(ctx, server, sent)
	if errUDP == nil && response[2]&flagTC != 0 {
		errUDP = errTruncated
	}
	if errUDP != nil {
		return nil, errors.Join(errTCP, errUDP)
	}
	return response, nil
}

func (s *Server) overUDP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	return s.dialled(ctx, "udp", server, func(c net.Conn) ([]byte, error) {
		return exchangeUDP(ctx, c, q, s.cfg.Timeout/3)
	})
}

// dialled runs one exchange on a new connection, which ends with ctx. A server that
// does not take the connection leaves time for another attempt.
func (s *Server) dialled(ctx context.Context, network string, server netip.AddrPort, exchange func(net.Conn) ([]byte, error)) ([]byte, error) {
	dialling, cancel := context.WithTimeout(ctx, s.cfg.Timeout/3)
	defer cancel()
	c, err := s.cfg.Dial(dialling, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	response, err := exchange(c)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // rather than "use of closed network connection"
	}
	return response, err
}

// exchangeUDP sends the question, again after each silent interval, until the
// answer comes or ctx ends (which closes the connection).
func exchangeUDP(ctx context.Context, c net.Conn, q *query, interval time.Duration) ([]byte, error) {
	// One octet more than the client takes, so that a response which was cut off
	// here is seen to be too long and not relayed.
	buf := make([]byte, max(4096, q.limit(protoUDP))+1)
	stray := 0
	for ctx.Err() == nil {
		if _, err := c.Write(q.wire); err != nil {
			return nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(interval))
		for {
			n, err := c.Read(buf)
			if isTimeout(err) {
				break
			}
			if err != nil {
				return nil, err
			}
			if q.answeredBy(buf[:n]) {
				return buf[:n], nil
			}
			if stray++; stray > maxStray {
				return nil, errStray
			}
		}
	}
	return nil, ctx.Err()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// newID returns an unpredictable transaction id (RFC 5452 section 9.2).
func newID() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}
