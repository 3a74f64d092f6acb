package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Hook priorities, as the names in nft(8) stand for.
const (
	prioRaw    = -300
	prioMangle = -150
	prioDNAT   = -100
	prioFilter = 0
)

var (
	loopback4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
	loopback6 = netip.PrefixFrom(netip.IPv6Loopback(), 128)
)

// Desired returns the table that o asks for. saved is kept in it as comments: what
// the caller wants to find again later, in this process or a successor (Table.Saved
// reads it). Keys and values must be short and plain: together at most 120 bytes of
// printable ASCII.
func Desired(o Options, saved map[string]string) (*Table, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("make capture rules: %w", err)
	}
	b := builder{o: o}
	t := &Table{Family: FamilyInet, Name: TableName}
	t.Sets = b.sets()
	for _, c := range []Chain{
		b.rawPrerouting(), b.rawOutput(), b.manglePrerouting(), b.mangleOutput(),
		b.natPrerouting(), b.natOutput(), b.guardInput(), b.guardOutput(), b.guardReturn(), b.fromNode(), b.fromHost(),
	} {
		optional := c.Type != "nat"
		if optional && len(c.Rules) == 0 {
			continue // nat chains stay without rules too: they translate what is redirected already
		}
		t.Chains = append(t.Chains, c)
	}
	if len(saved) > 0 {
		t.Chains = append(t.Chains, savedAs(saved))
	}
	if err := t.encode(); err != nil {
		return nil, fmt.Errorf("make capture rules: %w", err)
	}
	return t, nil
}

// builder writes one method per chain, in the order in which a packet meets them.
type builder struct {
	o Options
}

// family restricts a rule that names no address to the families captured.
func (b builder) family() match {
	if b.o.IPv6 {
		return nil
	}
	return nfproto(unix.NFPROTO_IPV4)
}

// notLoopback returns one match per captured family: destination not loopback.
func (b builder) notLoopback() []match {
	m := []match{daddrNot(loopback4)}
	if b.o.IPv6 {
		m = append(m, daddrNot(loopback6))
	}
	return m
}

func (b builder) probeAddrs() []netip.Addr {
	switch {
	case !b.o.Probes:
		return nil
	case b.o.IPv6:
		return []netip.Addr{ProbeSource4, ProbeSource6}
	}
	return []netip.Addr{ProbeSource4}
}

func (b builder) rawPrerouting() Chain {
	c := Chain{Name: "raw_prerouting", Type: "filter", Hook: "prerouting", Priority: prioRaw}
	if b.o.DNS {
		c.add(b.family(), l4proto(unix.IPPROTO_UDP), sport(53), markNot(AgentMark), setZone(DNSZone))
	}
	return c
}

func (b builder) rawOutput() Chain {
	c := Chain{Name: "raw_output", Type: "filter", Hook: "output", Priority: prioRaw}
	if b.o.DNS {
		c.add(b.family(), l4proto(unix.IPPROTO_UDP), dport(53), mark(AgentMark), setZone(DNSZone))
	}
	return c
}

// manglePrerouting remembers the connections that the agent opens towards the
// application: they loop through lo with the agent's mark still on them. So do its
// answers to what the application opens.
func (b builder) manglePrerouting() Chain {
	c := Chain{Name: "mangle_prerouting", Type: "filter", Hook: "prerouting", Priority: prioMangle}
	c.add(b.family(), mark(AgentMark), original(), setCTMark(ReturnMark))
	return c
}

// mangleOutput puts the mark on the application's answers, which with
// net.ipv4.tcp_fwmark_accept have the agent's. The chain is of type route because a
// changed mark must choose the route again; what the agent sends on such a connection
// keeps its mark, because that choice takes a twentieth of the time that sending takes.
func (b builder) mangleOutput() Chain {
	c := Chain{Name: "mangle_output", Type: "route", Hook: "output", Priority: prioMangle}
	c.add(b.family(), ctMark(ReturnMark), reply(), markFromCT())
	return c
}

func (b builder) natPrerouting() Chain {
	c := Chain{Name: "nat_prerouting", Type: "nat", Hook: "prerouting", Priority: prioDNAT}
	if b.o.Draining {
		return c
	}
	for _, name := range b.o.VirtualInterfaces {
		c.add(b.family(), iif(name), l4proto(unix.IPPROTO_TCP), syn(), counter(), redirect(PortOutbound))
		c.add(b.family(), iif(name), l4proto(unix.IPPROTO_TCP), leave())
	}
	if b.o.Ingress {
		return c
	}
	for _, addr := range b.probeAddrs() {
		c.add(saddr(addr), l4proto(unix.IPPROTO_TCP), accept())
	}
	b.jumpFromHost(&c)
	for _, port := range b.excludeInbound() {
		c.add(b.family(), l4proto(unix.IPPROTO_TCP), dport(port), accept())
	}
	for _, notLoopback := range b.notLoopback() {
		for _, port := range b.captureInbound() {
			c.add(notLoopback, l4proto(unix.IPPROTO_TCP), port, syn(), markNot(AgentMark), counter(), redirect(PortInbound))
		}
	}
	return c
}

func (b builder) natOutput() Chain {
	c := Chain{Name: "nat_output", Type: "nat", Hook: "output", Priority: prioDNAT}
	if b.o.Draining {
		return c
	}
	for _, addr := range b.probeAddrs() {
		c.add(daddr(addr), l4proto(unix.IPPROTO_TCP), accept())
	}
	if b.o.DNS {
		c.add(b.family(), oifNot("lo"), l4proto(unix.IPPROTO_UDP), dport(53), markNot(AgentMark),
			counter(), redirect(PortDNS))
		c.add(b.family(), oifNot("lo"), l4proto(unix.IPPROTO_TCP), dport(53), syn(), markNot(AgentMark),
			counter(), redirect(PortDNS))
	}
	c.add(b.family(), l4proto(unix.IPPROTO_TCP), mark(ReturnMark), accept())
	c.add(b.family(), oif("lo"), accept()) // the pod calling itself
	b.passOutbound(&c)
	for _, captured := range b.captureOutbound() {
		c.add(captured, l4proto(unix.IPPROTO_TCP), syn(), markNot(AgentMark), counter(), redirect(PortOutbound))
	}
	return c
}

// guardInput drops what nat_prerouting ought to have redirected. Both guards see
// every packet, so the first two rules let through all but a SYN.
func (b builder) guardInput() Chain {
	c := Chain{Name: "guard_input", Type: "filter", Hook: "input", Priority: prioFilter}
	if b.o.Draining || b.o.Ingress {
		return c
	}
	b.guardCommon(&c)
	c.add(iif("lo"), accept()) // decided in nat_output
	c.add(l4proto(unix.IPPROTO_TCP), dport(PortHBONE), accept())
	for _, port := range b.excludeInbound() {
		c.add(l4proto(unix.IPPROTO_TCP), dport(port), accept())
	}
	for _, addr := range b.probeAddrs() {
		c.add(saddr(addr), accept())
	}
	b.jumpFromHost(&c)
	if len(b.o.IncludeInbound) == 0 {
		c.add(counter(), drop())
		return c
	}
	for _, port := range b.captureInbound() {
		c.add(l4proto(unix.IPPROTO_TCP), port, counter(), drop())
	}
	return c
}

func (b builder) guardOutput() Chain {
	c := Chain{Name: "guard_output", Type: "filter", Hook: "output", Priority: prioFilter}
	if b.o.Draining || b.o.NoOutbound {
		return c
	}
	b.guardCommon(&c)
	c.add(oif("lo"), accept())
	c.add(mark(ReturnMark), accept())
	b.passOutbound(&c)
	for _, addr := range b.probeAddrs() {
		c.add(daddr(addr), accept())
	}
	if len(b.o.IncludeOutboundRanges) == 0 {
		c.add(counter(), drop())
		return c
	}
	for _, captured := range b.captureOutbound() {
		c.add(captured, counter(), drop())
	}
	return c
}

// guardReturn drops answers to the agent that are about to leave the pod, because a policy
// rule of somebody else comes before ours: they are in plain text. They are sent again.
func (b builder) guardReturn() Chain {
	c := Chain{Name: "guard_return", Type: "filter", Hook: "postrouting", Priority: prioFilter}
	c.add(b.family(), oifNot("lo"), mark(ReturnMark), counter(), drop())
	return c
}

func (b builder) guardCommon(c *Chain) {
	c.add(l4protoNot(unix.IPPROTO_TCP), accept())
	c.add(l4proto(unix.IPPROTO_TCP), notSyn(), accept())
	if !b.o.IPv6 {
		c.add(nfproto(unix.NFPROTO_IPV6), accept())
	}
	c.add(redirected(), accept())
	c.add(mark(AgentMark), accept())
}

// SavedOnly returns a table that holds saved and captures nothing, for a namespace
// that has been touched but not captured yet. The rules for saved are Desired's.
func SavedOnly(saved map[string]string) (*Table, error) {
	t := &Table{Family: FamilyInet, Name: TableName, Chains: []Chain{savedAs(saved)}}
	if err := t.encode(); err != nil {
		return nil, fmt.Errorf("remember settings: %w", err)
	}
	return t, nil
}

func savedAs(saved map[string]string) Chain {
	c := Chain{Name: savedChain}
	for _, key := range slices.Sorted(maps.Keys(saved)) {
		c.add(leave())
		c.Rules[len(c.Rules)-1].Comment = key + savedSeparator + saved[key]
	}
	return c
}
