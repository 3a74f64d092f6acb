package xds_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestReconnect: the state stays while the server is away, and the server is told
// what is held so that differences suffice.
func TestReconnect(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(addresses("n1", nil,
		pod(t, "c//Pod/ns/a", "v1", "10.0.0.1"), pod(t, "c//Pod/ns/b", "v1", "10.0.0.2"), pod(t, "c//Pod/ns/c", "v1", "10.0.0.3"),
		serviceResource(t, "ns", "svc.ns", "v5"),
	))
	a.send(addresses("n2", []string{"c//Pod/ns/b"}, pod(t, "c//Pod/ns/a", "v2", "10.0.0.1")))
	a.send(authorizations("n3", nil, denyAll(t, "ns", "deny", "v1")))
	a.end <- nil

	a, first, second := s.subscribed(t)
	if n := r.store.Snapshot().WorkloadCount(); n != 2 {
		t.Errorf("%d workloads while reconnecting, want 2", n)
	}
	want := map[string]string{"c//Pod/ns/a": "v2", "c//Pod/ns/c": "v1", "ns/svc.ns": "v5"}
	if d := cmp.Diff(want, first.GetInitialResourceVersions()); d != "" {
		t.Errorf("initial versions of addresses (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"ns/deny": "v1"}, second.GetInitialResourceVersions()); d != "" {
		t.Errorf("initial versions of policies (-want +got):\n%s", d)
	}
	if first.GetNode() == nil {
		t.Error("no node in the first request of the second stream")
	}
	// Only the differences come.
	a.send(addresses("n1", []string{"c//Pod/ns/c"}, pod(t, "c//Pod/ns/d", "v1", "10.0.0.4")))
	snap := r.store.Snapshot()
	for uid, there := range map[string]bool{"c//Pod/ns/a": true, "c//Pod/ns/c": false, "c//Pod/ns/d": true} {
		if (snap.Workload(uid) != nil) != there {
			t.Errorf("%s is there: %v, want %v", uid, !there, there)
		}
	}
	if !r.isReady() {
		t.Error("readiness was lost")
	}
}
