package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// mixed is a certificate of the client that a foreign authority signed, with our own roots.
func mixed(t *testing.T, r *rig) *svid.SVID {
	t.Helper()
	foreign := identitytest.NewCA(t, "cluster.local")
	chain, key := foreign.Issue(t, "spiffe://cluster.local/ns/default/sa/client")
	s, err := svid.New(chain, key, r.ca.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tlsServer speaks TLS, but not HTTP/2.
func tlsServer(t *testing.T, addr string, s *svid.SVID, greeting string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			tc := tls.Server(c, mtls.Server(s, nil))
			if tc.Handshake() == nil {
				_, _ = io.WriteString(tc, greeting)
				_, _ = io.Copy(io.Discard, tc)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// blackhole is a listener whose queue is full, so that connecting to it hangs.
func blackhole(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	fd, err := loop.TCPSocket(loop.Family(addr.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Listen(fd, addr, false); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { loop.CloseFD(fd) })
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		s, err := loop.TCPSocket(loop.Family(addr.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		s, err = loop.Connect(ctx, s, addr)
		cancel()
		if err != nil {
			return
		}
		t.Cleanup(func() { loop.CloseFD(s) })
	}
}
