package proxy

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// Observer is told about flows. It is called on loops and in accepting goroutines, so it must be quick and must not
// block; it may be called concurrently, but for one Flow in order.
type Observer interface {
	// Opened says that a flow's ends are known: for an outbound one that it was established or has finally failed, for an
	// inbound one that it goes to be judged by policy. From now on its fields do not change but for the outcome.
	Opened(*Flow)
	// Noted says that policies matched an inbound flow which do not decide: see Flow.DryRun and Flow.Audit. It comes after
	// Opened.
	Noted(*Flow)
	// Closed gives the outcome. Flows that were refused before their ends were known get this call alone, with Early set.
	Closed(*Flow)
}

type nobody struct{}

func (nobody) Opened(*Flow) {}
func (nobody) Noted(*Flow)  {}
func (nobody) Closed(*Flow) {}

// Direction says which end of a connection the pod is.
type Direction uint8

// An Outbound flow was dialled by the pod's application; an Inbound one is for it.
const (
	Outbound Direction = iota
	Inbound
)

// String returns the word used in logs.
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// Protocol is how a flow travels between nodes.
type Protocol uint8

// TCP is plain, HBONE in a tunnel; SameNode stays inside the agent, which has judged both ends as in a tunnel.
const (
	TCP Protocol = iota
	HBONE
	SameNode
)

// String returns the name used in dumps.
func (p Protocol) String() string {
	switch p {
	case HBONE:
		return "HBONE"
	case SameNode:
		return "SAME_NODE"
	default:
		return "TCP"
	}
}

// Peer is one end of a flow as far as it is known.
type Peer struct {
	Addr netip.AddrPort
	// Workload is nil when nothing is known about the address.
	Workload *workload.Workload
	// Baggage is what the peer says about itself; set only where Workload is nil, because anybody may say anything.
	Baggage *workload.Baggage
	// ID is the identity that was proven, the pod's own included; zero without mTLS.
	ID identity.ID
}

// Flow is one application connection.
type Flow struct {
	// ID is unique in the process.
	ID        uint64
	Direction Direction
	Protocol  Protocol
	// PodUID is that of the pod that the flow belongs to.
	PodUID string
	// Source and Destination are the ends on the wire: Destination.Addr is what was dialled, or the listener that a peer
	// reached.
	Source, Destination Peer
	// OriginalDst is what the client asked for, ActualDst where its bytes end up.
	OriginalDst, ActualDst netip.AddrPort
	// Authority is that of the CONNECT request; empty without a tunnel.
	Authority string
	// Service is the service that was addressed, or nil.
	Service *workload.Service
	Start   time.Time
	// Attempts counts the targets that were tried, the last one included. Outbound only.
	Attempts int
	// User is for the Observer.
	User any

	// The outcome, valid in Observer.Closed.

	// Early says that the flow was refused before its ends were known: only addresses, Direction, Err and Flag count.
	Early bool
	// Err says why the flow did not end in order; nil when it did.
	Err error
	// Flag sorts Err for metrics.
	Flag Flag
	// Policy is the key of the policy that refused or ended the flow, if one did.
	Policy string
	// DryRun are the dry-run policies that would have decided about an inbound flow, Audit the keys of the policies that
	// want it to be noted.
	DryRun []policy.DryRun
	Audit  []string
	End    time.Time

	pod                *Pod
	owner              cutter
	facts              policy.Connection // inbound: what policy is asked about
	toServer, toClient atomic.Pointer[atomic.Int64]
	opened, finished   atomic.Bool
	waiting            atomic.Bool // inbound: for what network policies need to know
	waypoint           bool        // outbound: to a waypoint, not to the application
	place              int         // in the pod's table
}

// cutter ends a live connection with an error. It may be called from anywhere and more than once.
type cutter interface{ cut(err error) }

// Bytes returns the payload bytes that went from client to server and from server to client so far. It may be called
// from anywhere.
func (f *Flow) Bytes() (toServer, toClient uint64) {
	if n := f.toServer.Load(); n != nil {
		toServer = uint64(n.Load())
	}
	if n := f.toClient.Load(); n != nil {
		toClient = uint64(n.Load())
	}
	return toServer, toClient
}

// count names the counters of the flow's bytes.
func (f *Flow) count(toServer, toClient *atomic.Int64) {
	f.toServer.Store(toServer)
	f.toClient.Store(toClient)
}

// MutualTLS reports whether the flow travels in TLS under identities that both sides have proven.
func (f *Flow) MutualTLS() bool { return f.Protocol == HBONE }

// init registers the flow with its pod, which from now on waits for its end.
func (f *Flow) init(p *Pod, d Direction, owner cutter, source, destination netip.AddrPort) {
	f.ID = p.proxy.lastFlow.Add(1)
	f.Direction, f.PodUID, f.Start = d, p.cfg.UID, time.Now()
	f.Source.Addr, f.Destination.Addr, f.OriginalDst = source, destination, destination
	f.pod, f.owner = p, owner
	p.work.Add(1)
	p.flows.add(f)
}

// report tells the observer of a peer that got no tunnel, or lost the one it had.
func (p *Pod) report(d Direction, source, destination Peer, err error) {
	now := time.Now()
	p.proxy.cfg.Observer.Closed(&Flow{
		ID: p.proxy.lastFlow.Add(1), Direction: d, PodUID: p.cfg.UID, Source: source, Destination: destination, OriginalDst: destination.Addr,
		Start: now, Early: true, Err: err, Flag: flagOf(err), End: now,
	})
}

// open tells the observer that the ends are known. The counters may be named later, if there are any.
func (f *Flow) open(toServer, toClient *atomic.Int64) {
	f.count(toServer, toClient)
	f.opened.Store(true)
	f.pod.proxy.cfg.Observer.Opened(f)
}

// finish tells the observer the outcome. Only the first call counts.
func (f *Flow) finish(err error) {
	if f.finished.Swap(true) {
		return
	}
	f.Err, f.Flag, f.Policy, f.End = err, flagOf(err), policyOf(err), time.Now()
	f.Early = !f.opened.Load()
	f.pod.flows.remove(f)
	f.pod.proxy.cfg.Observer.Closed(f)
	f.pod.work.Done()
}
