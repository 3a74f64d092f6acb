package kube

import (
	"cmp"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// batch is what a flush found to be different.
type batch struct {
	policies []*policy.Policy
	events   []workload.Event
	// narrowed are policies that only govern who names them and did govern
	// others. They are done after the events: until then nobody names them.
	narrowed []*policy.Policy
	// removals are keys of policies. They are done last: until then there are
	// workloads that name them.
	removals []string
	reports  map[ref]*Report

	// networks and networkRemovals belong together, and come before events.
	networks        []netpol.Object
	networkRemovals []netpol.Key
}

// hostGroup are the objects that claim one host name.
type hostGroup struct {
	candidates map[ref]struct{}
	published  []string // namespaces
}

// publishedService is the object that stands behind a service, and what
// endpoints need to know of it.
type publishedService struct {
	ref
	ports    []servicePort
	selector pairs
}

// setCandidate notes whether the object claims the host.
func (st *state) setCandidate(host string, r ref, claims bool) {
	g := st.hosts[host]
	if g == nil {
		if !claims {
			return
		}
		g = &hostGroup{candidates: make(map[ref]struct{})}
		st.hosts[host] = g
	}
	if claims {
		g.candidates[r] = struct{}{}
	} else {
		delete(g.candidates, r)
	}
	st.markHost(host)
}

// flush translates what is dirty.
func (st *state) flush() batch {
	var b batch
	for host := range st.dirtyHosts {
		st.flushHost(host, &b)
	}
	clear(st.dirtyHosts)
	st.allocate()
	// Nothing below marks anything any more.
	for r := range st.dirty {
		switch r.kind {
		case kindPod:
			st.flushPod(r.key, &b)
		case kindEndpointSlice:
			st.emit(r, st.sliceWorkloads(r.key), &b)
		case kindServiceEntry:
			st.emit(r, st.entryWorkloads(r), &b)
		case kindWorkloadEntry:
			st.emit(r, st.workloadEntry(r), &b)
		case kindPeerAuthentication:
			st.flushPeer(r, &b)
		case kindAuthorizationPolicy:
			st.flushAuthorization(r, &b)
		}
	}
	st.flushNetwork(&b)
	clear(st.dirty)
	st.flushStrict(&b)
	b.reports, st.reports = st.reports, make(map[ref]*Report)
	return b
}

// emit returns an object's workloads as changes to those it had before.
func (st *state) emit(r ref, next []*workload.Workload, b *batch) {
	uids := make([]string, 0, len(next))
	for _, w := range next {
		uids = append(uids, w.UID)
		b.events = append(b.events, workload.Upsert(w))
	}
	for _, uid := range st.emitted[r] {
		if !slices.Contains(uids, uid) {
			b.events = append(b.events, workload.Removal(uid))
		}
	}
	if len(uids) == 0 {
		delete(st.emitted, r)
		return
	}
	st.emitted[r] = uids
}

// emitPolicy does the same for the one policy of an object.
func (st *state) emitPolicy(r ref, p *policy.Policy, b *batch) {
	old := st.policies[r]
	if old != nil && (p == nil || p.Key() != old.Key()) {
		b.removals = append(b.removals, old.Key())
		delete(st.policies, r)
	}
	if p == nil {
		return
	}
	st.policies[r] = p
	if old != nil && old.Scope != policy.WorkloadSelector && p.Scope == policy.WorkloadSelector {
		b.narrowed = append(b.narrowed, p)
	} else {
		b.policies = append(b.policies, p)
	}
}

func (st *state) flushPeer(r ref, b *batch) {
	var p *policy.Policy
	if o := st.peers.get(r.key); o != nil {
		p = o.converted(st.namespaceMode(r.namespace))
		st.report(r, &o.header, peerConditions(o, effective(st.rivalsOf(o)), &st.settings), o.conditions)
	}
	st.emitPolicy(r, p, b)
}

// flushStrict keeps the static policy as long as there is a PeerAuthentication.
func (st *state) flushStrict(b *batch) {
	if want := len(st.peers) > 0; want != st.strict {
		st.strict = want
		if want {
			b.policies = append(b.policies, strictPolicy(&st.settings))
		} else {
			b.removals = append(b.removals, st.root+"/"+staticStrict)
		}
	}
}

func (st *state) flushAuthorization(r ref, b *batch) {
	o := st.authorizations.get(r.key)
	if o == nil {
		st.emitPolicy(r, nil, b)
		return
	}
	st.emitPolicy(r, o.policy, b)
	verdict := o.verdict
	switch {
	case len(o.targets) > 0 && o.fault != "":
		verdict = Condition{Type: conditionWaypoint, Reason: reasonInvalid, Message: o.fault}
	case len(o.targets) > 0:
		verdict = st.attachment(o)
	}
	st.report(r, &o.header, []Condition{verdict}, o.conditions)
}

// flushHost chooses, for one host name, a winner in each namespace, and the
// canonical one among them (reference, section 4.5).
func (st *state) flushHost(host string, b *batch) {
	g := st.hosts[host]
	if g == nil {
		return
	}
	winners, canonical := st.winners(g)
	var namespaces []string
	for ns, r := range winners {
		k := workload.NamespacedHostname{Namespace: ns, Hostname: host}
		svc, pub := st.service(r, host, r == canonical)
		b.events = append(b.events, workload.UpsertService(svc))
		st.publish(k, pub)
		namespaces = append(namespaces, ns)
	}
	for _, ns := range g.published {
		if _, ok := winners[ns]; !ok {
			k := workload.NamespacedHostname{Namespace: ns, Hostname: host}
			b.events = append(b.events, workload.Removal(k.String()))
			st.publish(k, publishedService{})
		}
	}
	g.published = namespaces
	if len(g.candidates) == 0 {
		delete(st.hosts, host)
	}
}

// winners returns the winner of each namespace that is known: a Service before
// a ServiceEntry, then the oldest.
func (st *state) winners(g *hostGroup) (winners map[string]ref, canonical ref) {
	winners = make(map[string]ref, 1)
	for r := range g.candidates {
		if st.namespaces[r.namespace] == nil {
			continue
		}
		if best, ok := winners[r.namespace]; !ok || st.before(r, best) {
			winners[r.namespace] = r
		}
		if !st.private(r) && (canonical == (ref{}) || st.before(r, canonical)) {
			canonical = r
		}
	}
	return winners, canonical
}

// private reports whether only clients of the object's own namespace see it.
func (st *state) private(r ref) bool {
	return r.kind == kindServiceEntry && st.serviceEntries.get(r.key).visibility == workload.VisibilityNamespace
}

func (st *state) before(a, b ref) bool {
	if a.kind != b.kind {
		return a.kind == kindService
	}
	return older(st.headerOf(a), st.headerOf(b))
}

func (st *state) headerOf(r ref) *header {
	if r.kind == kindService {
		return &st.services.get(r.key).header
	}
	return &st.serviceEntries.get(r.key).header
}

// service translates the object behind a host.
func (st *state) service(r ref, host string, canonical bool) (*workload.Service, publishedService) {
	in := serviceSurroundings{namespace: st.namespaces[r.namespace], canonical: canonical}
	if r.kind == kindServiceEntry {
		o := st.serviceEntries.get(r.key)
		b, weighted := st.bind(o.labels, o.canaryWeight, in.namespace)
		in.waypoint, in.weighted, in.lost, in.bound = b.address, weighted, st.claimed(o), b.waypoint != nil
		return translateHost(o, host, in, &st.settings), publishedService{r, o.ports, o.selector}
	}
	o := st.services.get(r.key)
	b, weighted := st.bind(o.labels, o.canaryWeight, in.namespace)
	in.waypoint, in.weighted, in.bound = b.address, weighted, b.waypoint != nil
	st.report(r, &o.header, boundConditions(&b, o.labels, in.namespace), o.conditions)
	return translateService(o, in, &st.settings), publishedService{r, o.ports, o.selector}
}

// bind resolves the waypoint of a service. One that belongs to a gateway has
// none: it is the waypoint.
func (st *state) bind(labels pairs, weight string, ns *namespaceObject) (binding, []workload.WeightedWaypoint) {
	switch labels.value(labelManaged) {
	case managedMeshController, managedEastWest:
		return binding{}, nil
	}
	find := waypoints(st.waypoint)
	b := find.bind(labels, ns, trafficService)
	return b, find.weigh(&b, labels, weight, ns)
}

func (st *state) waypoint(k key) *waypoint { return st.waypointsByKey[k] }

// publish notes what stands behind a service and marks the endpoints of what
// did and what does, when they are others.
func (st *state) publish(k workload.NamespacedHostname, next publishedService) {
	old := st.published[k]
	if next.ref == (ref{}) {
		delete(st.published, k)
	} else {
		st.published[k] = next
	}
	if old.kind == kindService && old.ref != next.ref {
		st.settle(old.ref) // nothing is to be said of it any more
	}
	if old.ref == next.ref && old.selector == next.selector && slices.Equal(old.ports, next.ports) {
		return
	}
	for _, p := range []publishedService{old, next} {
		if p.ref == (ref{}) {
			continue
		}
		if !p.selector.empty() {
			st.markEndpoints(p.namespace, p.selector)
		}
		if p.kind == kindServiceEntry {
			st.mark(p.ref)
			continue
		}
		for r := range st.slicesOfService[p.key] {
			st.mark(r)
			for _, pod := range st.endpointSlices.get(r.key).referred() {
				st.markKey(kindPod, pod)
			}
		}
	}
}

// markEndpoints marks the pods and WorkloadEntries of the namespace (of all,
// without one) whose labels match.
func (st *state) markEndpoints(namespace string, selector pairs) {
	for p := range st.pods.byKey.in(namespace) {
		if p.labels.contains(selector) {
			st.markKey(kindPod, p.key)
		}
	}
	for o := range st.workloadEntries.in(namespace) {
		if o.labels.contains(selector) {
			st.markKey(kindWorkloadEntry, o.key)
		}
	}
}

// policiesOf returns the keys of the policies that the workload names, the
// selected ones in order, then that of PeerAuthentication.
func (st *state) policiesOf(namespace string, labels pairs) ([]string, peerPolicy) {
	var keys []string
	for _, ns := range slices.Compact([]string{namespace, st.root}) {
		for r := range st.governing.matching(ns, labels) {
			keys = append(keys, r.key.String())
		}
	}
	slices.SortFunc(keys, cmp.Compare[string])
	peer := peerPolicy{}
	if len(st.peers) > 0 {
		peer = translatePeer(st.namespaceMode(namespace), st.peerOf(namespace, labels), &st.settings)
		if peer.policy != "" {
			keys = append(keys, peer.policy)
		}
	}
	return keys, peer
}

// boundConditions says what became of a service's or workload's waypoint.
func boundConditions(b *binding, labels pairs, ns *namespaceObject) []Condition {
	if b.reason == "" {
		return nil
	}
	c := Condition{Type: conditionBound, Reason: b.reason, Message: b.message}
	if b.waypoint != nil {
		var m strings.Builder
		m.WriteString("Successfully attached to waypoint " + b.waypoint.key.String())
		if present, use := ingressUse(labels, ns); use {
			m.WriteString(". Ingress traffic will traverse the waypoint")
		} else if present {
			m.WriteString(". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired.")
		}
		if b.note != "" {
			m.WriteString(". Canary waypoint not attached: " + b.note)
		}
		c.Status, c.Message = true, m.String()
	}
	return []Condition{c}
}
