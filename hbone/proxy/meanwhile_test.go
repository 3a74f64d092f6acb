package proxy_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// The tests of this file change what a connection is judged by while it comes to be: behind the question whether it may, and
// before it is among those that a change ends. Each has a witness that is among them, and whose end says that the change has been
// looked at.

// lookTime is how long an agent may take to judge a certificate, or to look at its few connections. A test whose agent takes
// longer sees less, and passes.
const lookTime = 20 * time.Millisecond

// looked waits until the witness has been ended, and all others looked at.
func looked(t *testing.T, witness net.Conn) {
	t.Helper()
	wantReset(t, witness)
	time.Sleep(lookTime)
}

// gate is where a goroutine is held.
type gate struct {
	reached, open chan struct{}
	pass          func() // opens it
}

func newGate() *gate {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	g.pass = sync.OnceFunc(func() { close(g.open) })
	return g
}

// hold is for one caller.
func (g *gate) hold() {
	close(g.reached)
	<-g.open
}

// lastRecord holds the last record of the first write that has several: the one that ends its side of a handshake, behind the
// certificate.
type lastRecord struct {
	net.Conn
	once sync.Once
	gate *gate
}

func (c *lastRecord) Write(p []byte) (n int, err error) {
	last := 0
	for next := 0; next < len(p); next += 5 + int(binary.BigEndian.Uint16(p[next+3:])) {
		last = next
	}
	if last > 0 {
		c.once.Do(func() {
			n, err = c.Conn.Write(p[:last])
			c.gate.hold()
		})
	}
	if err == nil {
		var more int
		more, err = c.Conn.Write(p[n:])
		n += more
	}
	return n, err
}

// revoke puts the certificate of a service account on a list.
func (r *rig) revoke(t *testing.T, path, account string) {
	t.Helper()
	s, err := r.certs.Get(t.Context(), identity.MustParse("spiffe://cluster.local/ns/default/sa/"+account))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, r.ca.CRL(t, s.Leaf()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A client that is revoked between its certificate and the end of its handshake gets no tunnel.
func TestRevokedInTheHandshakeInbound(t *testing.T) {
	r := newRig(t)
	rev, path := revocation(t)
	server := r.node(func(c *proxy.Config) { c.Revocation = rev }).pod("server", "127.0.10.2")
	witness := r.raw("mallory", server)
	g := newGate()
	defer g.pass()
	conn, err := net.Dial("tcp", server.inbound.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	type answer struct {
		peer *hbonetest.Peer
		err  error
	}
	got := make(chan answer, 1)
	config := r.tlsAs("mallory", server)
	go func() {
		p, err := hbonetest.Client(&lastRecord{Conn: conn, gate: g}, config)
		got <- answer{p, err}
	}()
	<-g.reached
	time.Sleep(lookTime) // at the certificate
	r.revoke(t, path, "mallory")
	_ = witness.WaitEnd(t)
	time.Sleep(lookTime)
	g.pass()
	if a := <-got; a.err == nil {
		_ = a.peer.WaitEnd(t)
	}
}

// A server that is revoked between its certificate and the end of its handshake is asked nothing.
func TestRevokedInTheHandshakeOutbound(t *testing.T) {
	r := newRig(t)
	rev, path := revocation(t)
	one := r.node(func(c *proxy.Config) { c.Revocation = rev })
	client, other := one.pod("client", "127.0.10.1"), one.pod("other", "127.0.10.3")
	server := r.workloadAt("server", "127.0.10.2", nil)
	s, err := r.certs.Get(t.Context(), server.Identity())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(server.Addresses[0], r.hbone).String())
	if err != nil {
		t.Fatal(err)
	}
	g, known := newGate(), make(chan struct{})
	defer g.pass()
	var wg sync.WaitGroup
	wg.Go(func() {
		serve := func(c net.Conn, meet func()) {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			tc := tls.Server(c, mtls.Server(s, nil))
			if _, err := tc.Read(make([]byte, 1)); err == nil {
				meet()
			}
			_, _ = io.Copy(io.Discard, tc)
		}
		for _, next := range []func(net.Conn){
			func(c net.Conn) { serve(c, func() { close(known) }) },
			func(c net.Conn) { serve(&lastRecord{Conn: c, gate: g}, func() {}) },
		} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { next(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	dst := netip.AddrPortFrom(server.Addresses[0], 80)
	witness := other.dial(dst)
	<-known
	c := client.dial(dst)
	<-g.reached
	time.Sleep(lookTime) // at the certificate
	r.revoke(t, path, "server")
	looked(t, witness)
	g.pass()
	wantReset(t, c)
	if f := one.seen.ended(t, proxy.Outbound, 2); f.Flag != proxy.FlagCertRevoked {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
}

// A connection that a policy begins to forbid while network policies are asked about it is refused.
func TestNetworkPolicyWhileItIsAsked(t *testing.T) {
	r := newRig(t)
	set, g := netpol.New(), newGate()
	defer g.pass()
	late := netip.MustParseAddr("127.0.40.2")
	var once sync.Once
	two := r.node(func(c *proxy.Config) {
		c.NetworkPolicies = set
		c.OwnNode = func(a netip.Addr) bool {
			if a == late {
				once.Do(g.hold)
			}
			return false
		}
	})
	server := two.pod("server", "127.0.10.2")
	app := r.echo(server.ip)
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(server.w), ingressTo("in", "server", block("127.0.40.0/24"))}, nil)
	set.SetReady(true)
	witness := server.dialFrom(netip.MustParseAddr("127.0.40.1"), app)
	exchange(t, witness, "hello")
	c := server.dialFrom(late, app)
	<-g.reached
	set.Apply([]netpol.Object{ingressTo("in", "server")}, nil)
	looked(t, witness)
	g.pass()
	wantReset(t, c)
	denied(t, two.seen.ended(t, proxy.Inbound, 2), "netpol default/in")
}

// A connection that a policy begins to forbid while its peer is asked is ended once the peer has agreed.
func TestNetworkPolicyWhileThePeerIsAsked(t *testing.T) {
	r := newRig(t)
	set := netpol.New()
	client := r.node(func(c *proxy.Config) { c.NetworkPolicies = set }).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(client.w), networkPod(server)}, nil)
	set.SetReady(true)
	witness := client.dial(r.echo(netip.MustParseAddr("127.0.30.1")))
	exchange(t, witness, "hello")
	c := client.dial(netip.AddrPortFrom(server.Addresses[0], 80))
	p := peer.Peer(t, 1)
	id := p.WaitRequest(t, 1)
	set.Apply([]netpol.Object{egressFrom("out", "client")}, nil)
	looked(t, witness)
	p.Headers(id, false, hbonetest.Fields(":status", "200"))
	wantReset(t, c)
}

// heldSockets makes sockets one at a time, and calls a function before.
type heldSockets struct {
	podSockets
	before func()
}

func (s heldSockets) Sockets(fds []int, family int) error {
	if len(fds) > 1 {
		return errors.New("none in advance")
	}
	s.before()
	return s.podSockets.Sockets(fds, family)
}

// Plaintext that a policy begins to forbid while the socket to the application is made does not come to be.
func TestPolicyWhileASocketIsMade(t *testing.T) {
	r := newRig(t)
	g := newGate()
	defer g.pass()
	w := r.workloadAt("server", "127.0.10.2", nil)
	two := r.node(nil)
	var n atomic.Int32
	server := two.enrol(w, heldSockets{podSockets{w.Addresses[0]}, func() {
		if n.Add(1) == 2 {
			g.hold()
		}
	}})
	outside := netip.MustParseAddr("127.0.40.1")
	app := r.echo(server.ip)
	witness := server.dialFrom(outside, app)
	exchange(t, witness, "hello")
	c := server.dialFrom(outside, app)
	<-g.reached
	forbid := strict()
	forbid.Scope = policy.Namespace
	r.policies.Apply([]*policy.Policy{forbid}, nil)
	looked(t, witness)
	g.pass()
	wantReset(t, c)
	if f := two.seen.ended(t, proxy.Inbound, 2); !errors.Is(f.Err, proxy.ErrPolicyChange) {
		t.Errorf("flow ended with %v", f.Err)
	}
}
