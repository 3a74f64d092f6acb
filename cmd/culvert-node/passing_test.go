package main

import (
	"fmt"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func TestPassing(t *testing.T) {
	shop := proxy.Peer{Workload: &workload.Workload{Namespace: "team"}}
	p := newPassing()
	for _, f := range []*proxy.Flow{
		{Source: shop},
		{Source: shop, Service: &workload.Service{Hostname: "api.example.com"}},
		{Source: shop, Destination: shop},
		{Source: shop, Direction: proxy.Inbound},
	} {
		p.opened(f)
		p.closed(f)
	}
	for _, f := range []*proxy.Flow{
		{Source: shop, Err: fmt.Errorf("%w: 192.0.2.1:80", route.ErrNotRegistered)},
		{Err: route.ErrNotRegistered},
		{Source: shop, Err: proxy.ErrOutboundPolicy},
		{Source: shop, Err: proxy.ErrDrain},
	} {
		p.closed(f)
	}
	got := map[string]float64{}
	p.samples(func(s telemetry.Sample) { got[s.Labels[0].Value+" "+s.Labels[1].Value] = s.Value })
	want := map[string]float64{"team unknown": 1, "team registered": 1, "team refused": 1, "unknown refused": 1, "team ended": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	// Namespaces come and go; not each leaves a series for ever.
	for i := range 2000 {
		p.opened(&proxy.Flow{Source: proxy.Peer{Workload: &workload.Workload{Namespace: fmt.Sprint("job-", i)}}})
	}
	p.samples(func(s telemetry.Sample) { got[s.Labels[0].Value+" "+s.Labels[1].Value] = s.Value })
	if len(got) != maxPassingSeries+1 || got["overflow unknown"] != 2000-float64(maxPassingSeries-len(want)) {
		t.Errorf("%d series, %v beyond the limit", len(got), got["overflow unknown"])
	}
}
