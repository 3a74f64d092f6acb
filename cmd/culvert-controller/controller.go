package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/apiserver"
	"github.com/culvert-mesh/culvert/cmd/internal/companion"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/source/kube"
	"github.com/culvert-mesh/culvert/workload/status"
)

// What readiness waits for.
const (
	waitCluster   = "cluster"
	waitAuthority = "certificate authority"
	waitStopping  = "stopping"
)

// clients are the ways to the API server.
type clients struct {
	core kubernetes.Interface
	rest *rest.Config // for the Source to make its own
	// source is used instead; a seam for tests.
	source *kube.Clients
}

// connect makes the clients. Nothing is asked of the API server yet.
func connect(s *settings) (clients, error) {
	cfg, err := apiserver.Config(s.kubeconfig)
	if err != nil {
		return clients{}, err
	}
	cfg.UserAgent = "culvert-controller/" + version
	// A token is reviewed for every certificate that an agent does not have yet, and a cluster may come up all at once.
	cfg.QPS, cfg.Burst = 100, 200
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return clients{}, fmt.Errorf("reach the API server: %w", err)
	}
	return clients{core: core, rest: cfg}, nil
}

// controller is the whole program.
type controller struct {
	settings *settings
	conf     *conf.Set
	log      *slog.Logger
	clients  clients

	store     *workload.Store
	policies  *policy.Set
	networks  *netpol.Set // nil: network policies are not for agents
	source    *kube.Source
	authority *kubeca.CA
	nodes     *kubeca.NodeAuthorizer
	door      *doorkeeper
	publisher *publish.Server
	taints    *taints // nil when they are left alone
	statuses  *status.Writer
	companion *companion.Writer // nil without companions of NetworkPolicies
	election  *election
	figures   *figures
	ready     admin.Readiness
	group     *run.Group

	grpcAddress, healthAddress net.Addr
}

// newController makes everything that the settings ask for. Nothing is asked of the API server before run.
func newController(s *settings, set *conf.Set, reach clients, levels *admin.Levels, log *slog.Logger, signals <-chan os.Signal) (*controller, error) {
	c := &controller{settings: s, conf: set, log: log, clients: reach, store: workload.New(), policies: policy.New(), figures: newFigures()}
	if s.networkPolicies {
		c.networks = netpol.New()
	}
	c.ready.Block(waitCluster)
	c.ready.Block(waitAuthority)
	var parts []run.Component
	for _, build := range []func() ([]run.Component, error){
		c.buildSource, c.buildAuthority, c.buildServers, c.buildElection,
		func() ([]run.Component, error) { return c.buildAdmin(levels) },
	} {
		more, err := build()
		if err != nil {
			return nil, err
		}
		parts = append(parts, more...)
	}
	timeout := s.drain
	if timeout == 0 {
		timeout = -1 // cut at once
	}
	var err error
	c.group, err = run.New(run.Config{Logger: log, DrainTimeout: timeout, Signals: signals}, parts...)
	return c, err
}

// run serves until a signal and returns when everything has ended.
func (c *controller) run(ctx context.Context) error {
	c.log.Info("starting", "version", version, "namespace", c.settings.namespace, "replica", c.settings.pod, "trust_domain", c.settings.trustDomain.String())
	return c.group.Run(ctx)
}

func (c *controller) scope(name string) *slog.Logger { return c.log.With(admin.ScopeKey, name) }

func (c *controller) buildSource() ([]run.Component, error) {
	s := c.settings
	var err error
	c.source, err = kube.New(kube.Config{
		Config: c.clients.rest, Clients: c.clients.source, ClusterID: s.cluster, TrustDomain: s.trustDomain.String(), TrustDomainAliases: s.aliases(),
		Domain: s.domain, Network: s.network, NetworkPolicies: c.networks, RootNamespace: s.rootNamespace, LenientL7: s.lenientL7, Store: c.store, Policies: c.policies, Logger: c.scope("cluster"),
	})
	if err != nil {
		return nil, err
	}
	return []run.Component{{Name: "cluster", Run: c.source.Run}, c.until(c.source.Synced(), waitCluster)}, nil
}

func (c *controller) buildAuthority() ([]run.Component, error) {
	s := c.settings
	var err error
	c.authority, err = kubeca.New(kubeca.Config{Client: c.clients.core, Namespace: s.namespace, Authority: s.authority(), Logger: c.scope("ca")})
	if err != nil {
		return nil, err
	}
	tokens, err := kubeca.NewAuthenticator(kubeca.AuthenticatorConfig{Client: c.clients.core, Audiences: s.audiences})
	if err != nil {
		return nil, err
	}
	c.nodes, err = kubeca.NewNodeAuthorizer(kubeca.NodeAuthorizerConfig{Pods: pods{c.source}, TrustDomain: s.trustDomain, Trusted: s.agents})
	if err != nil {
		return nil, err
	}
	c.door = &doorkeeper{tokens: tokens, nodes: c.nodes, synced: c.source.Synced()}
	return []run.Component{{Name: "certificate authority", Run: c.authority.Run}, c.until(c.authority.Ready(), waitAuthority)}, nil
}

// until clears what readiness waits for when the channel is closed.
func (c *controller) until(there <-chan struct{}, name string) run.Component {
	return run.Component{
		Name: name + " readiness",
		Run: func(ctx context.Context) error {
			select {
			case <-there:
				c.ready.Clear(name)
				c.log.Info("ready", "part", name)
			case <-ctx.Done():
			}
			return nil
		},
	}
}

// buildElection makes what only one replica does.
func (c *controller) buildElection() ([]run.Component, error) {
	s := c.settings
	cfg := status.Config{Config: c.clients.rest, Source: c.source, Logger: c.scope("status")}
	if c.clients.source != nil {
		cfg.Client = c.clients.source.Dynamic
	}
	var err error
	if c.statuses, err = status.New(cfg); err != nil {
		return nil, err
	}
	tasks := []run.Component{{Name: "lead the certificate authority", Run: c.authority.Lead}, {Name: "status", Run: c.statuses.Run}}
	if s.removeTaints {
		c.taints = &taints{client: c.clients.core, namespace: s.namespace, log: c.scope("taints")}
		tasks = append(tasks, run.Component{Name: "taints", Run: c.taints.Run})
	}
	if s.companions {
		mesh := netpolcheck.Mesh{DNS: s.agentsDNS, Enrolment: enrol.Settings{Exclude: s.exclude}}
		c.companion, err = companion.New(companion.Config{Client: c.clients.core, Mesh: mesh, Logger: c.scope("companions")})
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, run.Component{Name: "companions", Run: c.companion.Run})
	}
	c.election = &election{
		client: c.clients.core, namespace: s.namespace, identity: s.pod, lease: s.lease, tasks: tasks, log: c.scope("election"),
	}
	return []run.Component{{Name: "election", Run: c.election.Run}, {
		Name:  "readiness", // ends when the program begins to stop, so that nobody is sent here any more
		Run:   func(ctx context.Context) error { <-ctx.Done(); return nil },
		Drain: func(context.Context) error { c.ready.Block(waitStopping); return nil },
	}}, nil
}
