package hbone_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/hbone"
	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type mesh struct {
	listener *hbone.Listener
	dialer   *hbone.Dialer
	addr     netip.AddrPort
	failed   chan error
}

func newMesh(t testing.TB, expected string, authorize func([]*x509.Certificate, hbone.Request) hbone.Status) *mesh {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(l.Close)
	ca := identitytest.NewCA(t, "cluster.local")
	alice, bob := ca.SVID(t, "spiffe://cluster.local/ns/a/sa/alice"), ca.SVID(t, "spiffe://cluster.local/ns/b/sa/bob")
	fd, err := loop.TCPSocket(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Listen(fd, netip.MustParseAddrPort("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	a, err := loop.NewAcceptor(fd)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{addr: a.Addr(), failed: make(chan error, 16)}
	m.listener = hbone.NewListener(a, hbone.ListenerConfig{
		TLS: func() *tls.Config { return mtls.Server(bob, nil) }, Loop: l, Authorize: authorize,
		Failed: func(_ netip.AddrPort, err error) { m.failed <- err },
	})
	m.dialer = &hbone.Dialer{
		TLS:  func() *tls.Config { return mtls.Client(alice, []identity.ID{identity.MustParse(expected)}, nil) },
		Loop: l,
	}
	t.Cleanup(func() {
		m.dialer.Close()
		if err := m.listener.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// ends are both ends of one stream.
func ends(t *testing.T) (client, server *hbone.Conn) {
	t.Helper()
	m := newMesh(t, bob, nil)
	c, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c, s.(*hbone.Conn)
}

const bob = "spiffe://cluster.local/ns/b/sa/bob"

// TestConn runs the standard conformance suite of net.Conn over a stream.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		m := newMesh(t, bob, nil)
		c, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			return nil, nil, nil, err
		}
		s, err := m.listener.Accept()
		if err != nil {
			return nil, nil, nil, err
		}
		return c, s, func() { _ = c.Close(); _ = s.Close() }, nil
	})
}

func TestRequestReachesTheServer(t *testing.T) {
	m := newMesh(t, bob, nil)
	want := hbone.Request{Authority: "10.0.0.1:80", Baggage: "k8s.namespace.name=a", Forwarded: `for="10.0.0.9:1234"`, Traceparent: "00-1-2-00"}
	if _, err := m.dialer.Dial(t.Context(), m.addr, want); err != nil {
		t.Fatal(err)
	}
	s, err := m.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.(*hbone.Conn).Request; got != want {
		t.Errorf("server got %+v, want %+v", got, want)
	}
}

// TestWriteBehindCloseWrite: what can never be sent is not waited for.
func TestWriteBehindCloseWrite(t *testing.T) {
	c, _ := ends(t)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("hello")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing behind CloseWrite: %d, %v", n, err)
	}
}

// TestWriteDeadline: a write that took too long tells how much of it went, and the direction can be ended still.
func TestWriteDeadline(t *testing.T) {
	c, s := ends(t)
	_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := c.Write(make([]byte, 16<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n >= 16<<20 {
		t.Fatalf("wrote %d bytes, %v", n, err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.Copy(io.Discard, s); got != int64(n) || err != nil {
		t.Errorf("%d bytes arrived, %v; %d were said to be written", got, err, n)
	}
}

// TestResetBehindTheEnd: what was read to its end has ended well, whatever comes later; writing tells why it cannot.
func TestResetBehindTheEnd(t *testing.T) {
	c, s := ends(t)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("end reads as %v", err)
	}
	s.Abort()
	var err error
	for err == nil {
		_, err = c.Write([]byte("x"))
	}
	noted := make(chan struct{})
	c.Tunnel().Post(func() { close(noted) }) // the loop is done with the reset
	<-noted
	_, err = c.Write([]byte("x"))
	if reset, ok := errors.AsType[*tunnel.ResetError](err); !ok || reset.Code != h2.ConnectError {
		t.Errorf("writing fails with %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("end reads as %v behind a reset", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Run("status", func(t *testing.T) {
		m := newMesh(t, bob, func([]*x509.Certificate, hbone.Request) hbone.Status { return hbone.StatusUnauthorized })
		_, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: "10.0.0.1:80"})
		var se *hbone.StatusError
		if !errors.As(err, &se) || se.Status != hbone.StatusUnauthorized || err.Error() != "http status: 401" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("identity", func(t *testing.T) {
		m := newMesh(t, "spiffe://cluster.local/ns/b/sa/carol", nil)
		_, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: "10.0.0.1:80"})
		var mismatch *mtls.IdentityMismatchError
		if !errors.As(err, &mismatch) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		m := newMesh(t, bob, nil)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr).AddrPort()
		_ = l.Close()
		if _, err := m.dialer.Dial(t.Context(), addr, hbone.Request{Authority: "10.0.0.1:80"}); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		m := newMesh(t, bob, nil)
		l, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := m.dialer.Dial(ctx, l.Addr().(*net.TCPAddr).AddrPort(), hbone.Request{Authority: "10.0.0.1:80"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestRefusedReachesNobody: what Authorize refuses, and what asks for nothing, is never accepted.
func TestRefusedReachesNobody(t *testing.T) {
	const allowed = "10.0.0.1:80"
	m := newMesh(t, bob, func(_ []*x509.Certificate, r hbone.Request) hbone.Status {
		if r.Authority == allowed || r.Authority == "" {
			return hbone.StatusOK
		}
		return hbone.StatusUnauthorized
	})
	for authority, want := range map[string]hbone.Status{"10.0.0.1:81": hbone.StatusUnauthorized, "": hbone.StatusBadRequest} {
		_, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: authority})
		if se, ok := errors.AsType[*hbone.StatusError](err); !ok || se.Status != want {
			t.Errorf("%q: got %v, want status %d", authority, err, want)
		}
	}
	if _, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: allowed}); err != nil {
		t.Fatal(err)
	}
	c, err := m.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.(*hbone.Conn).Request.Authority; got != allowed {
		t.Errorf("accepted a connection to %q", got)
	}
}

func TestPlaintextIsReported(t *testing.T) {
	m := newMesh(t, bob, nil)
	c, err := net.Dial("tcp", m.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if err := <-m.failed; err == nil {
		t.Error("no error for plaintext")
	} else {
		t.Log(err)
	}
}

func TestStreamsShareATunnel(t *testing.T) {
	m := newMesh(t, bob, nil)
	tunnels := map[any]int{}
	for range 250 {
		c, err := m.dialer.Dial(t.Context(), m.addr, hbone.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.listener.Accept(); err != nil {
			t.Fatal(err)
		}
		tunnels[c.Tunnel()]++
	}
	if len(tunnels) != 2 {
		t.Errorf("250 streams of a peer that allows 200 use %d tunnels, want 2: %v", len(tunnels), tunnels)
	}
}
