package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/dns"
	"github.com/culvert-mesh/culvert/workload/dns/lookup"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/file"
	"github.com/culvert-mesh/culvert/workload/source/xds"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// What readiness waits for; the names are ztunnel's.
const (
	waitState = "state manager"
	waitPods  = "workload proxy manager"
	// waitNetworks stands beside the state where it is the reason; it is read by culvert check, too.
	waitNetworks = "network policies, which the controller does not know"
)

// node is the whole agent.
type node struct {
	settings *settings
	conf     *conf.Set
	log      *slog.Logger

	loops    []*loop.Loop
	store    *workload.Store
	policies *policy.Set
	networks *netpol.Set // nil: network policies are not evaluated
	// lacksNetworks reports whether the discovery server seems to know nothing of network policies; nil where there is none.
	lacksNetworks func() bool
	outbound      *egress.Modes
	certificates  *certificates
	telemetry     *telemetry.Telemetry
	proxy         *proxy.Proxy
	pods          *pods
	set           *podset.Set
	cluster       *cluster // nil without Kubernetes
	plaintext     *plaintext
	flows         *flows
	passing       *passing
	resolvConf    *resolvConf
	ready         admin.Readiness
	group         *run.Group
}

// newNode makes everything that the settings ask for and refuses what is faulty before anything is changed.
func newNode(s *settings, set *conf.Set, levels *admin.Levels, log *slog.Logger, signals <-chan os.Signal) (*node, error) {
	needs := netns.Needs{Namespaces: s.mode == modeNode, Capture: s.mode == modeNode || s.capture}
	if err := netns.Probe(needs); err != nil {
		return nil, fmt.Errorf("this machine cannot capture traffic: %w", err)
	}
	td, err := identity.ParseTrustDomain(s.trustDomain)
	if err != nil {
		return nil, fmt.Errorf("--trust-domain: %w", err)
	}
	n := &node{settings: s, conf: set, log: log, store: workload.New(), policies: policy.New(), outbound: egress.New(s.outbound), plaintext: newPlaintext(), flows: newFlows(), passing: newPassing(), resolvConf: &resolvConf{path: cmp.Or(s.resolvConf, "/etc/resolv.conf")}}
	if s.evaluates() {
		n.networks = netpol.New()
	}
	n.ready.Block(waitState)
	n.ready.Block(waitPods)
	var parts []run.Component
	for _, build := range []func() ([]run.Component, error){
		func() ([]run.Component, error) { return n.buildTelemetry(levels) }, n.buildCertificates, n.buildProxy, n.buildSource,
		func() ([]run.Component, error) { return n.buildPods(td) }, func() ([]run.Component, error) { return n.buildOwn(td) },
		func() ([]run.Component, error) { return n.buildAdmin(levels) },
	} {
		more, err := build()
		if err != nil {
			return nil, err
		}
		parts = append(parts, more...)
	}
	return n, n.newGroup(parts, signals)
}

// run serves until a signal and returns when everything has ended.
func (n *node) run(ctx context.Context) error {
	for _, l := range n.loops {
		go l.Run()
	}
	n.log.Info("starting", "version", version, "mode", string(n.settings.mode), "node", n.settings.node, "loops", len(n.loops), "network_policies", n.networkState())
	err := n.group.Run(ctx)
	if errors.Is(err, run.ErrForced) {
		n.cut()
		return err // components may be running still
	}
	for _, l := range n.loops {
		l.Close()
	}
	return errors.Join(err, n.telemetry.Close())
}

// cut ends what lives still: the end of the process alone would look like an orderly end to applications.
func (n *node) cut() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.proxy.Stop(ctx)
	}()
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	}
}

func (n *node) scope(name string) *slog.Logger { return n.log.With(admin.ScopeKey, name) }

func (n *node) buildTelemetry(levels *admin.Levels) ([]run.Component, error) {
	s := n.settings
	cfg := telemetry.Config{Version: version, Revision: revision, Runtime: true, Samples: []func(func(telemetry.Sample)){n.samples}}
	cfg.Certificates = func() []telemetry.Certificate { return n.certificates.expiries() }
	if s.accessLog == on {
		cfg.AccessLog = os.Stderr
		cfg.AccessFormat = telemetry.Format(s.common.LogFormat)
		cfg.AccessLevel = levels.Scope("access")
	}
	var err error
	n.telemetry, err = telemetry.New(cfg)
	return nil, err
}

func (n *node) buildCertificates() ([]run.Component, error) {
	source, err := certificateSource(n.settings, n.scope("identity"))
	if err != nil {
		return nil, err
	}
	m, err := manager.New(manager.Config{Source: source, Logger: n.scope("identity")})
	if err != nil {
		return nil, err
	}
	n.certificates = newCertificates(m, source)
	parts := []run.Component{{Name: "certificates", Run: m.Run}}
	if r, ok := source.(runner); ok {
		parts = append(parts, run.Component{Name: "certificate source", Run: r.Run})
	}
	return parts, nil
}

func (n *node) buildProxy() ([]run.Component, error) {
	s := n.settings
	for range s.loops {
		l, err := loop.New()
		if err != nil {
			return nil, err
		}
		n.loops = append(n.loops, l)
	}
	cfg := proxy.Config{
		Store: n.store, Policies: n.policies, NetworkPolicies: n.networks, OwnNode: n.ownNode, Certificates: n.certificates, Loops: n.loops, Observer: observer{n.telemetry, n.plaintext, n.passing, n.flows},
		Logger: n.scope("proxy"), Network: s.network, Node: s.node, Outbound: n.outbound, PoolIdle: s.poolIdle, SameNode: s.sameNode == short,
		Source: map[toggle]proxy.SourceMode{auto: proxy.SourceAuto, on: proxy.SourceAlways, off: proxy.SourceNever}[s.originalSrc],
	}
	names, err := lookup.New(lookup.Config{Nameservers: n.resolvConf.nameservers, Dial: controlDialer(s).DialContext})
	if err != nil {
		return nil, err
	}
	cfg.Resolve = func(ctx context.Context, source *workload.Workload, host string) ([]netip.Addr, error) {
		n.telemetry.OnDemandDNS(source, host)
		return names.Lookup(ctx, host)
	}
	if cfg.PoolMaxStreams = s.poolStreams; s.poolIdle == 0 {
		cfg.PoolIdle = -1
	}
	var parts []run.Component
	if s.crl != "" {
		rev, err := mtls.NewRevocation(mtls.RevocationConfig{Path: s.crl, Logger: n.scope("identity")})
		if err != nil {
			return nil, fmt.Errorf("--crl: %w", err)
		}
		cfg.Revocation = rev
		parts = append(parts, run.Component{Name: "revocation lists", Run: rev.Watch})
	}
	if n.proxy, err = proxy.New(cfg); err != nil {
		return nil, err
	}
	parts = append(parts, run.Component{Name: "heap", Run: keepHeap}, run.Component{Name: "host names", Run: func(ctx context.Context) error {
		<-ctx.Done()
		names.Close()
		return nil
	}})
	return append(parts, run.Component{Name: "proxy", Run: n.proxy.Run, Drain: func(ctx context.Context) error {
		if n.cluster != nil {
			n.cluster.leave(ctx) // before: pods that leave the mesh are served until nothing of them is captured
		}
		n.proxy.Stop(ctx)
		return nil
	}}), nil
}

func (n *node) buildSource() ([]run.Component, error) {
	s := n.settings
	if s.workloads != "" {
		src, err := file.New(file.Config{Path: s.workloads, Store: n.store, Policies: n.policies, NetworkPolicies: n.networks, Logger: n.scope("state")})
		if err != nil {
			return nil, err
		}
		if err := src.Load(); err != nil {
			return nil, err
		}
		n.ready.Clear(waitState)
		return []run.Component{{Name: "workload file", Run: src.Run}}, nil
	}
	c, err := xds.New(xds.Config{
		Address: s.xdsAddress, RootCA: s.xdsRootCA, AltHostname: s.xdsHostname, TokenFile: s.tokenFile, ClusterID: s.cluster,
		Node:  xds.Node{IP: s.instanceIP, PodName: s.podName, Namespace: s.podNamespace, NodeName: s.node},
		Store: n.store, Policies: n.policies, NetworkPolicies: n.networks, Observer: n.telemetry.XDS(), Logger: n.scope("xds"),
		Dial: controlDial(s),
	})
	if err != nil {
		return nil, err
	}
	n.lacksNetworks = func() bool { return c.Lacks(xds.NetworkPolicyType) }
	return []run.Component{{Name: "discovery", Run: c.Run}, {Name: "network policies", Run: n.followNetworks}, {Name: "discovery readiness", Run: func(ctx context.Context) error {
		select {
		case <-c.Ready():
			n.ready.Clear(waitState)
		case <-ctx.Done():
		}
		return nil
	}}}, nil
}

func (n *node) buildPods(td identity.TrustDomain) ([]run.Component, error) {
	s := n.settings
	rc := n.resolvConf
	n.pods = &pods{
		log: n.log, proxy: n.proxy, certificates: n.certificates, store: n.store, telemetry: n.telemetry, trustDomain: td,
		node: s.node, mark: packetMark, nameservers: rc.nameservers, running: make(map[string]*servedPod),
	}
	if s.dns || s.kubernetes.on { // there a pod may ask for DNS capture of its own
		var err error
		if n.pods.resolver, err = dns.New(dns.Config{Domain: s.domain, DisableIPv6: !s.ipv6}); err != nil {
			return nil, err
		}
		if s.mode == modeDedicated {
			n.pods.search = rc.searchDomains()
		}
	}
	cfg := podset.Config{
		Runner: n.pods, Options: redirect.Options{DNS: s.dns, NoIPv6: !s.ipv6}, DrainTimeout: max(s.drain, time.Millisecond),
		Cleanup: s.leave, Logger: n.scope("capture"),
	}
	if s.mode == modeDedicated && !s.capture {
		cfg.NewCapture = func(podset.Pod) (podset.Capture, error) { return noCapture{}, nil }
	}
	if s.kubernetes.on {
		cfg.OnEvent = func(e podset.Event) { n.cluster.agent.Observe(e) }
	}
	var err error
	if n.set, err = podset.New(cfg); err != nil {
		return nil, err
	}
	parts := []run.Component{{Name: "pods", Run: n.set.Run}}
	if s.kubernetes.on {
		return n.buildKubernetes(parts)
	}
	if s.mode == modeDedicated {
		return n.buildDedicated(parts)
	}
	return n.buildShared(parts)
}

// buildDedicated serves the namespace that the agent runs in.
func (n *node) buildDedicated(parts []run.Component) ([]run.Component, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	w := n.settings.workload
	pod := podset.Pod{UID: w.String(), Name: w.name, Namespace: w.namespace, ServiceAccount: w.serviceAccount, NS: ns}
	return append(parts, run.Component{Name: "workload", Run: func(ctx context.Context) error {
		if err := n.waitState(ctx); err != nil {
			return nil //nolint:nilerr // stopping
		}
		if err := n.set.Add(ctx, pod); err != nil && ctx.Err() == nil {
			return err // a dedicated agent that cannot serve its one workload is of no use
		}
		n.ready.Clear(waitPods)
		<-ctx.Done()
		return nil
	}}), nil
}

// buildShared serves the pods of a list and those that are handed over.
func (n *node) buildShared(parts []run.Component) ([]run.Component, error) {
	s := n.settings
	if s.pods != "" {
		f := &podFile{path: s.pods, set: n.set, log: n.scope("capture")}
		content, err := os.ReadFile(s.pods)
		if err != nil {
			return nil, fmt.Errorf("read pods: %w", err)
		}
		if _, err := decodePods(s.pods, content); err != nil {
			return nil, err
		}
		parts = append(parts, run.Component{Name: "pod list", Run: func(ctx context.Context) error {
			if err := n.waitState(ctx); err != nil {
				return nil //nolint:nilerr // stopping
			}
			if err := f.load(); err != nil {
				n.scope("capture").Warn("faults in the list of pods", "error", err)
			}
			n.waitEnrolled(ctx)
			return f.Run(ctx)
		}})
	} else {
		n.ready.Clear(waitPods)
	}
	if s.handoff != "" {
		server, err := handoff.Listen(handoff.Config{Path: s.handoff, Handler: n.set.Handoff(), Logger: n.scope("handoff")})
		if err != nil {
			return nil, err
		}
		parts = append(parts, run.Component{Name: "hand-off", Run: server.Run})
	}
	return parts, nil
}

// waitState waits until the source has given its first state: without it no pod can be served.
func (n *node) waitState(ctx context.Context) error {
	return n.poll(ctx, func() bool {
		for _, p := range n.ready.Pending() {
			if p == waitState {
				return false
			}
		}
		return true
	})
}

// waitEnrolled clears readiness when each listed pod is enrolled or has failed for a reason of its own.
func (n *node) waitEnrolled(ctx context.Context) {
	err := n.poll(ctx, func() bool {
		for _, p := range n.set.Pods() {
			if p.State == podset.Starting {
				return false
			}
		}
		return true
	})
	if err == nil {
		n.ready.Clear(waitPods)
	}
}

func (n *node) poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// noCapture is the capture of a namespace whose rules somebody else has made.
type noCapture struct{}

func (noCapture) Reserve() error                                      { return nil }
func (noCapture) Apply() ([]redirect.Finding, error)                  { return nil, nil }
func (noCapture) Repair() (found, left []redirect.Finding, err error) { return nil, nil, nil }
func (noCapture) StopNew() error                                      { return nil }
func (noCapture) Delete() error                                       { return nil }
