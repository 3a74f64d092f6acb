package relay_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/relay"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// path is a smallest mesh: an ingress that puts every accepted connection into one tunnel, and an egress that dials one
// destination for every stream.
type path struct {
	t       testing.TB
	in, out *loop.Loop
	ingress *loop.Acceptor
	client  *tunnel.Tunnel
	server  *tunnel.Tunnel
	dst     netip.AddrPort
	inDone  chan error
	outDone chan error
	egress  *relay.Relay  // the newest; on the loop out
	linger  time.Duration // of egress relays; on the loop out
	fromApp atomic.Int64
}

func newLoop(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(l.Close)
	return l
}

func listen(t testing.TB) *loop.Acceptor {
	t.Helper()
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
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func dial(t testing.TB, to netip.AddrPort) int {
	t.Helper()
	fd, err := loop.TCPSocket(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.StartConnect(fd, to); err != nil {
		t.Fatal(err)
	}
	return fd
}

func newPath(t testing.TB, dst netip.AddrPort) *path {
	t.Helper()
	return newPathOn(t, newLoop(t), newLoop(t), dst)
}

func newPathOn(t testing.TB, in, out *loop.Loop, dst netip.AddrPort) *path {
	t.Helper()
	p := &path{t: t, in: in, out: out, dst: dst, inDone: make(chan error, 4096), outDone: make(chan error, 4096)}
	ca := identitytest.NewCA(t, "cluster.local")
	alice, bob := ca.SVID(t, "spiffe://cluster.local/ns/a/sa/alice"), ca.SVID(t, "spiffe://cluster.local/ns/b/sa/bob")
	wire := listen(t)
	served := make(chan *tunnel.Tunnel, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() {
		fd, _, err := wire.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		st, err := tunnel.Server(ctx, fd, mtls.Server(bob, nil), tunnel.Config{Loop: p.out, OnRequest: p.request}, nil)
		if err != nil {
			t.Error(err)
		}
		served <- st
	}()
	client, err := tunnel.Client(ctx, connectTo(t, wire.Addr()), mtls.Client(alice, []identity.ID{bob.ID}, nil), tunnel.Config{Loop: p.in})
	if err != nil {
		t.Fatal(err)
	}
	p.client, p.server = client, <-served
	p.ingress = listen(t)
	go p.accept()
	return p
}

// connectTo returns a connected non-blocking socket.
func connectTo(t testing.TB, to netip.AddrPort) int {
	t.Helper()
	fd := dial(t, to)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(fds, 5000); err == unix.EINTR {
			continue
		} else if n != 1 || err != nil {
			t.Fatalf("connect to %s: %d %v", to, n, err)
		}
		return fd
	}
}

func (p *path) accept() {
	for {
		fd, _, err := p.ingress.Accept()
		if err != nil {
			return
		}
		loop.NoDelay(fd)
		p.in.Post(func() {
			var r *relay.Relay
			r = relay.New(p.in, func(err error) { p.fromApp.Add(r.FromApp.Load()); p.inDone <- err })
			err := r.Request(p.client, &h2.Header{Method: "CONNECT", Authority: p.dst.String()}, func(h *h2.Header, err error) {
				if err != nil || h.Status != 200 {
					loop.AbortFD(fd)
					p.inDone <- err
					return
				}
				r.Start(fd)
			})
			if err != nil {
				loop.AbortFD(fd)
				p.inDone <- err
			}
		})
	}
}

func (p *path) request(st *tunnel.Stream, h *h2.Header) {
	r := relay.New(p.out, func(err error) { p.outDone <- err })
	r.Linger = p.linger
	r.Serve(st)
	p.egress = r
	go func() {
		fd, err := loop.TCPSocket(unix.AF_INET)
		if err == nil {
			err = loop.StartConnect(fd, netip.MustParseAddrPort(h.Authority))
		}
		if err != nil {
			p.t.Error(err)
			return
		}
		p.out.Post(func() {
			r.Connect(fd, 5*time.Second, func(err error) {
				if err != nil {
					st.Respond(503, nil, true)
					return
				}
				loop.NoDelay(fd)
				st.Respond(200, nil, false)
			})
		})
	}()
}

// tcp dials the ingress with an ordinary connection.
func (p *path) tcp() *net.TCPConn {
	p.t.Helper()
	c, err := net.DialTimeout("tcp", p.ingress.Addr().String(), 5*time.Second)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// serve runs an ordinary TCP server until the test ends.
func serve(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func wait(t testing.TB, what string, c chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not end", what)
		return nil
	}
}
