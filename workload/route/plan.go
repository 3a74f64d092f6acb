package route

import (
	"errors"
	"net/netip"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
)

// Kind is what a Plan says to do.
type Kind uint8

// Reject is the zero value, so that an empty plan refuses.
const (
	// Reject refuses the connection; Plan.Reason says why.
	Reject Kind = iota
	// Passthrough dials the original destination plainly: it is unknown to
	// the mesh, or its service asks for it.
	Passthrough
	// TCP dials a chosen workload plainly.
	TCP
	// Tunnel opens an HBONE tunnel to each target in turn.
	Tunnel
)

// String returns the name used in logs.
func (k Kind) String() string {
	switch k {
	case Passthrough:
		return "passthrough"
	case TCP:
		return "tcp"
	case Tunnel:
		return "tunnel"
	default:
		return "reject"
	}
}

// Protocol is how one target is reached.
type Protocol uint8

// DoubleHBONE is a tunnel to a network gateway with a second tunnel inside
// that ends at the destination.
const (
	ProtocolTCP Protocol = iota
	ProtocolHBONE
	ProtocolDoubleHBONE
)

// String returns the name used in logs and dumps.
func (p Protocol) String() string {
	switch p {
	case ProtocolHBONE:
		return "HBONE"
	case ProtocolDoubleHBONE:
		return "DOUBLEHBONE"
	default:
		return "TCP"
	}
}

// MaxTargets bounds Plan.Targets. Attempts share one short deadline, and who
// refused is set aside for later connections, so more would not help.
const MaxTargets = 4

// DefaultHBONEPort is where peers accept HBONE.
const DefaultHBONEPort = 15008

// Why a connection is refused. Plan.Err wraps one of them.
var (
	ErrUnknownWaypoint    = errors.New("unknown waypoint")
	ErrUnknownGateway     = errors.New("unknown network gateway")
	ErrNoHealthyUpstream  = errors.New("no healthy upstream")
	ErrNoValidDestination = errors.New("no valid routing destination for workload")
	ErrNoService          = errors.New("no service for target address")
	ErrNotRegistered      = errors.New("outbound traffic policy REGISTRY_ONLY: destination is not in the registry")
)

// Input is all that a Plan depends on.
type Input struct {
	// Snapshot is required.
	Snapshot *workload.Snapshot
	// Source is the calling workload. Required.
	Source *workload.Workload
	// SourceIP is the client's address, for telling a waypoint's own traffic.
	// When it is invalid, Source's first address stands for it.
	SourceIP netip.Addr
	// Destination is what the application dialled.
	Destination netip.AddrPort
	// Network is the network that this node serves.
	Network string
	// HBONEPort is where peers accept HBONE; 0 means DefaultHBONEPort.
	HBONEPort uint16
	// Outbound is the policy of Source's namespace; see Registered.
	Outbound egress.Mode

	// Load returns the connections open to a workload; nil means 0.
	Load func(uid string) int
	// Suspended reports whether an endpoint refused lately and should be
	// tried last; the address is the one that would be dialled (a port alone,
	// which is not valid, for one that has only a host name). Nil means never.
	Suspended func(uid string, addr netip.AddrPort) bool
	// Rand returns a number in [0,n); n is positive. Nil uses math/rand/v2.
	Rand func(n int) int
}

// Plan is the decision about one connection.
type Plan struct {
	Kind Kind
	// Reason says why the connection is refused, for the log; empty otherwise.
	Reason string
	// Err is the cause behind Reason; compare with errors.Is.
	Err error
	// Service is the service that the destination address means, or nil.
	Service *workload.Service
	// Targets are the endpoints to try, in order: never empty for TCP and
	// Tunnel, at most MaxTargets. Kind is that of the first, but each has its
	// own Protocol; a tunnel is never followed by plain TCP. A Passthrough has
	// one target, the original destination.
	Targets []Target
}

// Target is one way to carry the connection.
type Target struct {
	Protocol Protocol
	// Workload is the one that is dialled: the destination itself, its
	// waypoint or a gateway. Nil in a Passthrough.
	Workload *workload.Workload
	// Dial is the address to connect to. It is invalid when the workload has
	// only a host name: then Hostname is resolved and joined with DialPort.
	Dial netip.AddrPort
	// Endpoint is the address that Input.Suspended was asked about. Resolved
	// leaves it as it is.
	Endpoint netip.AddrPort
	// Hostname is set when Dial is not, with DialPort.
	Hostname string
	DialPort uint16
	// Authority goes into the CONNECT: "ip:port", or "host:port" across
	// networks, where it serves both tunnels. It may be empty while Hostname
	// is set; see Resolved. Empty for TCP.
	Authority string
	// Expected are the identities of which the peer must have one.
	Expected []identity.ID
	// InnerExpected is the same for the inner tunnel of DoubleHBONE.
	InnerExpected []identity.ID
	// Waypoint is set when the target is a waypoint.
	Waypoint bool
	// Service is the service that was addressed, for the "host" of the
	// Forwarded header and for telemetry, or nil.
	Service *workload.Service

	authorityPort uint16
}

// Resolved returns the target with Hostname resolved to addr. Of several
// answers one in the family of the original destination is to be preferred.
func (t Target) Resolved(addr netip.Addr) Target {
	addr = addr.Unmap()
	t.Dial = netip.AddrPortFrom(addr, t.DialPort)
	if t.Authority == "" && t.Protocol == ProtocolHBONE {
		t.Authority = netip.AddrPortFrom(addr, t.authorityPort).String()
	}
	t.Hostname = ""
	return t
}
