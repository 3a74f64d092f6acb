package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// maxUDPQuestion is the longest question read from a datagram, in octets. Real
// ones are far below the 4,096 that EDNS implementations allow for answers.
const maxUDPQuestion = 4096

// serveUDP reads questions until serving ends; each is answered by a goroutine of
// its own. At the limit of questions it stops reading, and the kernel's receive
// buffer decides what is lost, as with any overloaded server.
func (s *Server) serveUDP(serving, asking context.Context, p net.PacketConn) error {
	defer context.AfterFunc(serving, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, maxUDPQuestion)
	for {
		n, client, err := readFrom(p, buf)
		if serving.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("serve dns over udp: %w", err)
			}
			// Errors of single datagrams (ICMP for an earlier answer, memory
			// pressure) say nothing about the socket; do not spin on them.
			s.cfg.Logger.Debug("cannot read dns question", "error", err)
			sleep(serving, 10*time.Millisecond)
			continue
		}
		question := bytes.Clone(buf[:n])
		select {
		case s.questions <- struct{}{}:
		case <-serving.Done():
			return nil
		}
		s.work.Go(func() {
			defer func() { <-s.questions }()
			if reply := s.answer(asking, question, client, protoUDP); reply != nil {
				// An answer that cannot be sent is a lost datagram: the client asks again.
				_, _ = p.WriteTo(reply, net.UDPAddrFromAddrPort(client))
			}
		})
	}
}

// readFrom reads one datagram.
func readFrom(p net.PacketConn, buf []byte) (int, netip.AddrPort, error) {
	if u, ok := p.(*net.UDPConn); ok {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		return n, from, err
	}
	n, from, err := p.ReadFrom(buf)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	u, ok := from.(*net.UDPAddr)
	if !ok {
		return 0, netip.AddrPort{}, fmt.Errorf("read datagram: source %s is no udp address", from)
	}
	return n, u.AddrPort(), nil
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
