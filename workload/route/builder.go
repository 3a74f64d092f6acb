package route

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/workload"
)

// builder collects targets in the order in which they are to be tried.
type builder struct {
	suspended func(string, netip.AddrPort) bool // may be nil
	service   *workload.Service
	// err is the reason to give when nothing was added; fail replaces it once.
	err    error
	failed bool

	targets []Target
	later   []Target // suspended
	used    []workload.GatewayAddress
}

// full reports whether there is no use in offering more.
func (b *builder) full() bool { return len(b.targets) >= MaxTargets }

// fail notes why a candidate gave no target. The first reason is kept.
func (b *builder) fail(err error) {
	if !b.failed {
		b.err, b.failed = err, true
	}
}

// firstUse reports whether the network gateway was not expanded before:
// endpoints behind one gateway are all reached in the same way.
func (b *builder) firstUse(gw workload.GatewayAddress) bool {
	if slices.Contains(b.used, gw) {
		return false
	}
	b.used = append(b.used, gw)
	return true
}

// add appends the target, dialled at the hop's address and the port.
func (b *builder) add(t Target, h hop, port uint16) {
	t.DialPort, t.Endpoint = port, netip.AddrPortFrom(h.addr, port)
	switch {
	case h.addr.IsValid():
		t.Dial = netip.AddrPortFrom(h.addr, port)
	case h.workload.Hostname != "":
		t.Hostname = h.workload.Hostname
	default:
		b.fail(fmt.Errorf("%w: %s", ErrNoValidDestination, h.workload))
		return
	}
	if contains(b.targets, t) || contains(b.later, t) {
		return
	}
	if b.suspended != nil && b.suspended(h.workload.UID, t.Endpoint) {
		if !b.plenty(t.Protocol) {
			b.later = append(b.later, t)
		}
		return
	}
	b.targets = append(b.targets, t)
}

// plenty reports whether there are so many suspended targets of a protocol that one more would not get into the plan.
func (b *builder) plenty(protocol Protocol) bool {
	n := 0
	for i := range b.later {
		if b.later[i].Protocol == protocol {
			n++
		}
	}
	return n >= MaxTargets
}

// contains reports a target that would only repeat an attempt.
func contains(ts []Target, t Target) bool {
	return slices.ContainsFunc(ts, func(o Target) bool {
		return o.Protocol == t.Protocol && o.Dial == t.Dial && o.Hostname == t.Hostname && o.Authority == t.Authority
	})
}

// plan returns the plan, or a refusal when nothing was added.
//
// A plain target after a tunnel is left out: whoever can make a tunnel fail
// must not get the connection in plaintext for it.
func (b *builder) plan() Plan {
	tunnel := false
	ts := slices.DeleteFunc(append(b.targets, b.later...), func(t Target) bool {
		drop := tunnel && t.Protocol == ProtocolTCP
		tunnel = tunnel || t.Protocol != ProtocolTCP
		return drop
	})
	if len(ts) == 0 {
		return Plan{Kind: Reject, Service: b.service, Reason: b.err.Error(), Err: b.err}
	}
	kind := Tunnel
	if ts[0].Protocol == ProtocolTCP {
		kind = TCP
	}
	return Plan{Kind: kind, Service: b.service, Targets: ts[:min(len(ts), MaxTargets)]}
}
