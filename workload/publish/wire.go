package publish

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"

	"github.com/culvert-mesh/culvert/workload"
)

// workloadTypes are the values of the wire by their names in lower case; others
// are told as a deployment, which is the wire's zero.
var workloadTypes = func() map[string]workloadapi.WorkloadType {
	m := make(map[string]workloadapi.WorkloadType)
	for number, name := range workloadapi.WorkloadType_name {
		m[strings.ToLower(name)] = workloadapi.WorkloadType(number)
	}
	return m
}()

// wireWorkload converts a workload. What the wire leaves out for a default is left
// out: the trust domain cluster.local and the capacity 1.
func wireWorkload(w *workload.Workload) *workloadapi.Address {
	out := &workloadapi.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount,
		Network: w.Network, Hostname: w.Hostname, Node: w.Node,
		WorkloadName: w.WorkloadName, WorkloadType: workloadTypes[w.WorkloadType],
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, ClusterId: w.ClusterID,
		Waypoint: wireGateway(w.Waypoint), NetworkGateway: wireGateway(w.NetworkGateway),
		AuthorizationPolicies: w.AuthorizationPolicies, NativeTunnel: w.NativeTunnel,
	}
	if w.TrustDomain != workload.DefaultTrustDomain {
		out.TrustDomain = w.TrustDomain
	}
	if w.Capacity != 1 {
		out.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	if w.Locality != (workload.Locality{}) {
		out.Locality = &workloadapi.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	if w.Protocol == workload.HBONE {
		out.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	if w.NetworkMode == workload.HostNetwork {
		out.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	if w.Health != workload.Healthy {
		out.Status = workloadapi.WorkloadStatus_UNHEALTHY
	}
	if t := w.ApplicationTunnel; t != nil {
		out.ApplicationTunnel = &workloadapi.ApplicationTunnel{Port: uint32(t.Port)}
		if t.Protocol == workload.TunnelProxy {
			out.ApplicationTunnel.Protocol = workloadapi.ApplicationTunnel_PROXY
		}
	}
	for _, a := range w.Addresses {
		out.Addresses = append(out.Addresses, a.AsSlice())
	}
	if len(w.Services) > 0 {
		out.Services = make(map[string]*workloadapi.PortList, len(w.Services))
	}
	for key, ports := range w.Services {
		out.Services[key.String()] = &workloadapi.PortList{Ports: wirePorts(ports)}
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: out}}
}

// wirePorts lists ports in their order, so that equal maps have equal bytes.
func wirePorts(ports workload.PortMap) []*workloadapi.Port {
	out := make([]*workloadapi.Port, 0, len(ports))
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		out = append(out, &workloadapi.Port{ServicePort: uint32(port), TargetPort: uint32(ports[port])})
	}
	return out
}

func wireGateway(g *workload.GatewayAddress) *workloadapi.GatewayAddress {
	if g == nil {
		return nil
	}
	out := &workloadapi.GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if !g.Hostname.IsZero() {
		out.Destination = &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{
			Namespace: g.Hostname.Namespace, Hostname: g.Hostname.Hostname,
		}}
		return out
	}
	out.Destination = &workloadapi.GatewayAddress_Address{Address: wireAddress(g.Address)}
	return out
}

func wireAddress(a workload.NetworkAddress) *workloadapi.NetworkAddress {
	return &workloadapi.NetworkAddress{Network: a.Network, Address: a.Addr.AsSlice()}
}

func wireService(s *workload.Service) *workloadapi.Address {
	out := &workloadapi.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: wirePorts(s.Ports),
		Waypoint: wireGateway(s.Waypoint), LoadBalancing: wireLoadBalancer(s.LoadBalancer), Canonical: s.Canonical,
		IngressUseWaypoint: s.IngressUseWaypoint,
	}
	for _, p := range out.Ports {
		// A name that the wire does not know is its zero: unknown.
		p.AppProtocol = workloadapi.AppProtocol(workloadapi.AppProtocol_value[s.AppProtocols[uint16(p.ServicePort)].String()])
	}
	for _, vip := range s.VIPs {
		out.Addresses = append(out.Addresses, wireAddress(vip))
	}
	for _, p := range s.CIDRVIPs {
		bits := uint32(p.Prefix.Bits())
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: p.Network, Address: p.Prefix.Addr().AsSlice(), Length: &bits})
	}
	for _, id := range s.SubjectAltNames {
		out.SubjectAltNames = append(out.SubjectAltNames, id.String())
	}
	for _, w := range s.WeightedWaypoints {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &workloadapi.WeightedWaypoint{Destination: wireGateway(&w.Destination), Weight: w.Weight})
	}
	if s.Visibility == workload.VisibilityNamespace {
		out.Visibility = workloadapi.Service_NAMESPACE
	}
	if s.SessionAffinity > 0 {
		out.Extensions = append(out.Extensions, wireExtension(sessionAffinity, durationpb.New(s.SessionAffinity)))
	}
	if len(s.ExportTo) > 0 {
		out.Extensions = append(out.Extensions, wireExtension(exportTo, wireTexts(s.ExportTo)))
	}
	switch s.IPFamilies {
	case workload.FamiliesIPv4:
		out.IpFamilies = workloadapi.IPFamilies_IPV4_ONLY
	case workload.FamiliesIPv6:
		out.IpFamilies = workloadapi.IPFamilies_IPV6_ONLY
	case workload.FamiliesDual:
		out.IpFamilies = workloadapi.IPFamilies_DUAL
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: out}}
}

// Names of Culvert's extensions of a service: its session affinity, a google.protobuf.Duration, and the namespaces that see it, a
// google.protobuf.ListValue of strings. Others' clients pass over them; to those a service that is for some namespaces is for
// its own.
const (
	sessionAffinity = "culvert.io/session-affinity"
	exportTo        = "culvert.io/export-to"
)

func wireExtension(name string, value proto.Message) *workloadapi.Extension {
	config, err := anypb.New(value)
	if err != nil {
		return nil // not reached: these have nothing that cannot be encoded
	}
	return &workloadapi.Extension{Name: name, Config: config}
}

func wireTexts(texts []string) *structpb.ListValue {
	out := new(structpb.ListValue)
	for _, t := range texts {
		out.Values = append(out.Values, structpb.NewStringValue(t))
	}
	return out
}

func wireLoadBalancer(lb *workload.LoadBalancer) *workloadapi.LoadBalancing {
	if lb == nil {
		return nil
	}
	out := new(workloadapi.LoadBalancing)
	if lb.HealthPolicy == workload.AllowAll {
		out.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	switch lb.Mode {
	case workload.LBStrict:
		out.Mode = workloadapi.LoadBalancing_STRICT
	case workload.LBFailover:
		out.Mode = workloadapi.LoadBalancing_FAILOVER
	case workload.LBPassthrough:
		out.Mode = workloadapi.LoadBalancing_PASSTHROUGH
	}
	for _, p := range lb.Preferences {
		out.RoutingPreference = append(out.RoutingPreference, scopes[p])
	}
	return out
}

var scopes = map[workload.Scope]workloadapi.LoadBalancing_Scope{
	workload.ScopeRegion: workloadapi.LoadBalancing_REGION, workload.ScopeZone: workloadapi.LoadBalancing_ZONE,
	workload.ScopeSubzone: workloadapi.LoadBalancing_SUBZONE, workload.ScopeNode: workloadapi.LoadBalancing_NODE,
	workload.ScopeCluster: workloadapi.LoadBalancing_CLUSTER, workload.ScopeNetwork: workloadapi.LoadBalancing_NETWORK,
}

// aliases returns the addresses by which an on-demand client may have asked for
// the resource: "network/ip", and with "/bits" for prefixes.
func (r *resource) aliases() []string {
	if r == nil {
		return nil
	}
	var out []string
	switch {
	case r.workload != nil:
		for _, a := range r.workload.Addresses {
			out = append(out, alias(r.workload.Network, a))
		}
	case r.service != nil:
		for _, vip := range r.service.VIPs {
			out = append(out, alias(vip.Network, vip.Addr))
		}
		for _, p := range r.service.CIDRVIPs {
			out = append(out, p.String())
		}
	}
	return out
}

func alias(network string, addr netip.Addr) string {
	return workload.NewNetworkAddress(network, addr).String()
}

// compareResources orders services before workloads, then by name: a client that
// takes a response in order knows a service before its endpoints.
func compareResources(a, b *resource) int {
	rank := func(r *resource) int {
		if r.service != nil {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.name, b.name))
}
