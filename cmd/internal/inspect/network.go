package inspect

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// networkLabel says to Istio which network a cluster, by its system namespace, or a pod is in.
const networkLabel = "topology.istio.io/network"

// networkOf returns what is said of an object with these labels that names another network than the mesh's, or nothing. All
// pods of a cluster are in one network, and only the chart's value says which.
func (c *cluster) networkOf(labels map[string]string) string {
	name := labels[networkLabel]
	if name == "" || c.network == nil || name == *c.network {
		return ""
	}
	return fmt.Sprintf("label %s=%s has no effect: all pods of this cluster are in network %q, by the value network", networkLabel, name, *c.network)
}

// checkNetwork reads the mesh's network and compares the label of Culvert's namespace. Where the settings cannot be read
// nothing is said.
func (c *cluster) checkNetwork(ctx context.Context, spaces []corev1.Namespace) {
	settings, err := c.access.Kube.CoreV1().ConfigMaps(c.namespace).Get(ctx, "culvert", metav1.GetOptions{})
	if err != nil {
		return
	}
	name := settings.Data["NETWORK"]
	c.network = &name
	for _, ns := range spaces {
		if ns.Name != c.namespace {
			continue
		}
		if text := c.networkOf(ns.Labels); text != "" {
			c.add(Warning, "namespace "+ns.Name, text)
		}
	}
}
