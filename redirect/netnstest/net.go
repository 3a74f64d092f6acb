package netnstest

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Options are socket options for Listen, ListenPacket and Dial.
type Options struct {
	Mark        uint32         // SO_MARK; zero sets none
	Transparent bool           // IP_TRANSPARENT (and IPV6_TRANSPARENT): foreign source addresses are allowed
	Local       netip.AddrPort // Dial: source to bind to; zero leaves it to the kernel
}

func (o Options) control(network, _ string, raw syscall.RawConn) error {
	var inner error
	err := raw.Control(func(fd uintptr) {
		if o.Mark != 0 {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark))
		}
		if inner == nil && o.Transparent {
			inner = setTransparent(int(fd), network)
		}
	})
	if err != nil {
		return err
	}
	return inner
}

func setTransparent(fd int, network string) error {
	if network == "tcp6" || network == "udp6" {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

// Listen listens on TCP in ns. addr is a literal address and port ("10.0.0.1:80",
// "[::]:0"). The listener is closed at the end of the test.
func Listen(tb testing.TB, ns *netns.NS, addr string, o Options) *net.TCPListener {
	tb.Helper()
	lc := net.ListenConfig{Control: o.control}
	lc.SetMultipathTCP(false) // an MPTCP socket answers no SO_ORIGINAL_DST
	var l net.Listener
	Do(tb, ns, func() error {
		var err error
		l, err = lc.Listen(tb.Context(), "tcp", addr)
		return err
	})
	tb.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// ListenPacket opens a UDP socket in ns, closed at the end of the test.
func ListenPacket(tb testing.TB, ns *netns.NS, addr string, o Options) *net.UDPConn {
	tb.Helper()
	lc := net.ListenConfig{Control: o.control}
	var c net.PacketConn
	Do(tb, ns, func() error {
		var err error
		c, err = lc.ListenPacket(tb.Context(), "udp", addr)
		return err
	})
	tb.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

// Dial connects from inside ns and returns the error of connecting. network is
// "tcp" or "udp", addr a literal. The caller closes the connection; the test's end
// does so too. It gives up after five seconds.
func Dial(tb testing.TB, ns *netns.NS, network, addr string, o Options) (net.Conn, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 5*time.Second)
	defer cancel()
	d := net.Dialer{Control: o.control}
	d.SetMultipathTCP(false)
	if o.Local.IsValid() {
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(o.Local)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(o.Local)
		}
	}
	var c net.Conn
	err := ns.Do(func() error {
		var err error
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// Echo serves l until it is closed: whatever a connection sends comes back, and its
// end of stream is answered by one. The test waits for all connections at its end.
func Echo(tb testing.TB, l net.Listener) {
	tb.Helper()
	serve(tb, l, func(c net.Conn) { echo(c) })
}
