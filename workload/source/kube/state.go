package kube

import (
	"log/slog"
	"net/netip"
	"reflect"
	"slices"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// state is what the source knows and what has to be translated anew. It
// belongs to the goroutine of Run.
//
//	change ─► set: object stored, indexes moved, what refers to it marked dirty
//	moment ─► flush: what is dirty translated, differences returned as a batch
//
// Marks go one way: namespaces, nodes and gateways mark services and
// workloads, services mark workloads. So one pass in that order is enough.
type state struct {
	settings
	log *slog.Logger

	pods             *podTable
	namespaces       map[string]*namespaceObject
	nodes            map[string]*nodeObject
	services         table[*serviceObject]
	endpointSlices   table[*sliceObject]
	serviceEntries   table[*serviceEntryObject]
	workloadEntries  table[*workloadEntryObject]
	peers            table[*peerAuthenticationObject]
	authorizations   table[*authorizationObject]
	gateways         table[*gatewayObject]
	gatewayClasses   map[string]*gatewayClassObject
	waypointsByKey   map[key]*waypoint
	hosts            map[string]*hostGroup
	published        map[workload.NamespacedHostname]publishedService
	selecting        *selectorIndex // services and ServiceEntries that select pods
	governing        *selectorIndex // policies that select workloads
	namingWaypoint   links[key]     // waypoint ─► objects whose labels name it
	slicesOfService  links[key]
	slicesOfPod      links[key]
	slicesOnNode     links[text]
	attached         links[ref]        // target ─► policies with targetRefs
	entriesOfAddress links[netip.Addr] // ServiceEntries that claim it
	machinesAt       links[netip.Addr] // WorkloadEntries that have it, and ServiceEntries with endpoints that do
	servicesOfVIP    links[netip.Addr]
	reserved         map[netip.Addr]key // for hosts of ServiceEntries; see allocate
	reservedBy       map[key][]netip.Addr
	allocations      map[key]allocation // of this flush
	podsOfAddress    claims
	network          *networkState

	emitted  map[ref][]string       // UIDs of what has several workloads
	policies map[ref]*policy.Policy // made of objects
	strict   bool                   // the static policy is there
	faults   map[ref]string         // said in the log
	twice    map[netip.Addr]bool

	dirty      map[ref]struct{}
	dirtyHosts map[string]struct{}
	pending    map[ref]bool
	reports    map[ref]*Report // changes since the last flush
}

func newState(s settings, log *slog.Logger) *state {
	return &state{
		settings: s, log: log,
		pods:       newPodTable(),
		namespaces: make(map[string]*namespaceObject), nodes: make(map[string]*nodeObject),
		services: make(table[*serviceObject]), endpointSlices: make(table[*sliceObject]),
		serviceEntries: make(table[*serviceEntryObject]), workloadEntries: make(table[*workloadEntryObject]),
		peers: make(table[*peerAuthenticationObject]), authorizations: make(table[*authorizationObject]),
		gateways: make(table[*gatewayObject]), gatewayClasses: make(map[string]*gatewayClassObject),
		waypointsByKey: make(map[key]*waypoint), hosts: make(map[string]*hostGroup),
		published: make(map[workload.NamespacedHostname]publishedService),
		selecting: newSelectorIndex(), governing: newSelectorIndex(),
		namingWaypoint: make(links[key]), slicesOfService: make(links[key]), slicesOfPod: make(links[key]),
		slicesOnNode: make(links[text]),
		attached:     make(links[ref]), entriesOfAddress: make(links[netip.Addr]), machinesAt: make(links[netip.Addr]),
		reserved: make(map[netip.Addr]key), reservedBy: make(map[key][]netip.Addr),
		allocations:   make(map[key]allocation),
		servicesOfVIP: make(links[netip.Addr]), podsOfAddress: make(claims),
		emitted: make(map[ref][]string), policies: make(map[ref]*policy.Policy), faults: make(map[ref]string),
		twice: make(map[netip.Addr]bool), dirty: make(map[ref]struct{}), dirtyHosts: make(map[string]struct{}),
		network: newNetworkState(),
		pending: make(map[ref]bool), reports: make(map[ref]*Report),
	}
}

// change is one object that is new or different, or gone.
type change struct {
	ref
	object object // nil: it is gone
}

// apply takes a change.
func (st *state) apply(c change) {
	switch c.kind {
	case kindPod:
		set(st.pods.byKey.get(c.key), c, st.setPod)
	case kindService:
		set(st.services.get(c.key), c, st.setService)
	case kindEndpointSlice:
		set(st.endpointSlices.get(c.key), c, st.setSlice)
	case kindNode:
		set(st.nodes[c.name], c, st.setNode)
	case kindNamespace:
		set(st.namespaces[c.name], c, st.setNamespace)
	case kindServiceEntry:
		set(st.serviceEntries.get(c.key), c, st.setServiceEntry)
	case kindWorkloadEntry:
		set(st.workloadEntries.get(c.key), c, st.setWorkloadEntry)
	case kindPeerAuthentication:
		set(st.peers.get(c.key), c, st.setPeer)
	case kindAuthorizationPolicy:
		set(st.authorizations.get(c.key), c, st.setAuthorization)
	case kindGateway:
		set(st.gateways.get(c.key), c, st.setGateway)
	case kindGatewayClass:
		set(st.gatewayClasses[c.name], c, st.setGatewayClass)
	case kindNetworkPolicy, kindClusterNetworkPolicy:
		set(st.network.policies.get(c.key), c, st.setNetworkPolicy)
	}
}

// set calls with the old and the new object unless they say the same. Most
// updates of objects are about what is not used.
func set[T any](old *T, c change, do func(r ref, old, next *T)) {
	var next *T
	if c.object != nil {
		next = any(c.object).(*T)
	}
	if old == nil && next == nil || old != nil && next != nil && reflect.DeepEqual(old, next) {
		return
	}
	do(c.ref, old, next)
}

func (st *state) mark(r ref)            { st.dirty[r] = struct{}{} }
func (st *state) markHost(h string)     { st.dirtyHosts[h] = struct{}{} }
func (st *state) markKey(k kind, n key) { st.mark(ref{k, n}) }

// keys returns all keys of a kind.
func (st *state) known(k kind) []key {
	var out []key
	collect := func(o object) { out = append(out, o.head().key) }
	switch k {
	case kindPod:
		for o := range st.pods.byKey.in("") {
			collect(o)
		}
	case kindService:
		for o := range st.services.in("") {
			collect(o)
		}
	case kindEndpointSlice:
		for o := range st.endpointSlices.in("") {
			collect(o)
		}
	case kindNode:
		for _, o := range st.nodes {
			collect(o)
		}
	case kindNamespace:
		for _, o := range st.namespaces {
			collect(o)
		}
	case kindServiceEntry:
		for o := range st.serviceEntries.in("") {
			collect(o)
		}
	case kindWorkloadEntry:
		for o := range st.workloadEntries.in("") {
			collect(o)
		}
	case kindPeerAuthentication:
		for o := range st.peers.in("") {
			collect(o)
		}
	case kindAuthorizationPolicy:
		for o := range st.authorizations.in("") {
			collect(o)
		}
	case kindGateway:
		for o := range st.gateways.in("") {
			collect(o)
		}
	case kindGatewayClass:
		for _, o := range st.gatewayClasses {
			collect(o)
		}
	case kindNetworkPolicy, kindClusterNetworkPolicy:
		for o := range st.network.policies.in("") {
			if (o.namespace == "") == (k == kindClusterNetworkPolicy) {
				collect(o)
			}
		}
	}
	return out
}

// replace makes the objects of a kind exactly these.
func (st *state) replace(k kind, objects []object) {
	there := make(map[key]bool, len(objects))
	for _, o := range objects {
		there[o.head().key] = true
	}
	// What is gone goes first: its addresses may be others' now.
	for _, name := range st.known(k) {
		if !there[name] {
			st.apply(change{ref: ref{k, name}})
		}
	}
	for _, o := range objects {
		st.apply(change{ref: ref{k, o.head().key}, object: o})
	}
}

// fault logs what is wrong with an object, once as long as it is the same.
func (st *state) fault(r ref, text string) {
	if text == "" {
		delete(st.faults, r)
		return
	}
	if st.faults[r] != text {
		st.faults[r] = text
		st.log.Warn("object cannot be used as it is written", "kind", r.kind.String(), "namespace", r.namespace, "name", r.name, "reason", text)
	}
}

// relabel moves an object's links from the waypoints that its labels name.
func (st *state) relabel(r ref, old, next *header, more ...pairs) {
	st.namingWaypoint.move(r, namedBy(old), append(namedBy(next), waypointsIn(r.namespace, more)...))
}

func namedBy(h *header) []key {
	if h == nil {
		return nil
	}
	ns := h.namespace
	if ns == "" {
		ns = h.name // a namespace
	}
	return waypointsIn(ns, []pairs{h.labels})
}

func waypointsIn(namespace string, labels []pairs) []key {
	var out []key
	for _, l := range labels {
		if w := useWaypoint(l, namespace); w.ok {
			out = append(out, w.key)
		}
		if w := nameOf(l, namespace, labelCanary, labelCanaryNS); w.ok {
			out = append(out, w.key)
		}
	}
	return out
}

// markSelected marks the workloads of the namespace (of all, without one)
// whose labels match.
func (st *state) markSelected(namespace string, selector pairs) {
	st.markEndpoints(namespace, selector)
	for o := range st.serviceEntries.in(namespace) {
		if o.labels.contains(selector) {
			st.markKey(kindServiceEntry, o.key)
		}
	}
}

// markNamespace marks everything in the namespace.
func (st *state) markNamespace(namespace string) {
	st.markSelected(namespace, pairs{})
	for o := range st.services.in(namespace) {
		st.markService(ref{kindService, o.key})
	}
	for o := range st.serviceEntries.in(namespace) {
		st.markEntry(o)
	}
	for o := range st.endpointSlices.in(namespace) {
		st.markKey(kindEndpointSlice, o.key)
	}
}

// markService marks a Service and the policies attached to it.
func (st *state) markService(r ref) {
	st.markHost(st.host(r.key))
	st.markAttached(r)
}

// markEntry marks a ServiceEntry with its hosts and the policies attached to
// it.
func (st *state) markEntry(o *serviceEntryObject) {
	r := ref{kindServiceEntry, o.key}
	st.mark(r)
	st.markAttached(r)
	for _, h := range o.hosts {
		st.markHost(h)
	}
}

// markAttached marks the policies that are attached to the object.
func (st *state) markAttached(r ref) {
	for p := range st.attached[r] {
		st.mark(p)
	}
}

// conflict returns those of a pod's addresses that another pod has the better
// claim to.
func (st *state) conflict(p *podObject) []netip.Addr {
	if p.hostNetwork || p.terminal {
		return nil
	}
	var lost []netip.Addr
	for _, a := range p.ips {
		if winner := st.owner(a); winner != nil && winner.key != p.key {
			lost = append(lost, a)
		}
	}
	return lost
}

// owner returns the pod that the address belongs to. When several have it, one
// that is not being deleted goes first, then one that is ready, then the
// newest: addresses are given out again as soon as their pod has ended.
func (st *state) owner(a netip.Addr) *podObject {
	keys := st.podsOfAddress[a]
	var best *podObject
	for _, k := range keys {
		if p := st.pods.byKey.get(k); p != nil && (best == nil || betterClaim(p, best)) {
			best = p
		}
	}
	switch {
	case len(keys) < 2:
		delete(st.twice, a)
	case !st.twice[a]:
		st.twice[a] = true
		st.log.Warn("several pods have one address", "address", a, "pods", len(keys), "owner", best.key.String())
	}
	return best
}

func betterClaim(a, b *podObject) bool {
	switch {
	case a.deleting != b.deleting:
		return b.deleting
	case a.ready != b.ready:
		return a.ready
	case a.created != b.created:
		return a.created > b.created
	case a.uid != b.uid:
		return a.uid < b.uid
	default:
		return older(&a.header, &b.header)
	}
}

// claimed returns those of a ServiceEntry's addresses that it must not have:
// Services and pods go before, and other entries where it did not ask for them
// by name.
func (st *state) claimed(o *serviceEntryObject) []netip.Addr {
	lost := st.mistaken(o)
	for _, list := range o.automatic {
		for _, a := range list {
			if st.loses(o, a) {
				lost = append(lost, a)
			}
		}
	}
	return lost
}

// mistaken returns those of the addresses that a ServiceEntry names that belong
// to Services and pods, in order.
func (st *state) mistaken(o *serviceEntryObject) []netip.Addr {
	var lost []netip.Addr
	for _, a := range o.vips {
		if len(st.servicesOfVIP[a])+len(st.podsOfAddress[a]) > 0 {
			lost = append(lost, a)
		}
	}
	slices.SortFunc(lost, netip.Addr.Compare)
	return slices.Compact(lost)
}
