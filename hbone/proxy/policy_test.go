package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// rules is a policy of one match for all of the namespace.
func rules(name string, action policy.Action, m policy.Match) *policy.Policy {
	return &policy.Policy{Namespace: "default", Name: name, Scope: policy.Namespace, Action: action, Rules: [][][]policy.Match{{{m}}}}
}

// strict is what STRICT of PeerAuthentication becomes: nobody without a principal.
func strict() *policy.Policy {
	p := rules("strict", policy.Deny, policy.Match{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}})
	p.Scope = policy.WorkloadSelector
	return p
}

func TestStrictEndsPlaintext(t *testing.T) { paths(t, testStrictEndsPlaintext) }

func testStrictEndsPlaintext(t *testing.T, r *rig) {
	_, two, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	inMesh := client.dial(dst)
	exchange(t, inMesh, "hello")
	outside := server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst)
	exchange(t, outside, "hello")

	r.policies.Apply([]*policy.Policy{strict()}, nil)
	exchange(t, outside, "still") // nobody names it yet
	next := *server.w
	next.AuthorizationPolicies = []string{"default/strict"}
	r.store.Apply([]workload.Event{workload.Upsert(&next)})
	wantReset(t, outside)
	exchange(t, inMesh, "still")
	n := 1 // the mesh's connection is the first; it lives
	f := two.seen.ended(t, proxy.Inbound, n)
	if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Policy != "default/strict" || f.Flag != proxy.FlagDeny || f.MutualTLS() {
		t.Errorf("flow ended with %v, flag %s, policy %s", f.Err, f.Flag, f.Policy)
	}
	wantReset(t, server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst))
}

// TestStrictThatComesBackEndsPlaintext: STRICT that goes and comes back before anybody has looked ends what came in meanwhile.
func TestStrictThatComesBackEndsPlaintext(t *testing.T) {
	r := newRig(t)
	server := r.node(nil).pod("server", "127.0.10.2")
	dst, outside := r.echo(server.ip), netip.MustParseAddr("127.0.40.1")
	r.policies.Apply([]*policy.Policy{strict()}, nil)
	names := func(policies ...string) {
		next := *server.w
		next.AuthorizationPolicies = policies
		r.store.Apply([]workload.Event{workload.Upsert(&next)})
	}
	before := server.dialFrom(outside, dst)
	exchange(t, before, "hello")
	names("default/strict")
	wantReset(t, before) // the flows have been looked at, and are not again for a while

	names()
	between := server.dialFrom(outside, dst)
	exchange(t, between, "hello")
	names("default/strict")
	wantReset(t, between)
}

// TestChosenSourceMeansNothing: policies go by the pod's address, whatever source its application has chosen.
func TestChosenSourceMeansNothing(t *testing.T) { paths(t, testChosenSourceMeansNothing) }

func testChosenSourceMeansNothing(t *testing.T, r *rig) {
	_, two, client, server := pair(r, nil)
	dst, chosen := r.echo(server.ip), netip.MustParseAddr("127.0.40.1")
	c := client.redirected(client.outbound, chosen, dst)
	exchange(t, c, "hello")
	c.Close()
	if f := two.seen.ended(t, proxy.Inbound, 1); f.Source.Addr.Addr() != client.ip || f.Protocol != proxy.HBONE {
		t.Errorf("flow came from %s over %s", f.Source.Addr, f.Protocol)
	}
	own := netip.PrefixFrom(client.ip, 32)
	r.policies.Apply([]*policy.Policy{rules("no-client", policy.Deny, policy.Match{SourceIPs: []netip.Prefix{own}})}, nil)
	for n, source := range []netip.Addr{client.ip, chosen} {
		wantReset(t, client.redirected(client.outbound, source, dst))
		if f := two.seen.ended(t, proxy.Inbound, n+2); f.Flag != proxy.FlagDeny || f.Source.Addr.Addr() != client.ip {
			t.Errorf("flow from %s ended with %v", f.Source.Addr, f.Err)
		}
	}
}

// TestChangeEndsWhatItConcerns: of several connections a change ends those that it concerns, and no others.
func TestChangeEndsWhatItConcerns(t *testing.T) { paths(t, testChangeEndsWhatItConcerns) }

func testChangeEndsWhatItConcerns(t *testing.T, r *rig) {
	one, _, client, server := pair(r, nil)
	other := one.pod("other", "127.0.10.3")
	a, b := r.echo(server.ip), r.echo(server.ip)
	outside := netip.MustParseAddr("127.0.40.1")
	dial := map[string]func() net.Conn{
		"client-a":  func() net.Conn { return client.dial(a) },
		"client-b":  func() net.Conn { return client.dial(b) },
		"other-a":   func() net.Conn { return other.dial(a) },
		"outside-a": func() net.Conn { return server.dialFrom(outside, a) },
	}
	names := []string{"client-a", "client-b", "other-a", "outside-a"}
	conns := make(map[string]net.Conn)
	exact := func(s string) []policy.StringMatch { return []policy.StringMatch{{Kind: policy.Exact, Value: s}} }
	const ofClient = "cluster.local/ns/default/sa/client"
	for _, tc := range []struct {
		name string
		p    *policy.Policy
		ends []string
	}{
		{"principal", rules("p", policy.Deny, policy.Match{Principals: exact(ofClient)}), []string{"client-a", "client-b"}},
		{"not-principal", rules("p", policy.Deny, policy.Match{NotPrincipals: exact(ofClient)}), []string{"other-a", "outside-a"}},
		{"namespace", rules("p", policy.Deny, policy.Match{Namespaces: exact("default")}), []string{"client-a", "client-b", "other-a"}},
		{"not-namespace", rules("p", policy.Deny, policy.Match{NotNamespaces: exact("default")}), []string{"outside-a"}},
		{"port", rules("p", policy.Deny, policy.Match{DestinationPorts: []uint16{b.Port()}}), []string{"client-b"}},
		{"not-port", rules("p", policy.Deny, policy.Match{NotDestinationPorts: []uint16{b.Port()}}), []string{"client-a", "other-a", "outside-a"}},
		{"block", rules("p", policy.Deny, policy.Match{SourceIPs: []netip.Prefix{netip.MustParsePrefix("127.0.10.1/32")}}), []string{"client-a", "client-b"}},
		{"mapped-block", rules("p", policy.Deny, policy.Match{SourceIPs: []netip.Prefix{netip.MustParsePrefix("::ffff:127.0.10.0/126")}}), []string{"client-a", "client-b", "other-a"}},
		{"not-block", rules("p", policy.Deny, policy.Match{NotSourceIPs: []netip.Prefix{netip.MustParsePrefix("127.0.10.0/24")}}), []string{"outside-a"}},
		{"allow", rules("p", policy.Allow, policy.Match{Principals: exact(ofClient), DestinationPorts: []uint16{a.Port()}}), []string{"client-b", "other-a", "outside-a"}},
		{"allow-nothing", &policy.Policy{Namespace: "default", Name: "p", Scope: policy.Global}, names},
		{"unreadable", &policy.Policy{Namespace: "default", Name: "p", Scope: policy.Global, Invalid: "no port 99999"}, names},
		{"dry-run", &policy.Policy{Namespace: "default", Name: "p", Action: policy.Deny, DryRun: true, Rules: [][][]policy.Match{{}}}, nil},
		{"audit", &policy.Policy{Namespace: "default", Name: "p", Action: policy.Audit, Rules: [][][]policy.Match{{}}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range names {
				if conns[name] == nil {
					conns[name] = dial[name]()
				}
				exchange(t, conns[name], "hello")
			}
			begin := time.Now()
			r.policies.Apply([]*policy.Policy{tc.p}, nil)
			for _, name := range tc.ends {
				wantReset(t, conns[name])
				conns[name] = nil
			}
			if d := time.Since(begin); d > time.Second*slowness() {
				t.Errorf("ending took %s", d)
			}
			for _, name := range names {
				if !slices.Contains(tc.ends, name) {
					exchange(t, conns[name], "still")
				}
			}
			r.policies.Apply(nil, []string{"default/p"})
		})
	}
}

// TestWorkloadAway: that the pod's own workload is gone for a while ends nothing, and a policy of that time counts.
func TestWorkloadAway(t *testing.T) { paths(t, testWorkloadAway) }

func testWorkloadAway(t *testing.T, r *rig) {
	one, _, client, server := pair(r, nil)
	other := one.pod("other", "127.0.10.3")
	dst := r.echo(server.ip)
	c, o := client.dial(dst), other.dial(dst)
	exchange(t, c, "hello")
	exchange(t, o, "hello")
	r.store.Apply([]workload.Event{workload.Removal(server.w.UID)})
	r.policies.Apply([]*policy.Policy{about("deny", policy.Deny, "client")}, nil)
	wantReset(t, c)
	exchange(t, o, "still")
	r.store.Apply([]workload.Event{workload.Upsert(server.w)})
	exchange(t, o, "still")
	exchange(t, other.dial(dst), "hello")
	wantReset(t, client.dial(dst))
}

// TestPoliciesThatDoNotDecide: they are told to the observer once, and kept with the flow.
func TestPoliciesThatDoNotDecide(t *testing.T) { paths(t, testPoliciesThatDoNotDecide) }

func testPoliciesThatDoNotDecide(t *testing.T, r *rig) {
	_, two, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	deny := about("would-deny", policy.Deny, "client")
	deny.DryRun = true
	audit := rules("audit", policy.Audit, policy.Match{DestinationPorts: []uint16{dst.Port()}})
	r.policies.Apply([]*policy.Policy{deny, audit, about("audit-others", policy.Audit, "other")}, nil)
	c := client.dial(dst)
	exchange(t, c, "hello")
	outside := server.dialFrom(netip.MustParseAddr("127.0.40.1"), dst)
	exchange(t, outside, "hello")
	c.Close()
	outside.Close()
	both := []*proxy.Flow{two.seen.ended(t, proxy.Inbound, 1), two.seen.ended(t, proxy.Inbound, 2)}
	for _, f := range both {
		var want []policy.DryRun
		if f.Protocol != proxy.TCP {
			want = []policy.DryRun{{Action: policy.Deny, Policy: "default/would-deny"}}
		}
		if f.Err != nil || !slices.Equal(f.DryRun, want) || !slices.Equal(f.Audit, []string{"default/audit"}) {
			t.Errorf("%s flow ended with %v, dry run %v, audit %v", f.Protocol, f.Err, f.DryRun, f.Audit)
		}
	}
	two.seen.mu.Lock()
	defer two.seen.mu.Unlock()
	if len(two.seen.noted) != 2 {
		t.Errorf("%d flows were noted, want 2", len(two.seen.noted))
	}
}

// parked is an application that never accepts: the kernel keeps its connections, which need no descriptor here.
func parked(t *testing.T, ip netip.Addr) netip.AddrPort {
	l, err := net.Listen("tcp", netip.AddrPortFrom(ip, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func over(s hbonetest.Stream) bool { return s.Ended || s.Reset >= 0 }

// TestOneOfTenThousand: a change that concerns one of 10,000 established connections ends that one, and hardly anybody
// notices that all have been looked at.
func TestOneOfTenThousand(t *testing.T) {
	const tunnels, each = 100, 100
	r := newRig(t)
	two := r.node(func(c *proxy.Config) { c.Descriptors = 1 << 20 }) // all come from one address
	server := two.pod("server", "127.0.10.2")
	var many []*policy.Policy
	for i := range 1000 {
		p := about(fmt.Sprintf("many-%d", i), policy.Deny)
		for j := range 10 {
			p.Rules = append(p.Rules, [][]policy.Match{{{NotDestinationPorts: []uint16{uint16(i)}, SourceIPs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j), 0}), 24),
			}}}})
		}
		many = append(many, p)
	}
	r.policies.Apply(many, nil)

	var peers []*hbonetest.Peer
	var app netip.AddrPort
	for i := range tunnels {
		if i%25 == 0 {
			app = parked(t, server.ip) // each has a queue of 4096 at least
		}
		p := r.raw("client", server)
		for j := range each {
			if i == 0 && j == 0 {
				continue // one connection is the victim's
			}
			p.Connect(uint32(2*j+1), app.String())
		}
		for j := range each {
			if i > 0 || j > 0 {
				p.WaitStatus(t, uint32(2*j+1))
			}
		}
		peers = append(peers, p)
	}
	victim := r.raw("victim", server)
	victim.Connect(1, app.String())
	victim.WaitStatus(t, 1)
	calm := r.node(nil).pod("calm", "127.0.10.4").dial(r.echo(server.ip))
	exchange(t, calm, "hello")
	waitFor(t, "10,000 connections", func() bool { return len(server.Flows()) == tunnels*each+1 })

	// A change of a policy of nobody's, for comparison, and then of the victim's; meanwhile somebody exchanges words.
	slowest := func(change func(), done func() bool) (took, longest time.Duration) {
		stop, stopped := make(chan struct{}), make(chan time.Duration)
		go func() {
			longest, word, answer := time.Duration(0), []byte("calm"), make([]byte, 4)
			for {
				select {
				case <-stop:
					stopped <- longest
					return
				default:
				}
				begin := time.Now()
				_, _ = calm.Write(word)
				if _, err := io.ReadFull(calm, answer); err != nil {
					t.Errorf("calm stream: %v", err)
					stopped <- 0
					return
				}
				longest = max(longest, time.Since(begin))
			}
		}()
		begin := time.Now()
		change()
		for !done() && time.Since(begin) < patience {
			time.Sleep(time.Millisecond)
		}
		took = time.Since(begin)
		close(stop)
		return took, <-stopped
	}
	quiet := time.Now()
	_, before := slowest(func() {}, func() bool { return time.Since(quiet) > 200*time.Millisecond })
	took, during := slowest(func() {
		r.policies.Apply([]*policy.Policy{about("no-victim", policy.Deny, "victim")}, nil)
	}, func() bool { return over(victim.Stream(1)) })
	t.Logf("the victim's connection ended after %s; the longest round trip of another was %s, before %s", took, during, before)
	if took > time.Second*slowness() {
		t.Errorf("the victim's connection ended after %s", took)
	}
	f := two.seen.ended(t, proxy.Inbound, 1)
	if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Policy != "default/no-victim" || f.Source.ID.ServiceAccount() != "victim" {
		t.Errorf("%s's flow ended with %v, policy %s", f.Source.ID, f.Err, f.Policy)
	}
	exchange(t, calm, "still")
	if n := len(server.Flows()); n != tunnels*each {
		t.Errorf("%d connections live, want %d", n, tunnels*each)
	}
	for _, p := range peers {
		for j := range each {
			if s := p.Stream(uint32(2*j + 1)); over(s) {
				t.Fatalf("a connection of the others ended: %+v", s)
			}
		}
	}
}
