package inspect

import (
	"context"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// knownCNI is a network plugin and the DaemonSets that it is recognised by.
type knownCNI struct {
	name string
	sets []string // prefixes of names
}

func knownCNIs() []knownCNI {
	return []knownCNI{
		{"Cilium", []string{"cilium"}},
		{"Calico", []string{"calico-node"}},
		{"Canal", []string{"canal"}},
		{"Flannel", []string{"kube-flannel"}},
		{"kindnet", []string{"kindnet"}},
		{"Antrea", []string{"antrea-agent"}},
		{"Weave Net", []string{"weave-net"}},
		{"Amazon VPC CNI", []string{"aws-node"}},
		{"Azure CNI", []string{"azure-cns"}},
		{"GKE", []string{"netd", "anetd"}},
		{"OVN-Kubernetes", []string{"ovnkube-node"}},
		{"Multus", []string{"multus", "kube-multus"}},
	}
}

// checkCNI says which network plugins are there, and what of them needs a setting.
func (c *cluster) checkCNI(ctx context.Context) {
	found := false
	for _, known := range knownCNIs() {
		for _, set := range c.sets {
			if !hasPrefix(set.Name, known.sets) {
				continue
			}
			found = true
			c.add(OK, "CNI", known.name+" (DaemonSet "+set.Namespace+"/"+set.Name+")")
			if known.name == "Cilium" {
				c.checkCilium(ctx, set.Namespace)
			}
			break
		}
	}
	if !found {
		c.add(Note, "CNI", "none that runs as a DaemonSet with a known name")
	}
}

// tellNetworks names the configurations that the nodes' runtimes use, as the agents found them.
func (c *cluster) tellNetworks() {
	for _, text := range slices.Sorted(maps.Keys(c.networks)) {
		nodes := c.networks[text]
		slices.Sort(nodes)
		where := nodes[0]
		if n := len(nodes); n > 1 {
			where = fmt.Sprintf("%d nodes", n)
		}
		c.add(OK, "CNI", text+" ("+where+")")
	}
}

// checkCilium looks for the two settings that keep a chained plugin from working.
func (c *cluster) checkCilium(ctx context.Context, namespace string) {
	settings, err := c.access.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, "cilium-config", metav1.GetOptions{})
	if err != nil {
		c.add(Warning, "CNI", "Cilium's settings could not be read: "+c.access.Explain(err).Error())
		return
	}
	if settings.Data["cni-exclusive"] == "true" {
		c.add(Warning, "CNI", "Cilium removes other plugins from the configuration and the agent puts itself back each time: set cni.exclusive=false in Cilium")
	}
	if settings.Data["kube-proxy-replacement"] == "true" && settings.Data["bpf-lb-sock-hostns-only"] != "true" {
		c.add(Warning, "CNI", "Cilium translates services at the socket, before the agent sees them, so waypoints and service policies are passed by: set socketLB.hostNamespaceOnly=true in Cilium")
	}
}
