package workload

import (
	"fmt"
	"net/netip"
	"strings"
)

// NamespacedHostname names a service: Kubernetes namespace and fully
// qualified host name. It is comparable; the zero value names nothing.
type NamespacedHostname struct {
	Namespace string
	Hostname  string
}

// ParseNamespacedHostname reads "namespace/hostname". The host name must not
// be empty nor contain another slash.
func ParseNamespacedHostname(s string) (NamespacedHostname, error) {
	ns, host, ok := strings.Cut(s, "/")
	if !ok || host == "" || strings.Contains(host, "/") {
		return NamespacedHostname{}, fmt.Errorf("parse namespaced hostname %q: want namespace/hostname", s)
	}
	return NamespacedHostname{Namespace: ns, Hostname: host}, nil
}

// String returns "namespace/hostname".
func (n NamespacedHostname) String() string { return n.Namespace + "/" + n.Hostname }

// IsZero reports whether n names nothing.
func (n NamespacedHostname) IsZero() bool { return n == NamespacedHostname{} }

// compare orders by namespace, then host name.
func (n NamespacedHostname) compare(o NamespacedHostname) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Hostname, o.Hostname)
}

// NetworkAddress is an IP address within one network. Networks may reuse
// addresses; the empty network is the default one. It is comparable; Addr is
// never an IPv4-mapped IPv6 address when it was made by NewNetworkAddress.
type NetworkAddress struct {
	Network string
	Addr    netip.Addr
}

// NewNetworkAddress returns the address in the form that the Store is keyed
// by: IPv4-mapped addresses unmapped, zones removed.
func NewNetworkAddress(network string, addr netip.Addr) NetworkAddress {
	return NetworkAddress{Network: network, Addr: addr.Unmap().WithZone("")}
}

// ParseNetworkAddress reads "network/ip"; the network may be empty ("/ip").
func ParseNetworkAddress(s string) (NetworkAddress, error) {
	network, ip, ok := strings.Cut(s, "/")
	if !ok {
		return NetworkAddress{}, fmt.Errorf("parse network address %q: want network/ip", s)
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return NetworkAddress{}, fmt.Errorf("parse network address %q: %w", s, err)
	}
	return NewNetworkAddress(network, addr), nil
}

// String returns "network/ip".
func (a NetworkAddress) String() string {
	if !a.Addr.IsValid() {
		return a.Network + "/"
	}
	return a.Network + "/" + a.Addr.String()
}

// IsZero reports whether a holds no address.
func (a NetworkAddress) IsZero() bool { return !a.Addr.IsValid() }

// normal returns a in the form that indexes are keyed by.
func (a NetworkAddress) normal() NetworkAddress { return NewNetworkAddress(a.Network, a.Addr) }

// NetworkPrefix is an IP prefix within one network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// ParseNetworkPrefix reads "network/ip/bits"; host bits are tolerated and
// cleared.
func ParseNetworkPrefix(s string) (NetworkPrefix, error) {
	network, rest, ok := strings.Cut(s, "/")
	if !ok {
		return NetworkPrefix{}, fmt.Errorf("parse network prefix %q: want network/ip/bits", s)
	}
	p, err := netip.ParsePrefix(rest)
	if err != nil {
		return NetworkPrefix{}, fmt.Errorf("parse network prefix %q: %w", s, err)
	}
	return NetworkPrefix{Network: network, Prefix: p.Masked()}, nil
}

// String returns "network/ip/bits".
func (p NetworkPrefix) String() string { return p.Network + "/" + p.Prefix.String() }

// GatewayAddress points to a waypoint or network gateway, either by the
// namespaced host name of a service (or workload), which adapts to the
// caller's address family, or by an address, which pins it. Exactly one of
// Hostname and Address is set.
type GatewayAddress struct {
	Hostname NamespacedHostname
	Address  NetworkAddress
	// HBONEPort is the port of the gateway's service that speaks HBONE
	// (usually 15008); it is resolved through the service's port map.
	HBONEPort uint16
}

// String returns the destination and the port, for logs and errors.
func (g GatewayAddress) String() string {
	if !g.Hostname.IsZero() {
		return fmt.Sprintf("%s:%d", g.Hostname, g.HBONEPort)
	}
	return fmt.Sprintf("%s:%d", g.Address, g.HBONEPort)
}

// ParseGatewayDestination reads "network/ip" or "namespace/hostname" (an
// address is tried first) and joins it with the port.
func ParseGatewayDestination(s string, port uint16) (GatewayAddress, error) {
	if a, err := ParseNetworkAddress(s); err == nil {
		return GatewayAddress{Address: a, HBONEPort: port}, nil
	}
	h, err := ParseNamespacedHostname(s)
	if err != nil {
		return GatewayAddress{}, fmt.Errorf("parse gateway destination %q: want network/ip or namespace/hostname", s)
	}
	return GatewayAddress{Hostname: h, HBONEPort: port}, nil
}
