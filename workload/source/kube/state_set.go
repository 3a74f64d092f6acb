package kube

import (
	"net/netip"
	"reflect"
	"slices"
)

// heads of objects that may not be there.
func headOf[T any, P interface {
	*T
	head() *header
}](o P) *header {
	if o == nil {
		return nil
	}
	return o.head()
}

func (st *state) setPod(r ref, old, next *podObject) {
	st.pods.set(r.key, next)
	st.mark(r)
	before, after := old.claims(), next.claims()
	for _, a := range before {
		if !slices.Contains(after, a) {
			st.podsOfAddress.remove(a, r.key)
		}
	}
	for _, a := range after {
		st.podsOfAddress.add(a, r.key)
	}
	for _, a := range append(before, after...) {
		for _, k := range st.podsOfAddress[a] {
			st.markKey(kindPod, k)
		}
		if len(before) != len(after) || !slices.Contains(before, a) || !slices.Contains(after, a) {
			st.markEntriesOf(a)
			st.markMachinesAt(a)
		}
	}
	if old != nil && next != nil && old.uid == next.uid && len(old.ips) > 0 && !slices.Equal(old.ips, next.ips) {
		st.log.Info("pod changed its addresses", "namespace", r.namespace, "pod", r.name, "from", old.ips, "to", next.ips)
	}
	st.relabel(r, headOf(old), headOf(next))
}

// claims returns the addresses that are the pod's own.
func (p *podObject) claims() []netip.Addr {
	if p == nil || p.terminal || p.hostNetwork {
		return nil
	}
	return slices.Clone(p.ips)
}

func (st *state) markEntriesOf(a netip.Addr) {
	for r := range st.entriesOfAddress[a] {
		if o := st.serviceEntries.get(r.key); o != nil {
			st.markEntry(o)
		}
	}
}

// markMachinesAt marks what declares workloads with the address.
func (st *state) markMachinesAt(a netip.Addr) {
	for r := range st.machinesAt[a] {
		st.mark(r)
	}
}

func (st *state) setService(r ref, old, next *serviceObject) {
	before, after := old.addresses(), next.addresses()
	st.servicesOfVIP.move(r, before, after)
	for _, a := range append(before, after...) {
		st.markEntriesOf(a)
		st.markMachinesAt(a)
	}
	var selector pairs
	if next == nil {
		st.services.drop(r.key)
		st.fault(r, "")
	} else {
		st.services.put(r.key, next)
		st.fault(r, next.fault)
		selector = next.selector
	}
	st.selecting.set(r, r.namespace, selector)
	st.setCandidate(st.host(r.key), r, next != nil && !next.external)
	st.relabel(r, headOf(old), headOf(next))
	st.markAttached(r)
}

func (o *serviceObject) addresses() []netip.Addr {
	if o == nil {
		return nil
	}
	return slices.Clone(o.vips)
}

func (st *state) setSlice(r ref, old, next *sliceObject) {
	if next == nil {
		st.endpointSlices.drop(r.key)
		st.fault(r, "")
	} else {
		st.endpointSlices.put(r.key, next)
		st.fault(r, next.fault)
	}
	st.mark(r)
	st.slicesOfService.move(r, old.of(), next.of())
	st.slicesOfPod.move(r, old.referred(), next.referred())
	st.slicesOnNode.move(r, old.nodes(), next.nodes())
	for _, k := range append(old.referred(), next.referred()...) {
		st.markKey(kindPod, k)
	}
}

func (o *sliceObject) of() []key {
	if o == nil || o.service == "" {
		return nil
	}
	return []key{{o.namespace, o.service}}
}

func (o *sliceObject) referred() []key {
	if o == nil {
		return nil
	}
	return slices.Clone(o.pods)
}

// nodes returns those that endpoints are on.
func (o *sliceObject) nodes() []text {
	if o == nil {
		return nil
	}
	var out []text
	for i := range o.endpoints {
		if n := o.endpoints[i].node; n != (text{}) {
			out = append(out, n)
		}
	}
	return out
}

func (st *state) setNode(r ref, old, next *nodeObject) {
	if next == nil {
		delete(st.nodes, r.name)
	} else {
		st.nodes[r.name] = next
	}
	st.mark(r)
	if old != nil && next != nil && old.locality == next.locality {
		return
	}
	for k := range st.pods.byNode[intern(r.name)] {
		st.markKey(kindPod, k)
	}
	for s := range st.slicesOnNode[intern(r.name)] {
		st.mark(s)
	}
}

func (st *state) setNamespace(r ref, old, next *namespaceObject) {
	if next == nil {
		delete(st.namespaces, r.name)
	} else {
		st.namespaces[r.name] = next
	}
	st.mark(r)
	st.relabel(r, headOf(old), headOf(next))
	st.markNamespace(r.name)
}

func (st *state) setServiceEntry(r ref, old, next *serviceEntryObject) {
	var more []pairs
	var selector pairs
	hosts := make(map[string]bool)
	for _, o := range []*serviceEntryObject{old, next} {
		if o == nil {
			continue
		}
		for _, h := range o.hosts {
			hosts[h] = o == next
		}
	}
	if next == nil {
		st.serviceEntries.drop(r.key)
		st.release(r.key)
		st.settle(r)
	} else {
		st.serviceEntries.put(r.key, next)
		selector = next.selector
		more = next.endpointLabels()
	}
	for h, there := range hosts {
		st.setCandidate(h, r, there && !next.hidden)
	}
	st.mark(r)
	st.selecting.set(r, r.namespace, selector)
	if old != nil {
		st.namingWaypoint.move(r, waypointsIn(r.namespace, old.endpointLabels()), nil)
	}
	before, after := old.addresses(), next.addresses()
	st.entriesOfAddress.move(r, before, after)
	st.machinesAt.move(r, old.endpointAddresses(), next.endpointAddresses())
	st.markRivals(r, append(before, after...))
	st.relabel(r, headOf(old), headOf(next), more...)
	st.markAttached(r)
}

func (o *serviceEntryObject) endpointAddresses() []netip.Addr {
	if o == nil {
		return nil
	}
	var out []netip.Addr
	for i := range o.endpoints {
		if a := o.endpoints[i].address; a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func (o *serviceEntryObject) endpointLabels() []pairs {
	var out []pairs
	for i := range o.endpoints {
		if !o.endpoints[i].labels.empty() {
			out = append(out, o.endpoints[i].labels)
		}
	}
	return out
}

func (st *state) setWorkloadEntry(r ref, old, next *workloadEntryObject) {
	if next == nil {
		st.workloadEntries.drop(r.key)
		st.fault(r, "")
		st.settle(r)
	} else {
		st.workloadEntries.put(r.key, next)
	}
	st.machinesAt.move(r, old.addresses(), next.addresses())
	st.mark(r)
	st.relabel(r, headOf(old), headOf(next))
}

func (o *workloadEntryObject) addresses() []netip.Addr {
	if o == nil || !o.endpoint.address.IsValid() {
		return nil
	}
	return []netip.Addr{o.endpoint.address}
}

// meshMode and namespaceMode are the modes that workloads inherit.
func (st *state) meshMode() mode { return inherit(modePermissive, st.levelOf(st.root)) }

func (st *state) namespaceMode(namespace string) mode {
	above := st.meshMode()
	if namespace == st.root {
		return above
	}
	return inherit(above, st.levelOf(namespace))
}

// levelOf returns the namespace's PeerAuthentication for all its workloads.
func (st *state) levelOf(namespace string) *peerAuthenticationObject {
	var level []*peerAuthenticationObject
	for o := range st.peers.in(namespace) {
		if o.selector.empty() {
			level = append(level, o)
		}
	}
	return effective(level)
}

// peerOf returns the PeerAuthentication that selects the workload.
func (st *state) peerOf(namespace string, labels pairs) *peerAuthenticationObject {
	var own []*peerAuthenticationObject
	for o := range st.peers.in(namespace) {
		if o.vague || !o.selector.empty() && labels.contains(o.selector) {
			own = append(own, o)
		}
	}
	return effective(own)
}

// rivalsOf are the PeerAuthentications, the object among them, that select the
// same.
func (st *state) rivalsOf(o *peerAuthenticationObject) []*peerAuthenticationObject {
	var out []*peerAuthenticationObject
	for other := range st.peers.in(o.namespace) {
		if other.selector == o.selector {
			out = append(out, other)
		}
	}
	return out
}

func (st *state) setPeer(r ref, old, next *peerAuthenticationObject) {
	before := st.namespaceMode(r.namespace)
	if next == nil {
		st.peers.drop(r.key)
		st.fault(r, "")
		st.settle(r)
	} else {
		st.peers.put(r.key, next)
		st.fault(r, next.fault)
	}
	st.mark(r)
	if st.namespaceMode(r.namespace) != before {
		where := r.namespace
		if where == st.root {
			where = "" // mesh-wide
		}
		st.markSelected(where, pairs{})
		for o := range st.peers.in(where) {
			st.markKey(kindPeerAuthentication, o.key)
		}
	}
	for _, o := range []*peerAuthenticationObject{old, next} {
		if o == nil {
			continue
		}
		if o.vague || !o.selector.empty() {
			st.markSelected(r.namespace, o.selector)
		}
		for _, rival := range st.rivalsOf(o) {
			st.mark(ref{r.kind, rival.key})
		}
	}
}

func (st *state) setAuthorization(r ref, old, next *authorizationObject) {
	var before, after pairs
	var targetsBefore, targetsAfter []ref
	if old != nil {
		before, targetsBefore = old.governs(), old.targetRefs()
	}
	if next == nil {
		st.authorizations.drop(r.key)
		st.settle(r)
		st.fault(r, "")
	} else {
		st.authorizations.put(r.key, next)
		after, targetsAfter = next.governs(), next.targetRefs()
		st.fault(r, next.fault)
	}
	st.mark(r)
	st.attached.move(r, targetsBefore, targetsAfter)
	if before == after {
		return
	}
	st.governing.set(r, r.namespace, after)
	where := r.namespace
	if where == st.root {
		where = ""
	}
	for _, selector := range []pairs{before, after} {
		if !selector.empty() {
			st.markSelected(where, selector)
		}
	}
}

// governs returns the selector by which workloads have to name the policy.
func (o *authorizationObject) governs() pairs {
	if o.policy == nil {
		return pairs{}
	}
	return o.selector
}

func (st *state) setGateway(r ref, _, next *gatewayObject) {
	if next == nil {
		st.gateways.drop(r.key)
		st.fault(r, "")
	} else {
		st.gateways.put(r.key, next)
		st.fault(r, next.fault)
	}
	st.setWaypoint(r.key)
	st.markAttached(r)
}

func (st *state) setGatewayClass(r ref, _, next *gatewayClassObject) {
	if next == nil {
		delete(st.gatewayClasses, r.name)
	} else {
		st.gatewayClasses[r.name] = next
	}
	for g := range st.gateways.in("") {
		if g.class == r.name {
			st.setWaypoint(g.key)
		}
	}
	st.markAttached(r)
}

// setWaypoint makes the waypoint of a gateway anew and marks who uses it.
func (st *state) setWaypoint(k key) {
	old := st.waypointsByKey[k]
	var next *waypoint
	if g := st.gateways.get(k); g != nil {
		next = translateGateway(g, st.gatewayClasses[g.class], &st.settings)
	}
	if reflect.DeepEqual(old, next) {
		return
	}
	if next == nil {
		delete(st.waypointsByKey, k)
	} else {
		st.waypointsByKey[k] = next
	}
	for r := range st.namingWaypoint[k] {
		switch r.kind {
		case kindNamespace:
			st.markNamespace(r.name)
		case kindService:
			st.markService(r)
		case kindServiceEntry:
			if o := st.serviceEntries.get(r.key); o != nil {
				st.markEntry(o)
			}
		default:
			st.mark(r)
		}
	}
	for p := range st.pods.byKey.in(k.namespace) {
		if p.labels.value(labelGatewayName) == k.name {
			st.markKey(kindPod, p.key)
		}
	}
}
