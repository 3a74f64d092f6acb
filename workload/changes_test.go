package workload_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// TestChanges: the events between two snapshots lead from one to the other.
func TestChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	store := workload.New()
	snapshots := []*workload.Snapshot{nil, store.Snapshot()}
	for range 100 {
		var batch []workload.Event
		for range 1 + rng.IntN(10) {
			i := rng.IntN(40)
			service := fmt.Sprintf("ns/svc%d.ns", i%7)
			pod := workloadtest.Pod(fmt.Sprintf("ns/pod%d", i), []string{fmt.Sprintf("10.0.0.%d", i)}, workloadtest.In(service, 80, uint16(1+rng.IntN(3))))
			switch rng.IntN(4) {
			case 0:
				batch = append(batch, workload.Upsert(pod))
			case 1:
				batch = append(batch, workload.UpsertService(workloadtest.Service(service, []string{fmt.Sprintf("10.1.0.%d", 1+rng.IntN(2))})))
			case 2:
				batch = append(batch, workload.Removal(pod.UID))
			case 3:
				batch = append(batch, workload.Removal(service))
			}
		}
		if store.Apply(batch) {
			snapshots = append(snapshots, store.Snapshot())
		}
	}
	for range 300 {
		from, to := snapshots[rng.IntN(len(snapshots))], snapshots[1+rng.IntN(len(snapshots)-1)]
		replay := workload.New()
		if from != nil {
			replay.Replace(slices.Collect(from.Workloads()), slices.Collect(from.Services()))
		}
		replay.Apply(slices.Collect(to.Changes(from)))
		got := replay.Snapshot()
		if got.WorkloadCount() != to.WorkloadCount() || got.ServiceCount() != to.ServiceCount() {
			t.Fatalf("%d workloads and %d services, want %d and %d", got.WorkloadCount(), got.ServiceCount(), to.WorkloadCount(), to.ServiceCount())
		}
		for w := range to.Workloads() {
			if !w.Equal(got.Workload(w.UID)) {
				t.Fatalf("workload %s differs", w.UID)
			}
		}
		for s := range to.Services() {
			if !s.Equal(got.Service(s.Key())) {
				t.Fatalf("service %s differs", s.Key())
			}
		}
	}
}

func TestMembers(t *testing.T) {
	snap := workloadtest.Snapshot(
		workloadtest.Pod("ns/a", []string{"10.0.0.1"}, workloadtest.In("ns/svc.ns")),
		workloadtest.Pod("ns/b", []string{"10.0.0.2"}, workloadtest.In("ns/svc.ns"), workloadtest.Unhealthy),
		workloadtest.Pod("ns/c", []string{"10.0.0.3"}),
	)
	key := workload.NamespacedHostname{Namespace: "ns", Hostname: "svc.ns"}
	var names []string
	for w := range snap.Members(key) {
		names = append(names, w.Name)
	}
	slices.Sort(names)
	if want := []string{"a", "b"}; !slices.Equal(names, want) {
		t.Errorf("members are %v, want %v", names, want)
	}
	for range snap.Members(workload.NamespacedHostname{}) {
		t.Error("an unknown service has members")
	}
}
