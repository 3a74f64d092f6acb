package inspect

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/deploy"
)

// cluster is one look at a cluster.
type cluster struct {
	list
	access    *access.Access
	agents    Agents
	namespace string
	release   string // manifests
	nodes     []corev1.Node
	pods      []corev1.Pod // of agents
	sets      []appsv1.DaemonSet
	networks  map[string][]string // configurations that runtimes use: to the nodes where they do
}

// Cluster looks at everything: versions, CNI, controller, permissions, agents and what they found, taints, pods that are to be in the
// mesh and are not. The manifests of the installed release say what permissions are needed; they are empty where it is not
// Helm's. The error says that the cluster could not be asked at all.
func Cluster(ctx context.Context, a *access.Access, agents Agents, namespace, release string) ([]Finding, error) {
	c := &cluster{access: a, agents: agents, namespace: namespace, release: release, networks: map[string][]string{}}
	v, err := a.Version(ctx, deploy.MinKubernetes)
	switch {
	case v == nil:
		return nil, err
	case err != nil:
		c.add(Wrong, "cluster", err.Error())
	default:
		c.add(OK, "cluster", "Kubernetes "+v.String())
	}
	if err := c.read(ctx); err != nil {
		return nil, err
	}
	c.checkNodes()
	c.checkCNI(ctx)
	if !c.checkInstalled(ctx) {
		return c.all, nil
	}
	c.checkPermissions(ctx)
	c.checkAgents()
	c.askAgents(ctx)
	c.tellNetworks()
	if err := c.checkPods(ctx); err != nil {
		return nil, err
	}
	return c.all, nil
}

// read gets what several checks need.
func (c *cluster) read(ctx context.Context) error {
	nodes, err := c.access.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", c.access.Explain(err))
	}
	sets, err := c.access.Kube.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list DaemonSets: %w", c.access.Explain(err))
	}
	c.nodes, c.sets = nodes.Items, sets.Items
	c.pods, err = agentPods(ctx, c.access, c.namespace)
	return err
}

// checkNodes looks at the kernels.
func (c *cluster) checkNodes() {
	for _, n := range c.nodes {
		c.kernel("node "+n.Name, n.Status.NodeInfo.KernelVersion)
	}
}

// checkInstalled looks at controller and DaemonSet, and reports whether Culvert is there at all.
func (c *cluster) checkInstalled(ctx context.Context) bool {
	apps := c.access.Kube.AppsV1()
	set, setErr := apps.DaemonSets(c.namespace).Get(ctx, deploy.DaemonSet, metav1.GetOptions{})
	controller, err := apps.Deployments(c.namespace).Get(ctx, deploy.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(setErr) && apierrors.IsNotFound(err) {
		c.add(Note, "Culvert", "is not installed in namespace "+c.namespace)
		return false
	}
	about := "Deployment " + deploy.Deployment
	const suffers = "agents go on with what they know, new identities are not certified"
	switch {
	case apierrors.IsNotFound(err):
		c.add(Wrong, about, "is missing ("+c.repair()+"): "+suffers)
	case err != nil:
		c.add(Wrong, about, c.access.Explain(err).Error())
	case controller.Status.AvailableReplicas == 0:
		c.add(Wrong, about, "no replica is available: "+suffers)
	case controller.Spec.Replicas != nil && controller.Status.AvailableReplicas < *controller.Spec.Replicas:
		c.add(Warning, about, fmt.Sprintf("%d of %d replicas are available", controller.Status.AvailableReplicas, *controller.Spec.Replicas))
	default:
		c.add(OK, about, fmt.Sprintf("%d replicas, %s", controller.Status.AvailableReplicas, image(controller.Spec.Template)))
	}
	about = "DaemonSet " + deploy.DaemonSet
	if apierrors.IsNotFound(setErr) {
		c.add(Wrong, about, "is missing ("+c.repair()+"): nobody starts agents, and pods leave the mesh when theirs ends")
		return true
	}
	if setErr != nil {
		c.add(Wrong, about, c.access.Explain(setErr).Error())
		return true
	}
	c.add(OK, about, image(set.Spec.Template))
	if err == nil && image(set.Spec.Template) != image(controller.Spec.Template) {
		c.add(Warning, about, "is of another image than the controller's")
	}
	return true
}

func image(template corev1.PodTemplateSpec) string {
	if len(template.Spec.Containers) == 0 {
		return "no image"
	}
	return template.Spec.Containers[0].Image
}

// checkAgents compares nodes with agents, and their taints.
func (c *cluster) checkAgents() {
	on := map[string]*corev1.Pod{}
	for i := range c.pods {
		p := &c.pods[i]
		if have := on[p.Spec.NodeName]; have == nil || podReady(p) {
			on[p.Spec.NodeName] = p
		}
	}
	for _, n := range c.nodes {
		about := "node " + n.Name
		agent := on[n.Name]
		switch {
		case agent == nil:
			c.add(Wrong, about, "has no agent: its pods cannot be in the mesh (does the node selector leave it out?)")
		case !podReady(agent):
			c.add(Wrong, about, "agent "+agent.Name+" is not ready: "+whyNot(agent))
		default:
			c.add(OK, about, "agent "+agent.Name+" is ready")
		}
		if agent != nil {
			c.restarts(about, agent)
		}
		for _, t := range n.Spec.Taints {
			if t.Key != "culvert.io/agent-not-ready" && t.Key != "cni.istio.io/not-ready" {
				continue
			}
			if agent != nil && podReady(agent) {
				c.add(Wrong, about, "still has taint "+t.Key+" though its agent is ready: the controller removes it unless taint.remove is false")
			} else {
				c.add(Note, about, "has taint "+t.Key+" until its agent is ready")
			}
		}
	}
}

// restarts tells of agents that ended without being told to.
func (c *cluster) restarts(about string, agent *corev1.Pod) {
	for _, s := range agent.Status.ContainerStatuses {
		if last := s.LastTerminationState.Terminated; last != nil {
			c.add(Warning, about, fmt.Sprintf("agent %s was restarted %d times; at last it ended at %s with %d (%s) %s",
				agent.Name, s.RestartCount, last.FinishedAt.UTC().Format(time.RFC3339), last.ExitCode, last.Reason, last.Message))
		}
	}
}

func podReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func whyNot(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			return w.Reason + " " + w.Message
		}
	}
	return "phase " + string(p.Status.Phase)
}

// agentState is the part of an agent's dump that this command shows.
type agentState struct {
	Kubernetes *struct {
		// Probes is what the exemption for the kubelet's probes leaves open or lacks, each "kind: text".
		Probes         []string `json:"probes"`
		CNIPluginReady *bool    `json:"cniPluginReady"`
		CNIPluginError string   `json:"cniPluginError"`
		// CNI is the configuration that the node's runtime uses.
		CNI *struct {
			File    string   `json:"file"`
			Network string   `json:"network"`
			Plugins []string `json:"plugins"`
		} `json:"cni"`
	} `json:"kubernetes"`
	// NetworkPolicies is absent from agents that do not know them.
	NetworkPolicies *struct {
		Evaluated bool              `json:"evaluated"`
		State     string            `json:"state"`
		Ready     bool              `json:"ready"`
		Faults    map[string]string `json:"faults"`
	} `json:"networkPolicies"`
}

// askAgents asks each agent what it found on its node.
func (c *cluster) askAgents(ctx context.Context) {
	var mu sync.Mutex
	each(ctx, c.pods, func(ctx context.Context, pod *corev1.Pod) {
		body, err := c.agents.Get(ctx, c.namespace, pod.Name, "/config_dump")
		var state agentState
		if err == nil {
			err = json.Unmarshal(body, &state)
		}
		mu.Lock()
		defer mu.Unlock()
		about := "node " + pod.Spec.NodeName
		switch {
		case err != nil:
			c.add(Warning, about, "its agent could not be asked what it found: "+err.Error())
		case state.Kubernetes == nil:
			c.add(Warning, about, "its agent does not follow the cluster (no --kubernetes)")
		default:
			state.Kubernetes.CNIPluginError = deploy.HostPaths(&pod.Spec).Replace(state.Kubernetes.CNIPluginError)
			c.tell(about, &state)
		}
	})
}

// tell adds what one agent found.
func (c *cluster) tell(about string, state *agentState) {
	k := state.Kubernetes
	if n := k.CNI; n != nil {
		text := Clean(fmt.Sprintf("network %q of %s: %s", n.Network, n.File, strings.Join(n.Plugins, ", ")))
		c.networks[text] = append(c.networks[text], about)
	}
	switch {
	case k.CNIPluginError != "":
		c.add(Wrong, about, "CNI plugin is not in place: "+k.CNIPluginError)
	case k.CNIPluginReady == nil:
		c.add(Warning, about, "its agent installs no CNI plugin: pods that start are enrolled a moment later")
	case !*k.CNIPluginReady:
		c.add(Wrong, about, "CNI plugin is not in place yet")
	default:
		c.add(OK, about, "CNI plugin is in place")
	}
	for _, f := range k.Probes {
		level := Warning
		if strings.HasPrefix(f, "missing:") || strings.HasPrefix(f, "rules:") {
			level = Wrong
		}
		c.add(level, about, "probes: "+f)
	}
	if n := state.NetworkPolicies; n != nil {
		switch {
		case !n.Evaluated:
			c.add(Note, about, "network policies: "+n.State)
		case !n.Ready:
			c.add(Wrong, about, "its agent has not heard of network policies yet, and lets nobody in without")
		}
		for _, name := range slices.Sorted(maps.Keys(n.Faults)) {
			c.add(Warning, about, name+" allows less than it says, because it cannot be understood: "+n.Faults[name])
		}
	}
	if len(k.Probes) == 0 {
		c.add(OK, about, "of its processes only the kubelet passes without mTLS")
	}
}

// hasPrefix reports whether a name begins with one of the prefixes.
func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
