package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Nothing of a namespace that is not known is published: its labels may ask
// for a waypoint. Namespaces come before what is in them and go after it.

func (st *state) flushPod(k key, b *batch) {
	p, ns := st.pods.byKey.get(k), st.namespaces[k.namespace]
	var w *workload.Workload
	if p != nil && ns != nil {
		w = translatePod(p, st.aroundPod(p, ns), &st.settings)
	}
	if w == nil {
		b.events = append(b.events, workload.Removal(st.podUID(k)))
		return
	}
	b.events = append(b.events, workload.Upsert(w))
}

func (st *state) aroundPod(p *podObject, ns *namespaceObject) surroundings {
	in := surroundings{services: st.membershipsOf(p), lost: st.conflict(p), locality: st.localityOf(p.node)}
	st.govern(&in, p.namespace, p.labels)
	if name, ok := p.labels.get(labelGatewayName); ok && st.waypointsByKey[key{p.namespace, name}] != nil {
		// An instance of a gateway has no waypoint in front, and speaks nothing
		// but HBONE.
		in.disabled = false
		in.tunnel = st.waypointsByKey[key{p.namespace, name}].tunnel
		return in
	}
	in.waypoint = waypoints(st.waypoint).bind(p.labels, ns, trafficWorkload).address
	return in
}

func (st *state) localityOf(node text) workload.Locality {
	if n := st.nodes[node.String()]; n != nil {
		return n.locality
	}
	return workload.Locality{}
}

func (st *state) govern(in *surroundings, namespace string, labels pairs) {
	var peer peerPolicy
	in.policies, peer = st.policiesOf(namespace, labels)
	in.disabled = peer.disabled
}

// membershipsOf returns the services that a pod is an endpoint of: those that
// select it and those whose slices name it (reference, section 4.4).
func (st *state) membershipsOf(p *podObject) memberships {
	var out memberships
	put := func(k workload.NamespacedHostname, ports workload.PortMap) {
		if out == nil {
			out = make(memberships)
		}
		out[k] = ports
	}
	for r := range st.selecting.matching(p.namespace, p.labels) {
		for _, host := range st.hostsOf(r) {
			k := workload.NamespacedHostname{Namespace: r.namespace, Hostname: host}
			if pub := st.published[k]; pub.ref == r {
				put(k, podPorts(pub.ports, p.ports, r.kind == kindServiceEntry))
			}
		}
	}
	var referring memberships // one service may have several slices, by their ports
	for r := range st.slicesOfPod[p.key] {
		s := st.endpointSlices.get(r.key)
		if s == nil || s.service == "" || !s.names(p) {
			continue
		}
		owner := key{s.namespace, s.service}
		k := workload.NamespacedHostname{Namespace: s.namespace, Hostname: st.host(owner)}
		if _, member := out[k]; member {
			continue
		}
		if pub := st.published[k]; pub.ref == (ref{kindService, owner}) {
			ports := referring[k]
			if ports == nil {
				if ports = make(workload.PortMap); referring == nil {
					referring = make(memberships)
				}
				referring[k] = ports
			}
			for from, to := range slicePorts(pub.ports, s.ports) {
				if had, ok := ports[from]; !ok || to < had { // the same one whatever their order
					ports[from] = to
				}
			}
		}
	}
	for k, ports := range referring {
		put(k, ports)
	}
	return out
}

// names reports whether the slice refers to this very pod.
func (o *sliceObject) names(p *podObject) bool {
	for i, k := range o.pods {
		if k == p.key && (o.podUIDs[i] == "" || o.podUIDs[i] == p.uid) {
			return true
		}
	}
	return false
}

func (st *state) hostsOf(r ref) []string {
	if r.kind == kindService {
		return []string{st.host(r.key)}
	}
	if o := st.serviceEntries.get(r.key); o != nil {
		return o.hosts
	}
	return nil
}

func (st *state) sliceWorkloads(k key) []*workload.Workload {
	o := st.endpointSlices.get(k)
	if o == nil || o.service == "" {
		return nil
	}
	owner := key{o.namespace, o.service}
	host := workload.NamespacedHostname{Namespace: o.namespace, Hostname: st.host(owner)}
	pub := st.published[host]
	if pub.ref != (ref{kindService, owner}) {
		return nil
	}
	return translateSlice(o, host, slicePorts(pub.ports, o.ports), st.localityOf, &st.settings)
}

func (st *state) workloadEntry(r ref) []*workload.Workload {
	o, ns := st.workloadEntries.get(r.key), st.namespaces[r.namespace]
	if o == nil || ns == nil {
		st.settle(r)
		return nil
	}
	var in surroundings
	st.govern(&in, o.namespace, o.labels)
	for s := range st.selecting.matching(o.namespace, o.labels) {
		for _, host := range st.hostsOf(s) {
			k := workload.NamespacedHostname{Namespace: s.namespace, Hostname: host}
			if pub := st.published[k]; pub.ref == s {
				if in.services == nil {
					in.services = make(memberships)
				}
				in.services[k] = endpointPorts(pub.ports, o.endpoint.ports)
			}
		}
	}
	b := waypoints(st.waypoint).bind(o.labels, ns, trafficWorkload)
	in.waypoint = b.address
	st.report(r, &o.header, boundConditions(&b, pairs{}, ns), o.conditions)
	fault := o.fault
	for _, a := range o.addresses() {
		switch {
		case fault != "":
		case len(st.podsOfAddress[a]) > 0:
			fault = "its address " + a.String() + " belongs to a pod, which is what is meant by it"
		case len(st.servicesOfVIP[a]) > 0:
			fault = "its address " + a.String() + " belongs to a Service, which is what is meant by it"
		}
	}
	st.fault(r, fault)
	w := translateWorkloadEntry(o, in, &st.settings)
	if w == nil {
		return nil
	}
	st.disown(w)
	return []*workload.Workload{w}
}

// disown takes its addresses from what somebody has declared at that of a Service: it is an endpoint there like those of a
// slice, and connections to the address are the Service's, with its waypoint.
func (st *state) disown(w *workload.Workload) {
	taken := func(a netip.Addr) bool { return len(st.servicesOfVIP[a]) > 0 }
	if w.Network == st.settings.network && slices.ContainsFunc(w.Addresses, taken) {
		w.NetworkMode = workload.HostNetwork
	}
}

func (st *state) entryWorkloads(r ref) []*workload.Workload {
	o, ns := st.serviceEntries.get(r.key), st.namespaces[r.namespace]
	if o == nil || ns == nil {
		st.fault(r, "")
		st.settle(r)
		return nil
	}
	var won []string
	for _, host := range o.hosts {
		if st.published[workload.NamespacedHostname{Namespace: o.namespace, Hostname: host}].ref == r {
			won = append(won, host)
		}
	}
	fault := st.entryFault(o, won)
	st.fault(r, fault)
	st.reportEntry(r, o, ns, fault)
	if len(won) == 0 {
		return nil
	}
	var in surroundings
	st.govern(&in, o.namespace, o.labels)
	if o.implicit() {
		return st.implicitWorkloads(o, won, in)
	}
	out := make([]*workload.Workload, 0, len(o.endpoints))
	for i := range o.endpoints {
		e := &o.endpoints[i]
		one := in
		one.services = make(memberships, len(won))
		ports := endpointPorts(o.ports, e.ports)
		for _, host := range won {
			one.services[workload.NamespacedHostname{Namespace: o.namespace, Hostname: host}] = ports
		}
		one.waypoint = waypoints(st.waypoint).bind(e.labels, ns, trafficWorkload).address
		w := translateServiceEntry(o, e, one, &st.settings)
		st.disown(w)
		out = append(out, w)
	}
	return out
}

// implicitWorkloads makes one workload of each host.
func (st *state) implicitWorkloads(o *serviceEntryObject, won []string, in surroundings) []*workload.Workload {
	out := make([]*workload.Workload, 0, len(won))
	for _, host := range won {
		one := in
		one.services = memberships{
			{Namespace: o.namespace, Hostname: host}: endpointPorts(o.ports, nil),
		}
		out = append(out, translateServiceEntry(o, &endpoint{host: host}, one, &st.settings))
	}
	return out
}

// entryFault says what of a ServiceEntry is not used.
func (st *state) entryFault(o *serviceEntryObject, won []string) string {
	var faults []string
	if o.fault != "" {
		faults = append(faults, o.fault)
	}
	if n := len(o.hosts) - len(won); n > 0 && !o.hidden {
		faults = append(faults, fmt.Sprintf("%d of its hosts belong to an older object of the namespace", n))
	}
	if lost := st.mistaken(o); len(lost) > 0 {
		faults = append(faults, fmt.Sprintf("%d of its addresses, such as %s, belong to a Service or a pod", len(lost), lost[0]))
	}
	if other, a, ok := st.sharing(o); ok {
		faults = append(faults, fmt.Sprintf("address %s is that of %s too, and leads to one of them only", a, other))
	}
	if o.wantsAddresses() && !st.allocations[o.key].enough {
		faults = append(faults, "no address is left to allocate to all of its hosts")
	}
	return strings.Join(faults, "; ")
}

// sharing returns the oldest other ServiceEntry of the namespace that names one
// of the addresses that o names, unless both let connections pass to where they
// go.
func (st *state) sharing(o *serviceEntryObject) (key, netip.Addr, bool) {
	var oldest *serviceEntryObject
	for _, a := range o.vips {
		for r := range st.entriesOfAddress[a] {
			other := st.serviceEntries.get(r.key)
			if other == nil || r.key == o.key || r.namespace != o.namespace || !slices.Contains(other.vips, a) ||
				o.resolution == resolutionNone && other.resolution == resolutionNone {
				continue
			}
			if oldest == nil || older(&other.header, &oldest.header) {
				oldest = other
			}
		}
		if oldest != nil {
			return oldest.key, a, true
		}
	}
	return key{}, netip.Addr{}, false
}

// reportEntry says what is to be told of a ServiceEntry, its fault among that.
func (st *state) reportEntry(r ref, o *serviceEntryObject, ns *namespaceObject, fault string) {
	b, _ := st.bind(o.labels, o.canaryWeight, ns)
	want := boundConditions(&b, o.labels, ns)
	if fault != "" {
		want = append(want, Condition{Type: conditionZtunnel, Reason: reasonInvalid, Message: bounded(fault)})
	}
	if b.waypoint == nil {
		switch {
		case slices.ContainsFunc(o.hosts, wildcard):
			want = append(want, Condition{
				Type: conditionMissing, Status: true, Reason: "NoWaypointForWildcardService",
				Message: "ServiceEntry will not apply until it is bound to a valid waypoint.",
			})
		case o.racing:
			want = append(want, Condition{
				Type: conditionMissing, Status: true, Reason: "NoWaypointForRacingConnectStrategy",
				Message: "ServiceEntry has a non-default connect strategy but no waypoint bound. " +
					"A waypoint is required for connect strategies to take effect for ambient clients.",
			})
		}
	}
	st.reportWith(r, &o.header, want, o.conditions, st.allocations[o.key].want, o.assigned)
}

// ingressUse reports whether the label is there, on the service or else on the
// namespace, and whether it says yes.
func ingressUse(labels pairs, ns *namespaceObject) (present, use bool) {
	v, ok := labels.get(labelIngressUse)
	if !ok && ns != nil {
		v, ok = ns.labels.get(labelIngressUse)
	}
	if !ok {
		return false, false
	}
	use, err := strconv.ParseBool(v)
	return true, err == nil && use
}
