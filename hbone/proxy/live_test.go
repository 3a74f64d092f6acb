package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// paths runs a test over each way between two pods: in a tunnel between nodes, and without one inside a node.
func paths(t *testing.T, test func(*testing.T, *rig)) {
	for _, name := range []string{"tunnel", "same_node"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.sameNode = name == "same_node"
			test(t, r)
		})
	}
}

// pair is two pods with a node each, or on one node.
func pair(r *rig, change func(*proxy.Config)) (one, two *node, client, server *pod) {
	if r.sameNode {
		one = r.node(func(c *proxy.Config) {
			c.SameNode = true
			if change != nil {
				change(c)
			}
		})
		two = one
	} else {
		one, two = r.node(change), r.node(change)
	}
	w := r.workloadAt("server", "127.0.10.2", nil)
	sockets := r.sockets
	if sockets == nil {
		sockets = podSockets{w.Addresses[0]}
	}
	return one, two, one.pod("client", "127.0.10.1"), two.enrol(w, sockets)
}

func TestPolicyCutsLiveConnections(t *testing.T) { paths(t, testPolicyCutsLiveConnections) }

func testPolicyCutsLiveConnections(t *testing.T, r *rig) {
	_, two, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	cut := func(n int, key string) {
		t.Helper()
		f := two.seen.ended(t, proxy.Inbound, n)
		if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Flag != proxy.FlagDeny || f.Policy != key {
			t.Errorf("flow ended with %v, flag %s, policy %s", f.Err, f.Flag, f.Policy)
		}
	}
	c := client.dial(dst)
	exchange(t, c, "hello")
	r.policies.Apply([]*policy.Policy{about("other", policy.Deny, "somebody")}, nil)
	exchange(t, c, "still")
	r.policies.Apply([]*policy.Policy{about("deny", policy.Deny, "client")}, nil)
	wantReset(t, c)
	cut(1, "default/deny")

	// The tunnel stays, and so do its streams when the policy goes again.
	r.policies.Apply(nil, []string{"default/deny"})
	c = client.dial(dst)
	exchange(t, c, "hello")

	// A policy that the workload begins to name counts as well.
	selected := about("selected", policy.Deny, "client")
	selected.Scope = policy.WorkloadSelector
	r.policies.Apply([]*policy.Policy{selected}, nil)
	exchange(t, c, "still")
	next := *server.w
	next.AuthorizationPolicies = []string{"default/selected"}
	r.store.Apply([]workload.Event{workload.Upsert(&next)})
	wantReset(t, c)
	cut(2, "default/selected")
}

func TestRevocationCuts(t *testing.T) {
	for _, bad := range []string{"server", "client"} {
		t.Run(bad+"-revoked", func(t *testing.T) {
			paths(t, func(t *testing.T, r *rig) { testRevocation(t, r, bad) })
		})
	}
}

func testRevocation(t *testing.T, r *rig, name string) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	rev, err := mtls.NewRevocation(mtls.RevocationConfig{Path: path, Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = rev.Watch(ctx) })
	defer wg.Wait()
	defer cancel()
	nodes := 0 // the first is the client's; with a tunnel, only the one that does not serve the revoked pod knows
	one, two, client, server := pair(r, func(c *proxy.Config) {
		if nodes++; r.sameNode || (nodes == 1) == (name == "server") {
			c.Revocation = rev
		}
	})
	dst := r.echo(server.ip)
	c := client.dial(dst)
	exchange(t, c, "hello")

	bad, watcher, direction := server, one, proxy.Outbound
	if name == "client" {
		bad, watcher, direction = client, two, proxy.Inbound
	}
	s, _ := r.certs.Get(t.Context(), bad.w.Identity())
	if err := os.WriteFile(path, r.ca.CRL(t, s.Leaf()), 0o600); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	if f := watcher.seen.ended(t, direction, 1); f.Flag != proxy.FlagCertRevoked {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
	// A new one does not come to be.
	wantReset(t, client.dial(dst))
	if name == "server" || r.sameNode {
		if f := watcher.seen.ended(t, direction, 2); f.Flag != proxy.FlagCertRevoked {
			t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
		}
	}
}

func TestResetTravels(t *testing.T) { paths(t, testResetTravels) }

func testResetTravels(t *testing.T, r *rig) {
	_, _, client, server := pair(r, nil)
	accepted := make(chan *net.TCPConn, 1)
	release := make(chan struct{})
	app := r.serve(server.ip, func(c *net.TCPConn) {
		accepted <- c
		<-release
	})
	defer close(release)
	abort := func(c *net.TCPConn) {
		_ = c.SetLinger(0)
		c.Close()
	}
	c := client.dial(app.addr)
	abort(<-accepted)
	wantReset(t, c)
	c = client.dial(app.addr)
	s := <-accepted
	abort(c)
	wantReset(t, s)
	// The same without a tunnel.
	plain := r.serve(netip.MustParseAddr("127.0.30.1"), func(c *net.TCPConn) {
		accepted <- c
		<-release
	})
	c = client.dial(plain.addr)
	abort(<-accepted)
	wantReset(t, c)
	c = client.dial(plain.addr)
	s = <-accepted
	abort(c)
	wantReset(t, s)
}

func TestHalfClose(t *testing.T) { paths(t, testHalfClose) }

func testHalfClose(t *testing.T, r *rig) {
	_, _, client, server := pair(r, nil)
	answer := bytes.Repeat([]byte("answer "), 1<<16)
	app := r.serve(server.ip, func(c *net.TCPConn) {
		question, err := io.ReadAll(c)
		if err == nil && string(question) == "question" {
			_, _ = c.Write(answer)
		}
	})
	c := client.dial(app.addr)
	_, _ = io.WriteString(c, "question")
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, answer) {
		t.Errorf("got %d bytes, %v; want %d", len(b), err, len(answer))
	}
}

func TestStalledReaderHoldsNobodyBack(t *testing.T) { paths(t, testStalledReaderHoldsNobodyBack) }

func testStalledReaderHoldsNobodyBack(t *testing.T, r *rig) {
	_, _, client, server := pair(r, nil)
	stop := make(chan struct{})
	source := r.serve(server.ip, func(c *net.TCPConn) {
		b := make([]byte, 1<<16)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	echo := r.echo(server.ip)
	var stalled []net.Conn
	for range 8 {
		stalled = append(stalled, client.dial(source.addr))
	}
	waitFor(t, "stalled streams", func() bool {
		full := 0
		for _, f := range client.Flows() {
			if _, down := f.Bytes(); down > 1<<16 {
				full++
			}
		}
		return full == len(stalled)
	})
	begin := time.Now()
	for range 20 {
		exchange(t, client.dial(echo), "hello")
	}
	if d := time.Since(begin); d > patience/2 {
		t.Errorf("20 exchanges beside stalled streams took %s", d)
	}
	close(stop)
}

func TestStopDrains(t *testing.T) { paths(t, testStopDrains) }

func testStopDrains(t *testing.T, r *rig) {
	one, two, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	c := client.dial(dst)
	exchange(t, c, "hello")

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.Stop(context.Background())
	}()
	waitFor(t, "end of listening", func() bool {
		l, err := net.Listen("tcp", server.inbound.String())
		if err == nil {
			l.Close()
		}
		return err == nil
	})
	exchange(t, c, "still")
	select {
	case <-stopped:
		t.Fatal("stopped under a live connection")
	default:
	}
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("behind the end: %q, %v", b, err)
	}
	<-stopped
	for _, f := range []*proxy.Flow{one.seen.ended(t, proxy.Outbound, 1), two.seen.ended(t, proxy.Inbound, 1)} {
		if f.Err != nil {
			t.Errorf("%s flow ended with %v", f.Direction, f.Err)
		}
	}
	if slices.Contains(two.Pods(), server.Pod) {
		t.Error("the pod is still there")
	}
}

func TestStopCutsAtTheDeadline(t *testing.T) { paths(t, testStopCutsAtTheDeadline) }

func testStopCutsAtTheDeadline(t *testing.T, r *rig) {
	one, two, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	plain := r.echo(netip.MustParseAddr("127.0.30.1"))
	c := client.dial(dst)
	exchange(t, c, "hello")
	p := client.dial(plain)
	exchange(t, p, "hello")
	outside := server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst)
	exchange(t, outside, "hello")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { server.Stop(ctx) })
	wg.Go(func() { one.Stop(ctx) })
	wg.Wait()
	for _, c := range []net.Conn{c, p, outside} {
		wantReset(t, c)
	}
	for _, f := range []*proxy.Flow{one.seen.ended(t, proxy.Outbound, 1), one.seen.ended(t, proxy.Outbound, 2), two.seen.ended(t, proxy.Inbound, 2)} {
		// Either side may have been the first to cut the connection between them.
		if f.Err == nil || f.Flag != proxy.FlagConnect && f.Err.Error() != "stream reset by peer: CONNECT_ERROR" && !strings.HasPrefix(f.Err.Error(), "ended by the other side: ") {
			t.Errorf("%s flow ended with %v, flag %s", f.Direction, f.Err, f.Flag)
		}
	}
	if _, err := one.Start(proxy.PodConfig{}); err == nil {
		t.Error("a stopped proxy started a pod")
	}
}

// TestStopCutsWhatWasJustAccepted: a plaintext connection that has been accepted and is not known yet when its pod is stopped at
// once does not outlive the pod.
func TestStopCutsWhatWasJustAccepted(t *testing.T) {
	r := newRig(t)
	server := r.node(nil).pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	known := server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst)
	exchange(t, known, "hello")
	accepted, goOn := make(chan struct{}), make(chan struct{})
	server.mu.Lock()
	server.always = dst
	server.look = func(int) {
		close(accepted)
		<-goOn
	}
	server.mu.Unlock()
	c, err := net.Dial("tcp", server.passthrough.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	<-accepted
	now, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.Stop(now)
	}()
	wantReset(t, known) // what is known has been cut
	close(goOn)
	wantReset(t, c)
	c.Close()
	<-stopped
}

func TestGoAwayWhenThePodGoes(t *testing.T) {
	r := newRig(t)
	server := r.node(nil).pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	p := r.raw("client", server)
	p.Connect(1, dst.String())
	p.WaitStatus(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	server.Stop(ctx)
	if g := p.WaitGoAway(t, 1); g.Last > 1 && g.Last != 1<<31-1 || g.Code != http2.ErrCodeNo {
		t.Errorf("GOAWAY is %+v", g)
	}
	if err := p.WaitEnd(t); !errors.Is(err, io.EOF) {
		t.Errorf("tunnel ended with %v, want close_notify", err)
	}
}

func TestDrainServesLateStreams(t *testing.T) {
	r := newRig(t)
	server := r.node(nil).pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	p := r.raw("client", server)
	p.Connect(1, dst.String())
	p.WaitStatus(t, 1)
	p.Mute() // the ping that ends the first stage stays unanswered
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Stop(context.Background())
	}()
	if g := p.WaitGoAway(t, 1); g.Last != 1<<31-1 {
		t.Errorf("first GOAWAY names stream %d", g.Last)
	}
	p.Connect(3, dst.String())
	if got := p.WaitStatus(t, 3); got != 200 {
		t.Errorf("status of a late stream is %d", got)
	}
	p.Data(1, nil, true)
	p.Data(3, nil, true)
	p.Unmute()
	if g := p.WaitGoAway(t, 2); g.Last != 3 {
		t.Errorf("last GOAWAY names stream %d", g.Last)
	}
	<-done
}

func TestDeletedWorkloadLeavesThePool(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	dst := netip.AddrPortFrom(server.Addresses[0], 80)
	c := client.dial(dst)
	_, _ = io.WriteString(c, "one")
	p := peer.Peer(t, 1)
	answer(t, p, 1, "200")
	exchangeRead(t, c, "one")
	r.store.Apply([]workload.Event{workload.Removal(server.UID)})
	p.WaitGoAway(t, 1)
	_, _ = io.WriteString(c, "two") // what lives goes on
	p.Wait(t, 1, "payload", func(s hbonetest.Stream) bool { return string(s.Data) == "onetwo" })
	r.store.Apply([]workload.Event{workload.Upsert(server)})
	client.dial(dst)
	peer.Peer(t, 2).WaitRequest(t, 1)
}

// A tunnel to who has another identity now is for nobody new.
func TestOtherIdentityLeavesThePool(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	c := client.dial(netip.AddrPortFrom(server.Addresses[0], 80))
	_, _ = io.WriteString(c, "one")
	p := peer.Peer(t, 1)
	answer(t, p, 1, "200")
	exchangeRead(t, c, "one")
	other := *server
	other.ServiceAccount = "other"
	r.store.Apply([]workload.Event{workload.Upsert(&other)})
	p.WaitGoAway(t, 1)
}
