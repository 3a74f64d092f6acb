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

const svcHost = "ns/example.com"

func at(region, zone string) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Locality = workload.Locality{Region: region, Zone: zone} }
}

// names plans a connection to the service and returns its targets' workloads.
func names(in route.Input) []string {
	var out []string
	for _, t := range route.Make(in).Targets {
		out = append(out, t.Workload.Name)
	}
	return out
}

func TestLocality(t *testing.T) {
	const (
		network, region, zone = workload.ScopeNetwork, workload.ScopeRegion, workload.ScopeZone
		strict, failover      = workload.LBStrict, workload.LBFailover
	)
	inSvc := wt.In(svcHost, 80, 80)
	gw := behind("other/10.9.9.9")
	none := wt.Pod("ns/none", []string{"192.168.0.1"}, inSvc)
	match := wt.Pod("ns/match", []string{"192.168.0.2"}, inSvc, at("reg", "zone"))
	almost := wt.Pod("ns/almost", []string{"192.168.0.3"}, inSvc, at("reg", "not-zone"))
	other := wt.Pod("ns/other", []string{"192.168.0.5"}, inSvc, at("reg", "zone"), wt.Network("other"), gw)
	gateway := wt.Pod("ns/gateway", []string{"10.9.9.9"}, wt.Network("other"))
	noIP := wt.Pod("ns/no-ip", nil, inSvc, at("reg", "zone"))
	prefs := []workload.Scope{network, region, zone}
	for _, tc := range []struct {
		name  string
		src   *workload.Workload
		mode  workload.Mode
		prefs []workload.Scope
		eps   []any
		want  [][]string // ranks, best first
	}{
		{"standard", source(at("reg", "zone")), workload.LBStandard, prefs, []any{none, match, almost, noIP}, [][]string{{"none", "match", "almost"}}},
		{"strict-one", source(at("reg", "zone")), strict, prefs, []any{none, match, almost, other, noIP}, [][]string{{"match"}}},
		{"strict-none", source(at("reg", "other-zone")), strict, prefs, []any{none, match, almost, other, noIP}, nil},
		{"failover-all-scopes", source(at("reg", "zone")), failover, prefs, []any{none, match, almost, other, noIP}, [][]string{{"match"}, {"almost"}, {"none"}, {"gateway"}}},
		{"failover-region", source(at("reg", "third")), failover, prefs, []any{none, match, almost, noIP}, [][]string{{"match", "almost"}, {"none"}}},
		{"failover-network-only", source(at("x", "zone")), failover, prefs, []any{none, match, almost, other}, [][]string{{"none", "match", "almost"}, {"gateway"}}},
		{"failover-consecutive", source(at("x", "zone")), failover, []workload.Scope{region, zone}, []any{none, match}, [][]string{{"none", "match"}}},
		{"failover-out-of-network", source(at("reg", "zone")), failover, prefs, []any{other}, [][]string{{"gateway"}}},
		{"network-not-first", source(at("reg", "zone")), failover, []workload.Scope{region, network}, []any{none, match, other}, [][]string{{"match"}, {"gateway"}, {"none"}}},
		{"empty-equals-empty", source(), failover, []workload.Scope{region}, []any{none, match}, [][]string{{"none"}, {"match"}}},
		{"unknown-scope", source(), failover, []workload.Scope{workload.ScopeUnspecified, region}, []any{none, match}, [][]string{{"none", "match"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := wt.Service(svcHost, []string{"127.0.0.3"}, wt.Ports(80, 80), wt.Balance(tc.mode, tc.prefs...))
			in := input(tc.src, "127.0.0.3:80", append(tc.eps, svc, gateway)...)
			for seed := range uint64(20) {
				in.Rand = rand.New(rand.NewPCG(seed, 1)).IntN
				got := names(in)
				var want []string
				for _, rank := range tc.want {
					part := got[min(len(want), len(got)):min(len(want)+len(rank), len(got))]
					slices.Sort(part)
					slices.Sort(rank)
					want = append(want, rank...)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("got %v, want ranks %v", got, tc.want)
				}
			}
		})
	}
}

// pods returns n endpoints of the service, of the given capacities in turn.
func pods(n int, capacity ...uint32) []any {
	var out []any
	for i := range n {
		w := wt.Pod(fmt.Sprintf("ns/p%d", i), []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)}, wt.In(svcHost, 80, 80))
		if len(capacity) > 0 {
			w.Capacity = capacity[i%len(capacity)]
		}
		out = append(out, w)
	}
	return append(out, wt.Service(svcHost, []string{"127.0.0.3"}, wt.Ports(80, 80)))
}

func TestTargetsAreBoundedAndDistinct(t *testing.T) {
	in := input(source(), "127.0.0.3:80", pods(50)...)
	in.Rand = nil
	got := names(in)
	slices.Sort(got)
	if len(got) != route.MaxTargets || len(slices.Compact(got)) != route.MaxTargets {
		t.Errorf("got %v", got)
	}
}

// TestShares checks the first choice's distribution without any load.
func TestShares(t *testing.T) {
	for _, tc := range []struct {
		name     string
		capacity []uint32
		want     []float64
	}{
		{"equal", []uint32{1, 1}, []float64{0.5, 0.5}},
		{"weighted", []uint32{3, 1}, []float64{0.75, 0.25}},
		{"zero", []uint32{0, 5}, []float64{0, 1}},
		{"huge", []uint32{math.MaxUint32, math.MaxUint32}, []float64{0.5, 0.5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(source(), "127.0.0.3:80", pods(2, tc.capacity...)...)
			in.Rand = rand.New(rand.NewPCG(1, 2)).IntN
			in.Load = func(string) int { return 0 }
			const rounds = 20_000
			count := make(map[string]int)
			for range rounds {
				count[names(in)[0]]++
			}
			for i, want := range tc.want {
				if got := float64(count[fmt.Sprintf("p%d", i)]) / rounds; math.Abs(got-want) > 0.02 {
					t.Errorf("p%d gets %.3f, want %.2f", i, got, want)
				}
			}
		})
	}
}

// TestLeastConnections opens connections that stay, and one endpoint that is
// busy already.
func TestLeastConnections(t *testing.T) {
	for _, tc := range []struct {
		name     string
		capacity []uint32
		want     []int
	}{
		{"equal", []uint32{1, 1, 1, 1}, []int{100, 100, 100, 100}},
		{"weighted", []uint32{3, 1}, []int{300, 100}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(source(), "127.0.0.3:80", pods(len(tc.capacity), tc.capacity...)...)
			load := make(map[string]int)
			in.Load = func(uid string) int { return load[uid] }
			in.Rand = rand.New(rand.NewPCG(5, 6)).IntN
			for range 400 {
				load[route.Make(in).Targets[0].Workload.UID]++
			}
			for i, want := range tc.want {
				if got := load[fmt.Sprintf("cluster1//Pod/ns/p%d", i)]; got < want*9/10 || got > want*11/10 {
					t.Errorf("p%d has %d connections, want about %d", i, got, want)
				}
			}
		})
	}
	in := input(source(), "127.0.0.3:80", pods(2)...)
	in.Load = func(uid string) int {
		if uid == "cluster1//Pod/ns/p0" {
			return 10
		}
		return 0
	}
	for dice := range 2 {
		in.Rand = func(n int) int { return dice % n }
		if got := names(in); !slices.Equal(got, []string{"p1", "p0"}) {
			t.Errorf("dice %d: %v", dice, got)
		}
	}
}

func TestSuspendedGoLast(t *testing.T) {
	in := input(source(), "127.0.0.3:80", pods(4)...)
	bad := map[netip.AddrPort]bool{
		netip.MustParseAddrPort("10.0.0.1:15008"): true,
		netip.MustParseAddrPort("10.0.0.3:15008"): true,
	}
	in.Suspended = func(uid string, addr netip.AddrPort) bool {
		if uid == "" {
			t.Error("suspension is asked without a UID")
		}
		return bad[addr]
	}
	for seed := range uint64(20) {
		in.Rand = rand.New(rand.NewPCG(seed, 3)).IntN
		got := names(in)
		slices.Sort(got[:2])
		slices.Sort(got[2:])
		if !slices.Equal(got, []string{"p1", "p3", "p0", "p2"}) {
			t.Fatalf("seed %d: %v", seed, got)
		}
	}
	in.Suspended = func(string, netip.AddrPort) bool { return true }
	if got := names(in); len(got) != 4 {
		t.Errorf("with all suspended: %v", got)
	}
	// A suspended endpoint in the best place comes after a healthy one of a
	// worse place.
	near := wt.Pod("ns/near", []string{"10.0.0.1"}, wt.In(svcHost, 80, 80), at("r", ""))
	far := wt.Pod("ns/far", []string{"10.0.0.2"}, wt.In(svcHost, 80, 80))
	in = input(source(at("r", "")), "127.0.0.3:80", near, far, wt.Service(svcHost, []string{"127.0.0.3"}, wt.Balance(workload.LBFailover, workload.ScopeRegion)))
	in.Suspended = func(_ string, addr netip.AddrPort) bool { return bad[addr] }
	if got := names(in); !slices.Equal(got, []string{"far", "near"}) {
		t.Errorf("across ranks: %v", got)
	}
}

// Where all of a large Service is suspended a plan costs little more than otherwise: each endpoint is looked at once, and not
// compared with all before it.
func TestManySuspended(t *testing.T) {
	cost := func(n int) time.Duration {
		in := input(source(), "127.0.0.3:80", pods(n)...)
		in.Suspended = func(string, netip.AddrPort) bool { return true }
		least := time.Hour
		for range 50 { // of which some have the processor for themselves, also on a busy machine
			begin := time.Now()
			if plan := route.Make(in); len(plan.Targets) != route.MaxTargets {
				t.Fatalf("%d targets", len(plan.Targets))
			}
			least = min(least, time.Since(begin))
		}
		return least
	}
	if few, many := cost(250), cost(4000); many > 64*few { // 16 when each is looked at once, 256 when each is compared
		t.Errorf("250 endpoints take %v, 4000 take %v", few, many)
	}
}

func BenchmarkMake(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := input(source(), "127.0.0.3:80", pods(n)...)
			in.Rand = nil
			in.Load = func(string) int { return 0 }
			b.ReportAllocs()
			for b.Loop() {
				route.Make(in)
			}
		})
	}
}
