package nft

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// What is left out of the capture, or let in past the agent. The nat chains and the
// guards ask the same methods, so that they cannot disagree.

// The sets of a pod's table, by family.
const (
	selfSet = "self" // ProbeAddresses
	nodeSet = "node" // NodeAddresses
	hostSet = "host" // HostAddresses
)

func setName(name string, family byte) string {
	if family == unix.NFPROTO_IPV4 {
		return name + "4"
	}
	return name + "6"
}

// families are those that are captured.
func (b builder) families() []byte {
	if b.o.IPv6 {
		return []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}
	}
	return []byte{unix.NFPROTO_IPV4}
}

// excludeInbound are the ports that pass; a list of those to capture makes it moot.
func (b builder) excludeInbound() []uint16 {
	if len(b.o.IncludeInbound) > 0 {
		return nil
	}
	return b.o.ExcludeInbound
}

// captureInbound returns one match per rule that captures. The agent's own listeners
// are never laid bare: a connection straight to one would have no original destination.
func (b builder) captureInbound() []match {
	if len(b.o.IncludeInbound) == 0 {
		return []match{dportNot(PortHBONE)}
	}
	var m []match
	for _, port := range append([]uint16{PortOutbound, PortInbound}, b.o.IncludeInbound...) {
		m = append(m, dport(port))
	}
	return m
}

// passOutbound adds the rules for destinations that are called directly.
func (b builder) passOutbound(c *Chain) {
	for _, port := range b.o.ExcludeOutbound {
		c.add(b.family(), l4proto(unix.IPPROTO_TCP), dport(port), accept())
	}
	for _, p := range b.o.ExcludeOutboundRanges {
		if b.has(p.Addr()) {
			c.add(daddrIn(p), l4proto(unix.IPPROTO_TCP), accept())
		}
	}
}

// captureOutbound returns one match per rule that captures.
func (b builder) captureOutbound() []match {
	if b.o.NoOutbound {
		return nil
	}
	if len(b.o.IncludeOutboundRanges) == 0 {
		return b.notLoopback()
	}
	var m []match
	for _, p := range b.o.IncludeOutboundRanges {
		if !b.has(p.Addr()) {
			continue
		}
		loopback := loopback4
		if p.Addr().Is6() {
			loopback = loopback6
		}
		in := daddrIn(p)
		if p.Overlaps(loopback) {
			in = append(in, daddrNot(loopback)...)
		}
		m = append(m, in)
	}
	return m
}

func (b builder) has(a netip.Addr) bool { return a.Is4() || b.o.IPv6 }

// addresses returns whose connections go to the chain behind a set, of one family.
func (b builder) addresses(set string, family byte) []netip.Addr {
	var all []netip.Addr
	switch {
	case b.o.Draining || b.o.Ingress || family == unix.NFPROTO_IPV6 && !b.o.IPv6:
	case set == selfSet && b.o.ProbeMark:
		all = b.o.ProbeAddresses
	case set == nodeSet && (len(b.o.HostPorts) > 0 || len(b.addresses(selfSet, family)) > 0):
		all = b.o.NodeAddresses
	case set == hostSet && len(b.o.HostPorts) > 0:
		all = b.o.HostAddresses
	}
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return a.Is4() != (family == unix.NFPROTO_IPV4) })
}

// hostSets are the sets with the chains that know what may pass from their addresses.
var hostSets = [...]struct{ set, chain string }{{nodeSet, "from_node"}, {hostSet, "from_host"}}

func (b builder) sets() []Set {
	var sets []Set
	for _, set := range []string{selfSet, nodeSet, hostSet} {
		for _, family := range b.families() {
			if addrs := b.addresses(set, family); len(addrs) > 0 {
				sets = append(sets, addrSet(setName(set, family), family, addrs))
			}
		}
	}
	return sets
}

// jumpFromHost sends what comes from hosts to their chains. What these do not accept
// goes on behind the jump.
func (b builder) jumpFromHost(c *Chain) {
	for _, from := range hostSets {
		for _, family := range b.families() {
			if len(b.addresses(from.set, family)) > 0 {
				c.add(saddrInSet(family, setName(from.set, family)), l4proto(unix.IPPROTO_TCP), jump(from.chain))
			}
		}
	}
}

// fromNode lets pass what the node's kubelet has opened, and any process of the node
// where its port says so. At other addresses of the pod than selfSet's (of a second
// interface, link-local ones) the host takes a forged mark from nobody.
func (b builder) fromNode() Chain {
	c := Chain{Name: "from_node"}
	if !b.uses(nodeSet) {
		return c
	}
	if b.uses(selfSet) {
		for _, port := range []uint16{PortOutbound, PortInbound} { // no probe's business
			c.add(l4proto(unix.IPPROTO_TCP), dport(port), leave())
		}
		for _, family := range b.families() {
			if len(b.addresses(selfSet, family)) > 0 {
				c.add(daddrInSet(family, setName(selfSet, family)), dscp(family, ProbeDSCP), accept())
			}
		}
	}
	b.hostPorts(&c)
	return c
}

func (b builder) fromHost() Chain {
	c := Chain{Name: "from_host"}
	if b.uses(hostSet) {
		b.hostPorts(&c)
	}
	return c
}

func (b builder) hostPorts(c *Chain) {
	for _, port := range b.o.HostPorts {
		c.add(l4proto(unix.IPPROTO_TCP), dport(port), accept())
	}
}

func (b builder) uses(set string) bool {
	return slices.ContainsFunc(b.families(), func(family byte) bool { return len(b.addresses(set, family)) > 0 })
}
