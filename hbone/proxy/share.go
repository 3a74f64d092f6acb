package proxy

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// Descriptors are what all pods and peers share, so the last of them are kept for those who have few: the applications of
// one pod, or one address that comes to one pod, may use up nearly all there are, and all others still connect.
const (
	// keptShare and mostKept say how many are kept: a sixteenth, and no more than 256.
	keptShare = 16
	mostKept  = 256
	// fewShare and leastFew say what few is: an eighth of what is kept.
	fewShare = 8
	leastFew = 8
)

// shares is what Proxy knows of it.
type shares struct {
	keptFrom int // the first descriptor of those kept; the kernel always gives out the lowest that is free
	few      int
}

func (s *shares) init(limit int) {
	if limit == 0 {
		limit = loop.DescriptorLimit()
	}
	kept := min(limit/keptShare, mostKept)
	s.keptFrom, s.few = limit-kept, max(kept/fewShare, leastFew)
}

// crowds reports whether a descriptor is one of those that are kept and who it is for has many: outbound flows of the pod
// (peer is zero), or inbound flows and tunnels of one address.
func (p *Pod) crowds(fd int, peer netip.Addr) bool {
	if fd < p.proxy.shares.keptFrom || p.flows.share(peer) <= p.proxy.shares.few {
		return false
	}
	p.proxy.shortage.crowded(p.log)
	return true
}
