package kubenode_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// BenchmarkSweep is what an agent's start costs for the pods that are out of the mesh: one search of this machine's processes,
// in which none of them is found, and a look into each of their namespaces, in which nothing is left.
func BenchmarkSweep(b *testing.B) {
	const pods = 120
	b.Run("search", func(b *testing.B) {
		wanted := map[string]procns.Wanted{}
		for i := range pods {
			wanted[fmt.Sprintf("0b7c5c3e-8a1f-4b51-9d2e-6f0e1a2b%04x", i)] = procns.Wanted{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
		}
		finder := procns.New("/proc")
		for b.Loop() {
			if _, problems := finder.Find(b.Context(), wanted); len(problems) > 0 {
				b.Skip(problems)
			}
		}
	})
	b.Run("look", func(b *testing.B) {
		netnstest.Require(b)
		var spaces []*netns.NS
		for range pods {
			spaces = append(spaces, netnstest.New(b))
		}
		for b.Loop() {
			for _, ns := range spaces {
				if _, err := kubenode.Clean(ns); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/pods, "µs/pod")
	})
}
