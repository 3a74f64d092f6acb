package workload

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// Snapshot is one consistent state of a Store. It never changes and may be
// read by any number of goroutines. Answers belong to the Store: do not modify
// them.
type Snapshot struct {
	version uint64
	changed chan struct{}

	workloads hamt.Map[string, *Workload]
	byAddress multi[NetworkAddress, *Workload]
	externals multi[NetworkAddress, *Workload]     // see Workload.External
	byName    multi[podName, *Workload]            // without those that are External
	byHost    multi[NamespacedHostname, *Workload] // workloads with a Hostname

	services       hamt.Map[NamespacedHostname, *serviceEntry]
	serviceCount   int
	servicesByHost multi[string, *Service]
	byVIP          multi[NetworkAddress, *Service]
	byCIDR         multi[NetworkPrefix, *Service]
	prefixLengths  hamt.Map[string, *prefixLengths] // by network
}

type podName struct{ namespace, name string }

// serviceEntry joins a service with the workloads that say they belong to it.
// service is nil while only workloads are known (staged endpoints).
type serviceEntry struct {
	service *Service
	members hamt.Map[string, *Workload] // by UID

	endpoints atomic.Pointer[[]Endpoint] // made by the first reader
}

// Version counts the changes of the Store; it is 0 before the first.
func (s *Snapshot) Version() uint64 { return s.version }

// Changed returns a channel that is closed when the Store has a newer state.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Workload returns the workload with the UID, or nil.
func (s *Snapshot) Workload(uid string) *Workload { return s.workloads.At(uid) }

// WorkloadByAddress returns the workload that owns the address, or nil.
// Host-network workloads own none. When several claim it, a pod wins (its
// address is not chosen by a user), a healthy one first, then one in the mesh,
// then the lowest UID.
func (s *Snapshot) WorkloadByAddress(addr NetworkAddress) *Workload {
	return s.byAddress.first(addr.normal())
}

// ExternalsByAddress iterates over all workloads with the address that are
// External, in the order of their UIDs. Those of EndpointSlices, which own no
// address, are among them.
func (s *Snapshot) ExternalsByAddress(addr NetworkAddress) iter.Seq[*Workload] {
	return s.externals.all(addr.normal())
}

// WorkloadByPod returns the workload with this namespace, name and service
// account, or nil. With a node, only workloads of that node are considered. One
// that is External is nobody's pod, whatever the author of a slice says of it.
func (s *Snapshot) WorkloadByPod(namespace, name, serviceAccount, node string) *Workload {
	for w := range s.byName.all(podName{namespace, name}) {
		if w.ServiceAccount == serviceAccount && (node == "" || w.Node == node) {
			return w
		}
	}
	return nil
}

// WorkloadByHost returns the workload with this namespace and Hostname, or nil.
func (s *Snapshot) WorkloadByHost(host NamespacedHostname) *Workload {
	return s.byHost.first(host)
}

// Service returns the service, or nil.
func (s *Snapshot) Service(key NamespacedHostname) *Service {
	if e := s.services.At(key); e != nil {
		return e.service
	}
	return nil
}

// ServicesByHost returns all services with the host name, in the order of
// their namespaces.
func (s *Snapshot) ServicesByHost(host string) []*Service {
	return slices.Collect(s.servicesByHost.all(host))
}

// ServiceByHost returns the service that the host name means to a client of
// the namespace: of those it may see its own namespace's, then the canonical
// one, then the first by namespace; or nil.
func (s *Snapshot) ServiceByHost(host, clientNamespace string) *Service {
	return best(s.servicesByHost.all(host), clientNamespace)
}

// ServiceByVIP returns the service that the address means to a client of the
// namespace, or nil. Among exact VIPs that the client may see, its own
// namespace's wins, then the canonical one, then the first by key. Only when
// there is none, prefixes count: its own namespace's, then the longest, then
// the canonical one.
func (s *Snapshot) ServiceByVIP(addr NetworkAddress, clientNamespace string) *Service {
	addr = addr.normal()
	if svc := best(s.byVIP.all(addr), clientNamespace); svc != nil {
		return svc
	}
	return s.serviceByPrefix(addr, clientNamespace)
}

// ServicesByVIP returns all services that have the address, whoever may see
// them: those with the exact VIP in the order of their keys, then those with a
// prefix, longest first.
func (s *Snapshot) ServicesByVIP(addr NetworkAddress) []*Service {
	addr = addr.normal()
	out := slices.Collect(s.byVIP.all(addr))
	for p := range s.prefixesOf(addr) {
		out = slices.AppendSeq(out, s.byCIDR.all(p))
	}
	return out
}

// prefixesOf iterates over the prefixes that contain the address and have a
// length that some CIDR VIP of its network has, longest first.
func (s *Snapshot) prefixesOf(addr NetworkAddress) iter.Seq[NetworkPrefix] {
	return func(yield func(NetworkPrefix) bool) {
		lengths := s.prefixLengths.At(addr.Network)
		if lengths == nil || !addr.Addr.IsValid() {
			return
		}
		for bits := addr.Addr.BitLen(); bits >= 0; bits-- {
			if !lengths.has(addr.Addr, bits) {
				continue
			}
			if p, err := addr.Addr.Prefix(bits); err == nil && !yield(NetworkPrefix{addr.Network, p}) {
				return
			}
		}
	}
}

func (s *Snapshot) serviceByPrefix(addr NetworkAddress, clientNamespace string) *Service {
	// Longest first, so the first match in the client's namespace is the
	// winner and any other match only until one is found.
	var other *Service
	for p := range s.prefixesOf(addr) {
		svc := best(s.byCIDR.all(p), clientNamespace)
		if svc == nil {
			continue
		}
		if svc.Namespace == clientNamespace {
			return svc
		}
		if other == nil {
			other = svc
		}
	}
	return other
}

// Endpoints returns the endpoints of the service that clients may be sent to,
// ordered by UID: the healthy ones, or all when the service's health policy
// says so. It returns nil for an unknown service, also when workloads already
// claim to belong to it.
func (s *Snapshot) Endpoints(key NamespacedHostname) []Endpoint {
	e := s.services.At(key)
	if e == nil || e.service == nil {
		return nil
	}
	if eps := e.endpoints.Load(); eps != nil {
		return *eps
	}
	eps := e.collect(key)
	e.endpoints.Store(&eps)
	return eps
}

func (e *serviceEntry) collect(key NamespacedHostname) []Endpoint {
	eps := make([]Endpoint, 0, e.members.Len())
	for w := range e.members.Values() {
		if e.service.accepts(w.Health) {
			eps = append(eps, Endpoint{Workload: w, Ports: w.Services[key]})
		}
	}
	slices.SortFunc(eps, func(a, b Endpoint) int { return strings.Compare(a.Workload.UID, b.Workload.UID) })
	return eps
}

// Endpoint returns the workload as an endpoint of the service, under the same
// rules as Endpoints.
func (s *Snapshot) Endpoint(key NamespacedHostname, uid string) (Endpoint, bool) {
	e := s.services.At(key)
	if e == nil || e.service == nil {
		return Endpoint{}, false
	}
	w, ok := e.members.Get(uid)
	if !ok || !e.service.accepts(w.Health) {
		return Endpoint{}, false
	}
	return Endpoint{Workload: w, Ports: w.Services[key]}, true
}

// Workloads iterates over all workloads in no particular order.
func (s *Snapshot) Workloads() iter.Seq[*Workload] { return s.workloads.Values() }

// Services iterates over all services in no particular order.
func (s *Snapshot) Services() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		for e := range s.services.Values() {
			if e.service != nil && !yield(e.service) {
				return
			}
		}
	}
}

// Staged iterates over services that are not known although workloads say
// they belong to them.
func (s *Snapshot) Staged() iter.Seq2[NamespacedHostname, []Endpoint] {
	return func(yield func(NamespacedHostname, []Endpoint) bool) {
		for key, e := range s.services.All() {
			if e.service != nil {
				continue
			}
			eps := make([]Endpoint, 0, e.members.Len())
			for w := range e.members.Values() {
				eps = append(eps, Endpoint{Workload: w, Ports: w.Services[key]})
			}
			slices.SortFunc(eps, func(a, b Endpoint) int { return strings.Compare(a.Workload.UID, b.Workload.UID) })
			if !yield(key, eps) {
				return
			}
		}
	}
}

// WorkloadCount returns the number of workloads.
func (s *Snapshot) WorkloadCount() int { return s.workloads.Len() }

// ServiceCount returns the number of services.
func (s *Snapshot) ServiceCount() int { return s.serviceCount }

// best picks among services, given in order, for a client of the namespace.
func best(services iter.Seq[*Service], clientNamespace string) *Service {
	var found *Service
	rank := -1
	for svc := range services {
		if !svc.VisibleTo(clientNamespace) {
			continue
		}
		r := 0
		switch {
		case svc.Namespace == clientNamespace && svc.Canonical:
			r = 3
		case svc.Namespace == clientNamespace:
			r = 2
		case svc.Canonical:
			r = 1
		}
		if r > rank {
			found, rank = svc, r
		}
	}
	return found
}

func compareServices(a, b *Service) int { return a.Key().compare(b.Key()) }

// prefixLengths counts the CIDR VIPs of one network by length, so that a
// lookup tries only lengths that exist.
type prefixLengths struct {
	v4 [33]uint32
	v6 [129]uint32
}

func (l *prefixLengths) has(addr netip.Addr, bits int) bool { return *l.at(addr, bits) != 0 }

func (l *prefixLengths) at(addr netip.Addr, bits int) *uint32 {
	if addr.Is4() {
		return &l.v4[bits]
	}
	return &l.v6[bits]
}
