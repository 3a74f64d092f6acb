package loop_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

func acceptor(t *testing.T) *loop.Acceptor {
	t.Helper()
	fd, err := loop.TCPSocket(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Listen(fd, netip.MustParseAddrPort("127.0.0.1:0"), true); err != nil {
		t.Fatal(err)
	}
	a, err := loop.NewAcceptor(fd)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// accepts is an AcceptHandler that keeps what it is told.
type accepts struct {
	peers  chan netip.AddrPort
	failed chan error
	ended  chan struct{}
	rest   time.Duration
}

func newAccepts() *accepts {
	return &accepts{peers: make(chan netip.AddrPort, 100), failed: make(chan error, 100), ended: make(chan struct{})}
}

func (h *accepts) Accepted(fd int, peer netip.AddrPort) {
	loop.CloseFD(fd)
	h.peers <- peer
}

func (h *accepts) AcceptFailed(err error) time.Duration {
	select {
	case h.failed <- err:
	default:
	}
	return h.rest
}

func (h *accepts) AcceptEnded() { close(h.ended) }

func dialTCP(t *testing.T, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func within[T any](t *testing.T, c <-chan T, what string) (got T) {
	t.Helper()
	select {
	case got = <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
	}
	return got
}

func TestServeAcceptsOnTheLoop(t *testing.T) {
	l, a, h := newLoop(t), acceptor(t), newAccepts()
	want := make(map[netip.AddrPort]bool)
	for range 40 { // more than one round takes, and there before the loop looks
		want[dialTCP(t, a.Addr()).LocalAddr().(*net.TCPAddr).AddrPort()] = true
	}
	if err := a.Serve(l, h); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if peer := within(t, h.peers, "connection"); !want[peer] {
			t.Errorf("accepted %s, which nobody has dialled, or twice", peer)
		} else {
			delete(want, peer)
		}
	}
	if c := dialTCP(t, a.Addr()); within(t, h.peers, "later connection") != c.LocalAddr().(*net.TCPAddr).AddrPort() {
		t.Error("another connection was accepted")
	}
	if err := a.Serve(l, h); err == nil {
		t.Error("one listener is served twice")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	within(t, h.ended, "end")
	if _, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(a.Addr())); err == nil {
		t.Error("listener takes connections after Close")
	}
	if err := a.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

// TestServeRestsWithoutDescriptors takes all descriptors: the handler is asked how long to rest, and connections are
// accepted when there are descriptors again.
func TestServeRestsWithoutDescriptors(t *testing.T) {
	l, a, h := newLoop(t), acceptor(t), newAccepts()
	h.rest = time.Millisecond
	c := dialTCP(t, a.Addr())
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	t.Cleanup(restore)
	none := unix.Rlimit{Cur: 3, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(l, h); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := within(t, h.failed, "error"); !loop.Temporary(err) {
			t.Fatalf("accept failed with %v", err)
		}
	}
	restore()
	if within(t, h.peers, "connection") != c.LocalAddr().(*net.TCPAddr).AddrPort() {
		t.Error("another connection was accepted")
	}
	_ = a.Close()
	within(t, h.ended, "end")
}

// TestServeEndsWithItsLoop closes the loop first: the listener is closed, and its descriptor is closed once.
func TestServeEndsWithItsLoop(t *testing.T) {
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	a, h := acceptor(t), newAccepts()
	if err := a.Serve(l, h); err != nil {
		t.Fatal(err)
	}
	dialTCP(t, a.Addr())
	within(t, h.peers, "connection")
	var fd int
	if err := a.Control(func(l int) { fd = l }); err != nil {
		t.Fatal(err)
	}
	l.Close()
	next, err := os.Open(os.DevNull) // takes the lowest descriptor, which may be the listener's
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close() }()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	within(t, h.ended, "end")
	if _, err := next.Stat(); err != nil {
		t.Errorf("descriptor %d of somebody else was closed: %v", fd, err)
	}
	late := acceptor(t)
	if err := late.Serve(l, h); err == nil {
		t.Error("a loop that has ended serves")
	}
	_ = late.Close()
}
