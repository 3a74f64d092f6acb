package netpol

import "net/netip"

// Direction is the direction of a connection as its subject sees it.
type Direction uint8

// Ingress is judged for the destination pod, Egress for the source pod.
const (
	Ingress Direction = iota
	Egress
)

// String returns the name used in logs.
func (d Direction) String() string { return name(d, "ingress", "egress") }

// Query is a connection to be judged.
type Query struct {
	Direction Direction
	Protocol  Protocol
	// Port is the port that the application is reached at, in either
	// direction: the inner port of a tunnel, the target port of a service.
	Port uint16
	// Subject is the UID of the pod whose policies decide: the destination for
	// Ingress, the source for Egress.
	Subject string
	// Peer is the UID of the pod at the other end, and empty when that is none
	// (an address outside of the cluster, a node, a machine without pods).
	Peer string
	// PeerUnproven says that the other end may be some pod, but that nobody has
	// proven which: its certificate is another service account's than that of
	// the pod with its address, say. Rules about pods and their named ports
	// then allow nothing, and deny if they deny or pass at all. Peer is
	// ignored.
	PeerUnproven bool
	// PeerIsNode says that the peer is the subject's own node, with which a
	// NetworkPolicy cannot forbid to talk.
	PeerIsNode bool
	// PeerAddr is the real address of the peer, behind any translation.
	PeerAddr netip.Addr
	// PeerDomain is the name by which the peer was asked for, lower case and
	// without a dot at its end; empty when it is not known.
	PeerDomain string
}

// Decision is the answer to a Query.
type Decision struct {
	Allowed bool
	// Unknown says that it is refused because the subject, the peer, or the
	// namespace of one of them is not in the Set (yet). An unknown subject is
	// never allowed; an unknown peer is judged like one that is unproven. A new
	// connection may wait for them; a live one should not be ended by it.
	Unknown bool
	// Policy is the policy that decided, as Key.String writes it: "netpol
	// namespace/name", "cluster-netpol name"; empty when none did.
	Policy string
	// Rule is the rule that decided, by its name or as "ingress 0"; empty when
	// none did.
	Rule string
	// Reason is for logs: why the connection is refused, or what allows it.
	Reason string
}
