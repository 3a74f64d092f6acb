package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// The ports that are a contract with whoever redirects traffic.
const (
	OutboundPort    = 15001
	PassthroughPort = 15006
	HBONEPort       = 15008
)

// Certificates gives the certificate to present for an identity; identity/manager does. It may be called concurrently
// and returns when ctx ends.
type Certificates interface {
	Get(ctx context.Context, id identity.ID) (*svid.SVID, error)
}

// Sockets makes sockets for one pod: non-blocking TCP sockets of the family (AF_INET or AF_INET6) inside its network
// namespace, marked so that they are not captured again. It may be called concurrently.
type Sockets interface {
	// Sockets fills fds, or makes none and says why.
	Sockets(fds []int, family int) error
}

// SourceMode says whether applications see the client's own address as the source of inbound connections.
type SourceMode uint8

// SourceAuto tries, and goes on without after one warning where the kernel does not let us. SourceAlways refuses
// connections for which it cannot be done, SourceNever does not try.
const (
	SourceAuto SourceMode = iota
	SourceAlways
	SourceNever
)

// Config is what all pods of a node share. Store, Policies, Certificates and Loops are required.
type Config struct {
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies are evaluated too, at both ends of a connection; nil: they are left to others. Until the Set is ready
	// connections wait, as for missing policies, and are refused then.
	NetworkPolicies *netpol.Set
	Certificates    Certificates
	// Revocation may be nil: then nothing is revoked.
	Revocation *mtls.Revocation
	// Loops are running event loops; they must outlive the Proxy.
	Loops []*loop.Loop
	// Observer is told about flows; nil means nobody.
	Observer Observer
	// Logger gets what an operator should know; single connections go to Observer. Nil discards.
	Logger *slog.Logger

	// Network is the network that this node serves, Node its name: with one, only workloads of the node are looked at for
	// its pods. Both may be empty.
	Network, Node string
	// OwnNode reports whether an address is one of this node's own, which Kubernetes does not let a NetworkPolicy cut off
	// from its pods. Nil: none is. It must be quick and may be called concurrently.
	OwnNode func(netip.Addr) bool
	// HBONEPort is where peers accept HBONE; 0 means 15008.
	HBONEPort uint16
	// Source says whether inbound connections keep the client's address.
	Source SourceMode
	// SameNode joins two pods of this Proxy without a tunnel, after the same checks. Their bytes are in clear inside the
	// agent and pass no packet filter on the way: set it only with NetworkPolicies, or where none guards the pods.
	SameNode bool
	// HideWorkload leaves the baggage header out of answers.
	HideWorkload bool
	// Outbound says which namespaces may connect to destinations that the registry does not have. Live connections follow
	// it too. Nil means all.
	Outbound *egress.Modes
	// Resolve looks up the addresses of a host name, for workloads that have no address; source is who connects. It is
	// asked for each connection. Nil means that those cannot be reached.
	Resolve func(ctx context.Context, source *workload.Workload, host string) ([]netip.Addr, error)
	// Congestion are the algorithms, in order of preference, for sockets that face an application where the system's
	// default paces (bbr). Nil means cubic, then reno; an empty list changes nothing.
	Congestion []string

	// ConnectTimeout bounds everything until a connection is established; 0 means 10 s.
	ConnectTimeout time.Duration
	// HandshakeTimeout bounds the TLS handshake of a peer that connects; 0 means 10 s.
	HandshakeTimeout time.Duration
	// PingInterval is how long a tunnel is left alone before its peer is pinged; 0 means 10 s. PingTimeout is how long the
	// peer may be silent then; 0 means 20 s. Who reads nothing for both together is given up too.
	PingInterval, PingTimeout time.Duration
	// Linger is how long an application may do nothing at all when its peer has cancelled the connection, before it is
	// reset; 0 means 5 minutes.
	Linger time.Duration
	// WorkloadTimeout is how long a connection waits for the pod's own workload and for policies that it names to become
	// known; 0 means 5 s.
	WorkloadTimeout time.Duration
	// PoolIdle is how long an unused tunnel is kept; 0 means 5 minutes, less not at all.
	PoolIdle time.Duration
	// PoolMaxStreams bounds the streams of one tunnel below what its peer allows; 0 means no bound of our own.
	PoolMaxStreams int
	// MaxHandshakes bounds the concurrent handshakes of one pod's inbound listener; 0 means 256. One address may have a
	// quarter of them, and while somebody waits for one, each has a second.
	MaxHandshakes int
	// Penalty is how far from each other the handshakes of a peer are that has failed four times within seconds; it doubles
	// with each further failure, five times at most. A tunnel that ended by its peer's fault counts as three failures. 0 means
	// 50 ms, less that nobody waits.
	Penalty time.Duration
	// Descriptors is how many descriptors the process may have; 0 asks the kernel. The last of them are kept for pods and
	// peers that have few.
	Descriptors int
	// Suspension is how long an endpoint that failed is tried last; it doubles with each failure up to 12 times as much.
	// 0 means 5 s.
	Suspension time.Duration
}

func (c Config) withDefaults() (Config, error) {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("proxy: no "+what))
		}
	}
	need(c.Store != nil, "workload store")
	need(c.Policies != nil, "policy set")
	need(c.Certificates != nil, "certificates")
	need(len(c.Loops) > 0, "loops")
	c.Loops = slices.Clone(c.Loops)
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Congestion == nil {
		c.Congestion = []string{"cubic", "reno"}
	}
	if c.OwnNode == nil {
		c.OwnNode = func(netip.Addr) bool { return false }
	}
	if c.HBONEPort == 0 {
		c.HBONEPort = HBONEPort
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 256
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.ConnectTimeout, 10*time.Second)
	set(&c.HandshakeTimeout, 10*time.Second)
	set(&c.WorkloadTimeout, 5*time.Second)
	set(&c.Suspension, 5*time.Second)
	set(&c.Penalty, leastPenalty)
	return c, errors.Join(errs...)
}

// PodConfig is one enrolled pod. UID, Namespace, Name, ServiceAccount, Sockets and OriginalDst are required, and at
// least one listener.
type PodConfig struct {
	// UID is the pod's Kubernetes UID, for logs and dumps.
	UID string
	// Namespace, Name and ServiceAccount find the pod's workload. They come from whoever handed over the network
	// namespace, never from an address.
	Namespace, Name, ServiceAccount string
	// Sockets makes sockets in the pod's namespace.
	Sockets Sockets
	// OriginalDst returns where the client of an accepted socket wanted to go.
	OriginalDst func(fd int) (netip.AddrPort, error)
	// Outbound, Inbound and Passthrough are the listeners, in the pod's namespace. The Pod owns them. Any of them may be
	// nil.
	Outbound, Inbound, Passthrough *loop.Acceptor
	// NoSource keeps inbound connections from taking the client's address, whatever Config.Source says: in a namespace
	// without rules for the way back the answer would not be seen.
	NoSource bool
}

func (c PodConfig) validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("pod "+c.Namespace+"/"+c.Name+": no "+what))
		}
	}
	need(c.UID != "", "UID")
	need(c.Namespace != "" && c.Name != "" && c.ServiceAccount != "", "namespace, name and service account")
	need(c.Sockets != nil, "sockets")
	need(c.OriginalDst != nil, "way to learn original destinations")
	need(c.Outbound != nil || c.Inbound != nil || c.Passthrough != nil, "listener")
	return errors.Join(errs...)
}
