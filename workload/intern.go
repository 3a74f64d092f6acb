package workload

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// interner lets the workloads of one Store share what is equal among them: a
// hundred thousand pods have few namespaces, nodes and service lists. Entries
// are counted, so that they go with their last user. It belongs to the Store's
// writer.
type interner struct {
	strings  map[string]*shared[string]
	gateways map[GatewayAddress]*shared[*GatewayAddress]
	tunnels  map[ApplicationTunnel]*shared[*ApplicationTunnel]
	lists    map[string]*shared[[]string]
	services map[string]*shared[map[NamespacedHostname]PortMap]
}

type shared[T any] struct {
	value T
	refs  int
}

func newInterner() *interner {
	return &interner{
		strings:  make(map[string]*shared[string]),
		gateways: make(map[GatewayAddress]*shared[*GatewayAddress]),
		tunnels:  make(map[ApplicationTunnel]*shared[*ApplicationTunnel]),
		lists:    make(map[string]*shared[[]string]),
		services: make(map[string]*shared[map[NamespacedHostname]PortMap]),
	}
}

func acquire[K comparable, T any](m map[K]*shared[T], key K, value func() T) T {
	e := m[key]
	if e == nil {
		e = &shared[T]{value: value()}
		m[key] = e
	}
	e.refs++
	return e.value
}

func release[K comparable, T any](m map[K]*shared[T], key K) {
	if e := m[key]; e != nil {
		if e.refs--; e.refs == 0 {
			delete(m, key)
		}
	}
}

// fields lists the strings of a workload that others are likely to share.
func (w *Workload) fields() [14]*string {
	return [...]*string{
		&w.Namespace, &w.TrustDomain, &w.ServiceAccount, &w.Network, &w.Node,
		&w.WorkloadName, &w.WorkloadType, &w.CanonicalName, &w.CanonicalRevision, &w.ClusterID,
		&w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone, &w.Hostname,
	}
}

// workload returns a copy of w that shares what it can.
func (in *interner) workload(given *Workload) *Workload {
	w := new(Workload)
	*w = *given
	if strings.HasSuffix(w.UID, w.Name) {
		w.Name = w.UID[len(w.UID)-len(w.Name):]
	}
	for _, f := range w.fields() {
		*f = in.string(*f)
	}
	if slices.ContainsFunc(w.Addresses, netip.Addr.Is4In6) {
		w.Addresses = slices.Clone(w.Addresses)
		for i, a := range w.Addresses {
			w.Addresses[i] = a.Unmap()
		}
	}
	w.Waypoint = in.gateway(w.Waypoint)
	w.NetworkGateway = in.gateway(w.NetworkGateway)
	if t := w.ApplicationTunnel; t != nil {
		w.ApplicationTunnel = acquire(in.tunnels, *t, func() *ApplicationTunnel { return t })
	}
	if l := w.AuthorizationPolicies; l != nil {
		w.AuthorizationPolicies = acquire(in.lists, strings.Join(l, "\x00"), func() []string { return l })
	}
	if s := w.Services; s != nil {
		w.Services = acquire(in.services, servicesKey(s), func() map[NamespacedHostname]PortMap { return s })
	}
	return w
}

// release gives back what workload took.
func (in *interner) release(w *Workload) {
	for _, f := range w.fields() {
		if *f != "" {
			release(in.strings, *f)
		}
	}
	if w.Waypoint != nil {
		release(in.gateways, *w.Waypoint)
	}
	if w.NetworkGateway != nil {
		release(in.gateways, *w.NetworkGateway)
	}
	if w.ApplicationTunnel != nil {
		release(in.tunnels, *w.ApplicationTunnel)
	}
	if w.AuthorizationPolicies != nil {
		release(in.lists, strings.Join(w.AuthorizationPolicies, "\x00"))
	}
	if w.Services != nil {
		release(in.services, servicesKey(w.Services))
	}
}

func (in *interner) string(s string) string {
	if s == "" {
		return ""
	}
	return acquire(in.strings, s, func() string { return s })
}

func (in *interner) gateway(g *GatewayAddress) *GatewayAddress {
	if g == nil {
		return nil
	}
	return acquire(in.gateways, *g, func() *GatewayAddress { return g })
}

// servicesKey writes services and ports in one canonical string.
func servicesKey(services map[NamespacedHostname]PortMap) string {
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(services), NamespacedHostname.compare) {
		b.WriteString(key.Namespace)
		b.WriteByte('/')
		b.WriteString(key.Hostname)
		ports := services[key]
		for _, p := range slices.Sorted(maps.Keys(ports)) {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(int(p)))
			b.WriteByte('=')
			b.WriteString(strconv.Itoa(int(ports[p])))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
