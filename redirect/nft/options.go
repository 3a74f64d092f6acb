package nft

import (
	"errors"
	"fmt"
	"net/netip"
)

// What istio-cni and ztunnel have agreed on; either side changing one alone breaks
// the node.
const (
	// TableName is the name of the table, in family inet.
	TableName = "culvert"

	// AgentMark is the packet mark of every socket of the agent. Its packets are
	// never captured.
	AgentMark = 0x539
	// ReturnMark is the connection and packet mark of connections that the agent
	// opened to the application; packets with it are routed to the loopback
	// interface, so that answers to a foreign address reach the agent.
	ReturnMark = 0x111
	// MarkMask is the part of a mark that is ours. The rest is left as it is.
	MarkMask = 0xfff

	PortOutbound = 15001 // captured outbound TCP
	PortInbound  = 15006 // captured inbound plaintext TCP
	PortHBONE    = 15008 // inbound HBONE, never redirected
	PortDNS      = 15053 // captured DNS

	// ProbeDSCP is the DSCP of the first segment of a connection that the kubelet
	// opens to an enrolled pod of its node, set and kept from others by the host
	// table. It is of pool 2, for local use (RFC 2474 section 6).
	ProbeDSCP = 0x2b

	// DNSZone is the connection tracking zone of the agent's own DNS queries. In
	// the default zone, one that happens to use the port of an application's query
	// would collide with its entry (istio/istio#33469).
	DNSZone = 1
)

// ProbeSource4 and ProbeSource6 are the addresses that istio-cni gives to the
// kubelet's probes on their way into a pod.
var (
	ProbeSource4 = netip.AddrFrom4([4]byte{169, 254, 7, 127})
	ProbeSource6 = netip.AddrFrom16([16]byte{
		0xfd, 0x16, 0x92, 0x54, 0x71, 0x27, 0x13, 0x37, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	})
)

// Options choose the rules of one namespace. The zero value captures IPv4 TCP in
// both directions and no DNS.
type Options struct {
	// DNS captures UDP and TCP port 53 to PortDNS. Without it, DNS over TCP is
	// captured like any TCP and DNS over UDP is not.
	DNS bool
	// IPv6 captures IPv6 as well. Without it IPv6 passes unseen, so leave it out
	// only where the namespace has none.
	IPv6 bool
	// Ingress leaves inbound connections alone, for a gateway that takes them from
	// outside the mesh.
	Ingress bool
	// Probes lets TCP from and to ProbeSource4 and ProbeSource6 pass. Only where
	// istio-cni captures on the host; elsewhere nothing owns these addresses and a
	// peer might use them.
	Probes bool
	// VirtualInterfaces are interfaces of machines nested in the pod. What comes in
	// from them is outbound traffic. At most 15 bytes each.
	VirtualInterfaces []string
	// ExcludeInbound are TCP ports of the application that are reached directly.
	// Without effect beside IncludeInbound, as in Istio.
	ExcludeInbound []uint16
	// IncludeInbound, when not empty, are the only TCP ports whose inbound
	// connections are captured. (The agent's own ports stay closed all the same.)
	IncludeInbound []uint16
	// NoOutbound leaves outbound connections alone, except DNS where that is
	// captured.
	NoOutbound bool
	// ExcludeOutbound are TCP destination ports that are called directly.
	ExcludeOutbound []uint16
	// ExcludeOutboundRanges are destinations that are called directly, also those
	// inside IncludeOutboundRanges.
	ExcludeOutboundRanges []netip.Prefix
	// IncludeOutboundRanges, when not empty, are the only destinations to which
	// connections are captured. DNS has nothing to do with ranges and ports.
	IncludeOutboundRanges []netip.Prefix
	// NodeAddresses are the addresses that processes of the node's host network may
	// call the pod from. Alone they open nothing.
	NodeAddresses []netip.Addr
	// ProbeMark lets connections from NodeAddresses to ProbeAddresses that carry
	// ProbeDSCP reach the application directly: the kubelet's. Only where the host
	// table keeps others from that mark.
	ProbeMark bool
	// ProbeAddresses are the addresses of the pod that the host table knows.
	ProbeAddresses []netip.Addr
	// HostPorts are ports of the application that NodeAddresses and HostAddresses
	// reach directly, whichever process it is.
	HostPorts []uint16
	// HostAddresses are further addresses for HostPorts: other nodes, API servers.
	HostAddresses []netip.Addr
	// Draining captures nothing new, while connections that are redirected already
	// go on.
	Draining bool
}

// Validate reports all faults of the options.
func (o Options) Validate() error {
	var errs []error
	for _, name := range o.VirtualInterfaces {
		// 15 is IFNAMSIZ less the final zero. The kernel forbids slash and space.
		if name == "" || len(name) > 15 || name == "." || name == ".." || !validName(name) {
			errs = append(errs, fmt.Errorf("virtual interface %q: not an interface name", name))
		}
	}
	for _, list := range []struct {
		what  string
		ports []uint16
		open  bool // these ports become reachable past the agent
	}{
		{"excluded inbound", o.ExcludeInbound, true}, {"included inbound", o.IncludeInbound, true},
		{"excluded outbound", o.ExcludeOutbound, false}, {"host", o.HostPorts, true},
	} {
		errs = append(errs, validatePorts(list.what, list.ports, list.open))
	}
	errs = append(errs,
		validateRanges("excluded outbound", o.ExcludeOutboundRanges), validateRanges("included outbound", o.IncludeOutboundRanges),
		validateAddresses("probe", o.ProbeAddresses), validateAddresses("node", o.NodeAddresses), validateAddresses("host", o.HostAddresses))
	return errors.Join(errs...)
}

func validName(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '"' || c == '*' {
			return false
		}
	}
	return true
}

// MaxAddresses is how long a list of addresses may be: some more than the largest
// cluster has nodes with all of their addresses.
const MaxAddresses = 1 << 16

// What an annotation may ask for at most, per list: rules are compared one by one.
const (
	maxPorts  = 256
	maxRanges = 256
)

// validatePorts refuses the agent's own ports where a carve-out would lay them bare.
func validatePorts(what string, ports []uint16, open bool) error {
	if len(ports) > maxPorts {
		return fmt.Errorf("%s ports: %d of them, at most %d are possible", what, len(ports), maxPorts)
	}
	var errs []error
	for _, p := range ports {
		switch {
		case p == 0:
			errs = append(errs, fmt.Errorf("%s port 0: not a port", what))
		case open && (p == PortOutbound || p == PortInbound || p == PortHBONE || p == PortDNS):
			errs = append(errs, fmt.Errorf("%s port %d: belongs to the agent", what, p))
		}
	}
	return errors.Join(errs...)
}

func validateRanges(what string, ranges []netip.Prefix) error {
	if len(ranges) > maxRanges {
		return fmt.Errorf("%s ranges: %d of them, at most %d are possible", what, len(ranges), maxRanges)
	}
	var errs []error
	for _, p := range ranges {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("%s range %q: not a range of addresses", what, p))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("%s range %s: address has bits beyond the prefix, is %s meant?", what, p, p.Masked()))
		}
	}
	return errors.Join(errs...)
}

// validateAddresses wants addresses that a packet from another namespace can have as
// its source.
func validateAddresses(what string, addrs []netip.Addr) error {
	if len(addrs) > MaxAddresses {
		return fmt.Errorf("%s addresses: %d of them, at most %d are possible", what, len(addrs), MaxAddresses)
	}
	var errs []error
	for _, a := range addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			errs = append(errs, fmt.Errorf("%s address %q: not the address of a host", what, a))
		}
	}
	return errors.Join(errs...)
}
