package xds

import (
	"fmt"
	"log/slog"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// BenchmarkInitialState takes a first response of 10,000 workloads in 1,000
// services.
func BenchmarkInitialState(b *testing.B) {
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: AddressType}
	for i := range 10_000 {
		w := &workloadapi.Workload{
			Uid: fmt.Sprintf("cluster1//Pod/namespace-%d/workload-%d", i%100, i), Name: fmt.Sprintf("workload-%d", i),
			Namespace: fmt.Sprintf("namespace-%d", i%100), ServiceAccount: "default", Node: fmt.Sprintf("node-%d", i%50),
			Addresses: [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}, CanonicalName: "app", TunnelProtocol: 1,
			Services: map[string]*workloadapi.PortList{
				fmt.Sprintf("namespace-%d/service-%d.example", i%100, i%1000): {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}},
			},
		}
		packed, err := anypb.New(&workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}})
		if err != nil {
			b.Fatal(err)
		}
		r.Resources = append(r.Resources, &discovery.Resource{Name: w.GetUid(), Version: "0123456789abcdef", Resource: packed})
	}
	b.ReportAllocs()
	for b.Loop() {
		c := &Client{cfg: Config{Store: workload.New(), Policies: policy.New(), Observer: discard{}, Logger: slog.New(slog.DiscardHandler)}}
		s := newSubscription(AddressType)
		s.record(r, c.applyAddresses(s, r))
		if n := c.cfg.Store.Snapshot().WorkloadCount(); n != 10_000 {
			b.Fatalf("%d workloads", n)
		}
	}
}
