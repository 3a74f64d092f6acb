package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
)

// freeSockets makes sockets that have no address yet.
type freeSockets struct{}

func (freeSockets) Sockets(fds []int, family int) error {
	return fill(fds, func() (int, error) { return loop.TCPSocket(family) })
}

// boundSockets makes sockets that have an address and a port.
type boundSockets struct{}

func (s boundSockets) Sockets(fds []int, family int) error {
	return fill(fds, func() (int, error) { return s.socket(family) })
}

func (boundSockets) socket(family int) (int, error) {
	fd, err := loop.TCPSocket(family)
	if err != nil {
		return -1, err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{}); err != nil {
		loop.CloseFD(fd)
		return -1, err
	}
	return fd, nil
}

func mayBindTransparent(t *testing.T) bool {
	t.Helper()
	fd, err := loop.TCPSocket(syscall.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.CloseFD(fd)
	return loop.BindTransparent(fd, netip.MustParseAddrPort("127.0.10.1:0")) == nil
}

func TestApplicationSeesItsClient(t *testing.T) {
	if !mayBindTransparent(t) {
		t.Skip("needs CAP_NET_ADMIN to bind foreign addresses")
	}
	paths(t, testApplicationSeesItsClient)
}

func testApplicationSeesItsClient(t *testing.T, r *rig) {
	r.sockets = freeSockets{}
	_, _, client, server := pair(r, func(c *proxy.Config) { c.Source = proxy.SourceAlways })
	app := r.serve(server.ip, func(c *net.TCPConn) { _, _ = io.WriteString(c, c.RemoteAddr().String()) })
	seenBy := func(c io.Reader) string {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		host, _, _ := strings.Cut(string(b), ":")
		return host
	}
	if got := seenBy(client.dial(app.addr)); got != "127.0.10.1" {
		t.Errorf("behind the client's agent the application sees %s", got)
	}
	if got := seenBy(server.dialFrom(netip.MustParseAddr("127.0.40.1"), app.addr)); got != "127.0.40.1" {
		t.Errorf("behind passthrough the application sees %s", got)
	}
	// A call of the pod to itself keeps the kernel's choice.
	if got := seenBy(server.dial(app.addr)); got == "" {
		t.Errorf("a call of itself sees %q", got)
	}
}

// A connection in a client's name has a port that the client hardly has itself, or connection tracking takes it for one of the
// client's that is redirected to the agent.
func TestSourcePort(t *testing.T) {
	if !mayBindTransparent(t) {
		t.Skip("needs CAP_NET_ADMIN to bind foreign addresses")
	}
	paths(t, testSourcePort)
}

func testSourcePort(t *testing.T, r *rig) {
	r.sockets = freeSockets{}
	_, _, client, server := pair(r, func(c *proxy.Config) { c.Source = proxy.SourceAlways })
	app := r.serve(server.ip, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, c.RemoteAddr().String()+"\n")
		_, _ = io.Copy(io.Discard, c)
	})
	seenBy := func(c net.Conn) netip.AddrPort {
		t.Helper()
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return netip.MustParseAddrPort(strings.TrimSpace(line))
	}
	last := seenBy(client.dial(app.addr))
	next := func(by int) netip.AddrPort {
		return netip.AddrPortFrom(last.Addr(), 16384+(last.Port()-16384+uint16(by))%16384)
	}
	wants := func(what string, c net.Conn, want netip.AddrPort) {
		t.Helper()
		if last = seenBy(c); last != want {
			t.Errorf("%s the application sees %s, want %s", what, last, want)
		}
	}
	wants("behind another tunnel", client.dial(app.addr), next(1))
	wants("behind passthrough", server.dialFrom(client.ip, app.addr), next(1))
	// Where somebody listens, a server of the pod.
	l, err := net.Listen("tcp", next(1).String())
	if err != nil {
		t.Fatal(err)
	}
	wants("beside a listener", client.dial(app.addr), next(2))
	_ = l.Close()
	// A connection of just these ports is there.
	other := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(next(1)), Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
	}}
	c, err := other.DialContext(t.Context(), "tcp", app.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	free := next(2)
	if got := seenBy(client.dial(app.addr)); got.Addr() != last.Addr() || got.Port() >= 16384 && got.Port() < 32768 {
		t.Errorf("beside a connection of the same ports the application sees %s, want a port of the kernel's choice", got)
	}
	wants("then", client.dial(app.addr), free)
}

func TestApplicationThatEndsAtOnce(t *testing.T) { paths(t, testApplicationThatEndsAtOnce) }

func testApplicationThatEndsAtOnce(t *testing.T, r *rig) {
	_, _, client, server := pair(r, nil)
	app := r.serve(server.ip, func(c *net.TCPConn) { _, _ = io.WriteString(c, "bye") })
	for range 50 {
		for _, c := range []io.Reader{client.dial(app.addr), server.dialFrom(client.ip, app.addr), server.dial(app.addr)} {
			if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
				t.Fatalf("got %q, %v", b, err)
			}
		}
	}
}

func TestSourceThatCannotBeKept(t *testing.T) {
	// Sockets that are bound to a port already refuse another source address, whatever the privileges.
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.Source = proxy.SourceAuto })
	server := two.enrol(r.workloadAt("server", "127.0.10.2", nil), boundSockets{})
	dst := r.echo(server.ip)
	for range 3 {
		exchange(t, server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst), "hello")
	}
	if n := strings.Count(two.seen.text(), "will not see"); n > 1 {
		t.Errorf("the warning came %d times", n)
	}
	three := r.node(func(c *proxy.Config) { c.Source = proxy.SourceAlways })
	strict := three.enrol(r.workloadAt("strict", "127.0.10.3", nil), boundSockets{})
	wantReset(t, strict.dialFrom(netip.MustParseAddr("127.0.40.1"), r.echo(strict.ip)))
	if f := three.seen.ended(t, proxy.Inbound, 1); f.Flag != proxy.FlagConnect {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
	p := r.raw("client", strict)
	p.Connect(1, r.echo(strict.ip).String())
	if got := p.WaitStatus(t, 1); got != 503 {
		t.Errorf("status is %d, want 503", got)
	}
}

func TestProxyTunnel(t *testing.T) {
	r := newRig(t)
	two := r.node(nil)
	waypoint := two.enrol(r.workloadAt("waypoint", "127.0.10.2", func(w *workload.Workload) {
		w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProxy}
	}), freeSockets{})
	app := r.serve(netip.MustParseAddr("127.0.0.1"), func(c *net.TCPConn) {
		b := make([]byte, 1024)
		n, _ := c.Read(b)
		_, _ = c.Write(b[:n])
	})
	// The waypoint answers for any address.
	target := netip.AddrPortFrom(netip.MustParseAddr("127.0.77.1"), app.addr.Port())
	p := r.raw("client", waypoint)
	p.Connect(1, target.String())
	if got := p.WaitStatus(t, 1); got != 200 {
		t.Fatalf("status is %d", got)
	}
	const id = "spiffe://cluster.local/ns/default/sa/client"
	from := p.Conn.LocalAddr().(*net.TCPAddr).AddrPort()
	want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00" + string(rune(12+3+len(id))) +
		"\x7f\x00\x00\x01\x7f\x00\x4d\x01" + port(from) + port(target) + "\xd0\x00" + string(rune(len(id))) + id
	s := p.Wait(t, 1, "header", func(s hbonetest.Stream) bool { return len(s.Data) > 0 })
	if string(s.Data) != want {
		t.Errorf("header is\n%q, want\n%q", s.Data, want)
	}
}

func port(a netip.AddrPort) string { return string([]byte{byte(a.Port() >> 8), byte(a.Port())}) }

func TestAcceptSurvivesExhaustion(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(netip.MustParseAddr("127.0.30.1"))
	exchange(t, client.dial(dst), "hello")

	// A socket of the client's own that can connect when there are no descriptors left to accept with.
	spare, err := loop.TCPSocket(syscall.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.CloseFD(spare)
	if err := syscall.Bind(spare, &syscall.SockaddrInet4{Addr: client.ip.As4()}); err != nil {
		t.Fatal(err)
	}
	client.goes(loop.LocalAddr(spare), dst)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) }()
	if err := loop.StartConnect(spare, client.outbound); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "pause", func() bool { return strings.Contains(one.seen.text(), "accepting connections pauses") })
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "flow", func() bool {
		return slices.ContainsFunc(client.Flows(), func(f *proxy.Flow) bool { return f.Source.Addr == loop.LocalAddr(spare) })
	})
	exchange(t, client.dial(dst), "again")
	if n := strings.Count(one.seen.text(), "accepting connections pauses"); n != 1 {
		t.Errorf("it was logged %d times", n)
	}
}

func TestAcceptedSocketsInheritOptions(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	dst := r.echo(netip.MustParseAddr("127.0.30.1"))
	option := func(fd, level, name int) int {
		n, err := syscall.GetsockoptInt(fd, level, name)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	outbound, looked := true, 0
	client.mu.Lock()
	client.look = func(fd int) { // under the pod's lock
		looked++
		if option(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY) == 0 || option(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) == 0 ||
			option(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE) != 180 {
			t.Error("an accepted socket has no TCP_NODELAY or keepalive")
		}
		if got := loop.Congestion(fd); outbound && got == "bbr" {
			t.Errorf("congestion control towards the application is %s", got)
		}
		outbound = false
	}
	client.mu.Unlock()
	exchange(t, client.dial(dst), "hello")
	exchange(t, client.dialFrom(netip.MustParseAddr("127.0.40.1"), r.echo(client.ip)), "hello")
	client.mu.Lock()
	defer client.mu.Unlock()
	if looked != 2 {
		t.Errorf("looked at %d sockets", looked)
	}
}
