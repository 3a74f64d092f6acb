package workload

import "net/netip"

// Protocol is what a workload speaks on the wire to its peers.
type Protocol uint8

// The zero value is TCP: plain, outside the mesh.
const (
	TCP Protocol = iota
	HBONE
)

// String returns the name used in files and dumps.
func (p Protocol) String() string { return name(p, "TCP", "HBONE") }

// NetworkMode says whether a workload has addresses of its own.
type NetworkMode uint8

// A HostNetwork workload shares its node's address and is never found by it.
const (
	NetworkStandard NetworkMode = iota
	HostNetwork
)

// String returns the name used in files and dumps.
func (m NetworkMode) String() string { return name(m, "Standard", "HostNetwork") }

// Health is the readiness of a workload.
type Health uint8

// The zero value is Healthy, as in WDS.
const (
	Healthy Health = iota
	Unhealthy
)

// String returns the name used in files and dumps.
func (h Health) String() string { return name(h, "Healthy", "Unhealthy") }

// TunnelProtocol is how an application tunnel carries the original
// destination.
type TunnelProtocol uint8

// TunnelProxy sends a PROXY protocol header first.
const (
	TunnelNone TunnelProtocol = iota
	TunnelProxy
)

// String returns the name used in files and dumps.
func (p TunnelProtocol) String() string { return name(p, "NONE", "PROXY") }

// Scope is one step of a locality preference.
type Scope uint8

// ScopeUnspecified is no valid preference; sources reject it.
const (
	ScopeUnspecified Scope = iota
	ScopeRegion
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// String returns the name used in files and dumps.
func (s Scope) String() string {
	return name(s, "Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network")
}

// Mode is how locality preferences are applied.
type Mode uint8

// LBStandard ignores preferences, LBStrict demands all of them, LBFailover
// prefers the best match, LBPassthrough chooses no endpoint at all.
const (
	LBStandard Mode = iota
	LBStrict
	LBFailover
	LBPassthrough
)

// String returns the name used in files and dumps.
func (m Mode) String() string { return name(m, "Standard", "Strict", "Failover", "Passthrough") }

// HealthPolicy says whether unhealthy endpoints are offered.
type HealthPolicy uint8

// The zero value is OnlyHealthy.
const (
	OnlyHealthy HealthPolicy = iota
	AllowAll
)

// String returns the name used in files and dumps.
func (p HealthPolicy) String() string { return name(p, "OnlyHealthy", "AllowAll") }

// Visibility says who may resolve and reach a service.
type Visibility uint8

// The zero value is VisibilityPublic; VisibilityNamespace limits a service to
// clients of its own namespace.
const (
	VisibilityPublic Visibility = iota
	VisibilityNamespace
)

// String returns the name used in files and dumps.
func (v Visibility) String() string { return name(v, "Public", "Namespace") }

// IPFamilies restricts the address family of a service's endpoints.
type IPFamilies uint8

// FamiliesAutomatic sets no restriction.
const (
	FamiliesAutomatic IPFamilies = iota
	FamiliesIPv4
	FamiliesIPv6
	FamiliesDual
)

// String returns the name used in files and dumps; empty when automatic.
func (f IPFamilies) String() string { return name(f, "", "IPv4", "IPv6", "Dual") }

// Accepts reports whether addr is of an allowed family.
func (f IPFamilies) Accepts(addr netip.Addr) bool {
	switch f {
	case FamiliesIPv4:
		return addr.Unmap().Is4()
	case FamiliesIPv6:
		return !addr.Unmap().Is4()
	default:
		return true
	}
}

// AppProtocol is what a port of a service speaks, as its owner declares it. The
// tunnel does not look at it; waypoints do.
type AppProtocol uint8

// The zero value is AppUnknown: nothing is declared.
const (
	AppUnknown AppProtocol = iota
	AppHTTP1
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// String returns the name that WDS has for it.
func (p AppProtocol) String() string {
	return name(p, "UNKNOWN", "HTTP11", "HTTP2", "GRPC", "TCP", "TLS")
}

func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "Unknown"
}
