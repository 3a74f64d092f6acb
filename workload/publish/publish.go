// Package publish serves what a workload.Store and a policy.Set hold to node
// agents, as istiod does: delta xDS (ADS) with the types istio.workload.Address
// and istio.security.Authorization; and what a netpol.Set holds with a type of
// Culvert's own.
//
// It converts the Store's objects to the wire, once for all clients, and gives
// each client what it lacks: everything, or with on-demand subscriptions what it
// names. Who may ask is decided by the Authenticate hook; what the Store holds is
// decided by its sources; TLS, the listener and the gRPC server belong to the
// program.
//
// A client costs little whatever it does. It is sent one response at a time and
// the next when it has answered, so a slow one is sent the newest state in one
// step and holds up nobody; the bytes of a resource are shared by all clients,
// also while they wait to be sent; every request is bounded.
//
// Concurrency: Run's goroutine alone makes states, each immutable; every stream
// has a goroutine that reads requests and one that owns all else about it.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// The types that are served, by the names that clients subscribe with.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
	NetworkPolicyType = wire.TypeURL
)

// Peer is an authenticated client.
type Peer struct {
	Namespace, ServiceAccount string
	PodName, PodUID           string
	// Node is where the client's pod runs, as the cluster says and not as the
	// client does. Empty when it is not known.
	Node string
}

// String names the peer for logs.
func (p Peer) String() string { return p.Namespace + "/" + p.PodName }

// Refusal is why a stream was not served or did not go on.
type Refusal string

// The values that Observer.Refused is called with.
const (
	RefusedToken   Refusal = "token"   // absent, not accepted, or not any more
	RefusedClaim   Refusal = "claim"   // the client says it is another than it is
	RefusedRequest Refusal = "request" // beyond a limit or not understood
	RefusedLimit   Refusal = "limit"   // too many streams
	RefusedReady   Refusal = "ready"   // there is no state yet
	RefusedSlow    Refusal = "slow"    // a response was not answered in time
)

// Observer is told what happens, from many goroutines at once; it must not
// block.
type Observer interface {
	// Streams reports the number of streams that are served now.
	Streams(n int)
	// Pushed reports a response.
	Pushed(typeURL string, resources, removed, bytes int)
	// Converged reports how old the newest change in a pushed response was.
	Converged(age time.Duration)
	// Rejected reports that a client could not take all of a response.
	Rejected(typeURL string)
	// Expired reports an answer to something else than the last response.
	Expired(typeURL string)
	// Refused reports the end of a stream by the server.
	Refused(why Refusal)
}

type noObserver struct{}

func (noObserver) Streams(int)                  {}
func (noObserver) Pushed(string, int, int, int) {}
func (noObserver) Converged(time.Duration)      {}
func (noObserver) Rejected(string)              {}
func (noObserver) Expired(string)               {}
func (noObserver) Refused(Refusal)              {}

// Config configures a Server.
type Config struct {
	// Store and Policies are published. Required.
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies are published too; nil: their type is not served, and a client
	// that asks for it hears of the others only.
	NetworkPolicies *netpol.Set
	// Ready is closed when all of these hold the whole state for the first time;
	// before that nothing is sent. Required.
	Ready <-chan struct{}
	// Authenticate says who the bearer of the token is, or refuses. It is called
	// at the start of a stream, with the time it may take in ctx, and again and
	// again while the stream lives, which ends when the answer is another one. An
	// error of gRPC's code Unavailable asks the client to come back, others refuse
	// it; clients see no more than that. Required.
	Authenticate func(ctx context.Context, token string) (Peer, error)

	// Debounce is how long the state has to be quiet before a change is
	// published, but at most MaxDebounce later. Zero means 25 ms and 500 ms.
	Debounce, MaxDebounce time.Duration
	// AnswerTimeout is how long a client may take to answer a response. Zero
	// means 1 min.
	AnswerTimeout time.Duration
	// Reauthenticate is how often the token of a stream is looked at again. Zero
	// means 5 min.
	Reauthenticate time.Duration
	// MaxAge is after how long, give or take a tenth, a stream is ended so that
	// clients spread over replicas and come back with a new token. Zero means 1 h.
	MaxAge time.Duration
	// MaxStreams and MaxStreamsPerPeer bound the streams; a peer that opens more
	// loses its oldest. Zero means 20,000 and 4.
	MaxStreams, MaxStreamsPerPeer int

	// Observer is optional.
	Observer Observer
	// Logger gets refusals and rejected responses. Nil discards.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	var errs []error
	if c.Store == nil || c.Policies == nil {
		errs = append(errs, errors.New("no store given"))
	}
	if c.Ready == nil {
		errs = append(errs, errors.New("no readiness given"))
	}
	if c.Authenticate == nil {
		errs = append(errs, errors.New("no authentication given"))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("configure publishing: %w", err)
	}
	setDefault(&c.Debounce, 25*time.Millisecond)
	setDefault(&c.MaxDebounce, 500*time.Millisecond)
	setDefault(&c.AnswerTimeout, time.Minute)
	setDefault(&c.Reauthenticate, 5*time.Minute)
	setDefault(&c.MaxAge, time.Hour)
	setDefault(&c.MaxStreams, 20_000)
	setDefault(&c.MaxStreamsPerPeer, 4)
	if c.Observer == nil {
		c.Observer = noObserver{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func setDefault[T int | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// loggedStrangers is how many clients that were not let in are logged at once; then there is one a second.
const loggedStrangers = 20

// Server publishes a Store and a Set. Create it with New, run it with Run, and
// register it with a gRPC server that was made with Options.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg Config

	state    atomic.Pointer[state] // nil before the first
	first    chan struct{}         // closed with the first state
	stopping chan struct{}         // closed when Run ends
	readers  sync.WaitGroup

	strangers rate.Sometimes // in the log
	unsaid    atomic.Int64   // strangers since the last one in the log

	mu      sync.Mutex
	stopped bool
	streams map[*stream]struct{}
	order   uint64 // counts streams, so that the oldest can be told
}

// New returns a Server; it serves once Run runs.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, first: make(chan struct{}), stopping: make(chan struct{}), streams: make(map[*stream]struct{}),
		strangers: rate.Sometimes{First: loggedStrangers, Interval: time.Second},
	}, nil
}

// Register adds the service to a gRPC server that was made with Options.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Options returns what the gRPC server has to be made with besides credentials:
// a codec that sends resources without copying them, and which is protobuf's for
// all other messages; and the room that the first request of a client needs that
// tells the versions of all it holds. Messages that large are read from
// authenticated clients only. The program has to see to it that other services
// of the same server read large messages from no stranger.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(maxRequest)}
}
