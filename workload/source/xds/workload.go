package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/workloadapi"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// toWorkload converts a workload by the reference's rules.
func toWorkload(w *workloadapi.Workload) (*workload.Workload, error) {
	if w.GetUid() == "" {
		return nil, errors.New("workload without uid")
	}
	out := &workload.Workload{
		UID: w.GetUid(), Name: w.GetName(), Namespace: w.GetNamespace(),
		TrustDomain: w.GetTrustDomain(), ServiceAccount: w.GetServiceAccount(),
		Network: w.GetNetwork(), Hostname: w.GetHostname(), Node: w.GetNode(),
		WorkloadName: w.GetWorkloadName(), WorkloadType: lowerName(w.GetWorkloadType()),
		CanonicalName: w.GetCanonicalName(), CanonicalRevision: w.GetCanonicalRevision(),
		ClusterID: w.GetClusterId(), NativeTunnel: w.GetNativeTunnel(),
		AuthorizationPolicies: slices.Clone(w.GetAuthorizationPolicies()),
		Locality: workload.Locality{
			Region: w.GetLocality().GetRegion(), Zone: w.GetLocality().GetZone(), Subzone: w.GetLocality().GetSubzone(),
		},
		Capacity: 1,
	}
	out.SetDefaults()
	if w.GetCapacity() != nil {
		out.Capacity = w.GetCapacity().GetValue()
	}
	if err := workloadEnums(out, w); err != nil {
		return nil, err
	}
	var err error
	if out.Addresses, err = toAddrs(w.GetAddresses()); err != nil {
		return nil, err
	}
	if out.Waypoint, err = toGateway(w.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if out.NetworkGateway, err = toGateway(w.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network gateway: %w", err)
	}
	if out.ApplicationTunnel, err = toTunnel(w.GetApplicationTunnel()); err != nil {
		return nil, err
	}
	if out.Services, err = toServices(w.GetServices()); err != nil {
		return nil, err
	}
	return out, nil
}

func workloadEnums(out *workload.Workload, w *workloadapi.Workload) (err error) {
	// Anything else was Istio's own mTLS once, which nothing here speaks.
	if out.Protocol, err = enum("tunnel protocol", w.GetTunnelProtocol(), workload.TCP, workload.HBONE); err != nil {
		return err
	}
	if out.NetworkMode, err = enum("network mode", w.GetNetworkMode(), workload.NetworkStandard, workload.HostNetwork); err != nil {
		return err
	}
	out.Health, err = enum("status", w.GetStatus(), workload.Healthy, workload.Unhealthy)
	return err
}

func toAddrs(list [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range list {
		addr, err := toAddr(b)
		if err != nil {
			return nil, err
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

func toTunnel(t *workloadapi.ApplicationTunnel) (*workload.ApplicationTunnel, error) {
	if t == nil {
		return nil, nil
	}
	protocol, err := enum("application tunnel protocol", t.GetProtocol(), workload.TunnelNone, workload.TunnelProxy)
	if err != nil {
		return nil, err
	}
	return &workload.ApplicationTunnel{Protocol: protocol, Port: uint16(t.GetPort())}, nil
}

func toServices(services map[string]*workloadapi.PortList) (map[workload.NamespacedHostname]workload.PortMap, error) {
	if len(services) == 0 {
		return nil, nil
	}
	out := make(map[workload.NamespacedHostname]workload.PortMap, len(services))
	for name, ports := range services {
		key, err := workload.ParseNamespacedHostname(name)
		if err != nil {
			return nil, err
		}
		if out[key], err = toPorts(ports.GetPorts()); err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
	}
	return out, nil
}

// toService converts a service by the reference's rules. Subject alternative names
// that are no identity are returned: they can match no peer.
func toService(s *workloadapi.Service) (out *workload.Service, badNames []string, err error) {
	if s.GetHostname() == "" {
		return nil, nil, errors.New("service without hostname")
	}
	out = &workload.Service{
		Name: s.GetName(), Namespace: s.GetNamespace(), Hostname: s.GetHostname(), Canonical: s.GetCanonical(),
	}
	// Unknown values are public, as in the reference.
	if s.GetVisibility() == workloadapi.Service_NAMESPACE {
		out.Visibility = workload.VisibilityNamespace
	}
	for _, a := range s.GetAddresses() {
		if err := addVIP(out, a); err != nil {
			return nil, nil, err
		}
	}
	if out.Ports, err = toPorts(s.GetPorts()); err != nil {
		return nil, nil, err
	}
	for _, name := range s.GetSubjectAltNames() {
		if id, err := identity.Parse(name); err == nil {
			out.SubjectAltNames = append(out.SubjectAltNames, id)
		} else {
			badNames = append(badNames, name)
		}
	}
	if err := waypoints(out, s); err != nil {
		return nil, nil, err
	}
	if out.LoadBalancer, err = toLoadBalancer(s.GetLoadBalancing()); err != nil {
		return nil, nil, err
	}
	out.IPFamilies, err = enum("ip families", s.GetIpFamilies(),
		workload.FamiliesAutomatic, workload.FamiliesIPv4, workload.FamiliesIPv6, workload.FamiliesDual)
	return out, badNames, err
}

// addVIP adds an address: an exact one without a length or with the full one,
// otherwise a prefix.
func addVIP(out *workload.Service, a *workloadapi.NetworkAddress) error {
	addr, err := toAddr(a.GetAddress())
	if err != nil {
		return err
	}
	if a.Length == nil || a.GetLength() == uint32(addr.BitLen()) {
		out.VIPs = append(out.VIPs, workload.NewNetworkAddress(a.GetNetwork(), addr))
		return nil
	}
	prefix, err := toPrefix(addr, a.GetLength())
	if err != nil {
		return err
	}
	out.CIDRVIPs = append(out.CIDRVIPs, workload.NetworkPrefix{Network: a.GetNetwork(), Prefix: prefix})
	return nil
}

func waypoints(out *workload.Service, s *workloadapi.Service) (err error) {
	if out.Waypoint, err = toGateway(s.GetWaypoint()); err != nil {
		return fmt.Errorf("waypoint: %w", err)
	}
	for _, w := range s.GetWeightedWaypoints() {
		destination, err := toGateway(w.GetDestination())
		if err != nil {
			return fmt.Errorf("weighted waypoint: %w", err)
		}
		if destination == nil {
			return errors.New("weighted waypoint without destination")
		}
		out.WeightedWaypoints = append(out.WeightedWaypoints, workload.WeightedWaypoint{
			Destination: *destination, Weight: w.GetWeight(),
		})
	}
	return nil
}

// Names of Culvert's extensions of a service: its session affinity, a google.protobuf.Duration, and the namespaces that see it, a
// google.protobuf.ListValue of strings.
const (
	sessionAffinity = "culvert.io/session-affinity"
	exportTo        = "culvert.io/export-to"
)

// readExtension reads the extension of that name into value, and reports whether
// there is one. Extensions of others are passed over; of two with the name the
// first counts.
func readExtension(extensions []*workloadapi.Extension, name string, value proto.Message) (bool, error) {
	for _, e := range extensions {
		if e.GetName() != name {
			continue
		}
		if err := e.GetConfig().UnmarshalTo(value); err != nil {
			return false, fmt.Errorf("decode: %w", err)
		}
		return true, nil
	}
	return false, nil
}

// toAffinity returns the session affinity among the extensions, or 0.
func toAffinity(extensions []*workloadapi.Extension) (time.Duration, error) {
	var d durationpb.Duration
	if there, err := readExtension(extensions, sessionAffinity, &d); !there || err != nil {
		return 0, err
	}
	if err := d.CheckValid(); err != nil {
		return 0, err
	}
	if d.AsDuration() <= 0 {
		return 0, fmt.Errorf("time %s is not positive", d.AsDuration())
	}
	return d.AsDuration(), nil
}

// toExport returns the namespaces among the extensions. Without them a service
// that is not for all is for its own namespace.
func toExport(extensions []*workloadapi.Extension) ([]string, error) {
	var list structpb.ListValue
	if there, err := readExtension(extensions, exportTo, &list); !there || err != nil {
		return nil, err
	}
	var out []string
	for _, v := range list.GetValues() {
		if v.GetStringValue() == "" {
			return nil, errors.New("a name of a namespace is empty or no text")
		}
		out = append(out, v.GetStringValue())
	}
	return out, nil
}

func toLoadBalancer(lb *workloadapi.LoadBalancing) (*workload.LoadBalancer, error) {
	if lb == nil {
		return nil, nil
	}
	out := new(workload.LoadBalancer)
	for _, p := range lb.GetRoutingPreference() {
		scope, err := enum("routing preference", p, workload.ScopeUnspecified, workload.ScopeRegion, workload.ScopeZone,
			workload.ScopeSubzone, workload.ScopeNode, workload.ScopeCluster, workload.ScopeNetwork)
		if err != nil {
			return nil, err
		}
		if scope == workload.ScopeUnspecified {
			return nil, errors.New("routing preference without a scope")
		}
		out.Preferences = append(out.Preferences, scope)
	}
	var err error
	if out.Mode, err = enum("load balancing mode", lb.GetMode(),
		workload.LBStandard, workload.LBStrict, workload.LBFailover, workload.LBPassthrough); err != nil {
		return nil, err
	}
	if out.HealthPolicy, err = enum("health policy", lb.GetHealthPolicy(), workload.OnlyHealthy, workload.AllowAll); err != nil {
		return nil, err
	}
	return out, nil
}
