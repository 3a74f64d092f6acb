package xds_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestRemoval: what a removed name stands for.
func TestRemoval(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(addresses("n1", nil,
		pod(t, "c//Pod/ns/a", "v1", "10.0.0.1"),
		podNamed(t, "short", "c//Pod/ns/b", "v1", "10.0.0.2"),
		serviceResource(t, "ns", "svc.ns", "v1"),
		// A workload whose uid looks like a service goes first.
		pod(t, "ns/both", "v1", "10.0.0.3"),
		serviceResource(t, "ns", "both", "v1"),
	))
	a.send(authorizations("n2", nil, denyAll(t, "ns", "deny", "v1"), denyAll(t, "ns", "stay", "v1")))

	workloads := func() int { return r.store.Snapshot().WorkloadCount() }
	services := func() int { return r.store.Snapshot().ServiceCount() }
	for _, step := range []struct {
		name                string
		removed             string
		workloads, services int
	}{
		{"unknown", "c//Pod/ns/zzz", 3, 2},
		{"no-key-at-all", "zzz", 3, 2},
		{"workload", "c//Pod/ns/a", 2, 2},
		{"workload-under-another-name", "short", 1, 2},
		{"workload-before-service", "ns/both", 0, 2},
		{"service", "ns/svc.ns", 0, 1},
		{"service-after-workload", "ns/both", 0, 0},
	} {
		if answer := a.send(addresses("r", []string{step.removed})); !isAck(answer) {
			t.Errorf("%s: answer is %v", step.name, answer)
		}
		if workloads() != step.workloads || services() != step.services {
			t.Errorf("%s: %d workloads, %d services; want %d, %d", step.name, workloads(), services(), step.workloads, step.services)
		}
	}
	a.send(authorizations("n3", []string{"ns/deny", "ns/unknown"}))
	policies := r.policies.Snapshot()
	if policies.Policy("ns/deny") != nil || policies.Policy("ns/stay") == nil {
		t.Errorf("policies are %v", policies.Policies())
	}
}

// TestRemovalOfServiceKeepsMembership: a service that comes back has its endpoints.
func TestRemovalOfServiceKeepsMembership(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	key := workload.NamespacedHostname{Namespace: "ns", Hostname: "svc.ns"}
	w := wireWorkload(&workload.Workload{UID: "c//Pod/ns/a", Services: map[workload.NamespacedHostname]workload.PortMap{key: {80: 8080}}})
	a.send(addresses("n1", nil, resource(t, w.GetUid(), "v1", workloadAddress(w)), serviceResource(t, "ns", "svc.ns", "v1")))
	a.send(addresses("n2", []string{"ns/svc.ns"}))
	a.send(addresses("n3", nil, serviceResource(t, "ns", "svc.ns", "v1")))
	if eps := r.store.Snapshot().Endpoints(key); len(eps) != 1 {
		t.Errorf("%d endpoints, want 1", len(eps))
	}
}
