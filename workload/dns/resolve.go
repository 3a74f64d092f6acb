package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Resolve answers the question for name (in presentation form, with or without
// the dot at its end, any case) and record type, as asked by the client.
func (r *Resolver) Resolve(snap *workload.Snapshot, c Client, name string, qtype uint16) Answer {
	if qtype != TypeA && qtype != TypeAAAA {
		return Answer{Reason: "record type is forwarded"}
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || strings.Contains(name, `\`) {
		return Answer{Reason: "unknown host"}
	}
	svc, canonical := r.find(snap, c, name)
	if svc == nil {
		return Answer{Reason: "unknown host"}
	}
	if !r.familyAllowed(svc, qtype) {
		return Answer{Outcome: NoData, Service: svc, Reason: "service does not support this record type"}
	}
	addrs := r.addresses(snap, c, svc, qtype)
	if len(addrs) == 0 {
		return Answer{Outcome: NoData, Service: svc, Reason: "no records"}
	}
	r.shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	a := Answer{Outcome: Addresses, Service: svc, Addrs: addrs, Reason: "success"}
	if canonical != "" {
		a.Canonical = canonical + "."
	}
	return a
}

// find returns the service that the name means to the client, and the name left
// after stripping a search domain when that is how it was found. A wildcard match
// has no such name: its answer carries the question's own.
//
// The first match counts, unless it is another namespace's: a service of
// Kubernetes goes before what others write down in whatever form of its name.
// The full name of a pod is never that of a service elsewhere.
func (r *Resolver) find(snap *workload.Snapshot, c Client, name string) (svc *workload.Service, canonical string) {
	owner, ofPod := r.ofPod(snap, name)
	for _, a := range r.aliases(c, name) {
		for hostname, wildcard := range wildcards(a.name) {
			services := snap.ServicesByHost(hostname)
			if ofPod {
				services = slices.DeleteFunc(services, func(s *workload.Service) bool {
					return r.ofKubernetes(s) || s.Namespace != owner && s.Namespace != c.Namespace
				})
			}
			found := r.best(services, c.Namespace)
			if found == nil || svc != nil && !r.ofKubernetes(found) {
				continue
			}
			svc, canonical = found, a.stripped
			if wildcard {
				canonical = ""
			}
			if svc.Namespace == c.Namespace || r.ofKubernetes(svc) {
				return svc, canonical
			}
		}
	}
	return svc, canonical
}

// ofPod reports whether the name is that of a pod behind a service that the mesh
// knows, host.subdomain.namespace.svc.domain, and returns the namespace. That is
// also what a client makes of "service.namespace" in the first step along its
// search path; the next one finds the service then.
func (r *Resolver) ofPod(snap *workload.Snapshot, name string) (namespace string, ok bool) {
	_, host, _ := strings.Cut(name, ".")
	behind, ok := strings.CutSuffix(host, r.suffix)
	if !ok {
		return "", false
	}
	_, namespace, _ = strings.Cut(behind, ".")
	key := workload.NamespacedHostname{Namespace: namespace, Hostname: host}
	return namespace, !strings.Contains(namespace, ".") && snap.Service(key) != nil
}

// ofKubernetes reports whether the service has a name that Kubernetes gives to
// those of its namespace.
func (r *Resolver) ofKubernetes(s *workload.Service) bool {
	name, ok := strings.CutSuffix(s.Hostname, r.suffix)
	_, namespace, _ := strings.Cut(name, ".")
	return ok && namespace == s.Namespace
}

// best chooses among the services of one hostname: the client's own namespace,
// then the canonical one, then the preferred namespace, then the first. Services
// that the client must not see and those without an address of their own (unless
// Kubernetes headless) do not take part; then the upstream server is asked.
func (r *Resolver) best(services []*workload.Service, namespace string) *workload.Service {
	var canonical, preferred, first *workload.Service
	for _, s := range services {
		if !r.answerable(s) || !s.VisibleTo(namespace) {
			continue
		}
		switch {
		case s.Namespace == namespace:
			return s
		case s.Canonical:
			canonical = s
		case r.preferred != "" && s.Namespace == r.preferred:
			preferred = s
		case first == nil:
			first = s
		}
	}
	switch {
	case canonical != nil:
		return canonical
	case preferred != nil:
		return preferred
	default:
		return first
	}
}

// answerable reports whether the store holds all that an answer needs: exact
// VIPs, or the endpoints of a headless service, which is known by its name.
func (r *Resolver) answerable(s *workload.Service) bool {
	return len(s.VIPs) > 0 || strings.HasSuffix(s.Hostname, r.suffix)
}

// familyAllowed reports whether the service may have records of the type. A
// single-stack headless service must not return the other family of its pods.
func (r *Resolver) familyAllowed(s *workload.Service, qtype uint16) bool {
	switch {
	case qtype == TypeAAAA && r.noIPv6:
		return false
	case qtype == TypeAAAA:
		return s.IPFamilies != workload.FamiliesIPv4
	default:
		return s.IPFamilies != workload.FamiliesIPv6
	}
}

// addresses collects the service's addresses of the family: its VIPs on the
// client's network or, for a headless service, one address of each endpoint.
func (r *Resolver) addresses(snap *workload.Snapshot, c Client, s *workload.Service, qtype uint16) []netip.Addr {
	if len(s.VIPs) > 0 {
		out := make([]netip.Addr, 0, len(s.VIPs))
		for _, vip := range s.VIPs {
			if addr := vip.Addr.Unmap(); vip.Network == c.Network && isType(addr, qtype) {
				out = append(out, addr)
			}
		}
		return out
	}
	endpoints := snap.Endpoints(s.Key())
	out := make([]netip.Addr, 0, len(endpoints))
	for _, ep := range endpoints {
		for _, addr := range ep.Workload.Addresses {
			if addr = addr.Unmap(); isType(addr, qtype) {
				out = append(out, addr)
				break
			}
		}
	}
	return out
}

// isType reports whether the address belongs into a record of the type.
func isType(addr netip.Addr, qtype uint16) bool {
	return addr.IsValid() && addr.Is4() == (qtype == TypeA)
}
