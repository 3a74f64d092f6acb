package proxy_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
)

func TestFailedEndpointsAreSetAside(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	down := r.workloadAt("down", "127.0.10.2", nil)
	up := r.node(nil).pod("up", "127.0.10.3")
	vip := r.service("127.0.20.1", 80, r.echo(up.ip).Port(), down, up.w)
	attempts := func() int {
		exchange(t, client.dial(vip), "hello")
		one.seen.mu.Lock()
		defer one.seen.mu.Unlock()
		return one.seen.opened[len(one.seen.opened)-1].Attempts
	}
	waitFor(t, "attempt at the endpoint that is down", func() bool { return attempts() == 2 })
	for range 30 {
		if n := attempts(); n != 1 {
			t.Fatalf("%d attempts although the endpoint is set aside", n)
		}
	}
	// When nothing else is left, it is tried all the same.
	r.store.Apply([]workload.Event{workload.Removal(up.w.UID)})
	wantReset(t, client.dial(vip))
	if f := one.seen.ended(t, proxy.Outbound, 1); f.Early || f.Destination.Workload.Name != "down" {
		t.Errorf("flow went to %v, early %t", f.Destination.Workload, f.Early)
	}
}

// twoNames is a service of two endpoints, "bad" and "good", that have names and no addresses. call makes a connection to it and
// returns its flow. Until the repair "bad" leads nowhere: it has no address, or one at which nothing listens.
func twoNames(r *rig, refuses bool, suspension time.Duration) (call func() *proxy.Flow, repair func()) {
	up, down := netip.MustParseAddr("127.0.30.1"), netip.MustParseAddr("127.0.30.2")
	var repaired atomic.Bool
	one := r.node(func(c *proxy.Config) {
		c.Suspension = suspension
		c.Resolve = func(_ context.Context, _ *workload.Workload, host string) ([]netip.Addr, error) {
			switch {
			case host == "good.example" || repaired.Load():
				return []netip.Addr{up}, nil
			case refuses:
				return []netip.Addr{down}, nil
			}
			return nil, errors.New("server failure")
		}
	})
	named := func(name string) *workload.Workload {
		return r.workloadAt(name, "127.0.30.9", func(w *workload.Workload) {
			w.Addresses, w.Hostname, w.Protocol = nil, name+".example", workload.TCP
		})
	}
	client, vip := one.pod("client", "127.0.10.1"), r.service("127.0.20.1", 80, r.echo(up).Port(), named("bad"), named("good"))
	return func() *proxy.Flow {
		c := client.dial(vip)
		defer c.Close()
		exchange(r.t, c, "hello")
		one.seen.mu.Lock()
		defer one.seen.mu.Unlock()
		return one.seen.opened[len(one.seen.opened)-1]
	}, func() { repaired.Store(true) }
}

// An endpoint that has only a name is set aside as others are, and is one of all again once it has worked.
func TestFailedNamesAreSetAside(t *testing.T) {
	for name, refuses := range map[string]bool{"unresolved": false, "refuses": true} {
		t.Run(name, func(t *testing.T) {
			call, _ := twoNames(newRig(t), refuses, time.Minute)
			waitFor(t, "attempt at the endpoint that is down", func() bool { return call().Attempts == 2 })
			for range 30 {
				if n := call().Attempts; n != 1 {
					t.Fatalf("%d attempts although the endpoint is set aside", n)
				}
			}
		})
		t.Run(name+"-once", func(t *testing.T) {
			call, repair := twoNames(newRig(t), refuses, 20*time.Millisecond)
			waitFor(t, "attempt at the endpoint that is down", func() bool { return call().Attempts == 2 })
			repair()
			bad := func() bool { return call().Destination.Workload.Name == "bad" }
			waitFor(t, "probe that works", bad)
			for range 100 {
				if bad() {
					return
				}
			}
			t.Error("none of 100 connections went to the endpoint that works again")
		})
	}
}

func TestHostnameOfAWorkload(t *testing.T) {
	r := newRig(t)
	addrs := []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.30.1")}
	one := r.node(func(c *proxy.Config) {
		c.Resolve = func(_ context.Context, source *workload.Workload, host string) ([]netip.Addr, error) {
			if source == nil || source.Name != "client" {
				t.Errorf("%v asks", source)
			}
			if host != "external.example" {
				return nil, errors.New("no such host")
			}
			return addrs, nil
		}
	})
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(addrs[1])
	named := func(host string) *workload.Workload {
		return r.workloadAt("external", "127.0.30.9", func(w *workload.Workload) {
			w.Addresses, w.Hostname, w.Protocol = nil, host, workload.TCP
		})
	}
	vip := r.service("127.0.20.1", 80, dst.Port(), named("external.example"))
	exchange(t, client.dial(vip), "hello")
	if flows := client.Flows(); len(flows) != 1 || flows[0].ActualDst != dst || flows[0].OriginalDst != vip {
		t.Errorf("flows are %+v", flows)
	}
	r.service("127.0.20.1", 80, dst.Port(), named("nobody.example"))
	wantReset(t, client.dial(vip))
	if f := one.seen.ended(t, proxy.Outbound, 1); f.Flag != proxy.FlagConnect || f.Err.Error() != "resolve nobody.example: no such host" {
		t.Errorf("flow ended with %v, flag %s", f.Err, f.Flag)
	}
}

// Of several addresses of a name those that refuse cost nobody a connection.
func TestAddressesOfAName(t *testing.T) {
	r := newRig(t)
	good := netip.MustParseAddr("127.0.30.4")
	dead := []netip.Addr{netip.MustParseAddr("127.0.30.1"), netip.MustParseAddr("127.0.30.2"), netip.MustParseAddr("127.0.30.3")}
	one := r.node(func(c *proxy.Config) {
		c.Resolve = func(context.Context, *workload.Workload, string) ([]netip.Addr, error) {
			return append(slices.Clone(dead), good), nil
		}
	})
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(good)
	w := r.workloadAt("external", "127.0.30.9", func(w *workload.Workload) {
		w.Addresses, w.Hostname, w.Protocol = nil, "external.example", workload.TCP
	})
	vip := r.service("127.0.20.1", 80, dst.Port(), w)
	for range 10 {
		exchange(t, client.dial(vip), "hello")
	}
}
