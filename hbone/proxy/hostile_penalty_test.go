package proxy_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// TestHostileComesBack has a peer fail again and again: after a few times it waits for its next handshake, longer each
// time, and more of its connections than may wait are reset. Who has another address does not wait, and who gives up while it
// waits has not failed once more.
func TestHostileComesBack(t *testing.T) {
	const penalty = 25 * time.Millisecond
	s := newSiege(t, func(c *proxy.Config) { c.Penalty = penalty })
	knock := func() net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 66, 1)}}
		c, err := d.Dial("tcp", s.server.inbound.String())
		if errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	fail := func() {
		c := knock()
		if c == nil {
			t.Fatal("the peer was reset")
		}
		addr := c.LocalAddr().(*net.TCPAddr).AddrPort()
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		s.seen.reason(t, addr, proxy.FlagTLSFailure, "first record does not look like a TLS handshake")
		s.seen.forget(addr)
	}
	for range 3 {
		fail()
	}
	for least := penalty; least <= 4*penalty; least *= 2 {
		start := time.Now()
		fail()
		fail()
		if took := time.Since(start); took < least {
			t.Errorf("a peer that fails all the time was heard twice within %v, want at least %v", took, least)
		}
	}
	var waiting []net.Conn
	for range 40 {
		if c := knock(); c != nil {
			waiting = append(waiting, c)
		}
	}
	s.seen.reason(t, netip.AddrPort{}, proxy.FlagTLSFailure, "has failed too often and comes back too soon")
	start := time.Now()
	s.probe()
	if took := time.Since(start); took > 32*penalty*slowness() {
		t.Errorf("a peer that behaves waited %v", took)
	}
	for _, c := range waiting {
		_ = c.Close()
	}
	s.seen.reason(t, netip.AddrPort{}, proxy.FlagTLSFailure, "had to wait and gave up")
	s.survived()
}
