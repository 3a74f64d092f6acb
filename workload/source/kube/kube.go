package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// What an empty field of Config stands for.
const (
	DefaultDomain        = "cluster.local"
	DefaultRootNamespace = "culvert-system"
	// DefaultQuiet and DefaultLinger bound how long changes are collected.
	DefaultQuiet  = 20 * time.Millisecond
	DefaultLinger = 100 * time.Millisecond
)

// Config says what a Source watches and where it writes.
type Config struct {
	// Config reaches the API server. Required unless Clients are given.
	Config *rest.Config
	// Clients are used instead of ones made from Config; a seam for tests.
	Clients *Clients

	// ClusterID is the first part of each UID; empty means "Kubernetes".
	ClusterID string
	// TrustDomain of all workloads; empty means "cluster.local".
	TrustDomain string
	// TrustDomainAliases are further names of the trust domain. In policies a
	// principal with one of these names, or with the trust domain's own, means
	// the principals with any of them.
	TrustDomainAliases []string
	// Domain is the suffix of service names; empty means "cluster.local".
	Domain string
	// Network is what all addresses belong to, unless an object says
	// otherwise; empty is the default network.
	Network string
	// RootNamespace is where policies for the whole mesh live; empty means
	// "culvert-system".
	RootNamespace string
	// LenientL7 reads layer 7 conditions in DENY rules as Istio does: what
	// remains of a rule without them decides only when something remains.
	// Without it such a rule denies by its layer 4 part alone.
	LenientL7 bool

	// Store and Policies are kept equal to the cluster. Required; nothing else
	// may write into them.
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies is kept equal to the cluster too: NetworkPolicies and, when
	// they are defined, ClusterNetworkPolicies, with what is needed of pods,
	// namespaces and nodes to evaluate them. It is ready when the Source is
	// synced. Nil: they are not watched.
	NetworkPolicies *netpol.Set

	// Quiet is how long nothing may change before a batch is applied; Linger
	// is how long a batch may wait while changes go on. 0 means the defaults.
	Quiet, Linger time.Duration
	// Logger gets faults of objects, each once, and contradictions. Nil
	// discards.
	Logger *slog.Logger
}

// Pod is what others need to know about a pod. It is a value of the caller's,
// except for Labels and IPs, which must not be changed.
type Pod struct {
	UID            string
	Namespace      string
	Name           string
	ServiceAccount string
	// Node is empty until the pod is scheduled.
	Node        string
	IPs         []netip.Addr
	HostNetwork bool
	// Terminal pods have ended (phase Succeeded or Failed).
	Terminal bool
	// Enrolled pods carry the agent's annotation that says so.
	Enrolled bool
	Labels   map[string]string
}

// Source keeps a Store and a policy Set equal to a cluster.
type Source struct {
	cfg     Config
	clients *Clients
	synced  chan struct{}
	state   *state // belongs to Run, but for its pods

	mu       sync.Mutex
	reports  map[ref]Report
	reported chan struct{} // closed when reports change
}

// New returns a Source that has not read anything yet.
func New(cfg Config) (*Source, error) {
	var errs []error
	if cfg.Config == nil && cfg.Clients == nil {
		errs = append(errs, errors.New("configuration of the client is missing"))
	}
	if cfg.Store == nil {
		errs = append(errs, errors.New("store is missing"))
	}
	if cfg.Policies == nil {
		errs = append(errs, errors.New("policies are missing"))
	}
	cfg = cfg.withDefaults()
	errs = append(errs, cfg.checkDomains())
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new kubernetes source: %w", err)
	}
	s := &Source{
		cfg: cfg, clients: cfg.Clients, synced: make(chan struct{}),
		reports: make(map[ref]Report), reported: make(chan struct{}),
		state: newState(cfg.settings(), cfg.Logger),
	}
	if s.clients == nil {
		clients, err := newClients(cfg.Config)
		if err != nil {
			return nil, fmt.Errorf("new kubernetes source: %w", err)
		}
		s.clients = clients
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	for _, f := range []struct {
		field    *string
		fallback string
	}{
		{&c.ClusterID, workload.DefaultClusterID},
		{&c.TrustDomain, workload.DefaultTrustDomain},
		{&c.Domain, DefaultDomain},
		{&c.RootNamespace, DefaultRootNamespace},
	} {
		if *f.field == "" {
			*f.field = f.fallback
		}
	}
	if c.Quiet <= 0 {
		c.Quiet = DefaultQuiet
	}
	if c.Linger <= 0 {
		c.Linger = DefaultLinger
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// checkDomains reports trust domains that are none.
func (c Config) checkDomains() error {
	var errs []error
	for _, domain := range append([]string{c.TrustDomain}, c.TrustDomainAliases...) {
		_, err := identity.ParseTrustDomain(domain)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settings are what translations need of a Config with its defaults filled in.
func (c Config) settings() settings {
	return settings{
		cluster: c.ClusterID, trustDomain: c.TrustDomain, domain: c.Domain, network: c.Network,
		root: c.RootNamespace, aliases: slices.Clone(c.TrustDomainAliases), lenientL7: c.LenientL7,
	}
}

// Synced returns a channel that is closed when everything that was in the
// cluster at the start of Run has reached Store and Policies. Until then nothing is
// written to them.
func (s *Source) Synced() <-chan struct{} { return s.synced }

// Pod returns the pod as the API server told it last. Pods that have ended may
// be missing.
func (s *Source) Pod(namespace, name string) (Pod, bool) {
	t := s.state.pods
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.byKey.get(key{namespace, name})
	if p == nil {
		return Pod{}, false
	}
	return p.export(), true
}

// PodsOnNode returns the pods that are scheduled on the node, in no particular
// order.
func (s *Source) PodsOnNode(node string) []Pod {
	t := s.state.pods
	t.mu.RLock()
	defer t.mu.RUnlock()
	pods := t.byNode[intern(node)]
	out := make([]Pod, 0, len(pods))
	for _, p := range pods {
		out = append(out, p.export())
	}
	return out
}

func (p *podObject) export() Pod {
	return Pod{
		UID: p.uid, Namespace: p.namespace, Name: p.name, ServiceAccount: p.account.String(), Node: p.node.String(),
		IPs: p.ips, HostNetwork: p.hostNetwork, Terminal: p.terminal, Enrolled: p.enrolled, Labels: p.labels.toMap(),
	}
}
