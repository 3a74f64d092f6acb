package xds_test

import (
	"fmt"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// TestConformance runs the suite that all sources pass.
func TestConformance(t *testing.T) {
	workloadtest.Conform(t, func(t *testing.T) workloadtest.Source {
		s := startServer(t)
		r := start(t, s, xds.Config{})
		a, _, _ := s.subscribed(t)
		o := &origin{stream: a, held: map[string]map[string]bool{}}
		return workloadtest.Source{Store: r.store, Policies: r.policies, Publish: func(state workloadtest.State) { o.publish(t, state) }}
	})
}

// origin publishes whole states as differences of names.
type origin struct {
	stream *adsStream
	held   map[string]map[string]bool // by type
	nonce  int
}

func (o *origin) publish(t *testing.T, state workloadtest.State) {
	t.Helper()
	all := make(map[string]proto.Message)
	for _, w := range state.Workloads {
		all[w.UID] = workloadAddress(wireWorkload(w))
	}
	for _, s := range state.Services {
		all[s.Key().String()] = serviceAddress(wireService(s))
	}
	o.push(t, xds.AddressType, all)
	all = make(map[string]proto.Message)
	for _, p := range state.Policies {
		all[p.Key()] = wirePolicy(p)
	}
	o.push(t, xds.AuthorizationType, all)
}

func (o *origin) push(t *testing.T, url string, all map[string]proto.Message) {
	t.Helper()
	o.nonce++
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: url, Nonce: fmt.Sprint(o.nonce)}
	for name, m := range all {
		r.Resources = append(r.Resources, resource(t, name, fmt.Sprint(o.nonce), m))
	}
	for name := range o.held[url] {
		if all[name] == nil {
			r.RemovedResources = append(r.RemovedResources, name)
		}
	}
	if answer := o.stream.send(r); !isAck(answer) {
		t.Errorf("answer is %v, want an ACK", answer)
	}
	o.held[url] = make(map[string]bool)
	for name := range all {
		o.held[url][name] = true
	}
}
