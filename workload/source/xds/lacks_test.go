package xds_test

import (
	"slices"
	"strings"
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

// TestRefusedTypeIsLeftOut: a server that ends streams because of network policies tells of all else on the next one. What was
// known of them stays, it is said once, and they are asked for again when that stream ends.
func TestRefusedTypeIsLeftOut(t *testing.T) {
	s := startServer(t)
	set := netpol.New()
	r := start(t, s, xds.Config{NetworkPolicies: set})
	first := func(a *adsStream, n int) (types []string) {
		for range n {
			types = append(types, a.request().GetTypeUrl())
		}
		return types
	}
	all := []string{xds.NetworkPolicyType, xds.AddressType, xds.AuthorizationType}
	a := s.accept(t)
	first(a, 3)
	pod1, ns := &netpol.Pod{UID: "c//Pod/ns/a", Namespace: "ns"}, &netpol.Namespace{Name: "ns"}
	deny := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: "p", Ingress: true}
	a.send(networks("n1", nil, network(t, pod1), network(t, ns), network(t, deny)))
	a.end <- nil
	for range 2 {
		a = s.accept(t)
		if got := first(a, 3); !slices.Equal(got, all) {
			t.Fatalf("asks for %v", got)
		}
		a.end <- status.Errorf(codes.InvalidArgument, "type %q is not served", xds.NetworkPolicyType)
		a = s.accept(t)
		if got := first(a, 2); !slices.Equal(got, all[1:]) {
			t.Fatalf("asks for %v after a refusal", got)
		}
		a.send(addresses("n1", nil, pod(t, "c//Pod/ns/a", "v1", "10.0.0.1")))
		a.send(authorizations("n2", nil))
		if r.store.Snapshot().WorkloadCount() != 1 {
			t.Error("workloads are not taken")
		}
		if set.Snapshot().Evaluate(netpol.Query{Subject: pod1.UID, Port: 80}).Allowed || len(set.Snapshot().Objects()) != 3 {
			t.Error("the policy that was known is gone")
		}
		a.end <- nil
	}
	if n := strings.Count(r.log.String(), "does not serve a type"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	// A server that cannot tell of what all need is asked for it again and again.
	a = s.accept(t)
	first(a, 3)
	a.end <- status.Errorf(codes.InvalidArgument, "type %q is not served", xds.AddressType)
	if got := first(s.accept(t), 3); !slices.Equal(got, all) {
		t.Errorf("asks for %v when addresses were refused", got)
	}
}
