package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func TestPlaintext(t *testing.T) {
	shop := &workload.Workload{Name: "shop-1", WorkloadName: "shop", Namespace: "team", ServiceAccount: "shop", Protocol: workload.HBONE}
	old := &workload.Workload{Name: "old-7", Namespace: "legacy", ServiceAccount: "default"}
	at := netip.MustParseAddrPort
	p := newPlaintext()
	for _, f := range []*proxy.Flow{
		{Direction: proxy.Inbound, Source: proxy.Peer{Addr: at("10.0.0.7:4711"), Workload: old}, Destination: proxy.Peer{Addr: at("10.0.0.1:8080"), Workload: shop}, ActualDst: at("10.0.0.1:8080")},
		{Direction: proxy.Inbound, Source: proxy.Peer{Addr: at("[::ffff:10.0.0.8]:4712"), Workload: old}, Destination: proxy.Peer{Addr: at("10.0.0.1:8080"), Workload: shop}, OriginalDst: at("10.0.0.1:8080")},
		{Direction: proxy.Inbound, Source: proxy.Peer{Addr: at("192.0.2.9:1")}, Destination: proxy.Peer{Workload: shop}, ActualDst: at("10.0.0.1:9090")},
		{Direction: proxy.Outbound, Source: proxy.Peer{Addr: at("10.0.0.1:2"), Workload: shop}, Destination: proxy.Peer{Workload: old}, ActualDst: at("10.0.0.7:80")},
		// None of these is plaintext in the mesh.
		{Direction: proxy.Inbound, Protocol: proxy.HBONE, Source: proxy.Peer{Workload: old}, Destination: proxy.Peer{Workload: shop}},
		{Direction: proxy.Inbound, Protocol: proxy.SameNode, Source: proxy.Peer{Workload: old}, Destination: proxy.Peer{Workload: shop}},
		{Direction: proxy.Outbound, Source: proxy.Peer{Workload: shop}, Destination: proxy.Peer{Addr: at("203.0.113.1:443")}},
		{Direction: proxy.Outbound, Source: proxy.Peer{Workload: old}, Destination: proxy.Peer{Workload: shop}, Err: fmt.Errorf("refused")},
	} {
		p.saw(f)
	}
	body, err := json.Marshal(p.report())
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Connections []struct {
			Direction           string
			Source, Destination struct{ Namespace, Workload, ServiceAccount, Address string }
			Port                int
			Count               int
		}
	}
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, c := range r.Connections {
		got[fmt.Sprintf("%s %s/%s/%s@%s>%s/%s:%d", c.Direction, c.Source.Namespace, c.Source.Workload, c.Source.ServiceAccount, c.Source.Address, c.Destination.Namespace, c.Destination.Workload, c.Port)] = c.Count
	}
	want := map[string]int{
		"inbound legacy/old-7/default@10.0.0.8>team/shop:8080": 2,
		"inbound //@192.0.2.9>team/shop:9090":                  1,
		"outbound team/shop/shop@10.0.0.1>legacy/old-7:80":     1,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	samples := map[string]float64{}
	p.samples(func(s telemetry.Sample) {
		var values []string
		for _, l := range s.Labels {
			values = append(values, l.Value)
		}
		samples[strings.Join(values, " ")] = s.Value
	})
	wantSamples := map[string]float64{"inbound legacy old-7 team shop": 2, "inbound unknown unknown team shop": 1, "outbound team shop legacy old-7": 1}
	if fmt.Sprint(samples) != fmt.Sprint(wantSamples) {
		t.Errorf("samples %v\nwant %v", samples, wantSamples)
	}
}

// TestPlaintextIsBounded: strangers decide how many addresses there are, and take neither memory nor series.
func TestPlaintextIsBounded(t *testing.T) {
	p := newPlaintext()
	start := time.Now()
	key := func(i int) plaintextKey {
		addr := netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
		return plaintextKey{proxy.Inbound, party{addr: addr}, party{namespace: "n", workload: fmt.Sprint("w", i)}, 80}
	}
	for i := range maxSeen + 500 {
		p.note(key(i), netip.Addr{}, start)
	}
	if r := p.report(); len(r.Connections) != maxSeen || r.Overflow != 500 {
		t.Errorf("%d entries, %d over", len(r.Connections), r.Overflow)
	}
	series, sum := 0, 0.0
	p.samples(func(s telemetry.Sample) { series++; sum += s.Value })
	if series > maxPlaintextSeries+2 || sum != maxSeen+500 {
		t.Errorf("%d series with a sum of %v", series, sum)
	}
	later := start.Add(2 * seenAge)
	p.note(key(maxSeen+1000), netip.Addr{}, later)
	if r := p.report(); len(r.Connections) != 1 || r.Overflow != maxSeen+500 { // the list begins where it did, and lacks them
		t.Errorf("%d entries after old ones made room, %d over", len(r.Connections), r.Overflow)
	}
}

func BenchmarkPlaintext(b *testing.B) {
	p := newPlaintext()
	w := &workload.Workload{Name: "shop-1", WorkloadName: "shop", Namespace: "team", ServiceAccount: "shop"}
	f := &proxy.Flow{Direction: proxy.Inbound, Source: proxy.Peer{Addr: netip.MustParseAddrPort("10.0.0.7:4711"), Workload: w}, Destination: proxy.Peer{Workload: w}}
	b.ReportAllocs()
	for b.Loop() {
		p.saw(f)
	}
}
