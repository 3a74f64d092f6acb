package route

import (
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/workload"
)

// Registered reports whether the registry has the destination, as the source's
// namespace sees it. Of in, Snapshot, Source, Destination and Network count.
//
//	address of a pod or another member of the mesh  → yes, every port
//	address of a visible service with endpoints     → yes; its ports decide further on
//	address or prefix of a visible service without  → the ports that it declares
//	address of an External endpoint                 → the target ports of visible services
//	anything else                                   → no
//
// Where nothing is chosen in the registry the port must be there too: an entry
// for one port of an address opens that port.
func Registered(in Input) bool {
	dst, namespace := unmapped(in.Destination), in.Source.Namespace
	networks := [...]string{in.Source.Network, in.Network}
	for i, network := range networks {
		if i > 0 && network == networks[0] {
			break
		}
		at := workload.NewNetworkAddress(network, dst.Addr())
		for _, svc := range in.Snapshot.ServicesByVIP(at) {
			if svc.VisibleTo(namespace) && opens(svc, dst.Port()) {
				return true
			}
		}
		if w := in.Snapshot.WorkloadByAddress(at); w != nil && !w.External() {
			return true
		}
		for w := range in.Snapshot.ExternalsByAddress(at) {
			if reachable(in.Snapshot, w, dst.Port(), namespace) {
				return true
			}
		}
	}
	return false
}

// opens reports whether the service's addresses are registered at the port.
func opens(svc *workload.Service, port uint16) bool {
	if !svc.Passthrough() {
		return true // to one of its endpoints, or to nobody
	}
	_, declared := svc.Ports[port]
	return declared
}

// reachable reports whether the endpoint itself is registered at the port.
func reachable(snap *workload.Snapshot, w *workload.Workload, port uint16, namespace string) bool {
	for key, own := range w.Services {
		svc := snap.Service(key)
		if svc == nil || !svc.VisibleTo(namespace) {
			continue
		}
		for from, to := range svc.Ports {
			if t := own[from]; t != 0 {
				to = t
			}
			if to == port {
				return true
			}
		}
	}
	return false
}

func (p *planner) unregistered() Plan {
	err := fmt.Errorf("%w: %s", ErrNotRegistered, p.target)
	return Plan{Kind: Reject, Reason: err.Error(), Err: err}
}

// unmapped returns the address in its own family.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
