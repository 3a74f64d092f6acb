package route

import (
	"math"
	"net/netip"

	"github.com/cespare/xxhash/v2"

	"github.com/culvert-mesh/culvert/workload"
)

// affinity returns how much a client's address favours an endpoint, by weighted
// rendezvous hashing (Schindelhauer and Schomaker, 2005): of all clients each
// endpoint is the favourite of a share in proportion to its capacity, and one
// that comes or goes moves no client but its own. The value depends on nothing
// but the address and the endpoint, so that all nodes agree on it, before and
// after a restart. Capacity must not be 0.
func affinity(client netip.Addr, w *workload.Workload) float64 {
	var d xxhash.Digest
	d.Reset()
	addr := client.As16()
	_, _ = d.Write(addr[:]) // never fails
	_, _ = d.WriteString(w.UID)
	// Between 0 and 1 without either: 52 bits and a half are exact.
	u := (float64(d.Sum64()>>12) + 0.5) / (1 << 52)
	return float64(w.Capacity) / -math.Log(u)
}

// mostAffine returns the index of the candidate that the client favours; the
// group is not empty.
func mostAffine(group []candidate) int {
	best := 0
	for i := range group {
		if group[i].affinity > group[best].affinity {
			best = i
		}
	}
	return best
}
