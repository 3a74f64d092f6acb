package kube

import (
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/workload"
)

// serviceSurroundings are what a service's translation takes from other
// objects.
type serviceSurroundings struct {
	namespace *namespaceObject
	waypoint  *workload.GatewayAddress
	weighted  []workload.WeightedWaypoint
	bound     bool // to a waypoint that can be used
	canonical bool
	// lost are addresses that others have the better claim to.
	lost []netip.Addr
}

func (s *settings) host(k key) string { return k.name + "." + k.namespace + ".svc." + s.domain }

// translateService returns a Service (reference, section 4.5), or nil for one
// that is only a name for another host.
func translateService(o *serviceObject, in serviceSurroundings, s *settings) *workload.Service {
	if o.external {
		return nil
	}
	out := &workload.Service{
		Name: o.name, Namespace: o.namespace, Hostname: s.host(o.key),
		VIPs: networkAddresses(s.network, o.vips, nil), Ports: portsOf(o.ports),
		Waypoint: in.waypoint, WeightedWaypoints: in.weighted,
		LoadBalancer: loadBalancer(o, in.namespace), SessionAffinity: o.affinity, IPFamilies: o.families,
		// Other namespaces' ServiceEntries with the name never win over it.
		Canonical: true, AppProtocols: appProtocols(o.ports),
	}
	if o.selector.empty() {
		// Endpoints have the ports of their slices and no others, as to kube-proxy.
		for port := range out.Ports {
			out.Ports[port] = 0
		}
	}
	_, out.IngressUseWaypoint = ingressUse(o.labels, in.namespace)
	out.IngressUseWaypoint = out.IngressUseWaypoint && in.bound
	return out
}

func loadBalancer(o *serviceObject, ns *namespaceObject) *workload.LoadBalancer {
	var lb *workload.LoadBalancer
	if o.localOnly {
		lb = &workload.LoadBalancer{Mode: workload.LBStrict, Preferences: []workload.Scope{workload.ScopeNode}}
	} else {
		lb = nearest(o.distribution, ns)
	}
	if o.publishNotReady {
		if lb == nil {
			lb = new(workload.LoadBalancer)
		}
		lb.HealthPolicy = workload.AllowAll
	}
	return lb
}

// nearest returns the preference of an object, or else of its namespace.
func nearest(d distribution, ns *namespaceObject) *workload.LoadBalancer {
	if d == distributionUnset && ns != nil {
		d = ns.distribution
	}
	lb := &workload.LoadBalancer{Mode: workload.LBFailover}
	lb.Preferences = []workload.Scope{workload.ScopeNetwork, workload.ScopeRegion, workload.ScopeZone}
	switch d {
	case distributionZone:
	case distributionNode:
		lb.Preferences = append(lb.Preferences, workload.ScopeSubzone, workload.ScopeNode)
	default:
		return nil
	}
	return lb
}

func portsOf(ports []servicePort) workload.PortMap {
	out := make(workload.PortMap, len(ports))
	for i := range ports {
		out[ports[i].port] = ports[i].target
	}
	return out
}

func appProtocols(ports []servicePort) map[uint16]workload.AppProtocol {
	var out map[uint16]workload.AppProtocol
	for i := range ports {
		if ports[i].app == workload.AppUnknown {
			continue
		}
		if out == nil {
			out = make(map[uint16]workload.AppProtocol)
		}
		out[ports[i].port] = ports[i].app
	}
	return out
}

func networkAddresses(network string, addrs, without []netip.Addr) []workload.NetworkAddress {
	var out []workload.NetworkAddress
	for _, a := range addrs {
		na := workload.NewNetworkAddress(network, a)
		if !slices.Contains(without, a) && !slices.Contains(out, na) {
			out = append(out, na)
		}
	}
	return out
}

// translateHost returns one host of a ServiceEntry as a service.
func translateHost(o *serviceEntryObject, host string, in serviceSurroundings, s *settings) *workload.Service {
	out := &workload.Service{
		Name: o.name, Namespace: o.namespace, Hostname: host, Ports: portsOf(o.ports),
		SubjectAltNames: o.names, Waypoint: in.waypoint, WeightedWaypoints: in.weighted, Canonical: in.canonical,
		Visibility: o.visibility, ExportTo: o.exportTo,
	}
	out.AppProtocols = appProtocols(o.ports)
	_, out.IngressUseWaypoint = ingressUse(o.labels, in.namespace)
	out.IngressUseWaypoint = out.IngressUseWaypoint && in.bound
	if o.resolution == resolutionNone {
		out.LoadBalancer = &workload.LoadBalancer{Mode: workload.LBPassthrough, HealthPolicy: workload.AllowAll}
	} else {
		out.LoadBalancer = nearest(o.distribution, in.namespace)
	}
	if len(o.vips)+len(o.cidrs) == 0 {
		out.VIPs = networkAddresses(s.network, o.automatic[host], in.lost)
		return out
	}
	out.VIPs = networkAddresses(s.network, o.vips, in.lost)
	for _, p := range o.cidrs {
		out.CIDRVIPs = append(out.CIDRVIPs, workload.NetworkPrefix{Network: s.network, Prefix: p})
	}
	return out
}

func wildcard(host string) bool { return host != "" && host[0] == '*' }

// implicit reports whether the hosts of a ServiceEntry are its endpoints.
func (o *serviceEntryObject) implicit() bool {
	return len(o.endpoints) == 0 && !o.selects && (o.resolution == resolutionDNS || o.resolution == resolutionDynamicDNS)
}

// addresses returns all exact addresses that a ServiceEntry claims.
func (o *serviceEntryObject) addresses() []netip.Addr {
	if o == nil {
		return nil
	}
	out := slices.Clone(o.vips)
	for _, list := range o.automatic {
		out = append(out, list...)
	}
	return out
}
