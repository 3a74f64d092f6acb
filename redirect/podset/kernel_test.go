package podset_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// agent is a Runner with real listeners: what it accepts on a port, it greets with
// the port and echoes.
type agent struct{}

func (agent) Start(_ context.Context, pod podset.Pod) (func(context.Context), error) {
	var (
		wg        sync.WaitGroup
		conns     sync.WaitGroup
		listeners []net.Listener
	)
	stop := func(ctx context.Context) {
		for _, l := range listeners {
			_ = l.Close()
		}
		wg.Wait()
		done := make(chan struct{})
		go func() { conns.Wait(); close(done) }()
		select {
		case <-done:
		case <-ctx.Done(): // the test's peers close, which ends the connections
			<-done
		}
	}
	for _, port := range []int{redirect.PortOutbound, redirect.PortInbound, redirect.PortHBONE} {
		l, err := listen(pod.NS, port)
		if err != nil {
			stop(context.Background())
			return nil, err
		}
		listeners = append(listeners, l)
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				conns.Go(func() {
					defer c.Close()
					_, _ = fmt.Fprintln(c, port)
					_, _ = io.Copy(c, c)
				})
			}
		})
	}
	return stop, nil
}

// listen opens a marked listener inside ns, the way the agent does.
func listen(ns *netns.NS, port int) (net.Listener, error) {
	fd, err := ns.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0, netns.Mark(redirect.AgentMark))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return nil, fmt.Errorf("listen on port %d of %s: %w", port, ns, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// node is a pod and a peer, and a running set with a hand-off socket.
type node struct {
	t         *testing.T
	peer, pod *netns.NS
	set       *podset.Set
	path      string // of the hand-off socket
	end       func()
	events    chan podset.Event
}

func newNode(t *testing.T, cfg podset.Config) *node {
	t.Helper()
	n := &node{t: t, peer: netnstest.New(t), pod: netnstest.New(t), events: make(chan podset.Event, 100)}
	netnstest.Veth(t,
		netnstest.End{NS: n.peer, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		netnstest.End{NS: n.pod, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
	netnstest.Serve(t, netnstest.Listen(t, n.peer, "10.0.0.1:9000", netnstest.Options{}), func(c net.Conn) {
		_, _ = fmt.Fprintln(c, "peer")
		_, _ = io.Copy(c, c)
	})
	n.run(cfg)
	return n
}

// run starts a set; n.end ends it.
func (n *node) run(cfg podset.Config) {
	n.t.Helper()
	cfg.Runner = agent{}
	cfg.OnEvent = func(e podset.Event) { n.events <- e }
	set, err := podset.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.path = filepath.Join(n.t.TempDir(), "s")
	server, err := handoff.Listen(handoff.Config{Path: n.path, Handler: set.Handoff()})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = set.Run(ctx) })
	wg.Go(func() { _ = server.Run(ctx) })
	n.end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	n.t.Cleanup(n.end)
	n.set = set
}

// handOver gives the pod to the set through the socket.
func (n *node) handOver() error {
	n.t.Helper()
	return n.do(func(ctx context.Context, c *handoff.Client) error {
		return c.Add(ctx, handoff.Pod{UID: "u1", Name: "alice", Namespace: "default", ServiceAccount: "sa"}, n.pod)
	})
}

func (n *node) takeBack() error {
	return n.do(func(ctx context.Context, c *handoff.Client) error { return c.Remove(ctx, "u1") })
}

func (n *node) do(f func(context.Context, *handoff.Client) error) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
	defer cancel()
	c, err := handoff.Dial(ctx, n.path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	return f(ctx, c)
}

// calls dials the peer from the pod and returns who served and the connection.
func (n *node) calls() (string, net.Conn) {
	n.t.Helper()
	c, err := netnstest.Dial(n.t, n.pod, "tcp", "10.0.0.1:9000", netnstest.Options{})
	if err != nil {
		return err.Error(), nil
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error(), nil
	}
	return strings.TrimSpace(line), c
}

func (n *node) wait(kind podset.EventKind) podset.Event {
	n.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case e := <-n.events:
			if e.Kind == kind {
				return e
			}
		case <-timeout:
			n.t.Fatalf("no event %q came", kind)
		}
	}
}

func echoes(c net.Conn) error {
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	buf := make([]byte, 4)
	_, err := io.ReadFull(c, buf)
	if err == nil && string(buf) != "ping" {
		err = fmt.Errorf("echo is %q", buf)
	}
	return err
}

func TestEnrolAuditLeave(t *testing.T) {
	n := newNode(t, podset.Config{AuditInterval: 100 * time.Millisecond, DrainTimeout: 10 * time.Second})
	if who, _ := n.calls(); who != "peer" {
		t.Fatalf("before: served by %q", who)
	}
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	who, captured := n.calls()
	if who != "15001" {
		t.Fatalf("enrolled: served by %q", who)
	}
	// Somebody takes the rules away; the audit brings them back within its interval.
	if err := nft.Delete(n.pod); err != nil {
		t.Fatal(err)
	}
	e := n.wait(podset.EventRepaired)
	if len(e.Findings) == 0 || !strings.Contains(e.Findings[0].String(), "table inet culvert is missing") {
		t.Errorf("findings %v", e.Findings)
	}
	if who, c := n.calls(); who != "15001" {
		t.Errorf("repaired: served by %q", who)
	} else {
		_ = c.Close()
	}
	if err := echoes(captured); err != nil {
		t.Errorf("captured connection after the repair: %v", err)
	}
	// Leaving: new connections pass, the captured one goes on until it is closed.
	left := make(chan error, 1)
	go func() { left <- n.takeBack() }()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		who, c := n.calls()
		if c != nil {
			_ = c.Close() // a captured one would keep the pod from leaving
		}
		if who == "peer" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("leaving: served by %q", who)
		}
	}
	if err := echoes(captured); err != nil {
		t.Errorf("captured connection while leaving: %v", err)
	}
	_ = captured.Close()
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	if have, err := nft.Read(n.pod); err != nil || have != nil {
		t.Errorf("left behind: %s, %v", have.Text(), err)
	}
}

// TestComesBackWhileDraining: the pod is wanted again while connections of before drain. New ones are captured at once,
// those of before go on beyond that, and the rules stay when they end.
func TestComesBackWhileDraining(t *testing.T) {
	n := newNode(t, podset.Config{AuditInterval: 50 * time.Millisecond, DrainTimeout: 10 * time.Second})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	who, before := n.calls()
	if who != "15001" {
		t.Fatalf("enrolled: served by %q", who)
	}
	for range 2 {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_ = n.set.RemoveWithin(gone, "u1", time.Hour)
		if err := n.handOver(); err != nil {
			t.Fatal(err)
		}
		who, c := n.calls()
		if who != "15001" {
			t.Fatalf("wanted again: served by %q", who)
		}
		_ = c.Close()
		if err := echoes(before); err != nil {
			t.Errorf("connection of before: %v", err)
		}
	}
	_ = before.Close()
	for deadline := time.Now().Add(10 * time.Second); len(n.set.Pods()) > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the connection of before has ended, and there are %v", n.set.Pods())
		}
	}
	if who, c := n.calls(); who != "15001" {
		t.Errorf("when connections of before have ended: served by %q", who)
	} else {
		_ = c.Close()
	}
	if err := n.takeBack(); err != nil {
		t.Fatal(err)
	}
	if have, err := nft.Read(n.pod); err != nil || have != nil {
		t.Errorf("left behind: %s, %v", have.Text(), err)
	}
}

// TestSuccessorFindsRules: an agent ends and its rules refuse what they captured,
// until the next one has the pod.
func TestSuccessorFindsRules(t *testing.T) {
	n := newNode(t, podset.Config{})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	n.end()
	if who, _ := n.calls(); !strings.Contains(who, "refused") {
		t.Errorf("without an agent: served by %q, want a refusal", who)
	}
	n.run(podset.Config{Cleanup: true})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	if who, c := n.calls(); who != "15001" {
		t.Errorf("after the restart: served by %q", who)
	} else {
		_ = c.Close()
	}
	n.end()
	if who, _ := n.calls(); who != "peer" {
		t.Errorf("cleaned up: served by %q", who)
	}
}

// TestTakenPort: an application that has a port of the agent is reported, is not
// captured, and is enrolled when the port is free.
func TestTakenPort(t *testing.T) {
	n := newNode(t, podset.Config{RetryInterval: 50 * time.Millisecond})
	app := netnstest.Listen(t, n.pod, "[::]:15006", netnstest.Options{})
	err := n.handOver()
	if err == nil || !strings.Contains(err.Error(), "port 15006") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("hand-over = %v, want the port and the reason", err)
	}
	if st := n.set.Pods(); len(st) != 1 || !errors.Is(st[0].Err, unix.EADDRINUSE) {
		t.Errorf("status %+v", st)
	}
	if who, _ := n.calls(); who != "peer" {
		t.Errorf("served by %q although it is not enrolled", who)
	}
	_ = app.Close()
	n.wait(podset.EventEnrolled)
	if who, c := n.calls(); who != "15001" {
		t.Errorf("served by %q", who)
	} else {
		_ = c.Close()
	}
}

// TestForeignSocketOfAnotherProcess: the agent's listeners carry the mark and are its
// own; a socket that another process holds with the mark is reported.
func TestForeignSocketOfAnotherProcess(t *testing.T) {
	n := newNode(t, podset.Config{AuditInterval: 20 * time.Millisecond, SocketAudit: 20 * time.Millisecond})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	fd, err := n.pod.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0, netns.Mark(redirect.AgentMark))
	if err != nil {
		t.Fatal(err)
	}
	// The socket is handed to a child and closed here.
	f := os.NewFile(uintptr(fd), "socket")
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 7777}); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{f}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	e := n.wait(podset.EventForeign)
	if len(e.Sockets) != 1 || e.Sockets[0].Local.Port() != 7777 {
		t.Errorf("reported %v, want the child's socket alone", e.Sockets)
	}
}
