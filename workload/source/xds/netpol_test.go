package xds_test

import (
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

func networks(nonce string, removed []string, resources ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: xds.NetworkPolicyType, Nonce: nonce, Resources: resources, RemovedResources: removed}
}

func network(t *testing.T, o netpol.Object) *discovery.Resource {
	return resource(t, wire.Name(o.Key()), "v1", wire.ToMessage(o))
}

// TestNetworkPolicies: the client is ready, and its Set, when all three types have come; what cannot be read allows nothing.
func TestNetworkPolicies(t *testing.T) {
	s := startServer(t)
	set := netpol.New()
	r := start(t, s, xds.Config{NetworkPolicies: set})
	a := s.accept(t)
	if first := a.request(); first.GetTypeUrl() != xds.NetworkPolicyType {
		t.Errorf("the first request is for %s", first.GetTypeUrl())
	}
	a.request()
	a.request()
	a.send(addresses("n1", nil))
	a.send(authorizations("n2", nil))
	if r.isReady() || set.Snapshot().Ready() {
		t.Error("ready without network policies")
	}
	pod, ns := &netpol.Pod{UID: "c//Pod/ns/a", Namespace: "ns"}, &netpol.Namespace{Name: "ns"}
	p := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: "p", Ingress: true, IngressRules: []netpol.Rule{{AnyPeer: true, AnyPort: true}}}
	if answer := a.send(networks("n3", nil, network(t, pod), network(t, ns), network(t, p))); !isAck(answer) {
		t.Errorf("answer is %v", answer)
	}
	<-r.Ready()
	allowed := func() bool { return set.Snapshot().Evaluate(netpol.Query{Subject: pod.UID, Port: 80}).Allowed }
	if !set.Snapshot().Ready() || !allowed() {
		t.Error("not ready, or what is allowed is not")
	}
	// A policy that cannot be read, in the place of one that can.
	answer := a.send(networks("n4", nil, garbage("policy/ns/p", "v2", xds.NetworkPolicyType)))
	if !strings.Contains(answer.GetErrorDetail().GetMessage(), "policy/ns/p: decode netpol ns/p") || allowed() {
		t.Errorf("answer is %v, allowed %v", answer, allowed())
	}
	a.send(networks("n5", []string{"policy/ns/p"}, network(t, &netpol.Policy{Tier: netpol.Namespaced, Namespace: "ns", Name: "q", Egress: true})))
	if !allowed() {
		t.Error("a policy that was removed still decides")
	}
	// A pod that cannot be read is not known, which lets nobody in.
	if isAck(a.send(networks("n6", nil, garbage("pod/c//Pod/ns/a", "v2", xds.NetworkPolicyType)))) || allowed() {
		t.Error("a pod that cannot be read is taken for what it was")
	}
	// All that is held is told at a reconnect, and what was rejected is not.
	a.end <- nil
	a = s.accept(t)
	first := a.request()
	if got := first.GetInitialResourceVersions(); len(got) != 2 || got["policy/ns/q"] != "v1" || got["namespace/ns"] != "v1" {
		t.Errorf("versions are %v", got)
	}
	if !set.Snapshot().Ready() {
		t.Error("a lost connection makes it unready")
	}
}
