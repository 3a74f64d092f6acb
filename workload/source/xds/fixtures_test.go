package xds_test

import (
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// addresses makes a response of the address type.
func addresses(nonce string, removed []string, resources ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: xds.AddressType, Nonce: nonce, Resources: resources, RemovedResources: removed}
}

// authorizations makes a response of the authorization type.
func authorizations(nonce string, removed []string, resources ...*discovery.Resource) *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{TypeUrl: xds.AuthorizationType, Nonce: nonce, Resources: resources, RemovedResources: removed}
}

// pod is a workload resource named by its uid.
func pod(t testing.TB, uid, version, ip string) *discovery.Resource {
	return podNamed(t, uid, uid, version, ip)
}

func podNamed(t testing.TB, name, uid, version, ip string) *discovery.Resource {
	addr := netip.MustParseAddr(ip).AsSlice()
	return resource(t, name, version, workloadAddress(&workloadapi.Workload{
		Uid: uid, Name: uid, Namespace: "ns", Addresses: [][]byte{addr},
	}))
}

// rejectedPod is one that does not convert.
func rejectedPod(t testing.TB, uid, version string) *discovery.Resource {
	return resource(t, uid, version, workloadAddress(&workloadapi.Workload{Uid: uid, Addresses: [][]byte{{1, 2, 3}}}))
}

func serviceResource(t testing.TB, namespace, host, version string) *discovery.Resource {
	return resource(t, namespace+"/"+host, version, serviceAddress(&workloadapi.Service{Name: host, Namespace: namespace, Hostname: host}))
}

// denyAll is a policy that denies everything in its namespace.
func denyAll(t testing.TB, namespace, name, version string) *discovery.Resource {
	return resource(t, namespace+"/"+name, version, &security.Authorization{
		Namespace: namespace, Name: name, Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
		Groups: []*security.Group{{}},
	})
}

func workloadAddress(w *workloadapi.Workload) *workloadapi.Address {
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
}

func serviceAddress(s *workloadapi.Service) *workloadapi.Address {
	return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}
}

// What follows turns Culvert's types into the wire's, for the conformance suite.

func wireWorkload(w *workload.Workload) *workloadapi.Workload {
	out := &workloadapi.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		Network: w.Network, Hostname: w.Hostname, Node: w.Node, WorkloadName: w.WorkloadName,
		WorkloadType: map[string]workloadapi.WorkloadType{
			"deployment": workloadapi.WorkloadType_DEPLOYMENT, "cronjob": workloadapi.WorkloadType_CRONJOB,
			"pod": workloadapi.WorkloadType_POD, "job": workloadapi.WorkloadType_JOB,
		}[w.WorkloadType],
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, ClusterId: w.ClusterID,
		Locality:              &workloadapi.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone},
		Waypoint:              wireGateway(w.Waypoint),
		NetworkGateway:        wireGateway(w.NetworkGateway),
		AuthorizationPolicies: w.AuthorizationPolicies,
		Services:              make(map[string]*workloadapi.PortList),
		Capacity:              wrapperspb.UInt32(w.Capacity),
		TunnelProtocol:        workloadapi.TunnelProtocol(w.Protocol),
		NetworkMode:           workloadapi.NetworkMode(w.NetworkMode),
		Status:                workloadapi.WorkloadStatus(w.Health),
		NativeTunnel:          w.NativeTunnel,
	}
	if t := w.ApplicationTunnel; t != nil {
		out.ApplicationTunnel = &workloadapi.ApplicationTunnel{
			Protocol: workloadapi.ApplicationTunnel_Protocol(t.Protocol), Port: uint32(t.Port),
		}
	}
	for _, a := range w.Addresses {
		out.Addresses = append(out.Addresses, a.AsSlice())
	}
	for key, ports := range w.Services {
		out.Services[key.String()] = &workloadapi.PortList{Ports: wirePorts(ports)}
	}
	return out
}

func wirePorts(ports workload.PortMap) []*workloadapi.Port {
	var out []*workloadapi.Port
	for port, target := range ports {
		out = append(out, &workloadapi.Port{ServicePort: uint32(port), TargetPort: uint32(target)})
	}
	return out
}

func wireGateway(g *workload.GatewayAddress) *workloadapi.GatewayAddress {
	if g == nil {
		return nil
	}
	out := &workloadapi.GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if g.Hostname.IsZero() {
		out.Destination = &workloadapi.GatewayAddress_Address{Address: &workloadapi.NetworkAddress{
			Network: g.Address.Network, Address: g.Address.Addr.AsSlice(),
		}}
	} else {
		out.Destination = &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{
			Namespace: g.Hostname.Namespace, Hostname: g.Hostname.Hostname,
		}}
	}
	return out
}

func wireService(s *workload.Service) *workloadapi.Service {
	out := &workloadapi.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: wirePorts(s.Ports),
		Waypoint: wireGateway(s.Waypoint), IpFamilies: workloadapi.IPFamilies(s.IPFamilies), Canonical: s.Canonical,
		Visibility: workloadapi.Service_Visibility(s.Visibility),
	}
	if s.SessionAffinity > 0 {
		config, err := anypb.New(durationpb.New(s.SessionAffinity))
		if err != nil {
			panic(err)
		}
		out.Extensions = []*workloadapi.Extension{{Name: "culvert.io/session-affinity", Config: config}}
	}
	if len(s.ExportTo) > 0 {
		list := new(structpb.ListValue)
		for _, to := range s.ExportTo {
			list.Values = append(list.Values, structpb.NewStringValue(to))
		}
		config, err := anypb.New(list)
		if err != nil {
			panic(err)
		}
		out.Extensions = append(out.Extensions, &workloadapi.Extension{Name: "culvert.io/export-to", Config: config})
	}
	for _, vip := range s.VIPs {
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: vip.Network, Address: vip.Addr.AsSlice()})
	}
	for _, p := range s.CIDRVIPs {
		bits := uint32(p.Prefix.Bits())
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{
			Network: p.Network, Address: p.Prefix.Addr().AsSlice(), Length: &bits,
		})
	}
	for _, san := range s.SubjectAltNames {
		out.SubjectAltNames = append(out.SubjectAltNames, san.String())
	}
	for _, w := range s.WeightedWaypoints {
		out.WeightedWaypoints = append(out.WeightedWaypoints, &workloadapi.WeightedWaypoint{
			Destination: wireGateway(&w.Destination), Weight: w.Weight,
		})
	}
	if lb := s.LoadBalancer; lb != nil {
		out.LoadBalancing = &workloadapi.LoadBalancing{
			Mode: workloadapi.LoadBalancing_Mode(lb.Mode), HealthPolicy: workloadapi.LoadBalancing_HealthPolicy(lb.HealthPolicy),
		}
		for _, p := range lb.Preferences {
			out.LoadBalancing.RoutingPreference = append(out.LoadBalancing.RoutingPreference, workloadapi.LoadBalancing_Scope(p))
		}
	}
	return out
}

func wirePolicy(p *policy.Policy) *security.Authorization {
	out := &security.Authorization{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun,
		Scope: security.Scope(p.Scope), Action: security.Action(p.Action),
	}
	if p.Action == policy.Audit {
		out.Action, out.DryRun, out.Extensions = security.Action_ALLOW, true, []*workloadapi.Extension{{Name: "culvert.io/audit"}}
	}
	for _, rule := range p.Rules {
		g := new(security.Group)
		for _, clause := range rule {
			r := new(security.Rules)
			for _, m := range clause {
				r.Matches = append(r.Matches, wireMatch(m))
			}
			g.Rules = append(g.Rules, r)
		}
		out.Groups = append(out.Groups, g)
	}
	return out
}

func wireMatch(m policy.Match) *security.Match {
	return &security.Match{
		Namespaces: wireStrings(m.Namespaces), NotNamespaces: wireStrings(m.NotNamespaces),
		Principals: wireStrings(m.Principals), NotPrincipals: wireStrings(m.NotPrincipals),
		ServiceAccounts: wireAccounts(m.ServiceAccounts), NotServiceAccounts: wireAccounts(m.NotServiceAccounts),
		SourceIps: wireBlocks(m.SourceIPs), NotSourceIps: wireBlocks(m.NotSourceIPs),
		DestinationIps: wireBlocks(m.DestinationIPs), NotDestinationIps: wireBlocks(m.NotDestinationIPs),
		DestinationPorts: wide(m.DestinationPorts), NotDestinationPorts: wide(m.NotDestinationPorts),
	}
}

func wireStrings(in []policy.StringMatch) []*security.StringMatch {
	var out []*security.StringMatch
	for _, s := range in {
		m := new(security.StringMatch)
		switch s.Kind {
		case policy.Exact:
			m.MatchType = &security.StringMatch_Exact{Exact: s.Value}
		case policy.Prefix:
			m.MatchType = &security.StringMatch_Prefix{Prefix: s.Value}
		case policy.Suffix:
			m.MatchType = &security.StringMatch_Suffix{Suffix: s.Value}
		case policy.Presence:
			m.MatchType = &security.StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, m)
	}
	return out
}

func wireAccounts(in []policy.ServiceAccount) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, a := range in {
		out = append(out, &security.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.Name})
	}
	return out
}

func wireBlocks(in []netip.Prefix) []*security.Address {
	var out []*security.Address
	for _, p := range in {
		out = append(out, &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func wide(in []uint16) []uint32 {
	var out []uint32
	for _, p := range in {
		out = append(out, uint32(p))
	}
	return out
}
