package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// TestScopesGrowAndShrink adds policies in several orders and takes them away again: at all times each of those that are
// there, and no other, decides about the port that is its own.
func TestScopesGrowAndShrink(t *testing.T) {
	const n = 1200
	numbers := make([]int, n)
	for i := range numbers {
		numbers[i] = i
	}
	upward, downward := slices.Clone(numbers), slices.Clone(numbers)
	slices.Reverse(downward)
	mixed := func(seed uint64) []int {
		out := slices.Clone(numbers)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	key := func(i int) string { return fmt.Sprintf("ns/p%04d", i) }
	named := &workload.Workload{Namespace: "other"}
	for i := range n {
		named.AuthorizationPolicies = append(named.AuthorizationPolicies, key(i))
	}
	for _, tc := range []struct {
		name     string
		add, del []int
		scope    policy.Scope
		dst      *workload.Workload
	}{
		{"upward-upward", upward, upward, policy.Namespace, server},
		{"upward-downward", upward, downward, policy.Global, server},
		{"downward-upward", downward, upward, policy.Namespace, server},
		{"mixed-mixed", mixed(1), mixed(2), policy.Global, server},
		{"named-mixed", mixed(3), mixed(4), policy.WorkloadSelector, named},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set, there := policy.New(), map[int]bool{}
			check := func() {
				t.Helper()
				snap := set.Snapshot()
				for i := range n {
					c := policy.Connection{Source: alice, Destination: netip.AddrPortFrom(here.Addr(), uint16(1000+i))}
					want := ""
					if there[i] {
						want = key(i)
					}
					if d := snap.Evaluate(tc.dst, c); d.Policy != want || d.Denied != there[i] {
						t.Fatalf("with %d policies port %d is decided by %q, want %q", len(there), 1000+i, d.Policy, want)
					}
				}
			}
			for step, i := range tc.add {
				set.Apply([]*policy.Policy{pol(key(i), tc.scope, policy.Deny, one(policy.Match{DestinationPorts: []uint16{uint16(1000 + i)}}))}, nil)
				if there[i] = true; step%199 == 0 {
					check()
				}
			}
			check()
			for step, i := range tc.del {
				set.Apply(nil, []string{key(i)})
				if delete(there, i); step%199 == 0 {
					check()
				}
			}
			check()
		})
	}
}

// TestSharedNames: workloads that name the same policies in any order, and the same ones as before in a newer snapshot,
// are judged on the same basis; others are not.
func TestSharedNames(t *testing.T) {
	set := policy.New()
	set.Apply([]*policy.Policy{
		pol("ns/a", policy.WorkloadSelector, policy.Deny, onPort80), pol("ns/b", policy.WorkloadSelector, policy.Deny, onPort81),
		pol("other/c", policy.Namespace, policy.Deny, onPort80),
	}, nil)
	one := &workload.Workload{Namespace: "ns", AuthorizationPolicies: []string{"ns/a", "ns/b"}}
	two := &workload.Workload{Namespace: "ns", AuthorizationPolicies: []string{"ns/b", "ns/a", "ns/a"}}
	missing := &workload.Workload{Namespace: "ns", AuthorizationPolicies: []string{"ns/b", "ns/a", "ns/z"}}
	first := set.Snapshot()
	basis := first.Basis(one)
	if basis == (policy.Basis{}) || first.Basis(two) != basis || first.Basis(missing) == basis {
		t.Error("the basis does not stand for the policies")
	}
	none, unknown := &workload.Workload{Namespace: "ns"}, &workload.Workload{Namespace: "ns", AuthorizationPolicies: []string{"ns/z"}}
	if first.Basis(none) == first.Basis(unknown) {
		t.Error("the basis does not tell that a policy is missing")
	}
	if first.Prepared(&workload.Workload{}) || !first.Prepared(one) {
		t.Error("Prepared does not tell what was asked before")
	}
	set.Apply([]*policy.Policy{pol("other/c", policy.Namespace, policy.Deny, onPort81)}, nil)
	if set.Snapshot().Basis(one) != basis {
		t.Error("a policy of another namespace changes the basis")
	}
	for _, p := range []*policy.Policy{
		pol("ns/a", policy.WorkloadSelector, policy.Deny, onPort81), pol("ns/n", policy.Namespace, policy.Deny, onPort81),
		pol("root/g", policy.Global, policy.Allow, nil),
	} {
		set.Apply([]*policy.Policy{p}, nil)
		next := set.Snapshot().Basis(one)
		if next == basis {
			t.Errorf("%s does not change the basis", p.Key())
		}
		basis = next
	}
}

// TestThousandsOfRules: one policy may fill several indexes.
func TestThousandsOfRules(t *testing.T) {
	const n = 10_000
	p := pol("ns/p", policy.Namespace, policy.Allow, nil)
	for i := range n {
		// Nine alternatives, and one more test of the same field.
		ports := make([]policy.Match, 9)
		for j := range ports {
			ports[j].DestinationPorts = []uint16{uint16(i), uint16(20_000 + j)}
		}
		p.Rules = append(p.Rules, [][]policy.Match{ports, {{NotDestinationPorts: []uint16{uint16(20_000 + i%9)}}}, {{DestinationPorts: []uint16{uint16(i)}}}})
	}
	set := policy.New()
	set.Apply([]*policy.Policy{p}, nil)
	for _, port := range []uint16{0, 1, 4095, 4096, 5000, n - 1, n, 20_000} {
		got := set.Snapshot().Evaluate(server, policy.Connection{Destination: netip.AddrPortFrom(here.Addr(), port)})
		if want := port < n; got.Allowed != want {
			t.Errorf("port %d: allowed = %t, want %t", port, got.Allowed, want)
		}
	}
}
