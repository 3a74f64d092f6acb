package xds_test

import (
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// isAck reports whether an answer accepts all, and carries nothing else.
func isAck(r *discovery.DeltaDiscoveryRequest) bool {
	return r.GetErrorDetail() == nil && r.GetNode() == nil && len(r.GetInitialResourceVersions()) == 0 &&
		len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe()) == 0
}

// TestAck: a response is applied before it is acknowledged; readiness waits for
// one of each type.
func TestAck(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)

	first := pod(t, "c//Pod/ns/a", "v1", "10.0.0.1")
	if answer := a.send(addresses("n1", nil, first, serviceResource(t, "ns", "svc.ns", "v1"))); !isAck(answer) {
		t.Errorf("answer is %v, want an ACK", answer)
	}
	snap := r.store.Snapshot()
	if w := snap.WorkloadByAddress(workload.NetworkAddress{Addr: netip.MustParseAddr("10.0.0.1")}); w == nil || w.UID != "c//Pod/ns/a" {
		t.Errorf("workload is %v", w)
	}
	if snap.Service(workload.NamespacedHostname{Namespace: "ns", Hostname: "svc.ns"}) == nil {
		t.Error("service is not there")
	}
	if r.isReady() {
		t.Error("ready with one type only")
	}
	if answer := a.send(authorizations("n2", nil, denyAll(t, "ns", "deny", "v1"))); !isAck(answer) {
		t.Errorf("answer is %v, want an ACK", answer)
	}
	if p := r.policies.Snapshot().Policy("ns/deny"); p == nil || p.Invalid != "" {
		t.Errorf("policy is %v", p)
	}
	<-r.Ready()
	r.stop()
	if got, want := r.observed.messages[xds.AddressType], 1; got != want {
		t.Errorf("%d messages observed, want %d", got, want)
	}
	if r.observed.bytes[xds.AddressType] == 0 || r.observed.messages[xds.AuthorizationType] != 1 {
		t.Errorf("observed %v, %v", r.observed.messages, r.observed.bytes)
	}
}

// TestAckEmpty: an empty mesh is ready too.
func TestAckEmpty(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(authorizations("n1", nil))
	a.send(addresses("n2", nil))
	<-r.Ready()
}

// TestAckUnknownType: a type not asked for is acknowledged and changes nothing.
func TestAckUnknownType(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	answer := a.send(&discovery.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/other", Nonce: "n1", Resources: []*discovery.Resource{
		pod(t, "c//Pod/ns/a", "v1", "10.0.0.1"),
	}})
	if !isAck(answer) {
		t.Errorf("answer is %v, want an ACK", answer)
	}
	if r.store.Snapshot().WorkloadCount() != 0 {
		t.Error("the resource was taken")
	}
}
