package netns_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestConnectionsBelongToTheNamespace(t *testing.T) {
	ns := netnstest.New(t)
	l, err := ns.Listen(netip.MustParseAddrPort("127.0.0.1:7"), 0x539)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, "tcp", netip.MustParseAddrPort("127.0.0.1:7"), 0x539)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("hello"))
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	if c, err := net.DialTimeout("tcp", "127.0.0.1:7", time.Second); err == nil {
		_ = c.Close()
		t.Error("the listener can be reached from outside the namespace")
	}
	if _, err := ns.Dial(ctx, "tcp", netip.MustParseAddrPort("127.0.0.1:8"), 0); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect to a closed port: %v", err)
	}
}

func TestDatagrams(t *testing.T) {
	ns := netnstest.New(t)
	p, err := ns.ListenPacket(netip.MustParseAddrPort("[::1]:53"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	c, err := ns.Dial(t.Context(), "udp", netip.MustParseAddrPort("[::1]:53"), 0x539)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("question"))
	buf := make([]byte, 64)
	_ = p.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := p.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "question" || from.String() != c.LocalAddr().String() {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	ns := netnstest.New(t)
	fd, err := ns.Socket(2, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: 15053, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Listen(netip.MustParseAddrPort("127.0.0.1:15053"), 0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen on a taken port: %v", err)
	}
}
