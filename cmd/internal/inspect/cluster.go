package inspect

import (
	"context"
	"fmt"

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
	network   *string             // of the mesh; nil where it cannot be read
	networks  map[string][]string // configurations that runtimes use: to the nodes where they do
}

// Cluster looks at everything: versions, CNI, controller, permissions, agents and what they found, taints, pods that are to be in the
// mesh and are not. The manifests of the installed release say what permissions are needed; they are empty where it is not
// Helm's. That the cluster cannot be asked for something is a finding too.
func Cluster(ctx context.Context, a *access.Access, agents Agents, namespace, release string) []Finding {
	c := &cluster{access: a, agents: agents, namespace: namespace, release: release, networks: map[string][]string{}}
	v, err := a.Version(ctx, deploy.MinKubernetes)
	if err != nil {
		c.add(Wrong, "cluster", err.Error())
	} else {
		c.add(OK, "cluster", "Kubernetes "+v.String())
	}
	if v == nil {
		return c.all
	}
	if err := c.read(ctx); err != nil {
		c.add(Wrong, "cluster", err.Error())
		return c.all
	}
	c.checkNodes()
	c.checkCNI(ctx)
	if !c.checkInstalled(ctx) {
		return c.all
	}
	c.checkPermissions(ctx)
	c.checkAgents()
	c.askAgents(ctx)
	c.tellNetworks()
	if err := c.checkPods(ctx); err != nil {
		c.add(Wrong, "pods", err.Error())
	}
	return c.all
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
	case controller.Status.ObservedGeneration < controller.Generation || controller.Status.UpdatedReplicas < controller.Status.Replicas:
		c.add(Warning, about, fmt.Sprintf("%d of %d replicas are of the last change (%s) yet: what keeps its pods?",
			controller.Status.UpdatedReplicas, controller.Status.Replicas, image(controller.Spec.Template)))
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
	if s := set.Status; s.ObservedGeneration < set.Generation || s.UpdatedNumberScheduled < s.DesiredNumberScheduled {
		c.add(Warning, about, fmt.Sprintf("%d of %d agents are of the last change (%s) yet: what keeps its pods?", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, image(set.Spec.Template)))
	} else {
		c.add(OK, about, image(set.Spec.Template))
	}
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
