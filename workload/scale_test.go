package workload_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
)

const (
	manyWorkloads = 100_000
	manyServices  = 10_000
)

// fleetWorkload makes the strings anew each time, as a decoder does.
func fleetWorkload(i int) *workload.Workload {
	ns := fmt.Sprintf("namespace-%d", i%500)
	app := fmt.Sprintf("application-%d", i%manyServices)
	name := fmt.Sprintf("%s-6f7d8c9b5-%05x", app, i)
	w := &workload.Workload{
		UID: "Kubernetes//Pod/" + ns + "/" + name, Name: name, Namespace: ns,
		TrustDomain: strings.Clone("cluster.local"), ServiceAccount: app, Network: fmt.Sprint("network-", i%2),
		Node: fmt.Sprintf("node-%d.example.com", i%1000), WorkloadName: app, WorkloadType: strings.Clone("deployment"),
		CanonicalName: strings.Clone(app), CanonicalRevision: strings.Clone("latest"), ClusterID: strings.Clone("Kubernetes"),
		Locality:  workload.Locality{Region: fmt.Sprint("region-", i%3), Zone: fmt.Sprint("zone-", i%9)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		Protocol:  workload.HBONE, Capacity: 1,
		AuthorizationPolicies: []string{fmt.Sprintf("%s/policy", ns)},
		Services: map[workload.NamespacedHostname]workload.PortMap{
			{Namespace: fmt.Sprintf("namespace-%d", i%manyServices%500), Hostname: app + ".svc.cluster.local"}: {80: 8080, 443: 8443},
		},
	}
	return w
}

func fleetService(i int) *workload.Service {
	ns, app := fmt.Sprintf("namespace-%d", i%500), fmt.Sprintf("application-%d", i)
	return &workload.Service{
		Name: app, Namespace: ns, Hostname: app + ".svc.cluster.local", Canonical: true,
		VIPs:  []workload.NetworkAddress{{Network: "network-0", Addr: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}},
		Ports: workload.PortMap{80: 8080, 443: 8443},
	}
}

// fleet fills a Store in batches, as a source's pushes would.
func fleet() *workload.Store {
	s := workload.New()
	var batch []workload.Event
	flush := func(at int) {
		if len(batch) >= at {
			s.Apply(batch)
			batch = batch[:0]
		}
	}
	for i := range manyServices {
		batch = append(batch, workload.UpsertService(fleetService(i)))
		flush(1000)
	}
	for i := range manyWorkloads {
		batch = append(batch, workload.Upsert(fleetWorkload(i)))
		flush(1000)
	}
	flush(1)
	return s
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory holds the Store to its budget, with every endpoint list made.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a store with 100,000 workloads")
	}
	before := heap()
	s := fleet()
	snap := s.Snapshot()
	endpoints := 0
	for svc := range snap.Services() {
		endpoints += len(snap.Endpoints(svc.Key()))
	}
	used := float64(heap()-before) / (1 << 20)
	t.Logf("%d workloads, %d services, %d endpoints: %.1f MiB", snap.WorkloadCount(), snap.ServiceCount(), endpoints, used)
	if endpoints != manyWorkloads || snap.WorkloadCount() != manyWorkloads || snap.ServiceCount() != manyServices {
		t.Error("the fleet is not complete")
	}
	if used > 100 {
		t.Errorf("%.1f MiB, want at most 100", used)
	}
	runtime.KeepAlive(s)
}

func BenchmarkFill(b *testing.B) {
	for b.Loop() {
		fleet()
	}
}

// BenchmarkUpdate changes one workload in a Store of several sizes; the time
// must not follow the size.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := workload.New()
			var batch []workload.Event
			for i := range n {
				batch = append(batch, workload.Upsert(fleetWorkload(i)))
			}
			s.Apply(batch)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				w := fleetWorkload(i % n)
				w.Capacity = uint32(i + 2)
				s.Apply([]workload.Event{workload.Upsert(w)})
				i++
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	snap := fleet().Snapshot()
	b.Run("vip", func(b *testing.B) {
		at := workload.NewNetworkAddress("network-0", netip.MustParseAddr("172.16.3.4"))
		b.ReportAllocs()
		for b.Loop() {
			if snap.ServiceByVIP(at, "namespace-1") == nil {
				b.Fatal("not found")
			}
		}
	})
	b.Run("address", func(b *testing.B) {
		at := workload.NewNetworkAddress("network-0", netip.MustParseAddr("10.0.3.4"))
		b.ReportAllocs()
		for b.Loop() {
			if snap.WorkloadByAddress(at) == nil {
				b.Fatal("not found")
			}
		}
	})
}
