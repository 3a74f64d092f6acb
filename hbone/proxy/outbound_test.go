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

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/route"
)

// peerAt is a scripted peer in place of a workload's agent.
func (r *rig) peerAt(w *workload.Workload, settings ...http2.Setting) *hbonetest.Server {
	r.t.Helper()
	s, err := r.certs.Get(context.Background(), w.Identity())
	if err != nil {
		r.t.Fatal(err)
	}
	return hbonetest.Listen(r.t, netip.AddrPortFrom(w.Addresses[0], r.hbone).String(), mtls.Server(s, nil), settings...)
}

// service puts workloads behind a virtual address.
func (r *rig) service(vip string, port uint16, target uint16, endpoints ...*workload.Workload) netip.AddrPort {
	r.t.Helper()
	addr := netip.MustParseAddr(vip)
	svc := &workload.Service{
		Name: "svc", Namespace: "default", Hostname: "svc.default.svc.cluster.local",
		VIPs: []workload.NetworkAddress{{Addr: addr}}, Ports: workload.PortMap{port: target},
	}
	batch := []workload.Event{workload.UpsertService(svc)}
	for _, w := range endpoints {
		next := *w
		next.Services = map[workload.NamespacedHostname]workload.PortMap{svc.Key(): {port: target}}
		batch = append(batch, workload.Upsert(&next))
	}
	r.store.Apply(batch)
	return netip.AddrPortFrom(addr, port)
}

// answer responds to the n-th request of a peer and, to a 200, echoes its first payload.
func answer(t *testing.T, p *hbonetest.Peer, n int, status string) uint32 {
	t.Helper()
	id := p.WaitRequest(t, n)
	p.Headers(id, status != "200", hbonetest.Fields(":status", status))
	if status == "200" {
		s := p.Wait(t, id, "payload", func(s hbonetest.Stream) bool { return len(s.Data) > 0 })
		p.Data(id, s.Data, false)
	}
	return id
}

func TestRequestHeaders(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	vip := r.service("127.0.20.1", 80, 8080, server)
	peer := r.peerAt(server)

	c := client.dial(vip)
	p := peer.Peer(t, 1)
	id := p.WaitRequest(t, 1)
	h := p.Stream(id).Header
	want := map[string]string{
		":method": "CONNECT", ":authority": "127.0.10.2:8080", ":scheme": "", ":path": "",
		"baggage":   "k8s.cluster.name=cluster1,k8s.namespace.name=default,k8s.deployment.name=client,service.name=client",
		"forwarded": `for="` + c.LocalAddr().String() + `";host=svc.default.svc.cluster.local`,
	}
	for name, value := range want {
		if got := h.Get(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	if tp := h.Get("traceparent"); len(tp) != 55 || !strings.HasPrefix(tp, "00-") || !strings.HasSuffix(tp, "-00") {
		t.Errorf("traceparent is %q", tp)
	}
	if _, err := io.WriteString(c, "early"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if s := p.Stream(id); len(s.Data) > 0 {
		t.Errorf("%q was sent before the answer", s.Data)
	}
	p.Headers(id, false, hbonetest.Fields(":status", "200"))
	p.Wait(t, id, "early data", func(s hbonetest.Stream) bool { return string(s.Data) == "early" })
}

func TestNextTarget(t *testing.T) {
	refuseTLS := func(t *testing.T, r *rig, w *workload.Workload) {
		l, err := net.Listen("tcp", netip.AddrPortFrom(w.Addresses[0], r.hbone).String())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close() })
	}
	status := func(code string) func(t *testing.T, r *rig, w *workload.Workload) {
		return func(t *testing.T, r *rig, w *workload.Workload) {
			r.peerAt(w).Handle(func(p *hbonetest.Peer, id uint32, _ hbonetest.Header) {
				p.Headers(id, true, hbonetest.Fields(":status", code))
			})
		}
	}
	for _, tc := range []struct {
		name string
		bad  func(t *testing.T, r *rig, w *workload.Workload)
		ok   bool
		flag proxy.Flag
		text string
	}{
		{"connection-refused", func(*testing.T, *rig, *workload.Workload) {}, true, 0, ""},
		{"not-tls", refuseTLS, true, 0, ""},
		{"status-503", status("503"), true, 0, ""},
		{"status-401", status("401"), false, proxy.FlagConnect, "http status: 401"},
		{"status-400", status("400"), false, proxy.FlagConnect, "http status: 400"},
		{"wrong-identity", func(t *testing.T, r *rig, w *workload.Workload) {
			s := r.ca.SVID(t, "spiffe://cluster.local/ns/default/sa/somebody-else")
			hbonetest.Listen(t, netip.AddrPortFrom(w.Addresses[0], r.hbone).String(), mtls.Server(s, nil))
		}, true, 0, ""},
		{"goaway", func(t *testing.T, r *rig, w *workload.Workload) {
			r.peerAt(w).Handle(func(p *hbonetest.Peer, _ uint32, _ hbonetest.Header) { p.GoAway(0, http2.ErrCodeNo) })
		}, true, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			one := r.node(nil)
			client := one.pod("client", "127.0.10.1")
			bad := r.workloadAt("bad", "127.0.10.2", nil)
			two := r.node(nil)
			good := two.pod("good", "127.0.10.3")
			echo := r.echo(good.ip)
			vip := r.service("127.0.20.1", 80, echo.Port(), bad, good.w)
			tc.bad(t, r, bad)
			// Which endpoint goes first is a matter of chance, so both must be met.
			met := eventually(func() bool {
				c := client.dial(vip)
				defer c.Close()
				_, _ = io.WriteString(c, "hello")
				b := make([]byte, 5)
				_, err := io.ReadFull(c, b)
				f := one.seen
				f.mu.Lock()
				defer f.mu.Unlock()
				if tc.ok {
					if err != nil {
						t.Fatalf("connection failed: %v", err)
					}
					return f.opened[len(f.opened)-1].Attempts > 1
				}
				return err != nil
			})
			if !met {
				t.Fatal("the bad endpoint was never tried first")
			}
			if tc.ok {
				return
			}
			var f *proxy.Flow
			for n := 1; f == nil || f.Err == nil; n++ {
				f = one.seen.ended(t, proxy.Outbound, n)
			}
			if f.Flag != tc.flag || f.Err.Error() != tc.text || f.Attempts != 1 {
				t.Errorf("flow ended with %v, flag %s, behind %d attempts", f.Err, f.Flag, f.Attempts)
			}
		})
	}
}

func TestOutboundFailures(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T, r *rig, w *workload.Workload)
		flag  proxy.Flag
		text  string
	}{
		{"refused", func(*testing.T, *rig, *workload.Workload) {}, proxy.FlagConnect, "connection refused"},
		{"no-certificate", func(_ *testing.T, r *rig, _ *workload.Workload) {
			r.certs.fail[identity.MustParse("spiffe://cluster.local/ns/default/sa/client")] = errors.New("authority is down")
		}, proxy.FlagIdentityError, "authority is down"},
		{"wrong-identity", func(t *testing.T, r *rig, w *workload.Workload) {
			s := r.ca.SVID(t, "spiffe://cluster.local/ns/default/sa/impostor")
			hbonetest.Listen(t, netip.AddrPortFrom(w.Addresses[0], r.hbone).String(), mtls.Server(s, nil))
		}, proxy.FlagTLSFailure, "spiffe://cluster.local/ns/default/sa/impostor"},
		{"our-certificate-refused", func(t *testing.T, r *rig, w *workload.Workload) {
			r.peerAt(w)
			// An authority that the peer does not know signed it; we know both.
			r.certs.set(mixed(t, r))
		}, proxy.FlagTLSFailure, "bad_certificate"},
		{"not-http2", func(t *testing.T, r *rig, w *workload.Workload) {
			s, _ := r.certs.Get(context.Background(), w.Identity())
			tlsServer(t, netip.AddrPortFrom(w.Addresses[0], r.hbone).String(), s, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, proxy.FlagH2HandshakeFailure, "HTTP/2"},
		{"blocked", func(t *testing.T, r *rig, w *workload.Workload) {
			blackhole(t, netip.AddrPortFrom(w.Addresses[0], r.hbone))
		}, proxy.FlagNetworkPolicy, "maybe a NetworkPolicy is blocking HBONE port"},
		{"silent", func(t *testing.T, r *rig, w *workload.Workload) {
			r.peerAt(w)
		}, proxy.FlagConnect, "connect timed out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			one := r.node(func(c *proxy.Config) { c.ConnectTimeout = 2 * time.Second })
			client := one.pod("client", "127.0.10.1")
			server := r.workloadAt("server", "127.0.10.2", nil)
			tc.setup(t, r, server)
			c := client.dial(netip.AddrPortFrom(server.Addresses[0], 80))
			wantReset(t, c)
			f := one.seen.ended(t, proxy.Outbound, 1)
			if f.Early { // the end of the tunnel, which is reported by itself when it is the peer's fault
				f = one.seen.ended(t, proxy.Outbound, 2)
			}
			if f.Flag != tc.flag || f.Early || f.Err == nil || !strings.Contains(f.Err.Error(), tc.text) {
				t.Errorf("flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
			}
			if len(client.Flows()) != 0 {
				t.Error("the flow is still in the table")
			}
		})
	}
}

func TestRetryOnBrokenTunnel(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	dst := netip.AddrPortFrom(server.Addresses[0], 80)

	c := client.dial(dst)
	_, _ = io.WriteString(c, "one")
	answer(t, peer.Peer(t, 1), 1, "200")
	// The tunnel breaks under the second request, which is tried again on another one.
	c2 := client.dial(dst)
	_, _ = io.WriteString(c2, "two")
	peer.Peer(t, 1).WaitRequest(t, 2)
	peer.Peer(t, 1).Raw.Close()
	answer(t, peer.Peer(t, 2), 1, "200")
	b := make([]byte, 3)
	if _, err := io.ReadFull(c2, b); err != nil || string(b) != "two" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "one" {
		t.Errorf("got %q, %v", b, err)
	}
	wantReset(t, c) // its tunnel was lost: it must not look complete
	if f := one.seen.ended(t, proxy.Outbound, 1); f.Flag != proxy.FlagConnect || !errors.Is(f.Err, tunnel.ErrTruncated) && !errors.Is(f.Err, tunnel.ErrLost) {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
}

func TestRefusedStreamIsTriedAgain(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	c := client.dial(netip.AddrPortFrom(server.Addresses[0], 80))
	_, _ = io.WriteString(c, "hello")
	p := peer.Peer(t, 1)
	p.Reset(p.WaitRequest(t, 1), http2.ErrCodeRefusedStream)
	answer(t, p, 2, "200")
	exchangeRead(t, c, "hello")
}

func TestStreamLimitOpensAnotherTunnel(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	dst := netip.AddrPortFrom(server.Addresses[0], 80)
	for i := range 5 {
		c := client.dial(dst)
		_, _ = io.WriteString(c, "hello")
		p := peer.Peer(t, i/2+1)
		answer(t, p, i%2+1, "200")
		exchangeRead(t, c, "hello")
	}
	if n := peer.Peers(); n != 3 {
		t.Errorf("%d tunnels for 5 streams, 2 of which fit in one", n)
	}
	// A tunnel that reached its limit takes streams again when some have ended.
	first := peer.Peer(t, 1)
	first.Reset(1, http2.ErrCodeConnect)
	c := client.dial(dst)
	_, _ = io.WriteString(c, "again")
	third := peer.Peer(t, 3)
	waitFor(t, "another stream", func() bool { return first.Requests()+third.Requests() == 4 })
	if n := peer.Peers(); n != 3 {
		t.Errorf("%d tunnels, want no further one", n)
	}
}

func TestOneEstablishmentAtATime(t *testing.T) {
	r := newRig(t)
	client := r.node(nil).pod("client", "127.0.10.1")
	server := r.workloadAt("server", "127.0.10.2", nil)
	peer := r.peerAt(server)
	dst := netip.AddrPortFrom(server.Addresses[0], 80)
	for range 20 {
		client.dial(dst)
	}
	p := peer.Peer(t, 1)
	p.WaitRequest(t, 20)
	if n := peer.Peers(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}

func TestPassthroughAndPlainTCP(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	unknown := r.echo(netip.MustParseAddr("127.0.30.1"))
	plain := r.workloadAt("plain", "127.0.30.2", func(w *workload.Workload) { w.Protocol = workload.TCP })
	known := r.echo(plain.Addresses[0])
	for i, dst := range []netip.AddrPort{unknown, known} {
		c := client.dial(dst)
		exchange(t, c, "hello")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
			t.Errorf("behind the end: %q, %v", b, err)
		}
		f := one.seen.ended(t, proxy.Outbound, i+1)
		if f.Err != nil || f.Protocol != proxy.TCP || f.MutualTLS() || f.ActualDst != dst || !f.Source.ID.IsZero() {
			t.Errorf("flow: %+v", f)
		}
		if up, down := f.Bytes(); up != 5 || down != 5 {
			t.Errorf("moved %d and %d bytes", up, down)
		}
	}
	refused := client.dial(netip.MustParseAddrPort("127.0.30.3:1"))
	wantReset(t, refused)
	if f := one.seen.ended(t, proxy.Outbound, 3); f.Flag != proxy.FlagConnect || f.Early {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
}

func TestOutboundRefusals(t *testing.T) {
	r := newRig(t)
	one := r.node(func(c *proxy.Config) {
		c.Outbound = egress.New(egress.RegistryOnly)
		c.WorkloadTimeout = 50 * time.Millisecond
	})
	client := one.podOf(r.workloadAt("client", "127.0.10.1", func(w *workload.Workload) {
		w.Addresses = append(w.Addresses, netip.MustParseAddr("10.99.99.99"))
	}))
	empty := r.service("127.0.20.1", 80, 8080)
	n := 0
	refused := func(p *pod, dst netip.AddrPort, want error, text string) {
		t.Helper()
		c := p.dial(dst)
		wantReset(t, c)
		n++
		f := one.seen.ended(t, proxy.Outbound, n)
		if !f.Early || f.Err == nil || want != nil && !errors.Is(f.Err, want) || !strings.Contains(f.Err.Error(), text) {
			t.Errorf("%s: flow ended with %v, early %t", dst, f.Err, f.Early)
		}
	}
	refused(client, netip.MustParseAddrPort("127.0.0.1:15008"), proxy.ErrSelfCall, "")
	refused(client, netip.MustParseAddrPort("127.0.0.1:15001"), proxy.ErrSelfCall, "")
	refused(client, netip.MustParseAddrPort("127.0.0.1:15006"), proxy.ErrSelfCall, "")
	refused(client, netip.MustParseAddrPort("10.99.99.99:15008"), proxy.ErrSelfCall, "")
	refused(client, client.outbound, proxy.ErrSelfCall, "")
	refused(client, netip.MustParseAddrPort("127.0.30.1:80"), route.ErrNotRegistered, "outbound traffic policy REGISTRY_ONLY: destination is not in the registry: 127.0.30.1:80")
	if f := one.seen.ended(t, proxy.Outbound, n); f.Flag != proxy.FlagDeny {
		t.Errorf("flag %s, want DENY", f.Flag)
	}
	refused(client, empty, nil, "")
	refused(client, netip.AddrPort{}, nil, "no original destination")
	r.store.Apply([]workload.Event{workload.Removal(client.w.UID)})
	refused(client, netip.MustParseAddrPort("127.0.30.1:80"), proxy.ErrLocalWorkload, "failed to fetch information about local workload")
}

func TestWaitsForLocalWorkload(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(netip.MustParseAddr("127.0.30.1"))
	r.store.Apply([]workload.Event{workload.Removal(client.w.UID)})
	c := client.dial(dst)
	time.Sleep(20 * time.Millisecond)
	r.store.Apply([]workload.Event{workload.Upsert(client.w)})
	exchange(t, c, "hello")
}

func exchangeRead(t *testing.T, c net.Conn, word string) {
	t.Helper()
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		t.Fatalf("got %q, %v; want %q", b, err, word)
	}
}
