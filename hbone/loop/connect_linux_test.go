package loop_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

func TestConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	fd, err := loop.Connect(t.Context(), socket(t, addr.Addr()), addr)
	if err != nil {
		t.Fatal(err)
	}
	if got := loop.RemoteAddr(fd); got != addr {
		t.Errorf("connected to %s, want %s", got, addr)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := loop.WriteFD(fd, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := c.Read(b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	loop.CloseFD(fd)

	l.Close()
	if _, err := loop.Connect(t.Context(), socket(t, addr.Addr()), addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error is %v, want ECONNREFUSED", err)
	}
}

func TestConnectEndsWithContext(t *testing.T) {
	// A listener whose queue is full answers no further SYN.
	l := socket(t, netip.MustParseAddr("127.0.0.1"))
	if err := loop.Listen(l, netip.MustParseAddrPort("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	defer loop.CloseFD(l)
	if err := syscall.Listen(l, 0); err != nil {
		t.Fatal(err)
	}
	addr := loop.LocalAddr(l)
	cause := errors.New("enough")
	for range 8 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
		fd, err := loop.Connect(ctx, socket(t, addr.Addr()), addr)
		cancel()
		if err == nil {
			defer loop.CloseFD(fd)
			continue
		}
		if !errors.Is(err, cause) {
			t.Fatalf("error is %v, want the context's cause", err)
		}
		return
	}
	t.Fatal("every connect succeeded")
}

func socket(t *testing.T, ip netip.Addr) int {
	t.Helper()
	fd, err := loop.TCPSocket(loop.Family(ip))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
