package route

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/workload"
)

// InboundInput is what the receiving side knows about a CONNECT request.
type InboundInput struct {
	Snapshot *workload.Snapshot
	// Local is the workload whose listener accepted the tunnel.
	Local *workload.Workload
	// Authority is the request's :authority.
	Authority string
	// LocalAddr is the accepted socket's own address.
	LocalAddr netip.AddrPort
	// Network is the network that this node serves.
	Network string
	// IllegalPorts are the agent's own ports, which no request may lead to.
	IllegalPorts []uint16
}

// Upstream is where an inbound request leads.
type Upstream struct {
	// Addr is the application's address. It is also what policy is asked
	// about.
	Addr netip.AddrPort
	// Tunnel is set when the local workload has an application tunnel.
	Tunnel *workload.ApplicationTunnel
	// TunnelTarget is the address that the peer asked for, for the header of
	// a PROXY tunnel.
	TunnelTarget netip.AddrPort
	// Services are those the request may have been meant for.
	Services []*workload.Service
}

// InboundError says why a request is refused, and with which HTTP status.
type InboundError struct {
	Status int // 400 or 503
	Err    error
}

// Error returns the reason.
func (e *InboundError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *InboundError) Unwrap() error { return e.Err }

// Inbound decides where a CONNECT request leads; a failure is an
// *InboundError.
func Inbound(in InboundInput) (Upstream, error) { return Upstream{}, nil }
