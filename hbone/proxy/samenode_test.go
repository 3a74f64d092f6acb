package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// neighbours is two pods of one node that need no tunnel between them.
func neighbours(t *testing.T, change func(*proxy.Config)) (r *rig, n *node, client, server *pod) {
	t.Helper()
	r = newRig(t)
	r.sameNode = true
	n, _, client, server = pair(r, change)
	return r, n, client, server
}

// withoutTunnel checks that no tunnel was made.
func withoutTunnel(t *testing.T, pods ...*pod) {
	t.Helper()
	for _, p := range pods {
		if out, in := p.Tunnels(); out != 0 || in != 0 {
			t.Errorf("%s has %d tunnels to others and %d from them", p.w.Name, out, in)
		}
	}
}

func TestSameNode(t *testing.T) {
	r, n, client, server := neighbours(t, nil)
	dst := r.echo(server.ip)
	vip := r.service("127.0.20.1", 80, dst.Port(), server.w)
	c := client.dial(vip)
	exchange(t, c, "hello")
	withoutTunnel(t, client, server)
	if a, b := client.Flows(), server.Flows(); len(a) != 1 || len(b) != 1 || a[0].Direction != proxy.Outbound || b[0].Direction != proxy.Inbound {
		t.Errorf("flows are %+v and %+v", a, b)
	}
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("behind the end: %q, %v", b, err)
	}
	for d, p := range map[proxy.Direction]*pod{proxy.Outbound: client, proxy.Inbound: server} {
		f := n.seen.ended(t, d, 1)
		if f.Err != nil || f.Flag != proxy.FlagNone || f.Early || f.PodUID != p.UID() {
			t.Errorf("%s flow of %s ended with %v, flag %s, early %t", d, f.PodUID, f.Err, f.Flag, f.Early)
		}
		if f.Protocol != proxy.SameNode || f.MutualTLS() || f.Authority != "" {
			t.Errorf("%s flow went over %s and asked for %q", d, f.Protocol, f.Authority)
		}
		if up, down := f.Bytes(); up != 5 || down != 5 {
			t.Errorf("%s flow moved %d and %d bytes", d, up, down)
		}
		if f.Source.Workload.Name != "client" || f.Destination.Workload.Name != "server" || f.Service == nil || f.Service.Name != "svc" {
			t.Errorf("%s flow is from %v to %v by %v", d, f.Source.Workload, f.Destination.Workload, f.Service)
		}
		if f.Source.ID != client.w.Identity() || f.Destination.ID != server.w.Identity() {
			t.Errorf("%s flow is from %s to %s", d, f.Source.ID, f.Destination.ID)
		}
		if f.Source.Addr.String() != c.LocalAddr().String() || f.Destination.Addr != dst || f.ActualDst != dst || f.OriginalDst != vip {
			t.Errorf("%s flow is from %s to %s, %s, asked for %s", d, f.Source.Addr, f.Destination.Addr, f.ActualDst, f.OriginalDst)
		}
	}
	if len(n.seen.opened) != 2 || len(n.seen.closed) != 2 {
		t.Errorf("%d flows were opened and %d closed, want 2", len(n.seen.opened), len(n.seen.closed))
	}
}

// What must go in a tunnel does, although both pods are here.
func TestSameNodeNeedsTunnel(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(r *rig, client, server *pod)
		off   bool
	}{
		{"switched-off", nil, true},
		{"application-tunnel", func(r *rig, _, server *pod) {
			next := *server.w
			next.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelNone}
			r.store.Apply([]workload.Event{workload.Upsert(&next)})
		}, false},
		// The address belongs to another workload now, which this agent does not serve.
		{"other-workload", func(r *rig, client, server *pod) {
			source, moved := *client.w, *server.w
			source.Node, moved.Node = "here", "here"
			moved.Addresses = []netip.Addr{netip.MustParseAddr("127.0.10.77")}
			r.store.Apply([]workload.Event{workload.Upsert(&source), workload.Upsert(&moved)})
			r.workloadAt("server", server.ip.String(), func(w *workload.Workload) { w.UID, w.Node = "successor", "there" })
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, n, client, server := neighbours(t, func(c *proxy.Config) {
				if c.SameNode = !tc.off; tc.name == "other-workload" {
					c.Node = "here"
				}
			})
			if tc.setup != nil {
				tc.setup(r, client, server)
			}
			c := client.dial(r.echo(server.ip))
			if tc.name != "other-workload" {
				exchange(t, c, "hello")
			}
			waitFor(t, "tunnel", func() bool {
				_, in := server.Tunnels()
				return in == 1
			})
			n.seen.mu.Lock()
			defer n.seen.mu.Unlock()
			for _, f := range n.seen.opened {
				if f.Protocol != proxy.HBONE {
					t.Errorf("%s flow went over %s", f.Direction, f.Protocol)
				}
			}
		})
	}
}

func TestSameNodeWaypointGetsTunnel(t *testing.T) {
	r, _, client, waypoint := neighbours(t, nil)
	vip := r.service("127.0.20.1", 80, 8080, r.workloadAt("behind", "127.0.10.3", nil))
	gateway := &workload.GatewayAddress{Address: workload.NetworkAddress{Addr: waypoint.ip}, HBONEPort: r.hbone}
	svc := *r.store.Snapshot().ServiceByHost("svc.default.svc.cluster.local", "default")
	svc.Waypoint = gateway
	r.store.Apply([]workload.Event{workload.UpsertService(&svc)})
	client.dial(vip)
	waitFor(t, "tunnel to the waypoint", func() bool {
		_, in := waypoint.Tunnels()
		return in == 1
	})
}

// Each case is a handshake that would fail: why for whom, as for tunnels.
func TestSameNodeCredentials(t *testing.T) {
	expired := func(t *testing.T, r *rig, p *pod) {
		r.certs.set(r.ca.SVID(t, p.w.Identity().String(), identitytest.Expired()))
	}
	for _, tc := range []struct {
		name    string
		setup   func(t *testing.T, r *rig, client, server *pod)
		out     proxy.Flag
		reason  string // of the outbound flow
		in      proxy.Flag
		refuses string // reason of the inbound flow; empty when there is none
	}{
		{"no-certificate-of-source", func(_ *testing.T, r *rig, client, _ *pod) {
			r.certs.fail[client.w.Identity()] = errors.New("authority is down")
		}, proxy.FlagIdentityError, "authority is down", 0, ""},
		{"no-certificate-of-destination", func(_ *testing.T, r *rig, _, server *pod) {
			r.certs.fail[server.w.Identity()] = errors.New("authority is down")
		}, proxy.FlagTLSFailure, "ended by the other side", proxy.FlagIdentityError, "authority is down"},
		{"destination-expired", func(t *testing.T, r *rig, _, server *pod) { expired(t, r, server) },
			proxy.FlagTLSFailure, "expired", 0, ""},
		{"source-expired", func(t *testing.T, r *rig, client, _ *pod) { expired(t, r, client) },
			proxy.FlagTLSFailure, "ended by the other side", proxy.FlagTLSFailure, "expired"},
		{"other-identity", func(t *testing.T, r *rig, _, server *pod) {
			r.certs.by[server.w.Identity()] = r.ca.SVID(t, "spiffe://cluster.local/ns/default/sa/mallory")
		}, proxy.FlagTLSFailure, "identity mismatch: peer is spiffe://cluster.local/ns/default/sa/mallory", 0, ""},
		{"source-of-foreign-authority", func(t *testing.T, r *rig, _, _ *pod) { r.certs.set(mixed(t, r)) },
			proxy.FlagTLSFailure, "ended by the other side", proxy.FlagTLSFailure, "unknown authority"},
		{"source-of-other-trust-domain", func(t *testing.T, r *rig, client, _ *pod) {
			chain, key := r.ca.Issue(t, "spiffe://clusterset.local/ns/default/sa/client")
			s, err := svid.New(chain, key, identity.NewBundle(identity.MustTrustDomain("clusterset.local"), r.ca.Bundle().Certificates()))
			if err != nil {
				t.Fatal(err)
			}
			r.certs.by[client.w.Identity()] = s
		}, proxy.FlagTLSFailure, "ended by the other side", proxy.FlagTLSFailure, "trust domain"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, n, client, server := neighbours(t, nil)
			app := r.serve(server.ip, func(*net.TCPConn) { t.Error("the application was reached") })
			tc.setup(t, r, client, server)
			wantReset(t, client.dial(app.addr))
			if f := n.seen.ended(t, proxy.Outbound, 1); f.Flag != tc.out || f.Early || !strings.Contains(f.Err.Error(), tc.reason) {
				t.Errorf("outbound flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
			}
			if tc.refuses == "" {
				if len(n.seen.closed) != 1 {
					t.Errorf("%d flows ended, want the outbound one alone", len(n.seen.closed))
				}
				return
			}
			if f := n.seen.ended(t, proxy.Inbound, 1); f.Flag != tc.in || !f.Early || !strings.Contains(f.Err.Error(), tc.refuses) {
				t.Errorf("inbound flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
			}
		})
	}
}

// A rotated certificate is judged anew, and so is one whose time is over.
func TestSameNodeCertificateThatExpires(t *testing.T) {
	r, n, client, server := neighbours(t, nil)
	dst := r.echo(server.ip)
	exchange(t, client.dial(dst), "hello")
	r.certs.set(r.ca.SVID(t, client.w.Identity().String(), identitytest.Expired()))
	wantReset(t, client.dial(dst))
	if f := n.seen.ended(t, proxy.Inbound, 1); mtls.Reason(f.Err) != mtls.ReasonExpired {
		t.Errorf("flow ended with %v", f.Err)
	}
	r.certs.set(r.ca.SVID(t, client.w.Identity().String()))
	exchange(t, client.dial(dst), "hello")
}

func TestSameNodeRefusals(t *testing.T) {
	r, n, client, server := neighbours(t, nil)
	dst := r.echo(server.ip)
	r.policies.Apply([]*policy.Policy{about("no-client", policy.Deny, "client")}, nil)
	wantReset(t, client.dial(dst))
	in, out := n.seen.ended(t, proxy.Inbound, 1), n.seen.ended(t, proxy.Outbound, 1)
	if in.Flag != proxy.FlagDeny || in.Early || in.Policy != "default/no-client" ||
		in.Err.Error() != "connection closed due to policy rejection: explicitly denied by: default/no-client" {
		t.Errorf("inbound flow ended with %v, flag %s, policy %s", in.Err, in.Flag, in.Policy)
	}
	if out.Flag != proxy.FlagConnect || out.Early || out.Err.Error() != "http status: 401" {
		t.Errorf("outbound flow ended with %v, flag %s", out.Err, out.Flag)
	}
	r.policies.Apply(nil, []string{"default/no-client"})

	// Nothing listens there, or what is asked for is the agent's own.
	for i, tc := range []struct {
		port  uint16
		early bool
		text  string
	}{{1, false, "connection refused"}, {proxy.PassthroughPort, true, proxy.ErrSelfCall.Error()}, {r.hbone, true, proxy.ErrSelfCall.Error()}} {
		wantReset(t, client.dial(r.service("127.0.20.1", 80, tc.port, server.w)))
		in, out := n.seen.ended(t, proxy.Inbound, 2+i), n.seen.ended(t, proxy.Outbound, 2+i)
		if in.Flag != proxy.FlagConnect || in.Early != tc.early || !strings.Contains(in.Err.Error(), tc.text) {
			t.Errorf("port %d: inbound flow ended with %v, flag %s, early %t", tc.port, in.Err, in.Flag, in.Early)
		}
		if out.Err.Error() != "http status: 503" || out.Early {
			t.Errorf("port %d: outbound flow ended with %v, early %t", tc.port, out.Err, out.Early)
		}
	}
	withoutTunnel(t, client, server)
}

// TestSameNodeDenialWhilePoliciesChange: a connection that a new policy denies is rejected, also when the watch of live
// connections has come upon it first.
func TestSameNodeDenialWhilePoliciesChange(t *testing.T) {
	r, n, client, server := neighbours(t, nil)
	dst := r.echo(server.ip)
	exchange(t, client.dial(dst), "hello")
	n.seen.mu.Lock()
	n.seen.onOpen = func(f *proxy.Flow) {
		if f.Direction == proxy.Inbound {
			r.policies.Apply([]*policy.Policy{about("no-client", policy.Deny, "client")}, nil)
			n.seen.ended(t, proxy.Inbound, 1) // the watch has been here
		}
	}
	n.seen.mu.Unlock()
	wantReset(t, client.dial(dst))
	if f := n.seen.ended(t, proxy.Inbound, 1); !errors.Is(f.Err, proxy.ErrPolicyChange) {
		t.Errorf("the live flow ended with %v", f.Err)
	}
	if f := n.seen.ended(t, proxy.Inbound, 2); f.Flag != proxy.FlagDeny || errors.Is(f.Err, proxy.ErrPolicyChange) || f.Policy != "default/no-client" {
		t.Errorf("the new flow ended with %v, flag %s, policy %s", f.Err, f.Flag, f.Policy)
	}
	if f := n.seen.ended(t, proxy.Outbound, 2); f.Err.Error() != "http status: 401" {
		t.Errorf("its client's flow ended with %v", f.Err)
	}
}

func TestSameNodeMissingPolicyIsWaitedFor(t *testing.T) {
	r, n, client, server := neighbours(t, func(c *proxy.Config) { c.WorkloadTimeout = 200 * time.Millisecond })
	next := *server.w
	next.AuthorizationPolicies = []string{"default/late"}
	r.store.Apply([]workload.Event{workload.Upsert(&next)})
	dst := r.echo(server.ip)
	c := client.dial(dst)
	waitFor(t, "inbound flow", func() bool { return len(server.Flows()) == 1 })
	late := about("late", policy.Allow, "client")
	late.Scope = policy.WorkloadSelector
	r.policies.Apply([]*policy.Policy{late}, nil)
	exchange(t, c, "hello")
	r.policies.Apply(nil, []string{"default/late"})
	wantReset(t, client.dial(dst))
	if f := n.seen.ended(t, proxy.Inbound, 1); f.Flag != proxy.FlagDeny || !strings.Contains(f.Err.Error(), "policies not known yet: default/late") {
		t.Errorf("flow ended with %v", f.Err)
	}
	exchange(t, c, "still")
}

// A pod that stops while a connection to it waits lets the connection go elsewhere, as does one that refuses.
func TestSameNodeNextTarget(t *testing.T) {
	for _, how := range []string{"refused", "cut", "draining"} {
		t.Run(how, func(t *testing.T) {
			r, n, client, server := neighbours(t, nil)
			other := n.podOf(r.workloadAt("other", "127.0.10.3", nil))
			dst := r.echo(other.ip)
			named := *server.w
			if how == "cut" {
				named.AuthorizationPolicies = []string{"default/never"}
			} else {
				live := r.serve(server.ip, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
				if how == "draining" {
					client.dial(live.addr)
					waitFor(t, "live connection", func() bool { return len(server.Flows()) == 1 })
				}
			}
			vip := r.service("127.0.20.1", 80, dst.Port(), &named, other.w)
			gone, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := make(chan struct{})
			stop := func() {
				defer close(stopped)
				server.Stop(gone)
			}
			switch how {
			case "draining":
				go stop()
				waitFor(t, "end of listening", func() bool {
					l, err := net.Listen("tcp", server.inbound.String())
					if err == nil {
						l.Close()
					}
					return err == nil
				})
			case "cut":
				cancel()
			}
			met := false
			for range 50 {
				c := client.dial(vip)
				if how == "cut" && !met {
					reached := func() bool { return len(server.Flows()) == 1 }
					waitFor(t, "connection", func() bool { return reached() || len(other.Flows()) > 0 })
					if met = reached(); met {
						stop()
					}
				}
				exchange(t, c, "hello")
				c.Close()
				waitFor(t, "end", func() bool { return len(other.Flows()) == 0 })
			}
			if how == "cut" {
				if f := n.seen.ended(t, proxy.Inbound, 1); !met || !errors.Is(f.Err, proxy.ErrDrain) && f.Err != nil {
					t.Errorf("flow ended with %v", f.Err)
				}
			}
			cancel()
			if how == "draining" {
				<-stopped
			}
		})
	}
}

// A pod that calls its own service is both ends.
func TestSameNodeCallOfItself(t *testing.T) {
	r, n, _, server := neighbours(t, nil)
	vip := r.service("127.0.20.1", 80, r.echo(server.ip).Port(), server.w)
	c := server.dial(vip)
	exchange(t, c, "hello")
	if flows := server.Flows(); len(flows) != 2 {
		t.Errorf("flows are %+v", flows)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	server.Stop(ctx)
	wantReset(t, c)
	for _, d := range []proxy.Direction{proxy.Outbound, proxy.Inbound} {
		if f := n.seen.ended(t, d, 1); f.Err == nil || !strings.HasSuffix(f.Err.Error(), proxy.ErrDrain.Error()) {
			t.Errorf("%s flow ended with %v", d, f.Err)
		}
	}
}

// What a reader does not take stays with its writer, not in the agent.
func TestSameNodeBackPressure(t *testing.T) {
	r, _, client, server := neighbours(t, nil)
	release := make(chan struct{})
	got := make(chan int64, 1)
	app := r.serve(server.ip, func(c *net.TCPConn) {
		<-release
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
		got <- n
	})
	c := client.dial(app.addr)
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	sent, b := 0, make([]byte, 1<<20)
	for {
		n, err := c.Write(b)
		sent += n
		if err != nil {
			break
		}
		if sent > 256<<20 {
			t.Fatal("nobody holds the writer back")
		}
	}
	close(release)
	_ = c.CloseWrite()
	if n := <-got; n != int64(sent) {
		t.Errorf("%d bytes arrived of %d", n, sent)
	}
}
