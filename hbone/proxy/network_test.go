package proxy_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
)

func networkPod(w *workload.Workload, ports ...netpol.NamedPort) *netpol.Pod {
	return &netpol.Pod{UID: w.UID, Namespace: w.Namespace, Labels: netpol.Labels{{Key: "app", Value: w.Name}}, Ports: ports}
}

func app1(name string) *netpol.Selector {
	return &netpol.Selector{Requirements: []netpol.Requirement{{Key: "app", Op: netpol.In, Values: []string{name}}}}
}

// ingressTo and egressFrom govern one pod in one direction.
func ingressTo(name, pod string, rules ...netpol.Rule) *netpol.Policy {
	return &netpol.Policy{Tier: netpol.Namespaced, Namespace: "default", Name: name, Pods: *app1(pod), Ingress: true, IngressRules: rules}
}

func egressFrom(name, pod string, rules ...netpol.Rule) *netpol.Policy {
	return &netpol.Policy{Tier: netpol.Namespaced, Namespace: "default", Name: name, Pods: *app1(pod), Egress: true, EgressRules: rules}
}

func toPort(ports ...netpol.Port) netpol.Rule { return netpol.Rule{AnyPeer: true, Ports: ports} }

func block(cidr string, except ...string) netpol.Rule {
	p := netpol.Peer{Block: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		p.Except = append(p.Except, netip.MustParsePrefix(e))
	}
	return netpol.Rule{Peers: []netpol.Peer{p}, AnyPort: true}
}

// evaluating is a pair whose agents evaluate one set.
func evaluating(r *rig) (set *netpol.Set, one, two *node, client, server *pod) {
	set = netpol.New()
	one, two, client, server = pair(r, func(c *proxy.Config) { c.NetworkPolicies = set })
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(client.w), networkPod(server.w)}, nil)
	set.SetReady(true)
	return set, one, two, client, server
}

// denied checks the end of a flow that network policy has refused.
func denied(t *testing.T, f *proxy.Flow, policy string) {
	t.Helper()
	var d *proxy.DeniedError
	if !errors.As(f.Err, &d) || f.Flag != proxy.FlagDeny || f.Policy != policy || !strings.Contains(f.Err.Error(), policy) {
		t.Errorf("%s flow ended with %v, flag %s, policy %q; want it denied by %q", f.Direction, f.Err, f.Flag, f.Policy, policy)
	}
}

func TestNetworkPolicyIngress(t *testing.T) { paths(t, testNetworkPolicyIngress) }

// The real peer and the port inside of the tunnel decide, whatever port the tunnel comes to.
func testNetworkPolicyIngress(t *testing.T, r *rig) {
	set, one, two, client, server := evaluating(r)
	open, shut := r.echo(server.ip), r.echo(server.ip)
	flows := 0 // that have ended
	allowed := func(dst netip.AddrPort) {
		t.Helper()
		c := client.dial(dst)
		exchange(t, c, "hello")
		c.Close()
		flows++
		if f := two.seen.ended(t, proxy.Inbound, flows); f.Flag != proxy.FlagNone {
			t.Errorf("flow ended with %v", f.Err)
		}
	}
	refused := func(dst netip.AddrPort) {
		t.Helper()
		wantReset(t, client.dial(dst))
		flows++
		denied(t, two.seen.ended(t, proxy.Inbound, flows), "netpol default/web")
		if f := one.seen.ended(t, proxy.Outbound, flows); !strings.Contains(f.Err.Error(), "401") {
			t.Errorf("the client's side ended with %v", f.Err)
		}
	}
	set.Apply([]netpol.Object{ingressTo("web", "server", netpol.Rule{
		Peers: []netpol.Peer{{Pods: app1("client")}}, Ports: []netpol.Port{{Port: open.Port()}},
	})}, nil)
	allowed(open)
	refused(shut)
	// A port by its name, and a range.
	set.Apply([]netpol.Object{
		networkPod(server.w, netpol.NamedPort{Name: "app", Port: shut.Port()}), ingressTo("web", "server", toPort(netpol.Port{Name: "app"})),
	}, nil)
	allowed(shut)
	refused(open)
	set.Apply([]netpol.Object{ingressTo("web", "server", toPort(netpol.Port{Port: open.Port() - 1, End: open.Port()}))}, nil)
	allowed(open)
	// Another pod's label.
	set.Apply([]netpol.Object{ingressTo("web", "server", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("somebody")}}, AnyPort: true})}, nil)
	refused(open)
	set.Apply(nil, []netpol.Key{{Kind: netpol.KindPolicy, Namespace: "default", Name: "web"}})
	allowed(open)
}

func TestNetworkPolicyEgress(t *testing.T) { paths(t, testNetworkPolicyEgress) }

// The client's side refuses at once: the server hears nothing.
func testNetworkPolicyEgress(t *testing.T, r *rig) {
	set, one, two, client, server := evaluating(r)
	open, shut := r.echo(server.ip), r.echo(server.ip)
	vip := r.service("127.0.20.1", 80, open.Port(), server.w)
	set.Apply([]netpol.Object{egressFrom("out", "client", netpol.Rule{
		Peers: []netpol.Peer{{Pods: app1("server")}}, Ports: []netpol.Port{{Port: open.Port()}},
	})}, nil)
	wantReset(t, client.dial(shut))
	denied(t, one.seen.ended(t, proxy.Outbound, 1), "netpol default/out")
	for _, f := range two.seen.closed {
		if f.Direction == proxy.Inbound {
			t.Errorf("the server was asked: %v", f.Err)
		}
	}
	exchange(t, client.dial(open), "hello")
	exchange(t, client.dial(vip), "hello") // judged by the endpoint, not by the service's address and port
}

// A tunnel that is there already is no way past the source's policies.
func TestNetworkPolicyEgressByTunnelThatIsThere(t *testing.T) {
	r := newRig(t)
	set, one, two, client, server := evaluating(r)
	open, shut := r.echo(server.ip), r.echo(server.ip)
	exchange(t, client.dial(open), "hello")
	if out, _ := client.Tunnels(); out != 1 {
		t.Fatalf("%d tunnels, want one", out)
	}
	set.Apply([]netpol.Object{egressFrom("out", "client", netpol.Rule{
		Peers: []netpol.Peer{{Pods: app1("server")}}, Ports: []netpol.Port{{Port: open.Port()}},
	})}, nil)
	wantReset(t, client.dial(shut))
	denied(t, one.seen.ended(t, proxy.Outbound, 1), "netpol default/out")
	two.seen.mu.Lock()
	defer two.seen.mu.Unlock()
	for _, f := range two.seen.opened {
		if f.Direction == proxy.Inbound && f.Destination.Addr == shut {
			t.Error("the server was asked")
		}
	}
}

// A target that the source's policies refuse is not tried, and nothing is held against it.
func TestNetworkPolicyOtherEndpoint(t *testing.T) {
	r := newRig(t)
	set, one, two, client, server := evaluating(r)
	other := two.podOf(r.workloadAt("other", "127.0.10.3", nil))
	dst := r.echo(server.ip)
	l, err := net.Listen("tcp", netip.AddrPortFrom(other.ip, dst.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	vip := r.service("127.0.20.1", 80, dst.Port(), server.w, other.w)
	set.Apply([]netpol.Object{networkPod(other.w), egressFrom("out", "client", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("server")}}, AnyPort: true})}, nil)
	for range 20 {
		c := client.dial(vip)
		exchange(t, c, "hello")
		c.Close()
	}
	for n := range 20 {
		if f := one.seen.ended(t, proxy.Outbound, n+1); f.Err != nil || f.Destination.Workload.UID != server.w.UID {
			t.Errorf("flow to %v ended with %v", f.Destination.Workload, f.Err)
		}
	}
}

// Somebody who may declare workloads does not get past a rule about pods by declaring one at a pod's address.
func TestNetworkPolicyDeclaredWorkload(t *testing.T) {
	r := newRig(t)
	set, one, _, client, server := evaluating(r)
	dst := r.echo(server.ip)
	entry := *server.w
	entry.UID, entry.Name, entry.Protocol = "cluster1/networking.istio.io/WorkloadEntry/default/entry", "entry", workload.TCP
	r.store.Apply([]workload.Event{workload.Upsert(&entry)})
	vip := r.service("127.0.20.1", 80, dst.Port(), &entry)
	c := client.dial(vip)
	exchange(t, c, "hello")
	c.Close()
	one.seen.ended(t, proxy.Outbound, 1)
	set.Apply([]netpol.Object{&netpol.Policy{Tier: netpol.Admin, Name: "deny", Namespaces: &netpol.Selector{}, Egress: true, EgressRules: []netpol.Rule{
		{Action: netpol.Deny, Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}, Pods: app1("server")}}, AnyPort: true},
	}}}, nil)
	wantReset(t, client.dial(vip))
	denied(t, one.seen.ended(t, proxy.Outbound, 2), "cluster-netpol deny")
}

// A domain name is that of the addresses which it was resolved to. A workload that has addresses of its own may be declared under
// any name.
func TestNetworkPolicyDomain(t *testing.T) {
	r := newRig(t)
	asked, other := netip.MustParseAddr("127.0.30.1"), netip.MustParseAddr("127.0.31.1")
	set := netpol.New()
	one := r.node(func(c *proxy.Config) {
		c.NetworkPolicies = set
		c.Resolve = func(context.Context, *workload.Workload, string) ([]netip.Addr, error) {
			return []netip.Addr{asked}, nil
		}
	})
	client := one.pod("client", "127.0.10.1")
	set.Apply([]netpol.Object{
		&netpol.Namespace{Name: "default"}, networkPod(client.w), egressFrom("out", "client"),
		&netpol.Policy{Tier: netpol.Admin, Name: "partners", Namespaces: &netpol.Selector{}, Egress: true, EgressRules: []netpol.Rule{
			{Action: netpol.Allow, Peers: []netpol.Peer{{Domains: []string{"*.example"}}}, AnyPort: true},
		}},
	}, nil)
	set.SetReady(true)
	declared := func(name string, addrs ...netip.Addr) *workload.Workload {
		return r.workloadAt(name, "127.0.30.9", func(w *workload.Workload) {
			w.UID = "cluster1/networking.istio.io/WorkloadEntry/default/" + name
			w.Addresses, w.Hostname, w.Protocol = addrs, "partner.example", workload.TCP
		})
	}
	exchange(t, client.dial(r.service("127.0.20.1", 80, r.echo(asked).Port(), declared("by-name"))), "hello")
	declared("by-address", other)
	wantReset(t, client.dial(r.echo(other)))
	denied(t, one.seen.ended(t, proxy.Outbound, 1), "netpol default/out")
}

// Addresses outside of the mesh are judged as blocks, in both directions.
func TestNetworkPolicyOutside(t *testing.T) {
	r := newRig(t)
	set, one, two, client, server := evaluating(r)
	near, far := r.echo(netip.MustParseAddr("127.0.40.1")), r.echo(netip.MustParseAddr("127.0.41.1"))
	app := r.echo(server.ip)
	set.Apply([]netpol.Object{
		egressFrom("out", "client", block("127.0.0.0/8", "127.0.41.0/24")),
		ingressTo("in", "server", block("127.0.40.0/24")),
	}, nil)
	exchange(t, client.dial(near), "hello")
	wantReset(t, client.dial(far))
	denied(t, one.seen.ended(t, proxy.Outbound, 1), "netpol default/out")

	exchange(t, server.dialFrom(netip.MustParseAddr("127.0.40.9"), app), "hello")
	wantReset(t, server.dialFrom(netip.MustParseAddr("127.0.41.9"), app))
	denied(t, two.seen.ended(t, proxy.Inbound, 1), "netpol default/in")
	// Plaintext of a pod: its address says which it is, as to a packet filter.
	plain := r.workloadAt("plain", "127.0.42.1", func(w *workload.Workload) { w.Protocol = workload.TCP })
	set.Apply([]netpol.Object{networkPod(plain), ingressTo("in", "server", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("plain")}}, AnyPort: true})}, nil)
	exchange(t, server.dialFrom(plain.Addresses[0], app), "hello")
}

// The node itself, which probes its pods, is no peer that a NetworkPolicy can forbid.
func TestNetworkPolicyOwnNode(t *testing.T) {
	r := newRig(t)
	set := netpol.New()
	host := netip.MustParseAddr("127.0.50.1")
	two := r.node(func(c *proxy.Config) {
		c.NetworkPolicies, c.OwnNode = set, func(a netip.Addr) bool { return a == host }
	})
	server := two.pod("server", "127.0.10.2")
	app := r.echo(server.ip)
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(server.w), ingressTo("in", "server")}, nil)
	set.SetReady(true)
	exchange(t, server.dialFrom(host, app), "hello")
	wantReset(t, server.dialFrom(netip.MustParseAddr("127.0.50.2"), app))
	// A pod reaches itself.
	exchange(t, server.dial(app), "hello")
}

// An address is a pod only for who has that pod's certificate. Others are nobody: let in by blocks alone, and met by every
// rule that denies pods.
func TestNetworkPolicyUnprovenPeer(t *testing.T) {
	r := newRig(t)
	set := netpol.New()
	two := r.node(func(c *proxy.Config) { c.NetworkPolicies, c.WorkloadTimeout = set, 50*time.Millisecond })
	server := two.pod("server", "127.0.10.2")
	app := r.echo(server.ip)
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(server.w)}, nil)
	set.SetReady(true)
	status := func(name string) int {
		t.Helper()
		peer := r.raw(name, server)
		peer.Headers(1, false, hbonetest.Fields(":method", "CONNECT", ":authority", app.String()))
		return peer.WaitStatus(t, 1)
	}
	byPod := ingressTo("in", "server", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("client")}}, AnyPort: true})
	byBlock := ingressTo("in", "server", block("127.0.0.0/8"))
	deny := &netpol.Policy{Tier: netpol.Admin, Name: "deny", Namespaces: &netpol.Selector{}, Ingress: true, IngressRules: []netpol.Rule{
		{Action: netpol.Deny, Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}, Pods: app1("evil")}}, AnyPort: true},
	}}
	steps := func(where string, want [3]int) {
		t.Helper()
		for i, objects := range [][]netpol.Object{{byPod}, {byBlock}, {deny}} {
			set.Apply(objects, nil)
			if got := status("client"); got != want[i] {
				t.Errorf("%s, step %d: status %d, want %d", where, i, got, want[i])
			}
		}
		set.Apply(nil, []netpol.Key{deny.Key()})
	}
	steps("nobody's address", [3]int{401, 200, 401})
	// The address of another pod, which has another service account.
	w := r.workloadAt("other", "127.0.0.1", nil)
	set.Apply([]netpol.Object{networkPod(w)}, nil)
	steps("another's address", [3]int{401, 200, 401})
	// Its own.
	r.store.Apply([]workload.Event{workload.Removal(w.UID)})
	set.Apply([]netpol.Object{networkPod(r.workloadAt("client", "127.0.0.1", nil))}, nil)
	steps("its own address", [3]int{200, 200, 200})
}

func TestNetworkPolicyLive(t *testing.T) { paths(t, testNetworkPolicyLive) }

// A change ends the flows that it forbids, at either end, and no other.
func testNetworkPolicyLive(t *testing.T, r *rig) {
	set, one, two, client, server := evaluating(r)
	a, b := r.echo(server.ip), r.echo(server.ip)
	outside := r.echo(netip.MustParseAddr("127.0.40.1"))
	one1, two1, out := client.dial(a), client.dial(b), client.dial(outside)
	for _, c := range []net.Conn{one1, two1, out} {
		exchange(t, c, "hello")
	}
	begin := time.Now()
	set.Apply([]netpol.Object{ingressTo("in", "server", toPort(netpol.Port{Port: b.Port()}))}, nil)
	wantReset(t, one1)
	if d := time.Since(begin); d > time.Second*slowness() {
		t.Errorf("it took %s", d)
	}
	f := two.seen.ended(t, proxy.Inbound, 1)
	if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Policy != "netpol default/in" {
		t.Errorf("flow ended with %v, policy %q", f.Err, f.Policy)
	}
	exchange(t, two1, "still")
	exchange(t, out, "still")

	// Labels that change count, and what becomes unknown does not.
	set.Apply([]netpol.Object{egressFrom("out", "client", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("server")}}, AnyPort: true}, block("127.0.40.0/24"))}, nil)
	exchange(t, two1, "still")
	set.Apply(nil, []netpol.Key{networkPod(server.w).Key()})
	time.Sleep(250 * time.Millisecond) // longer than agents pause between two looks
	exchange(t, two1, "still")
	moved := networkPod(server.w)
	moved.Labels = netpol.Labels{{Key: "app", Value: "elsewhere"}}
	set.Apply([]netpol.Object{moved}, nil)
	wantReset(t, two1)
	if f := one.seen.ended(t, proxy.Outbound, 2); !errors.Is(f.Err, proxy.ErrPolicyChange) && !r.sameNode {
		t.Errorf("flow ended with %v", f.Err)
	}
	exchange(t, out, "still")
	set.Apply([]netpol.Object{egressFrom("out", "client")}, nil)
	wantReset(t, out)
}

// As long as the policies are not known nobody is let in, and who comes waits a moment for them.
func TestNetworkPolicyNotReady(t *testing.T) {
	r := newRig(t)
	set := netpol.New()
	change := func(c *proxy.Config) { c.NetworkPolicies, c.WorkloadTimeout = set, 300*time.Millisecond }
	one, _, client, server := pair(r, change)
	app := r.echo(server.ip)
	wantReset(t, client.dial(app))
	if f := one.seen.ended(t, proxy.Outbound, 1); !strings.Contains(f.Err.Error(), "network policies are not known yet") || f.Flag != proxy.FlagDeny {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
	wantReset(t, server.dialFrom(netip.MustParseAddr("127.0.50.2"), app))
	c := client.dial(app)
	set.SetReady(true)
	exchange(t, c, "hello")
	// A pod that is not known yet to what selects it.
	set.Apply([]netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(server.w), ingressTo("in", "server", netpol.Rule{Peers: []netpol.Peer{{Pods: app1("client")}}, AnyPort: true})}, nil)
	c = client.dial(app)
	set.Apply([]netpol.Object{networkPod(client.w)}, nil)
	exchange(t, c, "hello")
}

// What the agent asks of network policies for each connection costs nothing where there are none.
func BenchmarkNetworkPolicy(b *testing.B) {
	for _, name := range []string{"off", "none", "100"} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			set := netpol.New()
			one, two, client, server := pair(r, func(c *proxy.Config) {
				if c.Observer = nil; name != "off" {
					c.NetworkPolicies = set
				}
			})
			_, _ = one, two
			set.SetReady(true)
			if name == "100" {
				objects := []netpol.Object{&netpol.Namespace{Name: "default"}, networkPod(client.w), networkPod(server.w)}
				for i := range 100 {
					rules := make([]netpol.Rule, 10)
					for j := range rules {
						rules[j] = netpol.Rule{Peers: []netpol.Peer{{Pods: app1("nobody")}}, Ports: []netpol.Port{{Port: uint16(1 + j)}}}
					}
					if i == 99 {
						rules = append(rules, netpol.Rule{AnyPeer: true, AnyPort: true})
					}
					p := ingressTo("p"+string(rune('a'+i%26))+string(rune('a'+i/26)), "server", rules...)
					objects = append(objects, p)
				}
				set.Apply(objects, nil)
			}
			dst := r.serve(server.ip, func(c *net.TCPConn) { _, _ = c.Write([]byte("x")) }).addr
			client.goesAlways(dst)
			b.ReportAllocs()
			for b.Loop() {
				c, err := net.Dial("tcp", client.outbound.String())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// Who is a stranger when it connects, and turns out to be a pod that a rule denies, does not stay: in whatever order the agent
// hears of the pod.
func TestNetworkPolicyStranger(t *testing.T) {
	r := newRig(t)
	set, one, two, client, server := evaluating(r)
	app := r.echo(server.ip)
	evil, known := r.echo(netip.MustParseAddr("127.0.42.1")), r.echo(netip.MustParseAddr("127.0.44.1"))
	alike := func(w *workload.Workload) { w.Protocol = workload.TCP }
	r.workloadAt("known", known.Addr().String(), alike)
	rule := netpol.Rule{Action: netpol.Deny, Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}, Pods: app1("evil")}}, AnyPort: true}
	pod := func(name, app string) netpol.Object {
		return networkPod(&workload.Workload{UID: "cluster1//Pod/default/" + name, Name: app, Namespace: "default"})
	}
	set.Apply([]netpol.Object{&netpol.Policy{
		Tier: netpol.Admin, Name: "deny", Namespaces: &netpol.Selector{}, Ingress: true, Egress: true,
		IngressRules: []netpol.Rule{rule}, EgressRules: []netpol.Rule{rule},
	}, pod("known", "good")}, nil)
	in, out := server.dialFrom(evil.Addr(), app), client.dial(evil)
	other := server.dialFrom(netip.MustParseAddr("127.0.43.1"), app)
	knownIn, knownOut := server.dialFrom(known.Addr(), app), client.dial(known)
	for _, c := range []net.Conn{in, out, other, knownIn, knownOut} {
		exchange(t, c, "hello")
	}
	set.Apply([]netpol.Object{pod("evil", "evil"), pod("known", "evil")}, nil)
	wantReset(t, knownIn) // the agents have looked
	wantReset(t, knownOut)
	r.workloadAt("evil", evil.Addr().String(), alike)
	wantReset(t, in)
	wantReset(t, out)
	for _, f := range []*proxy.Flow{two.seen.ended(t, proxy.Inbound, 2), one.seen.ended(t, proxy.Outbound, 2)} {
		if !errors.Is(f.Err, proxy.ErrPolicyChange) || f.Policy != "cluster-netpol deny" {
			t.Errorf("%s flow ended with %v, policy %q", f.Direction, f.Err, f.Policy)
		}
	}
	exchange(t, other, "still")
}

// What somebody has declared at its address hides no pod from the policies of those that it connects to.
func TestNetworkPolicyDeclaredStranger(t *testing.T) {
	r := newRig(t)
	set, _, two, _, server := evaluating(r)
	app, evil := r.echo(server.ip), netip.MustParseAddr("127.0.42.1")
	r.workloadAt("entry", evil.String(), func(w *workload.Workload) {
		w.UID, w.Protocol = "cluster1/networking.istio.io/WorkloadEntry/default/entry", workload.TCP
	})
	set.Apply([]netpol.Object{
		networkPod(&workload.Workload{UID: "cluster1//Pod/default/evil", Name: "evil", Namespace: "default"}),
		&netpol.Policy{Tier: netpol.Admin, Name: "deny", Namespaces: &netpol.Selector{}, Ingress: true, IngressRules: []netpol.Rule{
			{Action: netpol.Deny, Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}, Pods: app1("evil")}}, AnyPort: true},
		}},
	}, nil)
	before := server.dialFrom(evil, app)
	exchange(t, before, "hello")
	r.workloadAt("evil", evil.String(), func(w *workload.Workload) { w.Protocol = workload.TCP })
	wantReset(t, before)
	if f := two.seen.ended(t, proxy.Inbound, 1); f.Policy != "cluster-netpol deny" {
		t.Errorf("flow ended with %v, policy %q", f.Err, f.Policy)
	}
}
