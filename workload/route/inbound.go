package route

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Why an inbound request is refused. InboundError wraps one of them.
var (
	ErrBadAuthority = errors.New("no valid authority pseudo header")
	ErrIPMismatch   = errors.New("ip mismatch")
	ErrNoHostname   = errors.New("no service or workload for hostname")
	ErrNoPort       = errors.New("requested service found, but cannot resolve port")
	ErrNoVIP        = errors.New("requested service found, but has no IP addresses")
	ErrSelfCall     = errors.New("attempted recursive call to ourselves")
)

// Statuses of an InboundError.
const (
	statusBadRequest  = 400
	statusUnavailable = 503
)

// InboundInput is what the receiving side knows about a CONNECT request.
type InboundInput struct {
	// Snapshot is required.
	Snapshot *workload.Snapshot
	// Local is the workload whose listener accepted the tunnel. Required.
	Local *workload.Workload
	// Authority is the request's :authority.
	Authority string
	// LocalAddr is the accepted socket's own address.
	LocalAddr netip.AddrPort
	// Network is the network that this node serves.
	Network string
	// IllegalPorts are the agent's own ports, which no request may lead to.
	IllegalPorts []uint16
	// Candidates are those of Local, for who has them at hand. Nil means that they are found anew.
	Candidates []workload.NamespacedHostname
}

// What is looked at to guess the service that a connection was meant for. Whoever writes Services and EndpointSlices could make
// it very much for every connection to a pod, and loops, which many pods have in common, wait for it.
const (
	mostCandidates = 256
	mostPorts      = 4096
)

// Candidates returns the services that connections to the workload may be meant for, in the order of guessing: those of its own
// namespace go first, because another's EndpointSlice may name it too. Of very many it returns some.
func Candidates(w *workload.Workload) []workload.NamespacedHostname {
	keys := slices.SortedFunc(maps.Keys(w.Services), func(a, b workload.NamespacedHostname) int {
		if own := a.Namespace == w.Namespace; own != (b.Namespace == w.Namespace) {
			if own {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Hostname, b.Hostname))
	})
	return slices.Clone(keys[:min(len(keys), mostCandidates)])
}

// Upstream is where an inbound request leads.
type Upstream struct {
	// Addr is the application's address. It is also what policy is asked
	// about.
	Addr netip.AddrPort
	// Tunnel is set when the local workload has an application tunnel.
	Tunnel *workload.ApplicationTunnel
	// TunnelTarget is the address that the peer asked for, for the header of
	// a PROXY tunnel. Valid when Tunnel is set.
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

func badRequest(err error) error  { return &InboundError{Status: statusBadRequest, Err: err} }
func unavailable(err error) error { return &InboundError{Status: statusUnavailable, Err: err} }

// Inbound decides where a CONNECT request leads; a failure is an
// *InboundError. The request always leads to the address that it arrived at:
// the authority contributes the port, and is refused when it names an address
// that this workload does not answer for.
func Inbound(in InboundInput) (Upstream, error) {
	in.LocalAddr = netip.AddrPortFrom(in.LocalAddr.Addr().Unmap(), in.LocalAddr.Port())
	asked, err := parseAuthority(in.Authority)
	if err != nil {
		return Upstream{}, badRequest(err)
	}
	if asked.addr.IsValid() && !in.answersFor(asked.addr) {
		return Upstream{}, badRequest(fmt.Errorf("%w: %s != %s", ErrIPMismatch, in.LocalAddr.Addr(), asked.addr))
	}
	up := Upstream{Addr: netip.AddrPortFrom(in.LocalAddr.Addr(), asked.port)}
	if asked.addr.IsValid() {
		up.Services = in.services()
	} else if err := in.resolveHost(asked, &up); err != nil {
		return Upstream{}, unavailable(err)
	}
	if slices.Contains(in.IllegalPorts, up.Addr.Port()) {
		return Upstream{}, unavailable(fmt.Errorf("%w: port %d", ErrSelfCall, up.Addr.Port()))
	}
	if t := in.Local.ApplicationTunnel; t != nil {
		if err := in.tunnel(t, asked, &up); err != nil {
			return Upstream{}, unavailable(err)
		}
	}
	return up, nil
}

// services returns the known ones of the candidates.
func (in *InboundInput) services() []*workload.Service {
	keys := in.Candidates
	if keys == nil {
		keys = Candidates(in.Local)
	}
	var out []*workload.Service
	for _, key := range keys {
		if svc := in.Snapshot.Service(key); svc != nil {
			out = append(out, svc)
		}
	}
	return out
}

// authority is a parsed :authority: an address, or a host name.
type authority struct {
	addr netip.Addr
	host string
	port uint16
}

func parseAuthority(s string) (authority, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return authority{}, fmt.Errorf("%w: %q", ErrBadAuthority, s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" {
		return authority{}, fmt.Errorf("%w: %q", ErrBadAuthority, s)
	}
	a := authority{port: uint16(n)}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return authority{}, fmt.Errorf("%w: %q", ErrBadAuthority, s)
		}
		a.addr = addr.Unmap()
		return a, nil
	}
	a.host = host
	return a, nil
}

// answersFor reports whether a request for the address may end at the local
// workload: it is its own, or the workload has an application tunnel and
// decides itself, or it is the waypoint of what has that address.
func (in *InboundInput) answersFor(addr netip.Addr) bool {
	if addr == in.LocalAddr.Addr() || in.Local.ApplicationTunnel != nil {
		return true
	}
	at := workload.NewNetworkAddress(in.Network, addr)
	if w := in.Snapshot.WorkloadByAddress(at); w != nil {
		return w.Waypoint != nil && in.isLocal(*w.Waypoint)
	}
	for _, svc := range in.Snapshot.ServicesByVIP(at) {
		if svc.Waypoint != nil && in.isLocal(*svc.Waypoint) {
			return true
		}
		for _, ww := range svc.WeightedWaypoints {
			if in.isLocal(ww.Destination) {
				return true
			}
		}
	}
	return false
}

// isLocal reports whether the waypoint reference leads to the local workload.
func (in *InboundInput) isLocal(gw workload.GatewayAddress) bool {
	w, svc := destinationOf(in.Snapshot, gw, in.Local.Namespace)
	if svc != nil {
		_, ok := in.Local.Services[svc.Key()]
		return ok
	}
	return w != nil && w.HasAddress(in.LocalAddr.Addr())
}

// resolveHost finds the service that was asked for and translates its port.
func (in *InboundInput) resolveHost(asked authority, up *Upstream) error {
	svc := in.Snapshot.ServiceByHost(asked.host, in.Local.Namespace)
	if svc == nil {
		return fmt.Errorf("%w: %s", ErrNoHostname, asked.host)
	}
	port := in.Local.Services[svc.Key()][asked.port]
	if port == 0 {
		port = svc.Ports[asked.port]
	}
	if port == 0 {
		return fmt.Errorf("%w: %s:%d", ErrNoPort, asked.host, asked.port)
	}
	up.Addr = netip.AddrPortFrom(up.Addr.Addr(), port)
	up.Services = []*workload.Service{svc}
	return nil
}

// tunnel redirects to the port of the application tunnel and notes what was
// asked for. A host name is told as an address of its service: one of this
// network if possible, IPv4 before IPv6.
func (in *InboundInput) tunnel(t *workload.ApplicationTunnel, asked authority, up *Upstream) error {
	up.Tunnel = t
	if t.Port != 0 {
		up.Addr = netip.AddrPortFrom(up.Addr.Addr(), t.Port)
	}
	if asked.addr.IsValid() {
		up.TunnelTarget = netip.AddrPortFrom(asked.addr, asked.port)
		return nil
	}
	var best netip.Addr
	bestRank := -1
	for _, vip := range up.Services[0].VIPs {
		rank := 0
		if vip.Network == in.Network {
			rank = 1
			if vip.Addr.Is4() {
				rank = 2
			}
		}
		if rank > bestRank {
			best, bestRank = vip.Addr, rank
		}
	}
	if !best.IsValid() {
		return fmt.Errorf("%w: %s", ErrNoVIP, asked.host)
	}
	up.TunnelTarget = netip.AddrPortFrom(best, asked.port)
	return nil
}

// Service guesses which service an inbound connection was meant for, for
// telemetry: the one that the peer names in its Forwarded header, if it is
// among the possible ones, else the first that has the port.
func (u Upstream) Service(local *workload.Workload, forwardedHost string) *workload.Service {
	for _, svc := range u.Services {
		if forwardedHost != "" && svc.Hostname == forwardedHost {
			return svc
		}
	}
	looked := 0
	for _, svc := range u.Services {
		if looked += len(svc.Ports); looked > mostPorts {
			return nil
		}
		own := local.Services[svc.Key()]
		for port, target := range svc.Ports {
			if target == u.Addr.Port() || own[port] == u.Addr.Port() {
				return svc
			}
		}
	}
	return nil
}
