// Package xds is the source of workloads, services and policies that speaks
// delta xDS (ADS) to istiod or to Culvert's own controller.
//
// It subscribes to all addresses and authorization policies and, if it is told to,
// to what network policies are made of, which only Culvert's controller has. It
// converts each to the types of packages workload, policy and netpol, writes them
// into a Store and Sets, and tells the server what it took. While the server is away the last state goes on
// serving; after a reconnect the server is told which versions are held, so that
// it sends only differences.
//
// One goroutine, that of Run, does everything, in the order in which messages
// arrive. The wire types end in this package.
package xds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// The types subscribed to. Network policies go first, the others in the order in
// which ztunnel has them.
const (
	NetworkPolicyType = wire.TypeURL
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// Observer is told about messages and ends of the stream. Called from Run.
type Observer interface {
	// Terminated says why a stream ended: ConnectionError, Error, Reconnect or
	// Complete.
	Terminated(reason string)
	// Message reports a response and the bytes of its resources.
	Message(typeURL string, bytes int)
}

// Node is what the server is told about this agent.
type Node struct {
	// IP is the agent's own address. Empty means 1.1.1.1, as ztunnel says then.
	IP string
	// PodName and Namespace name the agent's pod.
	PodName   string
	Namespace string
	// NodeName is the Kubernetes node.
	NodeName string
	// Metadata is added to the node's metadata (proxy metadata, whose values are
	// strings, and whatever else is JSON).
	Metadata map[string]any
}

// Config configures a Client.
type Config struct {
	// Address is host:port of the server, with or without "https://" before it.
	// Required; there is no plaintext.
	Address string
	// RootCA verifies the server: the path of a PEM file, PEM text, or SYSTEM for
	// the machine's roots. Read for each attempt to connect. Required.
	RootCA string
	// AltHostname is a name that the server's certificate may carry instead of the
	// host of Address.
	AltHostname string
	// TokenFile holds the bearer token, read for each attempt because kubelet
	// replaces it. Empty: no token is sent.
	TokenFile string
	// ClusterID is sent as metadata "clusterid" unless empty.
	ClusterID string
	// Headers are sent as further metadata.
	Headers map[string]string
	Node    Node

	// Store and Policies receive the state. Required.
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies receives what network policies are made of, and is told to
	// be ready when all of it was received once. Nil: they are not asked for. A
	// server that does not know them, such as istiod, leaves the Client not ready,
	// and what an earlier one has told of them as it is.
	NetworkPolicies *netpol.Set

	// Observer is optional.
	Observer Observer
	// Logger gets rejected resources and ends of the stream. Nil discards.
	Logger *slog.Logger
	// Dial opens the connection to Address; nil means an ordinary TCP dial.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Sleep waits between attempts, and returns early when ctx ends. Nil means a
	// timer. A seam for tests.
	Sleep func(ctx context.Context, d time.Duration)
}

func (c Config) withDefaults() (Config, error) {
	c.Address = strings.TrimSuffix(strings.TrimPrefix(c.Address, "https://"), "/")
	var errs []error
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address %q: %w", c.Address, err))
	}
	if c.RootCA == "" {
		errs = append(errs, errors.New("no root certificates given"))
	}
	if c.Store == nil || c.Policies == nil {
		errs = append(errs, errors.New("no store given"))
	}
	if _, err := json.Marshal(c.Node.Metadata); err != nil {
		errs = append(errs, fmt.Errorf("node metadata: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("configure xds: %w", err)
	}
	if c.Observer == nil {
		c.Observer = discard{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = dialTCP
	}
	if c.Sleep == nil {
		c.Sleep = sleep
	}
	return c, nil
}

type discard struct{}

func (discard) Terminated(string)   {}
func (discard) Message(string, int) {}

// Client keeps a Store and a Set in step with a server.
type Client struct {
	cfg   Config
	types []*subscription
	ready chan struct{}

	refused atomic.Pointer[subscription] // because of which the server ended the last stream, if any
}

// subscription is the state of one type; only Run's goroutine touches it, but for acked, which anybody may read.
type subscription struct {
	url   string
	apply func(response) []rejection
	acked atomic.Bool // a response was taken in whole
	// optional says that the others are of use without it, as they are from a server that does not know it.
	optional bool
	leftOut  bool   // it was said that it is not asked for
	taken    func() // called when acked is set; nil does nothing
	// versions holds what the server sent and we took, by resource name.
	versions map[string]string
	// keys holds the key of resources whose name is not their key.
	keys map[string]string
}

// New returns a Client; it connects when run. The roots are read now too, so that
// a faulty setting is found at the start.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, err := loadRoots(cfg.RootCA); err != nil {
		return nil, fmt.Errorf("configure xds: %w", err)
	}
	c := &Client{cfg: cfg, ready: make(chan struct{})}
	addresses := newSubscription(AddressType)
	addresses.apply = func(r response) []rejection { return c.applyAddresses(addresses, r) }
	authorizations := newSubscription(AuthorizationType)
	authorizations.apply = func(r response) []rejection { return c.applyPolicies(authorizations, r) }
	c.types = []*subscription{addresses, authorizations}
	if cfg.NetworkPolicies != nil {
		networks := newSubscription(NetworkPolicyType)
		networks.apply = func(r response) []rejection { return c.applyNetworkPolicies(networks, r) }
		networks.optional = true
		networks.taken = func() { cfg.NetworkPolicies.SetReady(true) }
		c.types = append([]*subscription{networks}, c.types...)
	}
	return c, nil
}

func newSubscription(url string) *subscription {
	return &subscription{url: url, versions: make(map[string]string), keys: make(map[string]string)}
}

// Ready is closed when a response of each type was taken in whole once: only then
// does an absent policy mean that there is none.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Lacks reports whether the server seems not to know a type, as an older one does:
// it has told of all others, or ended the last stream because of this one.
func (c *Client) Lacks(url string) bool {
	s := c.subscription(url)
	if s == nil {
		return false
	}
	others := slices.ContainsFunc(c.types, func(o *subscription) bool { return o != s && !o.acked.Load() })
	// The type itself comes last: what is taken meanwhile is not lacking.
	return (!others || c.refused.Load() == s) && !s.acked.Load()
}

// noteEnd keeps for Lacks and the next attempt whether a stream ended because of a type.
func (c *Client) noteEnd(err error) {
	var refused *subscription
	if s, ok := status.FromError(err); ok && s.Code() == codes.InvalidArgument {
		for _, t := range c.types {
			if strings.Contains(s.Message(), t.url) {
				refused = t
			}
		}
	}
	c.refused.Store(refused)
}

// subscription returns the subscription to a type, or nil.
func (c *Client) subscription(url string) *subscription {
	for _, s := range c.types {
		if s.url == url {
			return s
		}
	}
	return nil
}

// acknowledged notes that a type was taken in whole.
func (c *Client) acknowledged(s *subscription) {
	if s.acked.Swap(true) {
		return
	}
	if s.taken != nil {
		s.taken()
	}
	for _, t := range c.types {
		if !t.acked.Load() {
			return
		}
	}
	close(c.ready)
}
