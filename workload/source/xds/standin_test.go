package xds_test

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestStandInGoesWithItsPolicy: what stands in the place of policies that cannot be read goes when they do, also when that
// happens between two streams, as when a newer control plane is rolled back.
func TestStandInGoesWithItsPolicy(t *testing.T) {
	s := startServer(t)
	set := netpol.New()
	r := start(t, s, xds.Config{NetworkPolicies: set})
	accept := func() (a *adsStream, first map[string]*discovery.DeltaDiscoveryRequest) {
		a, first = s.accept(t), make(map[string]*discovery.DeltaDiscoveryRequest)
		for range 3 {
			q := a.request()
			first[q.GetTypeUrl()] = q
		}
		return a, first
	}
	a, _ := accept()
	pod, ns := &netpol.Pod{UID: "c//Pod/ns/a", Namespace: "ns"}, &netpol.Namespace{Name: "ns"}
	other := &netpol.Policy{Tier: netpol.Namespaced, Namespace: "elsewhere", Name: "p", Ingress: true}
	a.send(addresses("n1", nil))
	a.send(networks("n2", nil, network(t, pod), network(t, ns), network(t, other), garbage("policy/ns/new", "v1", xds.NetworkPolicyType)))
	a.send(authorizations("n3", nil, garbage("ns/new", "v1", xds.AuthorizationType)))
	open := func() (network, authorization bool) {
		d := r.policies.Snapshot().Evaluate(&workload.Workload{Namespace: "ns"}, policy.Connection{})
		return set.Snapshot().Evaluate(netpol.Query{Subject: pod.UID, Port: 80}).Allowed, d.Allowed
	}
	if network, authorization := open(); network || authorization {
		t.Fatalf("open although policies cannot be read: %v, %v", network, authorization)
	}
	a.end <- nil

	// Both are gone. A server tells of what is gone if the client says that it has it: it knows nothing else of the client.
	a, first := accept()
	gone := func(url, name string) (removed []string) {
		if _, told := first[url].GetInitialResourceVersions()[name]; told {
			removed = append(removed, name)
		}
		return removed
	}
	a.send(networks("n1", gone(xds.NetworkPolicyType, "policy/ns/new")))
	a.send(authorizations("n2", gone(xds.AuthorizationType, "ns/new")))
	if network, authorization := open(); !network || !authorization {
		t.Errorf("policies that are no more still deny: network policies allow %v, authorization %v", network, authorization)
	}
}
