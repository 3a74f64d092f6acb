package installer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/action"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
	"github.com/culvert-mesh/culvert/deploy"
)

// UninstallOptions of one removal.
type UninstallOptions struct {
	// Timeout bounds the wait for the agents to clean their nodes.
	Timeout time.Duration
	// KeepCA leaves the authority's Secret, so that a later installation has the same root.
	KeepCA bool
	// DeleteNamespace removes the namespace too, with whatever else is in it.
	DeleteNamespace bool
}

// Uninstall removes Culvert. Pods of the mesh go on without it, without restart. The custom resource definitions, and the
// resources that users made of them, stay.
func (i *Installer) Uninstall(ctx context.Context, o UninstallOptions) error {
	if _, err := i.Access.Version(ctx, deploy.MinKubernetes); err != nil {
		return err
	}
	have, err := i.last()
	switch {
	case err != nil:
		return err
	case have == nil:
		return fmt.Errorf("%w in namespace %s: nothing to do (installed by manifests? kubectl delete -f them)", ErrNotInstalled, i.Namespace)
	}
	if err := i.remove(ctx, o.Timeout); err != nil {
		return err
	}
	// A controller that still runs would make its objects again.
	if err := i.waitGone(ctx, deploy.Deployment, o.Timeout); err != nil {
		return err
	}
	if err := i.removeMade(ctx, o.KeepCA); err != nil {
		return err
	}
	if o.DeleteNamespace {
		err := i.Access.Kube.CoreV1().Namespaces().Delete(ctx, i.Namespace, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete namespace: %w", i.Access.Explain(err))
		}
	}
	i.say("Culvert is removed; the custom resource definitions stay")
	return nil
}

// remove deletes the agents, waits until they have left their nodes clean, then deletes the rest of the release. Agents
// that do not stop are named, but keep nothing from being removed.
func (i *Installer) remove(ctx context.Context, timeout time.Duration) error {
	policy := metav1.DeletePropagationBackground
	err := i.Access.Kube.AppsV1().DaemonSets(i.Namespace).Delete(ctx, deploy.DaemonSet, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete agents: %w", i.Access.Explain(err))
	}
	stuck := i.waitGone(ctx, deploy.DaemonSet, timeout)
	if errors.Is(stuck, context.Canceled) {
		return stuck
	}
	uninstall := action.NewUninstall(i.Helm)
	uninstall.Timeout = timeout
	uninstall.DeletionPropagation = "background"
	if _, err := uninstall.Run(release); err != nil {
		return errors.Join(stuck, fmt.Errorf("remove chart: %w", i.Access.Explain(err)))
	}
	if stuck != nil {
		return fmt.Errorf("the chart is removed, but %w: what they did there stays until those nodes restart", stuck)
	}
	return nil
}

// removeMade deletes what the controller made: it is not of the release.
func (i *Installer) removeMade(ctx context.Context, keepCA bool) error {
	core := i.Access.Kube.CoreV1()
	opts := metav1.DeleteOptions{}
	errs := []error{
		core.ConfigMaps(i.Namespace).Delete(ctx, "culvert-ca-root", opts),
		core.ConfigMaps(i.Namespace).Delete(ctx, "culvert-ca-crl", opts),
		i.Access.Kube.CoordinationV1().Leases(i.Namespace).Delete(ctx, deploy.Deployment, opts),
	}
	errs = append(errs, i.removeCompanions(ctx))
	if !keepCA {
		errs = append(errs, core.Secrets(i.Namespace).Delete(ctx, "culvert-ca", opts))
	}
	var failed []error
	for _, err := range errs {
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, i.Access.Explain(err))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("remove what the controller made: %w", errors.Join(failed...))
	}
	return nil
}

// removeCompanions deletes the companions of NetworkPolicies: nobody would make them follow any more, and without the mesh
// there is nothing that they let through.
func (i *Installer) removeCompanions(ctx context.Context) error {
	list, err := i.Access.Kube.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{LabelSelector: netpolcheck.CompanionSelector})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		err := i.Access.Kube.NetworkingV1().NetworkPolicies(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
