package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

var patience = 10 * time.Second * slowness()

// rig is a mesh on loopback addresses: every pod has an address of its own, and an injected function stands for the
// redirection.
type rig struct {
	t        testing.TB
	ca       *identitytest.CA
	store    *workload.Store
	policies *policy.Set
	certs    *certs
	hbone    uint16        // where all pods accept HBONE
	sockets  proxy.Sockets // of the server of a pair; nil gives them its address
	sameNode bool          // pairs are on one node and need no tunnel
	ports    sync.Map      // those that were chosen
}

func newRig(t testing.TB) *rig {
	t.Helper()
	checkDescriptors(t)
	r := &rig{t: t, ca: identitytest.NewCA(t, "cluster.local"), store: workload.New(), policies: policy.New(), hbone: freePort(t)}
	r.certs = &certs{t: t, ca: r.ca, by: make(map[identity.ID]*svid.SVID), fail: make(map[identity.ID]error)}
	return r
}

// freePort finds a port that no address of the loopback network uses, outside the range that the kernel hands out.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 100 {
		port := uint16(20000 + rand.IntN(10000))
		if l, err := net.Listen("tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// checkDescriptors fails the test when it leaves descriptors behind.
func checkDescriptors(t testing.TB) {
	// The runtime's poller keeps descriptors of its own from its first use on.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	before := descriptors()
	t.Cleanup(func() {
		if !eventually(func() bool { return descriptors() <= before }) {
			t.Errorf("%d descriptors before the test, %d behind it", before, descriptors())
		}
	})
}

func descriptors() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}

func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !eventually(ok) {
		t.Fatalf("%s did not happen", what)
	}
}

// certs issues certificates at once.
type certs struct {
	t    testing.TB
	ca   *identitytest.CA
	mu   sync.Mutex
	by   map[identity.ID]*svid.SVID
	fail map[identity.ID]error
}

func (c *certs) Get(_ context.Context, id identity.ID) (*svid.SVID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fail[id]; err != nil {
		return nil, err
	}
	s := c.by[id]
	if s == nil {
		s = c.ca.SVID(c.t, id.String())
		c.by[id] = s
	}
	return s, nil
}

// set replaces the certificate of an identity.
func (c *certs) set(s *svid.SVID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[s.ID] = s
}

// node starts a Proxy with loops of its own.
func (r *rig) node(change func(*proxy.Config)) *node {
	r.t.Helper()
	n := &node{rig: r, seen: &observer{}}
	cfg := proxy.Config{
		Store: r.store, Policies: r.policies, Certificates: r.certs, HBONEPort: r.hbone, Observer: n.seen, Source: proxy.SourceNever,
		Logger: slog.New(slog.NewTextHandler(n.seen, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	if cfg.Loops == nil {
		cfg.Loops = []*loop.Loop{runLoop(r.t), runLoop(r.t)}
	}
	var err error
	if n.Proxy, err = proxy.New(cfg); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = n.Run(ctx) })
	r.t.Cleanup(func() {
		cancel()
		n.Stop(ctx)
		wg.Wait()
	})
	return n
}

func runLoop(t testing.TB) *loop.Loop {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(l.Run)
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l
}

// node is an agent.
type node struct {
	*proxy.Proxy
	rig  *rig
	seen *observer
}

// pod is one enrolled pod; its listeners are those of redirected traffic.
type pod struct {
	*proxy.Pod
	rig                            *rig
	ip                             netip.Addr
	w                              *workload.Workload
	outbound, inbound, passthrough netip.AddrPort

	mu      sync.Mutex
	changed *sync.Cond
	dst     map[netip.AddrPort]netip.AddrPort // by the client's address
	always  netip.AddrPort                    // where everybody goes, if set
	look    func(fd int)                      // at accepted sockets
}

// workloadAt makes a mesh member and adds it to the store.
func (r *rig) workloadAt(name, ip string, change func(*workload.Workload)) *workload.Workload {
	w := &workload.Workload{
		UID: "cluster1//Pod/default/" + name, Name: name, Namespace: "default", TrustDomain: "cluster.local", ServiceAccount: name,
		WorkloadName: name, WorkloadType: "deployment", CanonicalName: name, ClusterID: "cluster1",
		Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Capacity: 1, Protocol: workload.HBONE,
	}
	if change != nil {
		change(w)
	}
	r.store.Apply([]workload.Event{workload.Upsert(w)})
	return r.store.Snapshot().Workload(w.UID)
}

// pod enrols a pod at an address of its own.
func (n *node) pod(name, ip string) *pod {
	n.rig.t.Helper()
	return n.podOf(n.rig.workloadAt(name, ip, nil))
}

func (n *node) podOf(w *workload.Workload) *pod {
	n.rig.t.Helper()
	return n.enrol(w, podSockets{w.Addresses[0]})
}

// enrol starts a pod that makes its sockets by the given means.
func (n *node) enrol(w *workload.Workload, sockets proxy.Sockets) *pod {
	t := n.rig.t
	t.Helper()
	p := &pod{rig: n.rig, ip: w.Addresses[0], w: w, dst: make(map[netip.AddrPort]netip.AddrPort)}
	p.changed = sync.NewCond(&p.mu)
	cfg := proxy.PodConfig{
		UID: "uid-" + w.Name, Namespace: w.Namespace, Name: w.Name, ServiceAccount: w.ServiceAccount,
		Sockets: sockets, OriginalDst: p.originalDst,
		Outbound: n.rig.listen(p.ip, 0), Inbound: n.rig.listen(p.ip, n.rig.hbone), Passthrough: n.rig.listen(p.ip, 0),
	}
	p.outbound, p.inbound, p.passthrough = cfg.Outbound.Addr(), cfg.Inbound.Addr(), cfg.Passthrough.Addr()
	var err error
	if p.Pod, err = n.Start(cfg); err != nil {
		t.Fatal(err)
	}
	return p
}

// listen makes a listener of an agent. A port that is chosen here is nobody else's in this rig, see fresh.
func (r *rig) listen(ip netip.Addr, port uint16) *loop.Acceptor {
	r.t.Helper()
	for {
		fd, err := loop.TCPSocket(loop.Family(ip))
		if err != nil {
			r.t.Fatal(err)
		}
		if err := loop.Listen(fd, netip.AddrPortFrom(ip, port), false); err != nil {
			r.t.Fatal(err)
		}
		a, err := loop.NewAcceptor(fd)
		if err != nil {
			r.t.Fatal(err)
		}
		if port != 0 || r.fresh(a.Addr()) {
			return a
		}
		_ = a.Close()
	}
}

// fresh reports whether a port was not chosen before. At the same port as one of its agent's, though at another address, an
// application would be taken for the agent.
func (r *rig) fresh(addr netip.AddrPort) bool {
	_, used := r.ports.LoadOrStore(addr.Port(), true)
	return !used
}

// podSockets makes sockets that have the pod's address, as they would in its namespace.
type podSockets struct{ ip netip.Addr }

func (s podSockets) Sockets(fds []int, family int) error {
	return fill(fds, func() (int, error) { return s.socket(family) })
}

// fill makes sockets one by one.
func fill(fds []int, one func() (int, error)) error {
	for i := range fds {
		fd, err := one()
		if err != nil {
			for _, fd := range fds[:i] {
				loop.CloseFD(fd)
			}
			return err
		}
		fds[i] = fd
	}
	return nil
}

func (s podSockets) socket(family int) (int, error) {
	fd, err := loop.TCPSocket(family)
	if err != nil {
		return -1, err
	}
	const bindAddressNoPort = 24
	_ = syscall.SetsockoptInt(fd, syscall.SOL_IP, bindAddressNoPort, 1)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: s.ip.As4()}); err != nil {
		loop.CloseFD(fd)
		return -1, fmt.Errorf("bind to pod: %w", err)
	}
	return fd, nil
}

// originalDst waits until the test has said where the client wants to go.
func (p *pod) originalDst(fd int) (netip.AddrPort, error) {
	client := loop.RemoteAddr(fd)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.look != nil {
		p.look(fd)
	}
	for {
		if dst, ok := p.dst[client]; ok {
			delete(p.dst, client)
			if !dst.IsValid() {
				return dst, errors.New("no original destination")
			}
			return dst, nil
		}
		if p.always.IsValid() {
			return p.always, nil
		}
		p.changed.Wait()
	}
}

// goesAlways sends everybody to one destination.
func (p *pod) goesAlways(dst netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.always = dst
}

// dial is an application of the pod that connects to dst.
func (p *pod) dial(dst netip.AddrPort) *net.TCPConn {
	p.rig.t.Helper()
	return p.redirected(p.outbound, p.ip, dst)
}

// dialFrom is somebody outside the mesh who connects to dst in the pod.
func (p *pod) dialFrom(client netip.Addr, dst netip.AddrPort) *net.TCPConn {
	p.rig.t.Helper()
	return p.redirected(p.passthrough, client, dst)
}

func (p *pod) redirected(listener netip.AddrPort, client netip.Addr, dst netip.AddrPort) *net.TCPConn {
	t := p.rig.t
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0))}
	c, err := d.Dial("tcp", listener.String())
	if err != nil {
		t.Fatal(err)
	}
	p.goes(c.LocalAddr().(*net.TCPAddr).AddrPort(), dst)
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// goes says where the client at an address wants to go.
func (p *pod) goes(client, dst netip.AddrPort) {
	p.mu.Lock()
	p.dst[client] = dst
	p.mu.Unlock()
	p.changed.Broadcast()
}

// app is a server application at an address.
type app struct {
	net.Listener
	addr netip.AddrPort
}

// serve runs handle for each connection that an application at ip accepts.
func (r *rig) serve(ip netip.Addr, handle func(*net.TCPConn)) *app {
	r.t.Helper()
	var l net.Listener
	for l == nil || !r.fresh(l.Addr().(*net.TCPAddr).AddrPort()) {
		if l != nil {
			l.Close()
		}
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(ip, 0).String()); err != nil {
			r.t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(2 * patience))
				handle(c.(*net.TCPConn))
			})
		}
	})
	r.t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return &app{l, l.Addr().(*net.TCPAddr).AddrPort()}
}

// echo answers with what it gets.
func (r *rig) echo(ip netip.Addr) netip.AddrPort {
	r.t.Helper()
	return r.serve(ip, func(c *net.TCPConn) {
		// Not TCPConn to TCPConn: that would splice through pipes, which the collector closes.
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		_ = c.CloseWrite()
	}).addr
}

// exchange sends a word and expects it back.
func exchange(t testing.TB, c net.Conn, word string) {
	t.Helper()
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		t.Fatalf("got %q, %v; want %q", b, err, word)
	}
}

// wantReset expects the connection to be reset, not ended.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection ended with %v, want a reset", err)
	}
}

// observer records flows, and the log.
type observer struct {
	mu     sync.Mutex
	log    []byte
	opened []*proxy.Flow
	noted  []*proxy.Flow
	closed []*proxy.Flow
	onOpen func(*proxy.Flow) // may be nil
}

func (o *observer) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.log = append(o.log, b...)
	return len(b), nil
}

func (o *observer) Opened(f *proxy.Flow) {
	o.mu.Lock()
	o.opened = append(o.opened, f)
	onOpen := o.onOpen
	o.mu.Unlock()
	if onOpen != nil {
		onOpen(f)
	}
}

func (o *observer) Noted(f *proxy.Flow) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.noted = append(o.noted, f)
}

func (o *observer) Closed(f *proxy.Flow) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = append(o.closed, f)
}

// last waits for the n-th flow of a direction that ended, the first being 1, and returns it.
func (o *observer) ended(t testing.TB, d proxy.Direction, n int) *proxy.Flow {
	t.Helper()
	var found *proxy.Flow
	waitFor(t, fmt.Sprintf("end of %s flow %d", d, n), func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		i := 0
		for _, f := range o.closed {
			if f.Direction == d {
				if i++; i == n {
					found = f
				}
			}
		}
		return found != nil
	})
	return found
}

func (o *observer) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.log)
}
