package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/cmd/internal/apiserver"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/cni"
	"github.com/culvert-mesh/culvert/redirect/cni/install"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/redirect/procns"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

// waitPlugin is what readiness waits for besides, where the agent installs the CNI plugin.
const waitPlugin = "CNI plugin"

// kubernetesSettings are the flags of --kubernetes.
type kubernetesSettings struct {
	on            bool
	kubeconfig    string
	procRoot      string
	runDir        string
	cniBinDir     string
	cniNetDir     string
	cniBinary     string
	exclude       []string
	selectors     []selector.Selector
	forbid        bool
	hostAddresses []netip.Addr
	daemonSet     string
	leaveTimeout  time.Duration
}

func kubernetesDefaults() kubernetesSettings {
	return kubernetesSettings{
		procRoot: "/host/proc", runDir: "/var/run/culvert", cniBinary: "/usr/local/bin/culvert-cni", exclude: []string{"kube-system"},
		daemonSet: "culvert-node", leaveTimeout: time.Hour,
	}
}

func (k *kubernetesSettings) declare(set *conf.Set) {
	conf.Add(set, &k.on, conf.Bool, conf.Option{Flag: "kubernetes", Usage: "enrol the pods of this node by the labels that the API server tells"})
	conf.Add(set, &k.kubeconfig, conf.File, conf.Option{Flag: "kubeconfig", Usage: "how to reach the API server from outside the cluster; default the pod's service account"})
	conf.Add(set, &k.procRoot, conf.String, conf.Option{Flag: "proc-root", Usage: "where the /proc of the host is"})
	conf.Add(set, &k.runDir, conf.String, conf.Option{Flag: "run-dir", Usage: "directory that agent and CNI plugin share, at the same path on the host"})
	conf.Add(set, &k.cniBinDir, conf.String, conf.Option{Flag: "cni-bin-dir", Usage: "where the host's CNI plugins are, as this process sees it; empty: install no plugin"})
	conf.Add(set, &k.cniNetDir, conf.String, conf.Option{Flag: "cni-net-dir", Usage: "where the host's CNI configuration is, as this process sees it"})
	conf.Add(set, &k.cniBinary, conf.String, conf.Option{Flag: "cni-binary", Usage: "the CNI plugin to install"})
	conf.Add(set, &k.exclude, conf.List(conf.String), conf.Option{Flag: "exclude-namespaces", Usage: "namespaces whose pods are never enrolled, separated by commas"})
	conf.Add(set, &k.selectors, selector.Parse, conf.Option{Flag: "enrol-selectors", Usage: `which pods are in the mesh, in place of the label istio.io/dataplane-mode: "POD;NAMESPACE|..." of label conditions (a=b,!c)`})
	conf.Add(set, &k.forbid, conf.Bool, conf.Option{Flag: "forbid-carve-outs", Usage: "ignore annotations of pods that take ports or addresses out of the capture"})
	conf.Add(set, &k.hostAddresses, conf.List(conf.Addr), conf.Option{Flag: "host-addresses", Usage: "addresses besides those of the nodes whose processes may use culvert.io/allow-host-ports, for example API servers outside of the cluster"})
	conf.Add(set, &k.daemonSet, conf.String, conf.Option{Flag: "daemonset", Usage: "the agent's own DaemonSet; when it is gone at the end, pods leave the mesh"})
	conf.Add(set, &k.leaveTimeout, conf.Duration(0, 30*24*time.Hour), conf.Option{Flag: "leave-timeout", Usage: "how long the connections of an unlabelled pod may go on"})
}

// checkKubernetes wants what goes together.
func (s *settings) checkKubernetes() error {
	k := &s.kubernetes
	switch {
	case !k.on:
		return nil
	case s.mode != modeNode:
		return errors.New("only for --mode=node")
	case s.pods != "":
		return errors.New("--pods gives the pods, or the API server, not both")
	case s.node == "":
		return errors.New("needs --node (or $NODE_NAME)")
	case (k.cniBinDir == "") != (k.cniNetDir == ""):
		return errors.New("--cni-bin-dir and --cni-net-dir go together")
	case k.cniBinDir != "" && k.kubeconfig != "":
		return errors.New("the CNI plugin is installed from inside the cluster only, without --kubeconfig")
	}
	return nil
}

// cluster is the agent's side that faces Kubernetes.
type cluster struct {
	settings  *kubernetesSettings
	log       *slog.Logger
	agent     *kubenode.Agent
	host      *hostSide
	installer *install.Installer // nil without the plugin
	socket    string
	server    *handoff.Server // of the socket

	left       atomic.Bool     // the mesh was uninstalled
	plugin     context.Context // of installer.Run
	stopPlugin context.CancelFunc
	pluginDone chan struct{}
}

// buildKubernetes serves the pods that the API server tells of. The hand-off socket listens before the pods are known, unless
// an earlier agent is there, which can enrol pods while this one may never be able to; and the plugin comes last, when there is
// somebody to ask.
func (n *node) buildKubernetes(parts []run.Component) ([]run.Component, error) {
	s, k := n.settings, &n.settings.kubernetes
	klog.SetSlogLogger(n.scope("kubernetes"))
	api, err := apiserver.Config(k.kubeconfig)
	if err != nil {
		return nil, err
	}
	c := &cluster{settings: k, log: n.scope("kubernetes"), socket: s.handoff, pluginDone: make(chan struct{})}
	c.plugin, c.stopPlugin = context.WithCancel(context.Background())
	c.host = newHostSide(k.procRoot, n.scope("probes"))
	synced := make(chan struct{})
	base := redirect.Options{DNS: s.dns, NoIPv6: !s.ipv6, HostAddresses: k.hostAddresses}
	c.agent, err = kubenode.New(kubenode.Config{
		REST: api, Node: s.node, Namespace: s.podNamespace, DaemonSet: k.daemonSet,
		Enrol: enrol.Settings{
			Exclude: k.exclude, OwnNamespace: s.podNamespace, OwnApps: []string{"culvert-node", "culvert-controller"},
			Selectors: k.selectors, ForbidCarveOuts: k.forbid,
		},
		Options: func() redirect.Options { return c.host.options(base) },
		Set:     n.set, Finder: procns.New(k.procRoot), HostRules: c.host, Certified: n.certified,
		Synced: synced, Superseded: c.superseded, Outbound: n.outbound, Drain: max(k.leaveTimeout, time.Millisecond), Logger: c.log,
	})
	if err != nil {
		return nil, err
	}
	n.cluster = c
	c.server, err = handoff.Listen(handoff.Config{Path: s.handoff, Handler: c.agent.Handoff(), Patient: true, Logger: n.scope("handoff")})
	if err != nil {
		return nil, err
	}
	parts = append(parts,
		run.Component{Name: "hand-off", Run: func(ctx context.Context) error {
			err := c.server.Run(ctx)
			if c.left.Load() && !c.superseded() {
				c.removeFiles()
			}
			return err
		}},
		run.Component{Name: "host rules", Run: func(ctx context.Context) error { return c.host.run(ctx, c.agent) }},
		run.Component{Name: "cluster", Run: c.agent.Run},
		run.Component{Name: "cluster readiness", Run: func(ctx context.Context) error { return n.followCluster(ctx, synced) }},
	)
	if k.cniBinDir == "" {
		close(c.pluginDone)
		return parts, nil
	}
	n.ready.Block(waitPlugin)
	if c.installer, err = newInstaller(s, api, n.scope("cni")); err != nil {
		return nil, err
	}
	return append(parts, run.Component{Name: "CNI plugin", Run: n.keepPlugin}), nil
}

// pluginConfig is what the CNI plugin is told: it leaves alone what the agent does.
func pluginConfig(s *settings) cni.Config {
	k := &s.kubernetes
	return cni.Config{
		AgentSocket: s.handoff, APIFile: filepath.Join(k.runDir, "cni", install.APIFile), LogFile: filepath.Join(k.runDir, "cni", install.LogFile),
		ExcludeNamespaces: append([]string{}, k.exclude...), // to the plugin, nil would be those that are left out by default
		Selectors:         k.selectors, OwnNamespace: s.podNamespace,
	}
}

func newInstaller(s *settings, api *rest.Config, log *slog.Logger) (*install.Installer, error) {
	k := &s.kubernetes
	entry, err := pluginConfig(s).JSON()
	if err != nil {
		return nil, err
	}
	return install.New(install.Config{
		BinDir: k.cniBinDir, NetDir: k.cniNetDir, SourceBinary: k.cniBinary, PluginConfig: entry, RunDir: filepath.Join(k.runDir, "cni"),
		Server: api.Host, CAFile: api.CAFile, TokenFile: api.BearerTokenFile, Logger: log,
	})
}

// followCluster clears what readiness waits for, says when the mesh's state is known, and takes over from an earlier agent.
func (n *node) followCluster(ctx context.Context, synced chan<- struct{}) error {
	if err := n.waitState(ctx); err != nil {
		return nil //nolint:nilerr // stopping
	}
	close(synced)
	select {
	case <-n.cluster.agent.Ready():
	case <-ctx.Done():
		return nil
	}
	if err := n.cluster.server.Take(); err != nil && !errors.Is(err, net.ErrClosed) { // closed when stopping
		return err
	}
	n.cluster.agent.Refresh() // what was the earlier agent's to say is this one's now
	n.ready.Clear(waitPods)
	return nil
}

// keepPlugin installs the plugin when pods can be handed over, and keeps it until the agent ends or leave takes it away.
func (n *node) keepPlugin(ctx context.Context) error {
	c := n.cluster
	defer close(c.pluginDone)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.plugin, cancel)()
	select {
	case <-c.agent.Listed():
	case <-ctx.Done():
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if n.poll(ctx, c.installer.Ready) == nil {
			n.ready.Clear(waitPlugin)
		}
	})
	return c.installer.Run(ctx)
}

// superseded reports whether another agent has the hand-off socket: a newer one, or an earlier one until this one is ready.
func (c *cluster) superseded() bool { return c.server.Superseded() }

// certified waits until the certificate is there that the pod's connections will ask for.
func (n *node) certified(ctx context.Context, pod podset.Pod) error {
	w, err := n.pods.localWorkload(ctx, pod)
	if err != nil {
		return fmt.Errorf("discovery has not told of the pod: %w", err)
	}
	_, err = n.certificates.Get(ctx, w.Identity())
	return err
}

// dump tells of the node's side for /config_dump, and what readiness waits for; `culvert check` reads it.
func (c *cluster) dump(pending []string) (any, error) {
	out := map[string]any{"pending": pending, "probes": c.host.findings(), "superseded": c.superseded(), "handoffSocket": c.socket}
	if c.installer != nil {
		out["cniPluginReady"] = c.installer.Ready()
		if r := install.Inspect(c.settings.cniNetDir); r.File != "" {
			out["cni"] = map[string]any{"file": r.File, "network": r.Network, "version": r.CNIVersion, "plugins": r.Plugins}
		}
		if err := c.installer.Err(); err != nil {
			out["cniPluginError"] = err.Error()
		}
	}
	return out, nil
}
