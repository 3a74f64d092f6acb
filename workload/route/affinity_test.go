package route_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func sticky(s *workload.Service) { s.SessionAffinity = time.Hour }

// stickyPods is pods, with affinity.
func stickyPods(n int, capacity ...uint32) []any {
	out := pods(n, capacity...)
	sticky(out[n].(*workload.Service))
	return out
}

// client returns the i-th of many client addresses, of both families.
func client(i int) netip.Addr {
	if i%2 == 0 {
		return netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
}

// order returns the endpoints in the order in which the client tries them.
func order(in route.Input, client netip.Addr) []string {
	in.SourceIP = client
	return names(in)
}

// TestAffinityOrder has the order of some clients in writing: agents of all
// versions must agree on it.
func TestAffinityOrder(t *testing.T) {
	in := input(source(), "127.0.0.3:80", stickyPods(4)...)
	weighted := input(source(), "127.0.0.3:80", stickyPods(4, 1, 5)...)
	for _, tc := range []struct {
		client         string
		want, weighted []string
	}{
		{"10.9.0.1", []string{"p1", "p2", "p0", "p3"}, []string{"p1", "p2", "p3", "p0"}},
		{"10.9.0.2", []string{"p0", "p2", "p1", "p3"}, []string{"p1", "p3", "p0", "p2"}},
		{"fd00::2", []string{"p2", "p1", "p0", "p3"}, []string{"p1", "p2", "p3", "p0"}},
	} {
		if got := order(in, netip.MustParseAddr(tc.client)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.client, got, tc.want)
		}
		if got := order(weighted, netip.MustParseAddr(tc.client)); !slices.Equal(got, tc.weighted) {
			t.Errorf("%s, by weight: %v, want %v", tc.client, got, tc.weighted)
		}
	}
}

// TestAffinityIsStable: neither dice nor load, the caller's node nor the order in
// which objects came change the order of endpoints.
func TestAffinityIsStable(t *testing.T) {
	objects := stickyPods(20)
	in := input(source(), "127.0.0.3:80", objects...)
	rng := rand.New(rand.NewPCG(1, 9))
	for i := range 100 {
		want := order(in, client(i))
		rng.Shuffle(len(objects), func(a, b int) { objects[a], objects[b] = objects[b], objects[a] })
		other := input(source(on("elsewhere")), "127.0.0.3:80", objects...)
		other.Rand = rng.IntN
		other.Load = func(string) int { return rng.IntN(100) }
		if got := order(other, client(i)); !slices.Equal(got, want) {
			t.Fatalf("%s: %v, then %v", client(i), want, got)
		}
	}
	mapped := netip.AddrFrom16(client(0).As16())
	if got, want := order(in, mapped), order(in, client(0)); !slices.Equal(got, want) {
		t.Errorf("as an IPv4-mapped address: %v, want %v", got, want)
	}
	own := source()
	if got, want := names(in), order(in, own.Addresses[0]); !slices.Equal(got, want) {
		t.Errorf("without a client's address: %v, want %v", got, want)
	}
}

// TestAffinityShares: over many clients each endpoint is the first of as many as
// its capacity says.
func TestAffinityShares(t *testing.T) {
	for _, tc := range []struct {
		name     string
		capacity []uint32
		want     []float64
	}{
		{"equal", []uint32{1, 1, 1, 1}, []float64{0.25, 0.25, 0.25, 0.25}},
		{"weighted", []uint32{3, 1}, []float64{0.75, 0.25}},
		{"zero", []uint32{0, 5, 5}, []float64{0, 0.5, 0.5}},
		{"huge", []uint32{math.MaxUint32, math.MaxUint32}, []float64{0.5, 0.5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(source(), "127.0.0.3:80", stickyPods(len(tc.capacity), tc.capacity...)...)
			const clients = 10_000
			count := make(map[string]int)
			for i := range clients {
				count[order(in, client(i))[0]]++
			}
			for i, want := range tc.want {
				if got := float64(count[fmt.Sprintf("p%d", i)]) / clients; math.Abs(got-want) > 0.02 {
					t.Errorf("p%d gets %.3f, want %.2f", i, got, want)
				}
			}
		})
	}
}

// TestAffinityMovesOnlyWhoMust: an endpoint that goes, falls ill or refuses hands
// its clients to what was their second, and nobody else moves.
func TestAffinityMovesOnlyWhoMust(t *testing.T) {
	all := stickyPods(4)
	in := input(source(), "127.0.0.3:80", all...)
	gone := input(source(), "127.0.0.3:80", all[1:]...)
	ill := slices.Clone(all)
	ill[0] = wt.Pod("ns/p0", []string{"10.0.0.1"}, wt.In(svcHost, 80, 80), wt.Unhealthy)
	unhealthy := input(source(), "127.0.0.3:80", ill...)
	refusing := in
	refusing.Suspended = func(uid string, _ netip.AddrPort) bool { return uid == "cluster1//Pod/ns/p0" }
	moved := 0
	for i := range 200 {
		before := order(in, client(i))
		want := slices.DeleteFunc(slices.Clone(before), func(s string) bool { return s == "p0" })
		if before[0] == "p0" {
			moved++
		}
		if got := order(gone, client(i)); !slices.Equal(got, want) {
			t.Fatalf("%s, gone: %v, want %v", client(i), got, want)
		}
		if got := order(unhealthy, client(i)); !slices.Equal(got, want) {
			t.Fatalf("%s, unhealthy: %v, want %v", client(i), got, want)
		}
		if got := order(refusing, client(i)); !slices.Equal(got, append(want, "p0")) {
			t.Fatalf("%s, refusing: %v, want %v and p0", client(i), got, want)
		}
	}
	if moved == 0 {
		t.Error("nobody was at p0")
	}
}

// TestAffinityWithinRanks: a near endpoint goes first for every client.
func TestAffinityWithinRanks(t *testing.T) {
	in := input(source(at("r", "")), "127.0.0.3:80",
		wt.Pod("ns/near1", []string{"10.0.0.1"}, wt.In(svcHost, 80, 80), at("r", "")), wt.Pod("ns/far1", []string{"10.0.0.2"}, wt.In(svcHost, 80, 80)),
		wt.Pod("ns/near2", []string{"10.0.0.3"}, wt.In(svcHost, 80, 80), at("r", "")), wt.Pod("ns/far2", []string{"10.0.0.4"}, wt.In(svcHost, 80, 80)),
		wt.Service(svcHost, []string{"127.0.0.3"}, wt.Balance(workload.LBFailover, workload.ScopeRegion), sticky))
	seen := make(map[string]bool)
	for i := range 100 {
		got := order(in, client(i))
		seen[fmt.Sprint(got)] = true
		slices.Sort(got[:2])
		slices.Sort(got[2:])
		if !slices.Equal(got, []string{"near1", "near2", "far1", "far2"}) {
			t.Fatalf("%s: %v", client(i), got)
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d orders, want 4: %v", len(seen), seen)
	}
}

func BenchmarkMakeAffine(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := input(source(), "127.0.0.3:80", stickyPods(n)...)
			b.ReportAllocs()
			for b.Loop() {
				route.Make(in)
			}
		})
	}
}
