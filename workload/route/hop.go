package route

import (
	"iter"
	"net/netip"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// hop is a workload chosen for a connection, with the address and port that
// the choice means.
type hop struct {
	workload *workload.Workload
	addr     netip.Addr // invalid when there is none
	port     uint16
	service  *workload.Service // that it was chosen from, or nil
}

// identities are those that the hop may show: its own and its service's
// alternative names. Without any the handshake fails.
func (h hop) identities() []identity.ID {
	var ids []identity.ID
	if id := h.workload.Identity(); !id.IsZero() {
		ids = append(ids, id)
	}
	if h.service != nil {
		ids = append(ids, h.service.SubjectAltNames...)
	}
	return ids
}

// workloadHop is the workload at the port.
func (p *planner) workloadHop(w *workload.Workload, port uint16, target netip.Addr) hop {
	return hop{workload: w, port: port, addr: pickAddress(w, target, workload.FamiliesAutomatic)}
}

// pickAddress returns the workload's address to use: the one dialled if it is
// its own, else one that the service's families accept, best in the family
// that was dialled. It is invalid when there is none.
func pickAddress(w *workload.Workload, target netip.Addr, families workload.IPFamilies) netip.Addr {
	if w.HasAddress(target) {
		return target
	}
	var first netip.Addr
	for _, a := range w.Addresses {
		if !families.Accepts(a) {
			continue
		}
		if a.Is4() == target.Is4() {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	return first
}

func only(h hop) iter.Seq[hop] {
	return func(yield func(hop) bool) { yield(h) }
}

func none(func(hop) bool) {}

// gatewayHops follows a reference to a waypoint or gateway. One by address
// pins the address family, one by host name takes the family that the
// application dialled.
func (p *planner) gatewayHops(gw workload.GatewayAddress, mode resolution) iter.Seq[hop] {
	if gw.Hostname.IsZero() {
		at := workload.NewNetworkAddress(gw.Address.Network, gw.Address.Addr)
		if svc := p.Snapshot.ServiceByVIP(at, p.Source.Namespace); svc != nil {
			if svc.Passthrough() {
				return none
			}
			return p.serviceHops(svc, gw.HBONEPort, mode, at.Addr)
		}
		if w := p.Snapshot.WorkloadByAddress(at); w != nil {
			return only(p.workloadHop(w, gw.HBONEPort, at.Addr))
		}
		return none
	}
	if svc := p.Snapshot.Service(gw.Hostname); svc != nil {
		return p.serviceHops(svc, gw.HBONEPort, mode, p.target.Addr())
	}
	if w := p.Snapshot.WorkloadByHost(gw.Hostname); w != nil {
		return only(p.workloadHop(w, gw.HBONEPort, p.target.Addr()))
	}
	return none
}

// chooseWaypoint returns the service's waypoint: one of the weighted ones, in
// proportion, or else the single one; nil when it has none.
func (p *planner) chooseWaypoint(svc *workload.Service) *workload.GatewayAddress {
	sum := 0
	for i := range svc.WeightedWaypoints {
		sum += int(svc.WeightedWaypoints[i].Weight)
	}
	if sum == 0 {
		return svc.Waypoint
	}
	n := p.Rand(sum)
	for i := range svc.WeightedWaypoints {
		w := &svc.WeightedWaypoints[i]
		if n -= int(w.Weight); n < 0 {
			return &w.Destination
		}
	}
	return svc.Waypoint
}

// isFrom reports whether the caller is one of the workloads behind the
// reference: a waypoint's own traffic does not go through it again. Identity
// and address must both be those of the waypoint.
func (p *planner) isFrom(gw workload.GatewayAddress) bool {
	id := p.Source.Identity()
	if id.IsZero() {
		return false
	}
	is := func(w *workload.Workload) bool { return w.HasAddress(p.SourceIP) && w.Identity() == id }
	w, svc := destinationOf(p.Snapshot, gw, p.Source.Namespace)
	if w != nil {
		return is(w)
	}
	if svc == nil {
		return false
	}
	// The caller may be on its way out of the list, or unhealthy.
	if _, ok := p.Source.Services[svc.Key()]; ok && p.Source.HasAddress(p.SourceIP) {
		return true
	}
	for _, e := range p.Snapshot.Endpoints(svc.Key()) {
		if is(e.Workload) {
			return true
		}
	}
	return false
}

// destinationOf returns what the reference names: a workload or a service.
func destinationOf(s *workload.Snapshot, gw workload.GatewayAddress, namespace string) (*workload.Workload, *workload.Service) {
	if gw.Hostname.IsZero() {
		if w := s.WorkloadByAddress(gw.Address); w != nil {
			return w, nil
		}
		return nil, s.ServiceByVIP(gw.Address, namespace)
	}
	if svc := s.Service(gw.Hostname); svc != nil {
		return nil, svc
	}
	return s.WorkloadByHost(gw.Hostname), nil
}
