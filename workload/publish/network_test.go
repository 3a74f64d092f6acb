package publish_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// startNetworks runs a server that publishes network policies too.
func startNetworks(t *testing.T, change func(*publish.Config)) (*fixture, *netpol.Set) {
	t.Helper()
	set := netpol.New()
	return start(t, func(c *publish.Config) {
		c.NetworkPolicies = set
		if change != nil {
			change(c)
		}
	}), set
}

// followNetworks is follow for a client that asks for network policies.
func (f *fixture) followNetworks(t *testing.T) (*mirror, *netpol.Set) {
	t.Helper()
	set := netpol.New()
	return f.followInto(t, set), set
}

func networkPod(name, app string) *netpol.Pod {
	return &netpol.Pod{UID: "cluster1//Pod/ns/" + name, Namespace: "ns", Labels: netpol.Labels{{Key: "app", Value: app}}}
}

func isolate(name, app string) *netpol.Policy {
	return &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: name, Ingress: true, Pods: netpol.Selector{
		Requirements: []netpol.Requirement{{Key: "app", Op: netpol.In, Values: []string{app}}},
	}}
}

// TestNetworkPolicies: a client gets what there is, becomes ready by it even when it is nothing, follows changes, and is
// told nothing again when it comes back.
func TestNetworkPolicies(t *testing.T) {
	f, set := startNetworks(t, func(c *publish.Config) { c.MaxAge = 50 * time.Millisecond })
	m, got := f.followNetworks(t)
	select {
	case <-m.Ready():
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	if s := got.Snapshot(); !s.Ready() || len(s.Objects()) > 0 {
		t.Errorf("ready: %v, objects: %v", s.Ready(), s.Objects())
	}
	same := func() bool { return reflect.DeepEqual(set.Snapshot().Objects(), got.Snapshot().Objects()) }
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		var objects []netpol.Object
		var gone []netpol.Key
		for range r.IntN(8) {
			var o netpol.Object
			switch r.IntN(4) {
			case 0:
				o = networkPod(fmt.Sprint("p", r.IntN(9)), fmt.Sprint("a", r.IntN(3)))
			case 1:
				o = isolate(fmt.Sprint("p", r.IntN(9)), fmt.Sprint("a", r.IntN(3)))
			case 2:
				o = &netpol.Namespace{Name: fmt.Sprint("n", r.IntN(3)), Labels: netpol.Labels{{Key: "x", Value: fmt.Sprint(r.IntN(2))}}}
			default:
				o = &netpol.Node{Name: fmt.Sprint("n", r.IntN(3))}
			}
			if r.IntN(3) == 0 {
				gone = append(gone, o.Key())
			} else {
				objects = append(objects, o)
			}
		}
		set.Apply(objects, gone)
		if r.IntN(4) == 0 {
			eventually(t, "the client has what the server has", same)
		}
	}
	eventually(t, "the client has what the server has", same)
}

// TestNetworkChangeIsWhole: whatever a client holds is one state of the server: labels and the policies that select by them
// never part, though pods come and go with them.
func TestNetworkChangeIsWhole(t *testing.T) {
	f, set := startNetworks(t, nil)
	m, got := f.followNetworks(t)
	<-m.Ready()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			snap := got.Snapshot()
			n := 0 // the number of the state, which all of its objects carry
			for _, o := range snap.Objects() {
				if p, ok := o.(*netpol.Pod); ok {
					_, _ = fmt.Sscanf(p.Labels[0].Value, "a%d", &n)
				}
			}
			for _, o := range snap.Objects() {
				if p, ok := o.(*netpol.Policy); ok && p.Pods.Requirements[0].Values[0] != fmt.Sprint("a", n) {
					t.Errorf("policy %s is of another state than pods of a%d", p.Pods.Requirements[0].Values[0], n)
					return
				}
			}
			select {
			case <-snap.Changed():
			case <-stop:
				return
			}
		}
	})
	for i := range 200 {
		app := fmt.Sprint("a", i)
		set.Apply([]netpol.Object{networkPod("p", app), isolate(fmt.Sprint("policy", i%2), app)}, []netpol.Key{isolate(fmt.Sprint("policy", (i+1)%2), "").Key()})
		time.Sleep(time.Millisecond)
	}
	eventually(t, "the last state arrives", func() bool { return reflect.DeepEqual(set.Snapshot().Objects(), got.Snapshot().Objects()) })
	close(stop)
	wg.Wait()
}

// TestNetworkPoliciesFirst: what is known of a pod is with the client before its workload.
func TestNetworkPoliciesFirst(t *testing.T) {
	f, set := startNetworks(t, func(c *publish.Config) { c.Debounce = 50 * time.Millisecond })
	c := f.dial(t, "Bearer good")
	for _, url := range []string{publish.AddressType, publish.AuthorizationType, publish.NetworkPolicyType} {
		c.send(subscribe(url, nil))
		c.answer(url)
	}
	set.Apply([]netpol.Object{networkPod("a", "x")}, nil)
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	wantNames(t, c.answer(publish.NetworkPolicyType), []string{"pod/" + uidA})
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
}

// TestNetworkPoliciesNotServed: an agent that still asks for network policies where they are switched off goes on to be told of all
// else, and what it knows of them stays.
func TestNetworkPoliciesNotServed(t *testing.T) {
	before, set := startNetworks(t, nil)
	set.Apply([]netpol.Object{isolate("p", "a")}, nil)
	after := start(t, nil, pod("new", "10.0.0.2"))
	var to atomic.Pointer[string]
	to.Store(&before.addr)
	store, networks := workload.New(), netpol.New()
	c, err := xds.New(xds.Config{
		Address: before.addr, RootCA: before.roots + after.roots, TokenFile: tokenFile(t),
		Store: store, Policies: policy.New(), NetworkPolicies: networks,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", *to.Load())
		},
		Sleep: func(context.Context, time.Duration) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	<-c.Ready()
	to.Store(&after.addr)
	before.stop()
	eventually(t, "the other server tells of workloads", func() bool { return store.Snapshot().WorkloadCount() == 1 })
	after.store.Apply(workloadtest.Events(pod("newer", "10.0.0.3")))
	eventually(t, "and of changes", func() bool { return store.Snapshot().WorkloadCount() == 2 })
	if s := networks.Snapshot(); !s.Ready() || len(s.Objects()) != 1 {
		t.Errorf("ready: %v, objects: %v; want the policy that it knew", s.Ready(), s.Objects())
	}
	if n := strings.Count(after.log.String(), "client asks for network policies, which are not served"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// TestNetworkPoliciesPassedOver: a client that asks for them first, as agents do, hears of the others where they are not served.
func TestNetworkPoliciesPassedOver(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"))
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.NetworkPolicyType, nil))
	c.send(subscribe(publish.AddressType, nil))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	f.store.Apply(workloadtest.Events(pod("b", "10.0.0.2")))
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
}

// TestNetworkPoliciesNotServedFirst: nobody takes silence for an answer.
func TestNetworkPoliciesNotServedFirst(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"))
	m, networks := f.followNetworks(t)
	eventually(t, "the type is lacking", func() bool { return m.Lacks(publish.NetworkPolicyType) })
	select {
	case <-m.Ready():
		t.Error("ready without network policies")
	default:
	}
	if networks.Snapshot().Ready() || m.store.Snapshot().WorkloadCount() != 1 {
		t.Error("network policies are known, or the pod is not")
	}
}

// TestUnfitNetworkPolicy: a policy that is no text for the wire allows nothing.
func TestUnfitNetworkPolicy(t *testing.T) {
	f, set := startNetworks(t, nil)
	set.Apply([]netpol.Object{isolate("p", "\xff")}, nil)
	_, got := f.followNetworks(t)
	eventually(t, "the policy arrives", func() bool { return len(got.Snapshot().Objects()) == 1 })
	p := got.Snapshot().Objects()[0].(*netpol.Policy)
	if p.Invalid == "" || !p.Ingress || !p.Egress || len(p.Pods.Requirements) > 0 {
		t.Errorf("it is %+v", p)
	}
}
