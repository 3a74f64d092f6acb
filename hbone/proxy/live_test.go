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

// pair is two nodes with a pod each.
func pair(r *rig, change func(*proxy.Config)) (one, two *node, client, server *pod) {
	one, two = r.node(change), r.node(change)
	return one, two, one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
}

func TestPolicyCutsLiveConnections(t *testing.T) {
	r := newRig(t)
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

func TestRevocationCutsTunnels(t *testing.T) {
	for _, role := range []string{"server-revoked", "client-revoked"} {
		t.Run(role, func(t *testing.T) {
			r := newRig(t)
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
			one, two := r.node(func(c *proxy.Config) { c.Revocation = rev }), r.node(nil)
			if role == "client-revoked" {
				one, two = r.node(nil), r.node(func(c *proxy.Config) { c.Revocation = rev })
			}
			client, server := one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
			dst := r.echo(server.ip)
			c := client.dial(dst)
			exchange(t, c, "hello")

			bad, watcher, direction := server, one, proxy.Outbound
			if role == "client-revoked" {
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
			if role == "server-revoked" {
				if f := one.seen.ended(t, proxy.Outbound, 2); f.Flag != proxy.FlagCertRevoked {
					t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
				}
			}
		})
	}
}

func TestResetTravels(t *testing.T) {
	r := newRig(t)
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

func TestHalfClose(t *testing.T) {
	r := newRig(t)
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

func TestStalledReaderHoldsNobodyBack(t *testing.T) {
	r := newRig(t)
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

func TestStopDrains(t *testing.T) {
	r := newRig(t)
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
	if n := len(two.Pods()); n != 0 {
		t.Errorf("%d pods are left", n)
	}
}

func TestStopCutsAtTheDeadline(t *testing.T) {
	r := newRig(t)
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
		if f.Err == nil || f.Flag != proxy.FlagConnect && f.Err.Error() != "stream reset by peer: CONNECT_ERROR" {
			t.Errorf("%s flow ended with %v, flag %s", f.Direction, f.Err, f.Flag)
		}
	}
	if _, err := one.Start(proxy.PodConfig{}); err == nil {
		t.Error("a stopped proxy started a pod")
	}
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
