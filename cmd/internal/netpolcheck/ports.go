package netpolcheck

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	adminv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

const (
	maxPort = 65535
	dnsPort = 53
)

// ports are the TCP ports of a rule. The zero value has none.
type ports struct {
	all   bool
	spans []span
	names []string
}

// span is a range of ports, both ends in it.
type span struct{ first, last int32 }

// portsOf reads the ports of a NetworkPolicy's rule; no list, or an empty one, is all ports of all protocols.
func portsOf(list []networkingv1.NetworkPolicyPort) ports {
	if len(list) == 0 {
		return ports{all: true}
	}
	var p ports
	for _, entry := range list {
		switch {
		case entry.Protocol != nil && *entry.Protocol != corev1.ProtocolTCP:
		case entry.Port == nil:
			p.all = true
		case entry.Port.Type == intstr.String:
			p.names = append(p.names, entry.Port.StrVal)
		case entry.EndPort != nil:
			p.spans = append(p.spans, span{entry.Port.IntVal, *entry.EndPort})
		default:
			p.spans = append(p.spans, span{entry.Port.IntVal, entry.Port.IntVal})
		}
	}
	return p
}

// protocolsOf reads the protocols of a ClusterNetworkPolicy's rule. A form that is not known counts as all ports if
// unknown says so, else as none.
func protocolsOf(list []adminv1alpha2.ClusterNetworkPolicyProtocol, unknown bool) ports {
	if len(list) == 0 {
		return ports{all: true}
	}
	var p ports
	for _, entry := range list {
		switch {
		case entry.DestinationNamedPort != "": // of any protocol
			p.names = append(p.names, entry.DestinationNamedPort)
		case entry.UDP != nil, entry.SCTP != nil:
		case entry.TCP == nil:
			p.all = p.all || unknown
		case entry.TCP.DestinationPort == nil:
			p.all = true
		case entry.TCP.DestinationPort.Range != nil:
			r := entry.TCP.DestinationPort.Range
			p.spans = append(p.spans, span{r.Start, r.End})
		default:
			p.spans = append(p.spans, span{entry.TCP.DestinationPort.Number, entry.TCP.DestinationPort.Number})
		}
	}
	return p
}

// none reports whether no TCP port is among them.
func (p ports) none() bool { return !p.all && len(p.spans) == 0 && len(p.names) == 0 }

// hbone reports whether 15008 is among them. Names are those of container ports; named tells whether one is 15008 in all
// pods that it is looked up in.
func (p ports) hbone(named func(string) bool) bool {
	return p.all || slices.ContainsFunc(p.spans, func(s span) bool { return s.first <= Port && Port <= s.last }) || slices.ContainsFunc(p.names, named)
}

// onlyDNS reports whether the only TCP port is that of DNS.
func (p ports) onlyDNS() bool {
	return !p.all && len(p.names) == 0 && len(p.spans) > 0 && !slices.ContainsFunc(p.spans, func(s span) bool { return s != span{dnsPort, dnsPort} })
}

// every reports whether no TCP port is left out.
func (p ports) every() bool {
	if p.all {
		return true
	}
	spans := slices.Clone(p.spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	last := int32(0) // up to here without a gap
	for _, s := range spans {
		if s.first-1 > last {
			return false
		}
		last = max(last, s.last)
	}
	return last >= maxPort
}

// unnamed is for rules whose pods are not known: no name is 15008.
func unnamed(string) bool { return false }

// allowsUDP reports whether a rule's ports have a UDP port.
func allowsUDP(list []networkingv1.NetworkPolicyPort, port int32) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(entry networkingv1.NetworkPolicyPort) bool {
		switch {
		case entry.Protocol == nil || *entry.Protocol != corev1.ProtocolUDP:
			return false
		case entry.Port == nil, entry.Port.Type == intstr.String: // a name may be any port
			return true
		case entry.EndPort != nil:
			return entry.Port.IntVal <= port && port <= *entry.EndPort
		}
		return entry.Port.IntVal == port
	})
}
