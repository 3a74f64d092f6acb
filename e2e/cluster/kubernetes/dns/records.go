package main

import (
	"net/netip"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

// records answers from the informers' caches. It is safe for concurrent use.
type records struct {
	domain   string
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

// answer is what is known of a name.
type answer struct {
	known     bool
	canonical string // a CNAME, with the dot at its end
	addrs     []netip.Addr
}

// lookup takes a name without the dot at its end: [host.]service.namespace.svc.domain.
func (r *records) lookup(name string) answer {
	inner, ok := strings.CutSuffix(strings.ToLower(name), ".svc."+r.domain)
	if !ok {
		return answer{}
	}
	parts := strings.Split(inner, ".")
	if len(parts) < 2 || len(parts) > 3 {
		return answer{}
	}
	service, namespace := parts[len(parts)-2], parts[len(parts)-1]
	s, err := r.services.Services(namespace).Get(service)
	if err != nil {
		return answer{}
	}
	host := ""
	if len(parts) == 3 {
		host = parts[0]
	}
	switch {
	case s.Spec.Type == core.ServiceTypeExternalName && host == "":
		return answer{known: true, canonical: strings.TrimSuffix(s.Spec.ExternalName, ".") + "."}
	case s.Spec.ClusterIP == core.ClusterIPNone:
		return r.headless(s, host)
	case host != "":
		return answer{}
	}
	return answer{known: true, addrs: parse(s.Spec.ClusterIPs)}
}

// headless are the addresses of the service's ready endpoints, of the host alone if one is named.
func (r *records) headless(s *core.Service, host string) answer {
	list, err := r.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: s.Name}))
	if err != nil {
		return answer{}
	}
	a := answer{known: host == ""}
	for _, slice := range list {
		for _, e := range slice.Endpoints {
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready || s.Spec.PublishNotReadyAddresses
			if !ready || (host != "" && (e.Hostname == nil || *e.Hostname != host)) {
				continue
			}
			a.known = true
			a.addrs = append(a.addrs, parse(e.Addresses)...)
		}
	}
	slices.SortFunc(a.addrs, netip.Addr.Compare)
	a.addrs = slices.Compact(a.addrs)
	return a
}

func parse(texts []string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
