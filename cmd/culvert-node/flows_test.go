package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

func TestFlows(t *testing.T) {
	shop := &workload.Workload{Name: "shop-1", WorkloadName: "shop", Namespace: "team", ServiceAccount: "shop"}
	old := &workload.Workload{Name: "old-7", Namespace: "legacy", ServiceAccount: "default"}
	web := identity.MustParse("spiffe://cluster.local/ns/team/sa/web")
	at := netip.MustParseAddrPort
	here := proxy.Peer{Addr: at("10.0.0.1:8080"), Workload: shop}
	inbound := func(mod func(*proxy.Flow)) *proxy.Flow {
		f := &proxy.Flow{
			Direction: proxy.Inbound, Protocol: proxy.HBONE, Source: proxy.Peer{Addr: at("10.0.0.7:4711"), ID: web}, Destination: here,
			ActualDst: at("10.0.0.1:8080"), End: time.Now(),
		}
		if mod != nil {
			mod(f)
		}
		return f
	}
	table := newFlows()
	for _, f := range []*proxy.Flow{
		inbound(nil), inbound(func(f *proxy.Flow) { f.Source.Addr = at("[::ffff:10.0.0.8]:4712") }),
		inbound(func(f *proxy.Flow) { f.Err, f.Flag = errors.New("reset by the application"), proxy.FlagNone }),
		inbound(func(f *proxy.Flow) {
			f.Source = proxy.Peer{Addr: at("10.0.9.9:1"), Workload: old}
			f.ActualDst, f.OriginalDst = netip.AddrPort{}, at("10.0.0.1:9090")
		}),
		inbound(func(f *proxy.Flow) { f.Source = proxy.Peer{Addr: at("192.0.2.7:1")} }),
		// None of these was let in, or came here.
		inbound(func(f *proxy.Flow) { f.Err, f.Flag = errors.New("policy"), proxy.FlagDeny }),
		inbound(func(f *proxy.Flow) { f.Err, f.Flag = errors.New("nobody listens"), proxy.FlagConnect }),
		inbound(func(f *proxy.Flow) { f.Early = true }),
		inbound(func(f *proxy.Flow) { f.Direction = proxy.Outbound }),
		inbound(func(f *proxy.Flow) { f.Destination.Workload = nil }),
	} {
		table.closed(f)
	}
	now := time.Now()
	live := []*proxy.Flow{
		inbound(func(f *proxy.Flow) { f.Start = now.Add(-time.Minute) }),
		inbound(func(f *proxy.Flow) { f.Start, f.ActualDst = now.Add(-time.Minute), at("10.0.0.1:7070") }),
		inbound(func(f *proxy.Flow) { f.Start, f.ActualDst = now, at("10.0.0.1:6060") }), // may be refused yet
	}
	body, err := json.Marshal(table.report(live, now))
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Since time.Time
		Flows []struct {
			Source      struct{ Principal, Namespace, Workload, Address string }
			Destination struct{ Namespace, Workload string }
			Port, Count int
		}
	}
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.Flows {
		got = append(got, fmt.Sprintf("%s|%s/%s|%s > %s/%s:%d x%d", f.Source.Principal, f.Source.Namespace, f.Source.Workload, f.Source.Address, f.Destination.Namespace, f.Destination.Workload, f.Port, f.Count))
	}
	want := []string{
		"cluster.local/ns/team/sa/web|/|10.0.0.7 > team/shop:7070 x1",
		"|/|192.0.2.7 > team/shop:8080 x1",
		"cluster.local/ns/team/sa/web|/|10.0.0.7 > team/shop:8080 x4",
		"|legacy/old-7|10.0.9.9 > team/shop:9090 x1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if r.Since.IsZero() {
		t.Error("no time since when")
	}
}

func BenchmarkFlowsClosed(b *testing.B) {
	table := newFlows()
	f := &proxy.Flow{
		Direction: proxy.Inbound, Source: proxy.Peer{Addr: netip.MustParseAddrPort("10.0.0.7:4711"), ID: identity.MustParse("spiffe://cluster.local/ns/team/sa/web")},
		Destination: proxy.Peer{Workload: &workload.Workload{WorkloadName: "shop", Namespace: "team"}}, ActualDst: netip.MustParseAddrPort("10.0.0.1:8080"), End: time.Now(),
	}
	b.ReportAllocs()
	for b.Loop() {
		table.closed(f)
	}
}
