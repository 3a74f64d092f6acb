package main

import (
	"context"
	"sync"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestNetworkPolicies: an agent is told of the cluster's policies, and of pods only while there are some.
func TestNetworkPolicies(t *testing.T) {
	c := newCluster()
	p := c.start(t, "one")
	set := netpol.New()
	client, err := xds.New(xds.Config{
		Address: p.address(), RootCA: p.roots, AltHostname: "culvert-controller.culvert-system.svc", TokenFile: token(t, namespace+":culvert-node", "culvert-node-a"),
		Node:  xds.Node{NodeName: "node-a", PodName: "culvert-node-a", Namespace: namespace},
		Store: workload.New(), Policies: policy.New(), NetworkPolicies: set,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = client.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	<-client.Ready()
	if s := set.Snapshot(); !s.Ready() || len(s.Objects()) > 0 {
		t.Errorf("ready %v, objects %v", s.Ready(), s.Objects())
	}
	api := c.core.NetworkingV1().NetworkPolicies("shop")
	if _, err := api.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "isolate"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	front := netpol.Key{Kind: netpol.KindPod, Name: "Kubernetes//Pod/shop/front"}
	eventually(t, "policy and pods arrive", func() bool {
		s := set.Snapshot()
		return s.Policies() == 1 && s.Object(front) != nil
	})
	if d := set.Snapshot().Evaluate(netpol.Query{Subject: front.Name, Port: 80}); d.Allowed || d.Policy != "netpol shop/isolate" {
		t.Errorf("decision is %+v", d)
	}
	if err := api.Delete(t.Context(), "isolate", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all of it goes", func() bool { return len(set.Snapshot().Objects()) == 0 })
}
