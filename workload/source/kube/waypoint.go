package kube

import (
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"

	"github.com/culvert-mesh/culvert/workload"
)

// Reasons why an object has no waypoint although it names one.
const (
	reasonWaypointAccepted = "WaypointAccepted"
	reasonNotReady         = "WaypointIsNotReady"
	reasonDenied           = "AttachmentDenied"
	reasonTraffic          = "UnsupportedTrafficType"
)

// traffic says what is addressed: a service or a workload itself.
type traffic string

const (
	trafficService  traffic = "service"
	trafficWorkload traffic = "workload"
	trafficAll      traffic = "all"
)

// waypoint is a Gateway, which can be one once it has an address.
type waypoint struct {
	key     key
	ready   bool
	address workload.GatewayAddress
	traffic traffic
	tunnel  *workload.ApplicationTunnel // how its own instances want traffic
	from    string
	allowed k8slabels.Selector
}

// translateGateway returns the Gateway as a waypoint, ready when it has an
// address (reference, section 4.9). class may be nil.
func translateGateway(g *gatewayObject, class *gatewayClassObject, s *settings) *waypoint {
	w := &waypoint{key: g.key, traffic: trafficService, from: "Same"}
	if g.fault == "" && len(g.addresses) > 0 {
		w.ready, w.address = true, gatewayAddressOf(g, s)
	}
	if class != nil {
		if t, ok := class.labels.get(labelWaypointFor); ok {
			w.traffic = traffic(t)
		}
		if class.hasBinding {
			w.tunnel = parseBinding(class.binding)
		}
	}
	if t, ok := g.labels.get(labelWaypointFor); ok {
		w.traffic = traffic(t)
	}
	if g.hasBinding {
		w.tunnel = parseBinding(g.binding)
	}
	if l := g.listenerFor(w.tunnel); l != nil {
		w.from = l.from
		if l.from == "Selector" && l.selector != nil {
			w.allowed, _ = metav1.LabelSelectorAsSelector(l.selector)
		}
	}
	return w
}

// gatewayAddressOf prefers a host name: addresses may be given to others.
func gatewayAddressOf(g *gatewayObject, s *settings) workload.GatewayAddress {
	for _, a := range g.addresses {
		if a.host != "" {
			return workload.GatewayAddress{
				Hostname:  workload.NamespacedHostname{Namespace: g.namespace, Hostname: a.host},
				HBONEPort: hbonePort,
			}
		}
	}
	return workload.GatewayAddress{Address: workload.NewNetworkAddress(s.network, g.addresses[0].addr), HBONEPort: hbonePort}
}

// parseBinding reads "protocol" or "protocol/port"; nil for anything else.
func parseBinding(s string) *workload.ApplicationTunnel {
	protocol, port, hasPort := strings.Cut(s, "/")
	t := new(workload.ApplicationTunnel)
	switch protocol {
	case "NONE":
	case "PROXY":
		t.Protocol = workload.TunnelProxy
	default:
		return nil
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil
		}
		t.Port = uint16(n)
	}
	return t
}

// listenerFor returns the listener whose routes say who may attach: that of
// the binding, or else the one for HBONE.
func (g *gatewayObject) listenerFor(t *workload.ApplicationTunnel) *listener {
	var hbone *listener
	for i := range g.listeners {
		l := &g.listeners[i]
		if t != nil && (t.Port != 0 && l.port == int32(t.Port) ||
			t.Port == 0 && t.Protocol == workload.TunnelProxy && l.protocol == "istio.io/PROXY") {
			return l
		}
		if hbone == nil && l.protocol == "HBONE" && l.port == hbonePort {
			hbone = l
		}
	}
	return hbone
}

// allows reports whether objects of the namespace may attach.
func (w *waypoint) allows(ns *namespaceObject) bool {
	switch w.from {
	case "All":
		return true
	case "Selector":
		return w.allowed != nil && w.allowed.Matches(k8slabels.Set(ns.labels.toMap()))
	default:
		return w.key.namespace == ns.name
	}
}

// serves reports whether the waypoint takes this kind of traffic.
func (w *waypoint) serves(t traffic) bool { return w.traffic == t || w.traffic == trafficAll }

// named is a waypoint that labels name.
type named struct {
	key  key
	ok   bool
	none bool // opted out
}

func useWaypoint(labels pairs, namespace string) named {
	return nameOf(labels, namespace, labelUseWaypoint, labelUseWaypointNS)
}

func nameOf(labels pairs, namespace, label, namespaceLabel string) named {
	name, ok := labels.get(label)
	switch {
	case !ok || name == "":
		return named{}
	case name == waypointNone:
		return named{none: true}
	}
	if ns := labels.value(namespaceLabel); ns != "" {
		namespace = ns
	}
	return named{key: key{namespace, name}, ok: true}
}

// binding is the outcome of asking for a waypoint.
type binding struct {
	waypoint *waypoint
	// address is where traffic goes: the waypoint's or, when the one that is
	// named cannot be used, one where nobody answers, so that connections are
	// refused and not sent past layer 7 policy.
	address *workload.GatewayAddress
	reason  string
	message string
	note    string // about a canary that is not used
}

// waypoints looks a waypoint up; nil for one that is not there.
type waypoints func(key) *waypoint

// bind resolves the waypoint of an object with these labels in the namespace.
func (find waypoints) bind(labels pairs, ns *namespaceObject, want traffic) binding {
	own := useWaypoint(labels, ns.name)
	n := own
	if !own.ok && !own.none {
		n = useWaypoint(ns.labels, ns.name)
	}
	if !n.ok {
		return binding{}
	}
	w := find(n.key)
	switch {
	case want == trafficWorkload && !own.ok && (w == nil || !w.serves(want)):
		return binding{} // inherited; waypoints are for services unless they say otherwise
	case w == nil || !w.ready && w.serves(want):
		return refuse(n.key, reasonNotReady, fmt.Sprintf("waypoint %q is not ready; connections are refused until it is", n.key))
	case !w.allows(ns):
		return refuse(n.key, reasonDenied, fmt.Sprintf(
			"we are not permitted to attach to waypoint %q (missing allowedRoutes?); connections are refused", n.key))
	case !w.serves(want):
		return binding{reason: reasonTraffic, message: fmt.Sprintf(
			"attempting to bind to traffic type %q which the waypoint %q does not support", want, n.key)}
	}
	address := w.address
	return binding{waypoint: w, address: &address, reason: reasonWaypointAccepted}
}

// refuse returns a binding to where nobody answers (RFC 2606 section 2).
func refuse(k key, reason, message string) binding {
	return binding{
		address: &workload.GatewayAddress{
			Hostname:  workload.NamespacedHostname{Namespace: k.namespace, Hostname: k.name + "." + strings.ToLower(reason) + ".invalid"},
			HBONEPort: hbonePort,
		},
		reason: reason, message: message,
	}
}

// weigh adds the canary of a service's waypoint, which is read from where the
// waypoint itself was. A canary that cannot be used leaves all to the first.
func (find waypoints) weigh(b *binding, labels pairs, weight string, ns *namespaceObject) []workload.WeightedWaypoint {
	if b.waypoint == nil {
		return nil
	}
	canary := nameOf(labels, ns.name, labelCanary, labelCanaryNS)
	if !useWaypoint(labels, ns.name).ok {
		if !canary.ok && !canary.none {
			canary = nameOf(ns.labels, ns.name, labelCanary, labelCanaryNS)
		}
		if weight == "" {
			weight = ns.canaryWeight
		}
	}
	if !canary.ok {
		return nil
	}
	share, err := strconv.ParseUint(weight, 10, 8)
	if weight == "" {
		share, err = 0, nil
	}
	w := find(canary.key)
	switch {
	case canary.key == b.waypoint.key:
		b.note = fmt.Sprintf("canary waypoint %q must differ from the primary waypoint", canary.key)
	case err != nil || share > 100:
		b.note = fmt.Sprintf("canary waypoint %q has an invalid weight; must be an integer in [0,100]", canary.key)
	case w == nil || !w.ready:
		b.note = fmt.Sprintf("waypoint %q is not ready", canary.key)
	case !w.allows(ns):
		b.note = fmt.Sprintf("we are not permitted to attach to waypoint %q (missing allowedRoutes?)", canary.key)
	case !w.serves(trafficService):
		b.note = fmt.Sprintf("attempting to bind to traffic type %q which the waypoint %q does not support", trafficService, canary.key)
	default:
		return []workload.WeightedWaypoint{
			{Destination: b.waypoint.address, Weight: 100 - uint32(share)},
			{Destination: w.address, Weight: uint32(share)},
		}
	}
	return nil
}
