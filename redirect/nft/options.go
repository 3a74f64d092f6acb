package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	ExcludeInbound []uint16
	// ExcludeOutbound are TCP destination ports that are called directly.
	ExcludeOutbound []uint16
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
	if slices.Contains(o.ExcludeInbound, 0) {
		errs = append(errs, errors.New("excluded inbound port 0: not a port"))
	}
	if slices.Contains(o.ExcludeOutbound, 0) {
		errs = append(errs, errors.New("excluded outbound port 0: not a port"))
	}
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
