package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// tlsAs is the client's side of a handshake with p under a name.
func (r *rig) tlsAs(name string, p *pod) *tls.Config {
	r.t.Helper()
	s, err := r.certs.Get(context.Background(), identity.MustParse("spiffe://cluster.local/ns/default/sa/"+name))
	if err != nil {
		r.t.Fatal(err)
	}
	return mtls.Client(s, []identity.ID{p.w.Identity()}, nil)
}

// raw connects to p's HBONE port with a scripted client.
func (r *rig) raw(name string, p *pod) *hbonetest.Peer {
	r.t.Helper()
	c, err := hbonetest.Dial(r.t, p.inbound.String(), r.tlsAs(name, p))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// allow and deny are policies about one client.
func about(name string, action policy.Action, clients ...string) *policy.Policy {
	p := &policy.Policy{Namespace: "default", Name: name, Scope: policy.Namespace, Action: action}
	for _, c := range clients {
		p.Rules = append(p.Rules, [][]policy.Match{{{Principals: []policy.StringMatch{
			{Kind: policy.Exact, Value: "cluster.local/ns/default/sa/" + c},
		}}}})
	}
	return p
}

func TestInboundStatuses(t *testing.T) {
	r := newRig(t)
	two := r.node(nil)
	server := two.pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	r.policies.Apply([]*policy.Policy{about("no-mallory", policy.Deny, "mallory")}, nil)
	ok, mallory := r.raw("client", server), r.raw("mallory", server)

	connect := func(authority string) hbonetest.Header {
		return hbonetest.Fields(":method", "CONNECT", ":authority", authority)
	}
	for i, tc := range []struct {
		name   string
		peer   *hbonetest.Peer
		header hbonetest.Header
		status int
		early  bool
		flag   proxy.Flag
		text   string
	}{
		{"ok", ok, connect(dst.String()), 200, false, proxy.FlagNone, ""},
		{"method", ok, hbonetest.Fields(":method", "GET", ":scheme", "https", ":path", "/", ":authority", dst.String()), 400, true, proxy.FlagConnect, "only CONNECT"},
		{"no-port", ok, connect("127.0.10.2"), 400, true, proxy.FlagConnect, "authority"},
		{"no-authority", ok, hbonetest.Fields(":method", "CONNECT"), 400, true, proxy.FlagConnect, "authority"},
		{"long-authority", ok, connect(strings.Repeat("x", 300) + ":80"), 400, true, proxy.FlagConnect, proxy.ErrLongAuthority.Error()},
		{"foreign-address", ok, connect("127.0.10.9:80"), 400, true, proxy.FlagConnect, "ip mismatch: 127.0.10.2 != 127.0.10.9"},
		{"unknown-host", ok, connect("nobody.example:80"), 503, true, proxy.FlagConnect, "nobody.example"},
		{"own-port", ok, connect("127.0.10.2:15008"), 503, true, proxy.FlagConnect, "attempted recursive call to ourselves"},
		{"denied", mallory, connect(dst.String()), 401, false, proxy.FlagDeny, "connection closed due to policy rejection: explicitly denied by: default/no-mallory"},
		{"nothing-listens", ok, connect("127.0.10.2:1"), 503, false, proxy.FlagConnect, "connection refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := uint32(2*i + 1)
			tc.peer.Headers(id, false, tc.header)
			if got := tc.peer.WaitStatus(t, id); got != tc.status {
				t.Errorf("status is %d, want %d", got, tc.status)
			}
			s := tc.peer.Stream(id)
			baggage := "k8s.cluster.name=cluster1,k8s.namespace.name=default,k8s.deployment.name=server,service.name=server"
			if tc.status != 200 {
				baggage = ""
				tc.peer.Wait(t, id, "end", func(s hbonetest.Stream) bool { return s.Ended })
			} else {
				tc.peer.Data(id, nil, true)
			}
			if got := s.Header.Get("baggage"); got != baggage {
				t.Errorf("baggage is %q, want %q", got, baggage)
			}
			f := two.seen.ended(t, proxy.Inbound, i+1)
			if f.Flag != tc.flag || f.Early != tc.early || (f.Err == nil) != (tc.text == "") || f.Err != nil && !strings.Contains(f.Err.Error(), tc.text) {
				t.Errorf("flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
			}
		})
	}
}

func TestInboundHandshakeRefusals(t *testing.T) {
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.HandshakeTimeout = 300 * time.Millisecond })
	server := two.pod("server", "127.0.10.2")
	s, _ := r.certs.Get(t.Context(), identity.MustParse("spiffe://cluster.local/ns/default/sa/client"))
	bundle := r.ca.Bundle()
	for i, tc := range []struct {
		name   string
		greet  func(t *testing.T, c net.Conn)
		reason string
	}{
		{"plaintext", func(_ *testing.T, c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }, mtls.ReasonNotTLS},
		{"no-certificate", func(_ *testing.T, c net.Conn) {
			_ = tls.Client(c, &tls.Config{RootCAs: bundle.Pool(), InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
		}, mtls.ReasonNoCertificate},
		{"unknown-authority", func(t *testing.T, c net.Conn) {
			_ = tls.Client(c, mtls.Client(mixed(t, r), []identity.ID{server.w.Identity()}, nil)).Handshake()
		}, mtls.ReasonUnknownAuthority},
		{"expired", func(t *testing.T, c net.Conn) {
			old := r.ca.SVID(t, s.ID.String(), identitytest.Expired())
			_ = tls.Client(c, mtls.Client(old, []identity.ID{server.w.Identity()}, nil)).Handshake()
		}, mtls.ReasonExpired},
		{"wrong-trust-domain", func(t *testing.T, c net.Conn) {
			chain, key := r.ca.Issue(t, "spiffe://clusterset.local/ns/default/sa/client")
			roots := identity.NewBundle(identity.MustTrustDomain("clusterset.local"), bundle.Certificates())
			other, err := svid.New(chain, key, roots)
			if err != nil {
				t.Fatal(err)
			}
			_ = tls.Client(c, mtls.Client(other, []identity.ID{server.w.Identity()}, nil)).Handshake()
		}, mtls.ReasonWrongTrustDomain},
		{"tls12", func(_ *testing.T, c net.Conn) {
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		}, mtls.ReasonHandshake},
		{"no-alpn", func(_ *testing.T, c net.Conn) {
			cfg := mtls.Client(s, []identity.ID{server.w.Identity()}, nil)
			cfg.NextProtos = nil
			_ = tls.Client(c, cfg).Handshake()
		}, mtls.ReasonHandshake},
		{"silent", func(*testing.T, net.Conn) {}, mtls.ReasonTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := net.Dial("tcp", server.inbound.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tc.greet(t, c)
			f := two.seen.ended(t, proxy.Inbound, i+1)
			if !f.Early || f.Flag != proxy.FlagTLSFailure || mtls.Reason(f.Err) != tc.reason {
				t.Errorf("flow ended with %v (%s), flag %s, early %t", f.Err, mtls.Reason(f.Err), f.Flag, f.Early)
			}
			if f.Source.Addr.String() != c.LocalAddr().String() {
				t.Errorf("flow is from %s, want %s", f.Source.Addr, c.LocalAddr())
			}
		})
	}
}

func TestServerWithoutCertificateOrWorkload(t *testing.T) {
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.WorkloadTimeout = 50 * time.Millisecond })
	server := two.pod("server", "127.0.10.2")
	r.certs.fail[server.w.Identity()] = errors.New("authority is down")
	config := r.tlsAs("client", server)
	if _, err := hbonetest.Dial(t, server.inbound.String(), config); err == nil {
		t.Error("handshake succeeded without a certificate")
	}
	if f := two.seen.ended(t, proxy.Inbound, 1); f.Flag != proxy.FlagIdentityError {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
	delete(r.certs.fail, server.w.Identity())
	p := r.raw("client", server)
	r.store.Apply([]workload.Event{workload.Removal(server.w.UID)})
	p.Connect(1, "127.0.10.2:80")
	if got := p.WaitStatus(t, 1); got != 503 {
		t.Errorf("status is %d without the local workload, want 503", got)
	}
	p.Connect(3, "nonsense")
	if got := p.WaitStatus(t, 3); got != 400 {
		t.Errorf("status is %d for a bad authority, want 400", got)
	}
	if _, err := hbonetest.Dial(t, server.inbound.String(), config); err == nil {
		t.Error("handshake succeeded without the local workload")
	}
	if f := two.seen.ended(t, proxy.Inbound, 4); !errors.Is(f.Err, proxy.ErrLocalWorkload) || !f.Early {
		t.Errorf("flow ended with %v, early %t", f.Err, f.Early)
	}
}

func TestInboundSourceNames(t *testing.T) {
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.Network = "net1" })
	server := two.podOf(r.workloadAt("server", "127.0.10.2", func(w *workload.Workload) { w.Network = "net1" }))
	known := r.workloadAt("known", "127.0.0.1", func(w *workload.Workload) { w.Network = "net1" })
	svc := &workload.Service{Name: "svc", Namespace: "default", Hostname: "svc.example"}
	dst := r.echo(server.ip)
	next := *server.w
	next.Services = map[workload.NamespacedHostname]workload.PortMap{svc.Key(): {80: dst.Port()}}
	r.store.Apply([]workload.Event{workload.UpsertService(svc), workload.Upsert(&next)})
	p := r.raw("client", server)
	flow := func(n int, kv ...string) *proxy.Flow {
		t.Helper()
		id := uint32(2*n - 1)
		p.Connect(id, dst.String(), kv...)
		if got := p.WaitStatus(t, id); got != 200 {
			t.Fatalf("status is %d", got)
		}
		p.Data(id, nil, true)
		return two.seen.ended(t, proxy.Inbound, n)
	}
	baggage := "k8s.namespace.name=other,k8s.job.name=b"
	f := flow(1, "baggage", baggage, "forwarded", `for="127.0.0.1:1";host=svc.example`)
	if f.Source.Workload != known || f.Source.Baggage != nil || f.Service == nil || f.Service.Hostname != "svc.example" {
		t.Errorf("source is %+v, service %v", f.Source, f.Service)
	}
	f = flow(2, "baggage", baggage, "x-forwarded-network", "net2")
	if f.Source.Workload != nil || f.Source.Baggage == nil || f.Source.Baggage.WorkloadName != "b" {
		t.Errorf("source is %+v", f.Source)
	}
	f = flow(3, "x-forwarded-network", "NET1")
	if f.Source.Workload != known {
		t.Errorf("source is %+v", f.Source)
	}
	f = flow(4, "baggage", baggage+",x="+strings.Repeat("x", 2<<10), "x-forwarded-network", "net2")
	if f.Source.Workload != nil || f.Source.Baggage != nil { // nobody can have a flow keep that much
		t.Errorf("source is %+v", f.Source)
	}
}

func TestMissingPolicyIsWaitedFor(t *testing.T) {
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.WorkloadTimeout = 200 * time.Millisecond })
	server := two.podOf(r.workloadAt("server", "127.0.10.2", func(w *workload.Workload) {
		w.AuthorizationPolicies = []string{"default/late"}
	}))
	dst := r.echo(server.ip)
	p := r.raw("client", server)
	p.Connect(1, dst.String())
	time.Sleep(20 * time.Millisecond)
	if p.Stream(1).Status() != 0 {
		t.Error("the request was answered although a policy is missing")
	}
	late := about("late", policy.Allow, "client")
	late.Scope = policy.WorkloadSelector
	r.policies.Apply([]*policy.Policy{late}, nil)
	if got := p.WaitStatus(t, 1); got != 200 {
		t.Errorf("status is %d, want 200", got)
	}
	// It goes again: the live connection stays, a new one is refused in the end.
	r.policies.Apply(nil, []string{"default/late"})
	p.Connect(3, dst.String())
	if got := p.WaitStatus(t, 3); got != 401 {
		t.Errorf("status is %d, want 401", got)
	}
	if f := two.seen.ended(t, proxy.Inbound, 1); f.Flag != proxy.FlagDeny || !strings.Contains(f.Err.Error(), "policies not known yet: default/late") {
		t.Errorf("flow ended with %v", f.Err)
	}
	p.Data(1, []byte("hello"), false)
	p.Wait(t, 1, "echo", func(s hbonetest.Stream) bool { return string(s.Data) == "hello" })
}

func TestPassthroughInbound(t *testing.T) {
	r := newRig(t)
	two := r.node(nil)
	server := two.pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	outside := netip.MustParseAddr("127.0.40.1")
	c := server.dialFrom(outside, dst)
	exchange(t, c, "hello")
	if flows := server.Flows(); len(flows) != 1 || flows[0].Protocol != proxy.TCP || flows[0].ActualDst != dst {
		t.Errorf("flows are %+v", flows)
	}
	// STRICT: whoever has no identity is denied. The live connection ends with it.
	strict := &policy.Policy{Namespace: "default", Name: "strict", Scope: policy.Namespace, Action: policy.Deny, Rules: [][][]policy.Match{
		{{{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}}}},
	}}
	r.policies.Apply([]*policy.Policy{strict}, nil)
	wantReset(t, c)
	f := two.seen.ended(t, proxy.Inbound, 1)
	if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Flag != proxy.FlagDeny || f.Policy != "default/strict" || f.Err.Error() != "connection closed due to policy change" {
		t.Errorf("flow ended with %v, flag %s, policy %s", f.Err, f.Flag, f.Policy)
	}
	if up, down := f.Bytes(); up != 5 || down != 5 || f.MutualTLS() || !f.Source.ID.IsZero() {
		t.Errorf("moved %d and %d bytes", up, down)
	}
	wantReset(t, server.dialFrom(outside, dst))
	if f := two.seen.ended(t, proxy.Inbound, 2); f.Flag != proxy.FlagDeny || f.Early {
		t.Errorf("flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
	}
	r.policies.Apply(nil, []string{"default/strict"})
	for i, port := range []uint16{15001, 15006, 15008, server.inbound.Port()} {
		wantReset(t, server.dialFrom(outside, netip.AddrPortFrom(server.ip, port)))
		if f := two.seen.ended(t, proxy.Inbound, 3+i); !errors.Is(f.Err, proxy.ErrSelfCall) || !f.Early {
			t.Errorf("flow ended with %v, early %t", f.Err, f.Early)
		}
	}
	wantReset(t, server.dialFrom(outside, netip.AddrPortFrom(server.ip, 1)))
	if f := two.seen.ended(t, proxy.Inbound, 7); f.Flag != proxy.FlagConnect || f.Early {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
}

// Plaintext that no ALLOW policy allows stays out, and so does what comes while a policy is missing.
func TestPassthroughNeedsToBeAllowed(t *testing.T) {
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.WorkloadTimeout = 50 * time.Millisecond })
	server := two.pod("server", "127.0.10.2")
	dst := r.echo(server.ip)
	refused := func(n int) {
		t.Helper()
		wantReset(t, server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst))
		if f := two.seen.ended(t, proxy.Inbound, n); f.Flag != proxy.FlagDeny {
			t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
		}
	}
	r.policies.Apply([]*policy.Policy{about("friends", policy.Allow, "client")}, nil)
	refused(1)
	r.policies.Apply(nil, []string{"default/friends"})
	named := *server.w
	named.AuthorizationPolicies = []string{"default/unknown"}
	r.store.Apply([]workload.Event{workload.Upsert(&named)})
	refused(2)
}

func TestPeerResetsBeforeTheAnswer(t *testing.T) {
	r := newRig(t)
	two := r.node(nil)
	server := two.podOf(r.workloadAt("server", "127.0.10.2", func(w *workload.Workload) {
		w.AuthorizationPolicies = []string{"default/never"}
	}))
	p := r.raw("client", server)
	p.Connect(1, "127.0.10.2:80")
	waitFor(t, "flow", func() bool { return len(server.Flows()) == 1 })
	p.Reset(1, http2.ErrCodeCancel)
	two.seen.ended(t, proxy.Inbound, 1)
	if n := len(server.Flows()); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// TestServicesOfAPodAreForFree: whoever writes Services for a pod, or EndpointSlices that name it, makes no connection to it dearer.
// They are decided on loops, which the pods of the node have in common.
func TestServicesOfAPodAreForFree(t *testing.T) {
	r := newRig(t)
	_, _, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	connect := func() time.Duration {
		begin := time.Now()
		for range 30 {
			c := client.dial(dst)
			exchange(t, c, "hello")
			c.Close()
		}
		return time.Since(begin)
	}
	connect()
	before := connect()
	var batch []workload.Event
	many := *server.w
	many.Services = make(map[workload.NamespacedHostname]workload.PortMap)
	for i := range 20_000 {
		svc := &workload.Service{Name: "svc", Namespace: "other", Hostname: fmt.Sprintf("svc-%05d.other.svc.cluster.local", i), Ports: workload.PortMap{80: 1}}
		many.Services[svc.Key()] = svc.Ports
		batch = append(batch, workload.UpsertService(svc))
	}
	r.store.Apply(append(batch, workload.Upsert(&many)))
	connect()
	after := min(connect(), connect(), connect())
	if after > 3*before+100*time.Millisecond {
		t.Errorf("30 connections take %v, and %v while the pod has 20,000 services", before, after)
	}
}
