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

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/deploy"
)

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
			c.add(Wrong, about, "agent "+agent.Name+" "+whyNot(agent))
		default:
			c.add(OK, about, "agent "+agent.Name+" is ready")
		}
		if agent != nil {
			c.restarts(about, agent)
		}
		c.successors(about, agent)
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

// successors tells of agents that are to take over from a ready one and do not become ready themselves.
func (c *cluster) successors(about string, agent *corev1.Pod) {
	if agent == nil || !podReady(agent) {
		return
	}
	for i := range c.pods {
		p := &c.pods[i]
		if p.Spec.NodeName == agent.Spec.NodeName && p.DeletionTimestamp == nil && !podReady(p) {
			c.add(Warning, about, "agent "+p.Name+", which is to take over from "+agent.Name+", "+whyNot(p))
			c.restarts(about, p)
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
			return "is not ready: " + w.Reason + " " + w.Message
		}
	}
	if p.Status.Phase == corev1.PodRunning {
		return "runs, but is not ready"
	}
	return "is not ready: phase " + string(p.Status.Phase)
}

// agentState is the part of an agent's dump that this command shows.
type agentState struct {
	Kubernetes *struct {
		// Pending is what the agent's readiness waits for.
		Pending []string `json:"pending"`
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

// askAgents asks each agent what it found on its node, and tells it in the order of the nodes.
func (c *cluster) askAgents(ctx context.Context) {
	var mu sync.Mutex
	answers := map[string]func(){} // by pod
	each(ctx, c.pods, func(ctx context.Context, pod *corev1.Pod) {
		body, err := c.agents.Get(ctx, c.namespace, pod.Name, "/config_dump")
		var state agentState
		if err == nil {
			err = json.Unmarshal(body, &state)
		}
		mu.Lock()
		defer mu.Unlock()
		answers[pod.Name] = func() { c.tellAnswer(pod, &state, err) }
	})
	for _, pod := range c.pods {
		if tell := answers[pod.Name]; tell != nil {
			tell()
		}
	}
}

func (c *cluster) tellAnswer(pod *corev1.Pod, state *agentState, err error) {
	about := "node " + pod.Spec.NodeName
	switch {
	case err != nil:
		c.add(Warning, about, "its agent could not be asked what it found: "+err.Error())
	case state.Kubernetes == nil:
		c.add(Warning, about, "its agent does not follow the cluster (no --kubernetes)")
	default:
		state.Kubernetes.CNIPluginError = deploy.HostPaths(&pod.Spec).Replace(state.Kubernetes.CNIPluginError)
		c.tell(about, state)
	}
}

// tell adds what one agent found.
func (c *cluster) tell(about string, state *agentState) {
	k := state.Kubernetes
	if n := k.CNI; n != nil {
		text := Clean(fmt.Sprintf("network %q of %s: %s", n.Network, n.File, strings.Join(n.Plugins, ", ")))
		c.networks[text] = append(c.networks[text], about)
	}
	lacks := slices.Contains(k.Pending, "network policies, which the controller does not know")
	for _, name := range k.Pending {
		switch name {
		case "state manager":
			if !lacks {
				c.add(Wrong, about, "its agent has heard of no controller what is in the cluster: pods that it captures are refused")
			}
		case "workload proxy manager":
			c.add(Wrong, about, "its agent is not done with the pods of its node")
		}
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
		case lacks:
			c.add(Wrong, about, "its agent waits for network policies, and lets nobody in without, but its controller does not know them: it is older than the agent or has other values, "+
				"so bring both to one version (culvert upgrade); with istiod in its place, netpol.enforce=false")
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
