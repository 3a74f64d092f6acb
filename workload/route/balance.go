package route

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/workload"
)

// resolution says what a service is asked for. A waypoint's service need not
// declare the port when its endpoints have an application tunnel.
type resolution uint8

const (
	modeStandard resolution = iota
	modeWaypoint
)

// candidate is an endpoint that may be chosen.
type candidate struct {
	workload *workload.Workload
	weight   int
	affinity float64 // to the client, for a service that asks for it
	rank     int32
	port     uint16
}

// serviceHops iterates over the endpoints of the service in the order in which
// they are to be tried; there are none when the port is unknown or no endpoint
// can take it.
//
// Better locality goes first. Within a rank each place goes to the less loaded
// of two, drawn at random in proportion to their capacity; load counts
// relative to capacity. For a service with session affinity it goes to the one
// that the client's address has the greatest affinity to.
func (p *planner) serviceHops(svc *workload.Service, port uint16, mode resolution, target netip.Addr) iter.Seq[hop] {
	if _, declared := svc.Ports[port]; !declared && mode == modeStandard {
		return none
	}
	return func(yield func(hop) bool) {
		cs := p.candidates(svc, port, mode)
		slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(b.rank, a.rank) })
		for len(cs) > 0 {
			end := 1
			for end < len(cs) && cs[end].rank == cs[0].rank {
				end++
			}
			group := cs[:end]
			cs = cs[end:]
			sum := 0
			for i := range group {
				sum += group[i].weight
			}
			for len(group) > 0 {
				var c candidate
				c, group = p.draw(svc, group, sum)
				sum -= c.weight
				h := hop{workload: c.workload, port: c.port, service: svc, addr: pickAddress(c.workload, target, svc.IPFamilies)}
				if !yield(h) {
					return
				}
			}
		}
	}
}

func (p *planner) candidates(svc *workload.Service, port uint16, mode resolution) []candidate {
	eps := p.Snapshot.Endpoints(svc.Key())
	out := make([]candidate, 0, len(eps))
	for _, e := range eps {
		w := e.Workload
		to, ok := targetPort(svc, e, port, mode)
		if !ok || w.Capacity == 0 || !p.addressable(w) {
			continue
		}
		rank, ok := rank(svc.LoadBalancer, p.Source, w)
		if !ok {
			continue
		}
		c := candidate{workload: w, port: to, rank: int32(rank), weight: int(w.Capacity)}
		if svc.SessionAffinity > 0 {
			c.affinity = affinity(p.SourceIP, w)
		}
		out = append(out, c)
	}
	return out
}

// addressable reports whether there is a way to the workload at all. One that
// has neither address nor host name is reached through the gateway of another
// network only.
func (p *planner) addressable(w *workload.Workload) bool {
	if len(w.Addresses) > 0 || w.Hostname != "" {
		return true
	}
	return w.Network != p.Source.Network && w.NetworkGateway != nil
}

// targetPort translates the service's port: the endpoint's own mapping, else
// the service's, else (for a waypoint with an application tunnel) the same.
func targetPort(svc *workload.Service, e workload.Endpoint, port uint16, mode resolution) (uint16, bool) {
	if to := e.Ports[port]; to != 0 {
		return to, true
	}
	if to := svc.Ports[port]; to != 0 {
		return to, true
	}
	t := e.Workload.ApplicationTunnel
	return port, mode == modeWaypoint && t != nil && t.Port != 0
}

// rank counts the leading preferences that the endpoint shares with the
// source; false excludes it.
//
// NETWORK in the first place is special: it decides before all others, but an
// endpoint of another network is still ranked by the rest.
func rank(lb *workload.LoadBalancer, src, w *workload.Workload) (int, bool) {
	if lb == nil || lb.Mode == workload.LBStandard {
		return 0, true
	}
	n, bonus := 0, 0
	networkFirst := len(lb.Preferences) > 0 && lb.Preferences[0] == workload.ScopeNetwork
	for _, scope := range lb.Preferences {
		same := shares(scope, src, w)
		if scope == workload.ScopeNetwork && networkFirst {
			if !same {
				continue
			}
			bonus = len(lb.Preferences) - 1
		}
		if !same {
			break
		}
		n++
	}
	if lb.Mode == workload.LBStrict && n != len(lb.Preferences) {
		return 0, false
	}
	return n + bonus, true
}

func shares(scope workload.Scope, a, b *workload.Workload) bool {
	switch scope {
	case workload.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case workload.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case workload.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case workload.ScopeNode:
		return a.Node == b.Node
	case workload.ScopeCluster:
		return a.ClusterID == b.ClusterID
	case workload.ScopeNetwork:
		return a.Network == b.Network
	default:
		return false
	}
}

// draw takes one candidate out of the group, which it reorders. sum is the
// weight of the group.
func (p *planner) draw(svc *workload.Service, group []candidate, sum int) (candidate, []candidate) {
	i := 0
	if svc.SessionAffinity > 0 {
		i = mostAffine(group)
	} else {
		i = p.lessLoaded(group, sum)
	}
	c := group[i]
	last := len(group) - 1
	group[i] = group[last]
	return c, group[:last]
}

// lessLoaded returns the index of the less loaded of two, drawn at random.
func (p *planner) lessLoaded(group []candidate, sum int) int {
	first := p.pick(group, -1, sum)
	if p.Load != nil && len(group) > 1 {
		second := p.pick(group, first, sum-group[first].weight)
		a, b := &group[first], &group[second]
		// a.load/a.weight > b.load/b.weight, without division.
		if p.Load(a.workload.UID)*b.weight > p.Load(b.workload.UID)*a.weight {
			return second
		}
	}
	return first
}

// pick draws an index in proportion to weight, other than the one excluded;
// sum is the weight of the others.
func (p *planner) pick(group []candidate, except, sum int) int {
	n := p.Rand(sum)
	for i := range group {
		if i == except {
			continue
		}
		if n -= group[i].weight; n < 0 {
			return i
		}
	}
	return len(group) - 1 // not reached while Rand keeps its contract
}
