package workload

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestInternerForgets looks inside: what nobody uses any more must be gone,
// or a long-lived store would grow with every change.
func TestInternerForgets(t *testing.T) {
	s := New()
	rng := rand.New(rand.NewPCG(1, 1))
	some := func() string { return fmt.Sprint(rng.IntN(5)) }
	for range 500 {
		uid := some()
		if rng.IntN(4) == 0 {
			s.Apply([]Event{Removal(uid)})
			continue
		}
		s.Apply([]Event{Upsert(&Workload{
			UID: uid, Name: uid, Namespace: some(), Node: some(), Hostname: some(), Capacity: uint32(rng.IntN(3)),
			Waypoint:              &GatewayAddress{HBONEPort: uint16(rng.IntN(3))},
			NetworkGateway:        &GatewayAddress{HBONEPort: uint16(rng.IntN(3))},
			ApplicationTunnel:     &ApplicationTunnel{Port: uint16(rng.IntN(3))},
			AuthorizationPolicies: []string{some(), some()},
			Services:              map[NamespacedHostname]PortMap{{Namespace: some(), Hostname: some()}: {80: uint16(rng.IntN(3))}},
		})})
		in := s.intern
		if n := s.Snapshot().WorkloadCount(); len(in.services) > n || len(in.lists) > n || len(in.gateways) > 2*n || len(in.tunnels) > n {
			t.Fatalf("%d workloads, but %d service lists, %d lists, %d gateways, %d tunnels",
				n, len(in.services), len(in.lists), len(in.gateways), len(in.tunnels))
		}
	}
	s.Replace(nil, nil)
	in := s.intern
	if n := len(in.services) + len(in.lists) + len(in.gateways) + len(in.tunnels) + len(in.strings); n != 0 {
		t.Errorf("an empty store holds %d interned values", n)
	}
}

func TestInternerShares(t *testing.T) {
	s := New()
	pod := func(uid string) *Workload {
		return &Workload{
			UID: uid, Name: "a", AuthorizationPolicies: []string{"p"}, Waypoint: &GatewayAddress{HBONEPort: 1},
			Services: map[NamespacedHostname]PortMap{{Hostname: "h"}: {1: 2}},
		}
	}
	s.Apply([]Event{Upsert(pod("x")), Upsert(pod("y"))})
	x, y := s.Snapshot().Workload("x"), s.Snapshot().Workload("y")
	if x.Waypoint != y.Waypoint || &x.AuthorizationPolicies[0] != &y.AuthorizationPolicies[0] {
		t.Error("equal values are held twice")
	}
}
