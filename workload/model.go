package workload

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// What WDS leaves out stands for these (reference: WDS conversion rules).
const (
	DefaultTrustDomain    = "cluster.local"
	DefaultServiceAccount = "default"
	DefaultClusterID      = "Kubernetes"
)

// PortMap maps service ports to target ports. A target of 0 in a service's
// map means a named port that only the endpoint can resolve.
type PortMap map[uint16]uint16

// ApplicationTunnel says that a workload (a waypoint) wants its traffic in a
// form of its own.
type ApplicationTunnel struct {
	Protocol TunnelProtocol
	// Port replaces the target port; 0 keeps it.
	Port uint16
}

// Locality is where a workload runs.
type Locality struct {
	Region, Zone, Subzone string
}

// Workload is a pod, a VM or an external address that takes part in the mesh
// or is known to it. Immutable after it was given to a Store.
type Workload struct {
	// UID is unique in the mesh, e.g. "cluster1//Pod/default/web-0". Required.
	UID            string
	Name           string
	Namespace      string
	TrustDomain    string
	ServiceAccount string
	// Network is the network that Addresses belong to; empty is the default.
	Network string
	// Hostname is resolved when there is no address.
	Hostname          string
	Node              string
	WorkloadName      string
	WorkloadType      string // lower case: deployment, cronjob, pod, job
	CanonicalName     string
	CanonicalRevision string
	ClusterID         string
	Locality          Locality

	Addresses []netip.Addr
	// Waypoint is the waypoint for traffic addressed to the workload itself.
	Waypoint *GatewayAddress
	// NetworkGateway leads to the workload from other networks.
	NetworkGateway    *GatewayAddress
	ApplicationTunnel *ApplicationTunnel
	// AuthorizationPolicies names ("namespace/name") the policies that select
	// this workload.
	AuthorizationPolicies []string
	// Services are the services this workload is an endpoint of, with its own
	// target ports.
	Services map[NamespacedHostname]PortMap

	// Capacity is the weight among the endpoints of a service; 0 takes no
	// traffic. WDS's absent value is 1.
	Capacity     uint32
	Protocol     Protocol
	NetworkMode  NetworkMode
	Health       Health
	NativeTunnel bool
}

// SetDefaults fills in what WDS leaves out: trust domain, service account and
// cluster. Sources call it before they hand the workload over.
func (w *Workload) SetDefaults() {
	if w.TrustDomain == "" {
		w.TrustDomain = DefaultTrustDomain
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = DefaultServiceAccount
	}
	if w.ClusterID == "" {
		w.ClusterID = DefaultClusterID
	}
}

// Identity returns the SPIFFE identity of the workload, or the zero ID (which
// no peer can have) when its parts do not form one.
func (w *Workload) Identity() identity.ID {
	td, err := identity.ParseTrustDomain(w.TrustDomain)
	if err != nil {
		return identity.ID{}
	}
	id, err := identity.New(td, w.Namespace, w.ServiceAccount)
	if err != nil {
		return identity.ID{}
	}
	return id
}

// HasAddress reports whether addr is one of the workload's own.
func (w *Workload) HasAddress(addr netip.Addr) bool {
	return slices.Contains(w.Addresses, addr.Unmap())
}

// External reports whether an endpoint of a ServiceEntry or of an EndpointSlice
// is all that the workload is: somebody's address, which the mesh knows for the
// services that lead there.
func (w *Workload) External() bool {
	return strings.Contains(w.UID, "/networking.istio.io/ServiceEntry/") || strings.Contains(w.UID, "/discovery.k8s.io/EndpointSlice/")
}

// String names the workload for logs: "namespace/name".
func (w *Workload) String() string { return w.Namespace + "/" + w.Name }

// Equal reports whether both describe the same workload in the same state.
func (w *Workload) Equal(o *Workload) bool {
	if w == o {
		return true
	}
	if w == nil || o == nil {
		return false
	}
	return w.UID == o.UID && w.Name == o.Name && w.Namespace == o.Namespace &&
		w.TrustDomain == o.TrustDomain && w.ServiceAccount == o.ServiceAccount &&
		w.Network == o.Network && w.Hostname == o.Hostname && w.Node == o.Node &&
		w.WorkloadName == o.WorkloadName && w.WorkloadType == o.WorkloadType &&
		w.CanonicalName == o.CanonicalName && w.CanonicalRevision == o.CanonicalRevision &&
		w.ClusterID == o.ClusterID && w.Locality == o.Locality &&
		w.Capacity == o.Capacity && w.Protocol == o.Protocol && w.NetworkMode == o.NetworkMode &&
		w.Health == o.Health && w.NativeTunnel == o.NativeTunnel &&
		slices.Equal(w.Addresses, o.Addresses) &&
		equalPointer(w.Waypoint, o.Waypoint) && equalPointer(w.NetworkGateway, o.NetworkGateway) &&
		equalPointer(w.ApplicationTunnel, o.ApplicationTunnel) &&
		slices.Equal(w.AuthorizationPolicies, o.AuthorizationPolicies) &&
		maps.EqualFunc(w.Services, o.Services, func(a, b PortMap) bool { return maps.Equal(a, b) })
}

func equalPointer[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// WeightedWaypoint is one of several waypoints that share a service's
// connections in proportion to Weight.
type WeightedWaypoint struct {
	Destination GatewayAddress
	Weight      uint32
}

// LoadBalancer says how endpoints of a service are preferred.
type LoadBalancer struct {
	// Preferences are compared in order; see route for the ranking.
	Preferences  []Scope
	Mode         Mode
	HealthPolicy HealthPolicy
}

// Service is a name with virtual addresses and ports in front of endpoints.
// Immutable after it was given to a Store.
type Service struct {
	Name      string
	Namespace string
	Hostname  string
	// VIPs are exact virtual addresses, each valid in its network.
	VIPs []NetworkAddress
	// CIDRVIPs are whole prefixes that lead to the service when no exact VIP
	// of a visible service matches.
	CIDRVIPs []NetworkPrefix
	// Ports maps service ports to target ports; 0 is a named target port.
	Ports PortMap
	// AppProtocols are the protocols of those service ports that declare one.
	AppProtocols map[uint16]AppProtocol
	// SubjectAltNames are further identities that the service's endpoints may
	// present.
	SubjectAltNames []identity.ID
	// Waypoint is the L7 proxy in front of the service.
	Waypoint *GatewayAddress
	// WeightedWaypoints, when at least one has weight, replace Waypoint.
	WeightedWaypoints []WeightedWaypoint
	// LoadBalancer is nil for the standard: any healthy endpoint.
	LoadBalancer *LoadBalancer
	// SessionAffinity, when positive, keeps each client address at one endpoint
	// while that one is healthy. It says for how long after the client's last
	// connection; route derives the endpoint from the address instead of
	// remembering it, and so keeps it for longer. Zero is no affinity.
	SessionAffinity time.Duration
	IPFamilies      IPFamilies
	// Canonical marks the service that wins among equals of one host name.
	Canonical  bool
	Visibility Visibility
	// ExportTo, when not empty, are the namespaces that see a service of
	// VisibilityNamespace, in order; its own is one of them only by name.
	ExportTo []string
	// IngressUseWaypoint sends what comes through an ingress gateway through
	// the waypoint too.
	IngressUseWaypoint bool
}

// Key returns what the service is stored under.
func (s *Service) Key() NamespacedHostname {
	return NamespacedHostname{Namespace: s.Namespace, Hostname: s.Hostname}
}

// VisibleTo reports whether clients of the namespace may resolve and reach
// the service.
func (s *Service) VisibleTo(namespace string) bool {
	switch {
	case s.Visibility != VisibilityNamespace:
		return true
	case len(s.ExportTo) > 0:
		return slices.Contains(s.ExportTo, namespace)
	}
	return s.Namespace == namespace
}

// Passthrough reports whether traffic to the service goes to the original
// destination without choosing an endpoint.
func (s *Service) Passthrough() bool {
	return s.LoadBalancer != nil && s.LoadBalancer.Mode == LBPassthrough
}

// accepts reports whether an endpoint in this health is offered to clients.
func (s *Service) accepts(h Health) bool {
	return h == Healthy || s.LoadBalancer != nil && s.LoadBalancer.HealthPolicy == AllowAll
}

// String names the service for logs: "namespace/hostname".
func (s *Service) String() string { return s.Key().String() }

// Equal reports whether both describe the same service in the same state.
func (s *Service) Equal(o *Service) bool {
	if s == o {
		return true
	}
	if s == nil || o == nil {
		return false
	}
	return s.Name == o.Name && s.Namespace == o.Namespace && s.Hostname == o.Hostname &&
		slices.Equal(s.VIPs, o.VIPs) && slices.Equal(s.CIDRVIPs, o.CIDRVIPs) &&
		maps.Equal(s.Ports, o.Ports) && maps.Equal(s.AppProtocols, o.AppProtocols) &&
		s.IngressUseWaypoint == o.IngressUseWaypoint && slices.Equal(s.SubjectAltNames, o.SubjectAltNames) &&
		equalPointer(s.Waypoint, o.Waypoint) &&
		slices.Equal(s.WeightedWaypoints, o.WeightedWaypoints) &&
		s.LoadBalancer.equal(o.LoadBalancer) && s.SessionAffinity == o.SessionAffinity && s.IPFamilies == o.IPFamilies &&
		s.Canonical == o.Canonical && s.Visibility == o.Visibility && slices.Equal(s.ExportTo, o.ExportTo)
}

func (l *LoadBalancer) equal(o *LoadBalancer) bool {
	if l == nil || o == nil {
		return l == o
	}
	return l.Mode == o.Mode && l.HealthPolicy == o.HealthPolicy && slices.Equal(l.Preferences, o.Preferences)
}

// Endpoint is a workload as a member of one service.
type Endpoint struct {
	Workload *Workload
	// Ports are the workload's own target ports for the service; they go
	// before the service's.
	Ports PortMap
}
