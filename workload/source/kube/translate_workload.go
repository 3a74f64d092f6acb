package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// settings are what all translations share.
type settings struct {
	cluster, trustDomain, domain, network, root string
	aliases                                     []string // of the trust domain
	lenientL7                                   bool
}

// memberships are the services that a workload is an endpoint of.
type memberships = map[workload.NamespacedHostname]workload.PortMap

// surroundings are what a workload's translation takes from other objects.
type surroundings struct {
	locality workload.Locality // of its node
	services memberships
	policies []string
	disabled bool // announced without HBONE, by PeerAuthentication
	waypoint *workload.GatewayAddress
	tunnel   *workload.ApplicationTunnel
	// lost are addresses that another pod has the better claim to.
	lost []netip.Addr
}

// UIDs (reference, section 4.2).

func (s *settings) podUID(k key) string { return s.cluster + "//Pod/" + k.String() }

func (s *settings) workloadEntryUID(k key) string {
	return s.cluster + "/networking.istio.io/WorkloadEntry/" + k.String()
}

func (s *settings) serviceEntryUID(k key, where string) string {
	return s.cluster + "/networking.istio.io/ServiceEntry/" + k.String() + "/" + where
}

func (s *settings) sliceUID(k key, a netip.Addr) string {
	return s.cluster + "/discovery.k8s.io/EndpointSlice/" + k.String() + "/" + a.String()
}

// translatePod returns the pod as a workload, or nil when it is none: it has
// ended or has no address yet.
func translatePod(p *podObject, in surroundings, s *settings) *workload.Workload {
	if p.terminal || len(p.ips) == 0 {
		return nil
	}
	w := &workload.Workload{
		UID: s.podUID(p.key), Name: p.name, Namespace: p.namespace,
		TrustDomain: s.trustDomain, ServiceAccount: p.account.String(), Network: s.network,
		Node: p.node.String(), WorkloadName: p.workloadName.String(), WorkloadType: "pod", ClusterID: s.cluster,
		Locality: in.locality, Addresses: p.ips, Capacity: 1,
	}
	w.CanonicalName, w.CanonicalRevision = canonical(p.labels, w.WorkloadName)
	w.Protocol, w.NativeTunnel = protocolOf(p.labels, p.enrolled, in.disabled)
	if p.hostNetwork {
		w.NetworkMode = workload.HostNetwork
	}
	if !p.ready || p.deleting {
		w.Health = workload.Unhealthy
	}
	if len(in.lost) > 0 {
		w.Addresses = slices.DeleteFunc(slices.Clone(p.ips), func(a netip.Addr) bool { return slices.Contains(in.lost, a) })
		if len(w.Addresses) == 0 {
			w.Health = workload.Unhealthy
		}
	}
	in.attach(w)
	return w
}

// attach fills in what comes from other objects, the same for every kind.
func (in *surroundings) attach(w *workload.Workload) {
	w.Services, w.AuthorizationPolicies = in.services, in.policies
	w.Waypoint, w.ApplicationTunnel = in.waypoint, in.tunnel
	w.SetDefaults()
}

// protocolOf says what a workload speaks: HBONE if the agent has enrolled it,
// or if it terminates tunnels itself.
func protocolOf(labels pairs, enrolled, disabled bool) (p workload.Protocol, native bool) {
	for v := range strings.SplitSeq(labels.value(labelTunnel), ",") {
		native = native || v == tunnelHTTP
	}
	if (native || enrolled) && !disabled {
		return workload.HBONE, native
	}
	return workload.TCP, false
}

// translateWorkloadEntry returns a WorkloadEntry as a workload, or nil when it
// is at fault.
func translateWorkloadEntry(o *workloadEntryObject, in surroundings, s *settings) *workload.Workload {
	if o.fault != "" {
		return nil
	}
	w := o.endpoint.workload(s)
	w.UID, w.Name, w.Namespace = s.workloadEntryUID(o.key), o.name, o.namespace
	w.WorkloadName = o.workloadName
	w.CanonicalName, w.CanonicalRevision = canonical(o.labels, w.WorkloadName)
	w.Protocol, w.NativeTunnel = protocolOf(o.labels, o.enrolled, in.disabled)
	in.attach(w)
	return w
}

// translateServiceEntry returns one endpoint of a ServiceEntry as a workload.
func translateServiceEntry(o *serviceEntryObject, e *endpoint, in surroundings, s *settings) *workload.Workload {
	w := e.workload(s)
	w.UID, w.Name, w.Namespace = s.serviceEntryUID(o.key, e.where()), o.name, o.namespace
	w.WorkloadName = o.name
	w.CanonicalName, w.CanonicalRevision = canonical(o.labels, w.WorkloadName)
	w.Protocol, w.NativeTunnel = protocolOf(o.labels, o.enrolled, in.disabled)
	in.attach(w)
	return w
}

// workload returns what an endpoint says by itself.
func (e *endpoint) workload(s *settings) *workload.Workload {
	w := &workload.Workload{
		TrustDomain: s.trustDomain, ServiceAccount: e.account, Network: cmp.Or(e.network, s.network),
		Hostname: e.host, WorkloadType: "pod", ClusterID: s.cluster, Locality: e.locality,
		Capacity: max(e.weight, 1),
	}
	if e.address.IsValid() {
		w.Addresses = []netip.Addr{e.address}
	}
	return w
}

// translateSlice returns the endpoints that only the slice knows. Nothing is
// known of them but the address, which others may have too, and the node, by
// which clients choose: that of a slice's author, who says it of his own service.
func translateSlice(
	o *sliceObject, service workload.NamespacedHostname, ports workload.PortMap, localityOf func(text) workload.Locality, s *settings,
) []*workload.Workload {
	out := make([]*workload.Workload, 0, len(o.endpoints))
	for i := range o.endpoints {
		e := &o.endpoints[i]
		w := &workload.Workload{
			UID: s.sliceUID(o.key, e.addresses[0]), Name: o.name, Namespace: o.namespace,
			TrustDomain: s.trustDomain, Network: s.network, WorkloadType: "deployment", ClusterID: s.cluster,
			Addresses: e.addresses, NetworkMode: workload.HostNetwork, Capacity: 1,
			Node: e.node.String(), Locality: localityOf(e.node), Services: memberships{service: ports},
		}
		if !e.healthy {
			w.Health = workload.Unhealthy
		}
		w.SetDefaults()
		out = append(out, w)
	}
	return out
}

// targetPorts resolves a service's ports for one who is behind it and has ports
// with names: those of targets or, if they are compared too, those of the service's
// ports where no target is named. A named target that is not there is left out.
func targetPorts(ports []servicePort, own func(name string) (uint16, bool), compared bool) workload.PortMap {
	out := make(workload.PortMap, len(ports))
	for i := range ports {
		p := &ports[i]
		name := p.targetName
		if compared && name == "" {
			name = p.name
		}
		if n, ok := own(name); ok {
			out[p.port] = n
		} else if p.targetName == "" {
			out[p.port] = p.target
		}
	}
	return out
}

// podPorts resolves a service's ports for a pod. Those of a ServiceEntry name no
// targets.
func podPorts(ports []servicePort, named pairs, ofServiceEntry bool) workload.PortMap {
	return targetPorts(ports, func(name string) (uint16, bool) { return lookupPort(named, name) }, ofServiceEntry)
}

// endpointPorts resolves a service's ports for an endpoint that names its own.
func endpointPorts(ports []servicePort, named map[string]uint16) workload.PortMap {
	return targetPorts(ports, func(name string) (uint16, bool) {
		n, ok := named[name]
		return n, ok && name != ""
	}, true)
}

func lookupPort(named pairs, name string) (uint16, bool) {
	if name == "" {
		return 0, false
	}
	v, ok := named.get(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 16)
	return uint16(n), err == nil
}

// slicePorts joins a slice's ports with the service's by their names. The first of a
// name counts.
func slicePorts(ports []servicePort, own []servicePort) workload.PortMap {
	targets := make(map[string]uint16, len(own))
	for i := range own {
		if _, ok := targets[own[i].name]; !ok {
			targets[own[i].name] = own[i].target
		}
	}
	out := make(workload.PortMap, len(targets))
	for i := range ports {
		if target, ok := targets[ports[i].name]; ok {
			out[ports[i].port] = target
		}
	}
	return out
}
