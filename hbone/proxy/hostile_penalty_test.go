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
// time, and more of its connections than may wait are reset. Who has another address does not wait.
func TestHostileComesBack(t *testing.T) {
	const penalty = 100 * time.Millisecond
	s := newSiege(t, func(c *proxy.Config) { c.Penalty = penalty })
	knock := func() (net.Conn, netip.AddrPort) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 66, 1)}}
		c, err := d.Dial("tcp", s.server.inbound.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c, c.LocalAddr().(*net.TCPAddr).AddrPort()
	}
	fail := func() time.Duration {
		start := time.Now() // the agent may have accepted before dialling returns
		c, addr := knock()
		s.seen.forget(addr)
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		s.seen.reason(t, addr, proxy.FlagTLSFailure, "first record does not look like a TLS handshake")
		return time.Since(start)
	}
	for range 4 {
		fail()
	}
	for _, least := range []time.Duration{penalty, 2 * penalty, 4 * penalty} {
		if took := fail(); took < least {
			t.Errorf("a peer that fails all the time was heard after %v, want at least %v", took, least)
		}
	}
	for range 8 { // these wait
		knock()
	}
	// The reset may be quicker than dialling, so the address has to be known before. Nobody else has this one.
	addr := netip.MustParseAddrPort("127.0.66.1:39001")
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(addr)}
	if c, err := d.Dial("tcp", s.server.inbound.String()); err == nil {
		t.Cleanup(func() { _ = c.Close() })
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	s.seen.reason(t, addr, proxy.FlagTLSFailure, "has failed too often")
	start := time.Now()
	s.probe()
	if took := time.Since(start); took > 8*penalty*slowness() {
		t.Errorf("a peer that behaves waited %v", took)
	}
	s.survived()
}
