package authz

import (
	"cmp"
	"net/netip"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/route"
)

// source is who connects: a pod, or somebody of whom only an identity or an address is known.
type source struct {
	pod  *pod
	id   identity.ID
	addr netip.Addr
}

// arrival is a connection as the agent of the destination sees it.
type arrival struct {
	connection policy.Connection
	// how says how it travels: "mTLS", "plaintext" or "waypoint NAME".
	how string
	// refused says why it does not get to the destination at all.
	refused string
}

// Ways in which connections arrive.
const (
	byTLS       = "mTLS"
	byPlaintext = "plaintext"
)

// dialled is what a client asks for of a pod.
type dialled struct {
	port uint16 // of the pod
	// service is the address of a Service, if that was dialled.
	service netip.AddrPort
}

// arrive tells how a connection from the source to the pod arrives, by the routing that agents do.
func (w *World) arrive(from source, to *pod, d dialled) arrival {
	destination := netip.AddrPortFrom(to.addr, d.port)
	a := arrival{how: byPlaintext, connection: policy.Connection{SourceIP: from.addr, Destination: destination}}
	switch {
	case from.pod == nil && !from.id.IsZero():
		if !from.addr.IsValid() {
			a.connection.SourceIP = unknownAddr()
		}
		if to.workload.Protocol == workload.HBONE {
			a.how, a.connection.Source = byTLS, from.id
		}
		return a
	case from.pod == nil:
		return a
	}
	a.connection.SourceIP = from.pod.addr
	if !from.pod.in {
		return a
	}
	asked := destination
	if d.service.IsValid() {
		asked = d.service
	}
	plan := route.Make(route.Input{
		Snapshot: w.store, Source: from.pod.near(to), Destination: asked, Network: w.settings.Network, Rand: func(int) int { return 0 },
		Suspended: func(uid string, _ netip.AddrPort) bool { return uid != to.workload.UID }, // of a Service's endpoints it is about this one
	})
	switch {
	case plan.Kind == route.Reject:
		a.refused = plan.Reason
	case plan.Kind == route.Tunnel && plan.Targets[0].Waypoint:
		via := plan.Targets[0].Workload
		a.how = "waypoint " + via.Namespace + "/" + cmp.Or(via.WorkloadName, via.Name)
		a.connection.Source = via.Identity()
		if len(via.Addresses) > 0 {
			a.connection.SourceIP = via.Addresses[0]
		}
	case plan.Kind == route.Tunnel:
		a.how, a.connection.Source = byTLS, from.pod.workload.Identity()
	}
	return a
}

// near returns the pod's workload as routing has to see it. Where a pod of a template will run is not known: it may be beside
// the other one, and a Service that stays on its node has an endpoint for it then.
func (p *pod) near(to *pod) *workload.Workload {
	if !p.template && !to.template {
		return p.workload
	}
	beside := *p.workload
	beside.Node, beside.Locality = to.workload.Node, to.workload.Locality
	return &beside
}

// unknownAddr stands for an address that nobody has told (documentation's, RFC 5737).
func unknownAddr() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
