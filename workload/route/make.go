package route

import (
	"cmp"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
)

// Make decides about one outbound connection. The conditions are looked at in
// this order:
//
//	not Registered, and REGISTRY_ONLY   → refused
//	service with a waypoint             → its waypoint; refused if that is broken
//	service that asks for it            → passthrough
//	service                             → its endpoints; refused without any
//	workload with a waypoint            → its waypoint, unless it is the caller
//	workload                            → itself
//	none of them                        → passthrough
//
// An endpoint in another network is reached through its gateway. A workload
// goes before a service VIP in the first step and after it in the others, as
// in ztunnel. Unlike there it goes before a prefix in all of them: who writes a
// ServiceEntry for a range must not take the tunnels to the pods in it away.
func Make(in Input) Plan {
	p := newPlanner(in)
	src := in.Source
	if in.Outbound == egress.RegistryOnly && !Registered(in) {
		return p.unregistered()
	}
	addressed := p.addressedService()
	if addressed != nil {
		if gw := p.chooseWaypoint(addressed); gw != nil {
			return p.viaServiceWaypoint(addressed, *gw)
		}
	}
	b := &builder{suspended: in.Suspended, service: addressed, err: fmt.Errorf("%w: %s", ErrNoHealthyUpstream, p.target)}
	at := workload.NewNetworkAddress(src.Network, p.target.Addr())
	w := in.Snapshot.WorkloadByAddress(at)
	if svc := in.Snapshot.ServiceByVIP(at, src.Namespace); svc != nil && (w == nil || w.External() || slices.Contains(svc.VIPs, at)) {
		if svc.Passthrough() {
			return p.passthrough(svc)
		}
		b.service = cmp.Or(addressed, svc)
		p.toEndpoints(b, addressed, p.serviceHops(svc, p.target.Port(), modeStandard, p.target.Addr()))
		return b.plan()
	}
	if w != nil {
		p.toEndpoints(b, addressed, only(p.workloadHop(w, p.target.Port(), p.target.Addr())))
		return b.plan()
	}
	if addressed != nil && !addressed.Passthrough() {
		return b.plan()
	}
	return p.passthrough(addressed)
}

// planner holds the Input with its defaults filled in.
type planner struct {
	Input
	target netip.AddrPort // the destination, never IPv4-mapped
}

func newPlanner(in Input) *planner {
	p := &planner{Input: in}
	p.target = unmapped(in.Destination)
	if p.HBONEPort == 0 {
		p.HBONEPort = DefaultHBONEPort
	}
	if p.Rand == nil {
		p.Rand = rand.IntN
	}
	p.SourceIP = p.SourceIP.Unmap()
	if !p.SourceIP.IsValid() && len(in.Source.Addresses) > 0 {
		p.SourceIP = in.Source.Addresses[0].Unmap()
	}
	return p
}

// addressedService returns the service whose VIP was dialled, or nil when the
// address is a workload's or unknown.
func (p *planner) addressedService() *workload.Service {
	at := workload.NewNetworkAddress(p.Network, p.target.Addr())
	if p.Snapshot.WorkloadByAddress(at) != nil {
		return nil
	}
	return p.Snapshot.ServiceByVIP(at, p.Source.Namespace)
}

func (p *planner) passthrough(svc *workload.Service) Plan {
	return Plan{Kind: Passthrough, Service: svc, Targets: []Target{{Protocol: ProtocolTCP, Dial: p.target, Service: svc}}}
}

// viaServiceWaypoint sends the connection, addressed as the application
// addressed it, to a waypoint of the service.
func (p *planner) viaServiceWaypoint(svc *workload.Service, gw workload.GatewayAddress) Plan {
	b := &builder{suspended: p.Suspended, service: svc, err: fmt.Errorf("%w: %s", ErrUnknownWaypoint, gw)}
	for h := range p.gatewayHops(gw, modeWaypoint) {
		if h.workload.Network != p.Source.Network {
			p.throughGateway(b, h, svc)
		} else {
			p.toWaypoint(b, h, svc)
		}
		if b.full() {
			break
		}
	}
	return b.plan()
}

// toEndpoints makes targets of endpoints. addressed is the service that was
// dialled, or nil.
func (p *planner) toEndpoints(b *builder, addressed *workload.Service, hops iter.Seq[hop]) {
	for h := range hops {
		switch {
		case h.workload.Network != p.Source.Network && addressed == nil:
			b.fail(fmt.Errorf("%w: %s", ErrNoService, p.target))
		case h.workload.Network != p.Source.Network:
			p.throughGateway(b, h, addressed)
		case addressed == nil && h.workload.Waypoint != nil && !p.isFrom(*h.workload.Waypoint):
			p.toWorkloadWaypoint(b, h)
		default:
			p.direct(b, h)
		}
		if b.full() {
			return
		}
	}
}

// direct reaches the endpoint itself.
func (p *planner) direct(b *builder, h hop) {
	t := Target{Workload: h.workload, Service: h.service, authorityPort: h.port}
	if h.workload.Protocol != workload.HBONE {
		b.add(t, h, h.port)
		return
	}
	t.Protocol = ProtocolHBONE
	t.Expected = h.identities()
	if h.addr.IsValid() {
		t.Authority = netip.AddrPortFrom(h.addr, h.port).String()
	}
	b.add(t, h, p.HBONEPort)
}

// toWaypoint reaches a waypoint, with the original destination as authority.
func (p *planner) toWaypoint(b *builder, h hop, svc *workload.Service) {
	b.add(Target{
		Protocol:  ProtocolHBONE,
		Workload:  h.workload,
		Authority: p.target.String(),
		Expected:  h.identities(),
		Waypoint:  true,
		Service:   svc,
	}, h, h.port)
}

func (p *planner) toWorkloadWaypoint(b *builder, dst hop) {
	gw := *dst.workload.Waypoint
	n := 0
	for h := range p.gatewayHops(gw, modeWaypoint) {
		n++
		if p.toWaypoint(b, h, dst.service); b.full() {
			return
		}
	}
	if n == 0 {
		b.fail(fmt.Errorf("%w: %s", ErrUnknownWaypoint, gw))
	}
}

// throughGateway reaches an endpoint or waypoint (to) in another network: one
// tunnel to a gateway of that network, and inside it one to the destination.
// Both carry the service's host name, which is why there must be a service.
func (p *planner) throughGateway(b *builder, to hop, svc *workload.Service) {
	gw := to.workload.NetworkGateway
	if gw == nil {
		b.fail(fmt.Errorf("%w: %s is in network %q, to which no gateway leads", ErrNoValidDestination, to.workload, to.workload.Network))
		return
	}
	if !b.firstUse(*gw) {
		return
	}
	var inner []identity.ID
	if to.service != nil {
		inner = to.service.SubjectAltNames
	}
	n := 0
	for h := range p.gatewayHops(*gw, modeStandard) {
		n++
		b.add(Target{
			Protocol:      ProtocolDoubleHBONE,
			Workload:      h.workload,
			Authority:     net.JoinHostPort(svc.Hostname, strconv.Itoa(int(p.target.Port()))),
			Expected:      h.identities(),
			InnerExpected: inner,
			Service:       svc,
		}, h, h.port)
		if b.full() {
			return
		}
	}
	if n == 0 {
		b.fail(fmt.Errorf("%w: %s", ErrUnknownGateway, *gw))
	}
}
