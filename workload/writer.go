package workload

import (
	"cmp"
	"strings"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// writer builds the next Snapshot from the last. It lives for one batch; the
// nodes that it makes are changed in place until finish.
type writer struct {
	owner  *hamt.Owner
	intern *interner
	next   *Snapshot
	fresh  map[NamespacedHostname]*serviceEntry // entries made in this batch
	dirty  bool
}

func newWriter(last *Snapshot, in *interner) *writer {
	next := *last
	return &writer{
		owner:  new(hamt.Owner),
		intern: in,
		next:   &next,
		fresh:  make(map[NamespacedHostname]*serviceEntry),
	}
}

// finish returns the built snapshot; the writer must not be used again.
func (w *writer) finish() *Snapshot { return w.next }

func (w *writer) remove(key string) {
	if old := w.next.Workload(key); old != nil {
		w.dropWorkload(old)
		return
	}
	host, err := ParseNamespacedHostname(key)
	if err != nil {
		return
	}
	if old := w.next.Service(host); old != nil {
		w.dropService(old)
	}
}

func (w *writer) removeOthers(workloads []*Workload, services []*Service) {
	uids := make(map[string]bool, len(workloads))
	for _, o := range workloads {
		uids[o.UID] = true
	}
	keys := make(map[NamespacedHostname]bool, len(services))
	for _, o := range services {
		keys[o.Key()] = true
	}
	last := *w.next // iteration must not see this batch's in-place changes
	var oldWorkloads []*Workload
	for o := range last.Workloads() {
		if !uids[o.UID] {
			oldWorkloads = append(oldWorkloads, o)
		}
	}
	var oldServices []*Service
	for o := range last.Services() {
		if !keys[o.Key()] {
			oldServices = append(oldServices, o)
		}
	}
	for _, o := range oldWorkloads {
		w.dropWorkload(o)
	}
	for _, o := range oldServices {
		w.dropService(o)
	}
}

func (w *writer) upsertWorkload(given *Workload) {
	old := w.next.Workload(given.UID)
	if old != nil {
		if old.Equal(given) {
			return
		}
		w.dropWorkload(old)
	}
	n := w.intern.workload(given)
	w.dirty = true
	s := w.next
	s.workloads = s.workloads.With(w.owner, n.UID, n)
	if n.NetworkMode != HostNetwork {
		for _, a := range n.Addresses {
			s.byAddress = s.byAddress.with(w.owner, NewNetworkAddress(n.Network, a), n, compareClaims)
		}
	}
	if n.External() {
		for _, a := range n.Addresses {
			s.externals = s.externals.with(w.owner, NewNetworkAddress(n.Network, a), n, compareUIDs)
		}
	}
	if !n.External() {
		s.byName = s.byName.with(w.owner, podName{n.Namespace, n.Name}, n, compareUIDs)
	}
	if n.Hostname != "" {
		s.byHost = s.byHost.with(w.owner, NamespacedHostname{n.Namespace, n.Hostname}, n, compareUIDs)
	}
	for key := range n.Services {
		e := w.entry(key)
		e.members = e.members.With(w.owner, n.UID, n)
	}
}

func (w *writer) dropWorkload(old *Workload) {
	w.dirty = true
	s := w.next
	s.workloads = s.workloads.Without(w.owner, old.UID)
	if old.NetworkMode != HostNetwork {
		for _, a := range old.Addresses {
			s.byAddress = s.byAddress.without(w.owner, NewNetworkAddress(old.Network, a), old)
		}
	}
	if old.External() {
		for _, a := range old.Addresses {
			s.externals = s.externals.without(w.owner, NewNetworkAddress(old.Network, a), old)
		}
	}
	if !old.External() {
		s.byName = s.byName.without(w.owner, podName{old.Namespace, old.Name}, old)
	}
	if old.Hostname != "" {
		s.byHost = s.byHost.without(w.owner, NamespacedHostname{old.Namespace, old.Hostname}, old)
	}
	for key := range old.Services {
		e := w.entry(key)
		e.members = e.members.Without(w.owner, old.UID)
		w.dropIfEmpty(key, e)
	}
	w.intern.release(old)
}

func (w *writer) upsertService(given *Service) {
	key := given.Key()
	old := w.next.Service(key)
	if old != nil {
		if old.Equal(given) {
			return
		}
		w.dropService(old)
	}
	n := new(Service)
	*n = *given
	w.dirty = true
	s := w.next
	w.entry(key).service = n
	s.serviceCount++
	s.servicesByHost = s.servicesByHost.with(w.owner, n.Hostname, n, compareServices)
	for _, vip := range n.VIPs {
		s.byVIP = s.byVIP.with(w.owner, vip.normal(), n, compareServices)
	}
	for _, p := range n.CIDRVIPs {
		w.countPrefix(p, 1)
		s.byCIDR = s.byCIDR.with(w.owner, maskedPrefix(p), n, compareServices)
	}
}

func (w *writer) dropService(old *Service) {
	w.dirty = true
	s := w.next
	key := old.Key()
	e := w.entry(key)
	e.service = nil
	w.dropIfEmpty(key, e)
	s.serviceCount--
	s.servicesByHost = s.servicesByHost.without(w.owner, old.Hostname, old)
	for _, vip := range old.VIPs {
		s.byVIP = s.byVIP.without(w.owner, vip.normal(), old)
	}
	for _, p := range old.CIDRVIPs {
		w.countPrefix(p, -1)
		s.byCIDR = s.byCIDR.without(w.owner, maskedPrefix(p), old)
	}
}

// entry returns the service's entry for changing. Entries are replaced at
// most once a batch, because readers of older snapshots share them.
func (w *writer) entry(key NamespacedHostname) *serviceEntry {
	if e := w.fresh[key]; e != nil {
		return e
	}
	e := new(serviceEntry)
	if old := w.next.services.At(key); old != nil {
		e.service, e.members = old.service, old.members
	}
	w.fresh[key] = e
	w.next.services = w.next.services.With(w.owner, key, e)
	return e
}

func (w *writer) dropIfEmpty(key NamespacedHostname, e *serviceEntry) {
	if e.service == nil && e.members.Len() == 0 {
		w.next.services = w.next.services.Without(w.owner, key)
		delete(w.fresh, key)
	}
}

// countPrefix keeps the table of lengths in step. Invalid prefixes are not
// counted; they can match nothing.
func (w *writer) countPrefix(p NetworkPrefix, by int) {
	if !p.Prefix.IsValid() {
		return
	}
	n := new(prefixLengths)
	if old := w.next.prefixLengths.At(p.Network); old != nil {
		*n = *old
	}
	*n.at(p.Prefix.Addr().Unmap(), maskedPrefix(p).Prefix.Bits()) += uint32(by)
	if *n == (prefixLengths{}) {
		w.next.prefixLengths = w.next.prefixLengths.Without(w.owner, p.Network)
		return
	}
	w.next.prefixLengths = w.next.prefixLengths.With(w.owner, p.Network, n)
}

// maskedPrefix returns the form that prefixes are indexed by: IPv4-mapped
// ones unmapped, host bits cleared.
func maskedPrefix(p NetworkPrefix) NetworkPrefix {
	addr, bits := p.Prefix.Addr(), p.Prefix.Bits()
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	masked, err := addr.Prefix(bits)
	if err != nil {
		return p
	}
	return NetworkPrefix{Network: p.Network, Prefix: masked}
}

// compareClaims orders workloads that claim one address: pods, whose address
// no user chose, before others, and healthy ones first, because a pod whose node
// has died is told of long after its address was given out again; members of the
// mesh before others; then by UID, so that every node decides alike.
//
// What is no pod gains nothing by its health, which users choose.
func compareClaims(a, b *Workload) int {
	return cmp.Or(
		cmp.Compare(claim(b), claim(a)),
		strings.Compare(a.UID, b.UID),
	)
}

func claim(w *Workload) int {
	n := 0
	if w.IsPod() {
		n += 4
		if w.Health == Healthy {
			n += 2
		}
	}
	if w.Protocol == HBONE {
		n++
	}
	return n
}

func compareUIDs(a, b *Workload) int { return strings.Compare(a.UID, b.UID) }
