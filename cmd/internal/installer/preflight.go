package installer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	helmrelease "helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"

	"github.com/culvert-mesh/culvert/deploy"
)

// Errors that a caller may want to tell apart.
var (
	ErrInstalled    = errors.New("already installed")
	ErrNotInstalled = errors.New("not installed")
)

// releaseNamespace is the annotation by which Helm knows its objects.
const releaseNamespace = "meta.helm.sh/release-namespace"

// rehearse makes Helm read the cluster, make the objects and compare them with those that are there, and write nothing.
const rehearse = "server"

// preflight asks what every change needs: a server of a fitting version, and the permission to do it.
func (i *Installer) preflight(ctx context.Context, mode CRDMode) error {
	found, err := i.Access.Version(ctx, deploy.MinKubernetes)
	if err != nil {
		return err
	}
	i.say("Kubernetes %s at %s", found, i.Access.Server)
	return i.permitted(ctx, mode)
}

// permitted asks for the rights that the definitions and the chart's objects take. It names all that are missing at once.
func (i *Installer) permitted(ctx context.Context, mode CRDMode) error {
	var asked []authv1.ResourceAttributes
	if mode != OnlyCRDs {
		asked = []authv1.ResourceAttributes{
			{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: i.Namespace},
			{Verb: "create", Group: "apps", Resource: "deployments", Namespace: i.Namespace},
			{Verb: "create", Resource: "secrets", Namespace: i.Namespace}, // where Helm keeps the release
			{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
			{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		}
	}
	if mode != SkipCRDs {
		group, resource := crdResource().Group, crdResource().Resource
		asked = append(asked,
			authv1.ResourceAttributes{Verb: "create", Group: group, Resource: resource}, authv1.ResourceAttributes{Verb: "patch", Group: group, Resource: resource})
	}
	var missing []string
	for _, a := range asked {
		review := &authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}
		answer, err := i.Access.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("ask for permissions: %w", i.Access.Explain(err))
		}
		if !answer.Status.Allowed {
			missing = append(missing, a.Verb+" "+a.Resource)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no permission to %s: this takes an administrator of the cluster", strings.Join(missing, ", "))
	}
	return nil
}

// maxOld is how many nodes a warning names.
const maxOld = 5

// kernels warns of nodes whose kernel may be too old for the agents that the manifests put there. It does not refuse them:
// distributions bring newer parts to older kernels, and the agent finds out what its own can do.
func (i *Installer) kernels(ctx context.Context, manifests string) error {
	agents, err := deploy.AgentNodes(manifests)
	if err != nil {
		return err
	}
	nodes, err := i.Access.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: agents.String()})
	if err != nil {
		return fmt.Errorf("look for the nodes' kernels: %w", i.Access.Explain(err))
	}
	least := version.MustParseGeneric(deploy.MinKernel)
	var old []string
	for _, n := range nodes.Items {
		// Nothing is known of what is no version.
		if have, err := version.ParseGeneric(n.Status.NodeInfo.KernelVersion); err == nil && have.LessThan(least) {
			old = append(old, n.Name+" ("+n.Status.NodeInfo.KernelVersion+")")
		}
	}
	if more := len(old) - maxOld; more > 0 {
		old = append(old[:maxOld], fmt.Sprintf("%d more", more))
	}
	if len(old) > 0 {
		i.say("warning: agents need Linux %s, or a kernel to which NAT in inet tables was brought, and may not work on %s: agent.nodeSelector can leave nodes out", deploy.MinKernel, strings.Join(old, ", "))
	}
	return nil
}

// last returns the newest revision of the release in this namespace, or nil.
func (i *Installer) last() (*helmrelease.Release, error) {
	r, err := i.Helm.Releases.Last(release)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for an installation: %w", i.Access.Explain(err))
	}
	return r, nil
}

// mustBeNew refuses where Culvert is, by whatever means it came.
func (i *Installer) mustBeNew(ctx context.Context) error {
	have, err := i.last()
	if err != nil {
		return err
	}
	if have != nil {
		if have.Info.Status == helmrelease.StatusDeployed {
			return fmt.Errorf("%w in namespace %s, version %s: use culvert upgrade", ErrInstalled, i.Namespace, have.Chart.AppVersion())
		}
		return fmt.Errorf("%w in namespace %s, but its state is %s: run culvert uninstall first", ErrInstalled, i.Namespace, have.Info.Status)
	}
	// Cluster-wide names cannot be there twice: they tell what is in other namespaces.
	role, err := i.Access.Kube.RbacV1().ClusterRoles().Get(ctx, deploy.DaemonSet, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for an installation: %w", i.Access.Explain(err))
	}
	if other := role.Annotations[releaseNamespace]; other == i.Namespace {
		return nil // its namespace was deleted, and the release with it: Helm takes over what has no namespace
	} else if other != "" {
		return fmt.Errorf("%w in namespace %s: a cluster has one", ErrInstalled, other)
	}
	return fmt.Errorf("%w by its manifests: go on with kubectl, or delete them first", ErrInstalled)
}

// mustBeThere returns the release that an upgrade starts from.
func (i *Installer) mustBeThere() (*helmrelease.Release, error) {
	have, err := i.last()
	switch {
	case err != nil:
		return nil, err
	case have == nil:
		return nil, fmt.Errorf("%w in namespace %s: use culvert install, or --namespace", ErrNotInstalled, i.Namespace)
	case have.Info.Status.IsPending():
		return nil, fmt.Errorf("another installation or upgrade is under way or was interrupted (state %s, since %s): if nothing runs any more, run culvert uninstall, then culvert install", have.Info.Status, have.Info.LastDeployed)
	}
	return have, nil
}

// noOtherCapture refuses where istio-cni redirects the traffic of pods already: two of them in one pod lose it.
func (i *Installer) noOtherCapture(ctx context.Context) error {
	sets, err := i.Access.Kube.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look for other meshes: %w", i.Access.Explain(err))
	}
	for _, set := range sets.Items {
		labels := set.Spec.Template.Labels
		switch {
		case set.Name == "istio-cni-node" || labels["k8s-app"] == "istio-cni-node":
			captures, err := i.istioCaptures(ctx, set.Namespace)
			if err != nil {
				return err
			}
			if captures {
				return fmt.Errorf("istio-cni captures pods already (DaemonSet %s/%s, ambient mode): remove it first", set.Namespace, set.Name)
			}
		case labels["app"] == "ztunnel":
			return fmt.Errorf("ztunnel serves this cluster already (DaemonSet %s/%s): remove it first", set.Namespace, set.Name)
		}
	}
	return nil
}

// istioCaptures reads whether istio-cni's ambient mode is on. In doubt it is.
func (i *Installer) istioCaptures(ctx context.Context, namespace string) (bool, error) {
	var settings *corev1.ConfigMap
	settings, err := i.Access.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, "istio-cni-config", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read settings of istio-cni: %w", i.Access.Explain(err))
	}
	return settings.Data["AMBIENT_ENABLED"] != "false", nil
}
