package xds_test

import (
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestLacks: an older controller ends each stream because of the type that it does not know, and a server of others passes
// over it. Both leave the client without the rest of its state or without network policies, and not ready.
func TestLacks(t *testing.T) {
	s := startServer(t)
	networks := netpol.New()
	r := start(t, s, xds.Config{NetworkPolicies: networks})
	lacks := func(want bool, when string) {
		t.Helper()
		for deadline := time.Now().Add(patience); r.Lacks(xds.NetworkPolicyType) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the type is lacking: %t", when, !want)
			}
		}
	}
	a := s.accept(t)
	if got := a.request().GetTypeUrl(); got != xds.NetworkPolicyType {
		t.Fatalf("asks first for %s", got)
	}
	lacks(false, "before an answer")
	a.end <- status.Errorf(codes.InvalidArgument, "type %q is not served", xds.NetworkPolicyType)
	lacks(true, "after a refusal")
	a = s.accept(t)
	a.end <- status.Error(codes.Unavailable, "transport is closing")
	lacks(false, "after another end")
	a = s.accept(t)
	for range 3 {
		a.request()
	}
	a.send(&discovery.DeltaDiscoveryResponse{TypeUrl: xds.AddressType, Nonce: "1"})
	lacks(false, "while another is missing")
	a.send(&discovery.DeltaDiscoveryResponse{TypeUrl: xds.AuthorizationType, Nonce: "2"})
	lacks(true, "when it alone is missing")
	if r.isReady() || networks.Snapshot().Ready() || r.Lacks(xds.AddressType) {
		t.Error("ready without network policies, or more is lacking")
	}
	a.send(&discovery.DeltaDiscoveryResponse{TypeUrl: xds.NetworkPolicyType, Nonce: "3"})
	lacks(false, "when it was told")
	if !networks.Snapshot().Ready() {
		t.Error("network policies are not known")
	}
}
