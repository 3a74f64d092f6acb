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

// authority is the Secret that the controller makes: root certificate and key.
const authority = "culvert-ca"

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
// resources that users made of them, stay. What a node did not let be cleaned is in the error, and keeps nothing else from
// being removed.
func (i *Installer) Uninstall(ctx context.Context, o UninstallOptions) error {
	if _, err := i.Access.Version(ctx, deploy.MinKubernetes); err != nil {
		return err
	}
	have, err := i.last()
	switch {
	case err != nil:
		return err
	case have == nil:
		return i.removeLeft(ctx, o.KeepCA)
	}
	unclean, err := i.remove(ctx, o.Timeout, o.KeepCA)
	if err != nil {
		return err
	}
	if o.DeleteNamespace {
		err := i.Access.Kube.CoreV1().Namespaces().Delete(ctx, i.Namespace, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			unclean = append(unclean, fmt.Errorf("delete namespace: %w", i.Access.Explain(err)))
		}
	}
	if len(unclean) > 0 {
		return fmt.Errorf("the release is removed, but not everything is clean:\n%w", errors.Join(unclean...))
	}
	stays := "the custom resource definitions stay"
	if !o.DeleteNamespace {
		stays = "namespace " + i.Namespace + " and " + stays
	}
	i.say("Culvert is removed; %s", stays)
	return nil
}

// removeLeft removes, where no release is, what one has left whose removal was interrupted, or whose namespace was deleted.
func (i *Installer) removeLeft(ctx context.Context, keepCA bool) error {
	none := fmt.Errorf("%w in namespace %s", ErrNotInstalled, i.Namespace)
	if err := i.mustBeNew(ctx); err != nil {
		return fmt.Errorf("%w by culvert install: %w", none, err)
	}
	removed, err := i.removeMade(ctx, keepCA)
	roles, roleErr := i.removeRoles(ctx)
	removed, err = removed+roles, errors.Join(err, roleErr)
	switch {
	case err != nil:
		return fmt.Errorf("%w; %w", none, err)
	case removed == 0:
		return fmt.Errorf("%w: nothing to do", none)
	}
	i.say("Culvert was removed before; what was left of it is removed now (%d objects)", removed)
	return nil
}

// remove takes everything away but definitions and namespace. What could not be cleaned, and why, is in unclean: it keeps
// nothing else from being removed.
func (i *Installer) remove(ctx context.Context, timeout time.Duration, keepCA bool) (unclean []error, err error) {
	if unclean, err = i.removeRelease(ctx, timeout); err != nil {
		return nil, err
	}
	// A controller that still runs would make its objects again.
	if err := i.waitGone(ctx, deploy.Deployment, timeout); err != nil && ctx.Err() != nil {
		return nil, err
	} else if err != nil {
		unclean = append(unclean, err)
	}
	if _, err := i.removeMade(ctx, keepCA); err != nil {
		unclean = append(unclean, err)
	}
	return unclean, nil
}

// removeRelease deletes the agents, waits until they have left their nodes clean, then deletes the rest of the release.
func (i *Installer) removeRelease(ctx context.Context, timeout time.Duration) (unclean []error, err error) {
	i.say("removing the agents: each takes the pods of its node out of the mesh, which go on without restart")
	heard := i.listen(ctx, deploy.DaemonSet)
	defer heard()
	policy := metav1.DeletePropagationBackground
	err = i.Access.Kube.AppsV1().DaemonSets(i.Namespace).Delete(ctx, deploy.DaemonSet, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("delete agents: %w", i.Access.Explain(err))
	}
	if err := i.waitGone(ctx, deploy.DaemonSet, timeout); err != nil && ctx.Err() != nil {
		return nil, err
	} else if err != nil {
		unclean = append(unclean, err)
	}
	uninstall := action.NewUninstall(i.Helm)
	uninstall.Timeout = timeout
	uninstall.DeletionPropagation = "background"
	_, err = uninstall.Run(release)
	for _, text := range heard() {
		unclean = append(unclean, fmt.Errorf("left on %s", text))
	}
	if err != nil {
		return nil, errors.Join(append(unclean, fmt.Errorf("remove chart: %w", i.Access.Explain(err)))...)
	}
	return unclean, nil
}

// removeMade deletes what the controller made, which is not of the release, and returns how many objects that were.
func (i *Installer) removeMade(ctx context.Context, keepCA bool) (removed int, err error) {
	core := i.Access.Kube.CoreV1()
	opts := metav1.DeleteOptions{}
	errs := []error{
		core.ConfigMaps(i.Namespace).Delete(ctx, "culvert-ca-root", opts),
		core.ConfigMaps(i.Namespace).Delete(ctx, "culvert-ca-crl", opts),
		i.Access.Kube.CoordinationV1().Leases(i.Namespace).Delete(ctx, deploy.Deployment, opts),
	}
	errs = append(errs, i.removeCompanions(ctx)...)
	if !keepCA {
		errs = append(errs, core.Secrets(i.Namespace).Delete(ctx, authority, opts))
	}
	var failed []error
	for _, err := range errs {
		switch {
		case err == nil:
			removed++
		case !apierrors.IsNotFound(err):
			failed = append(failed, i.Access.Explain(err))
		}
	}
	if len(failed) > 0 {
		return removed, fmt.Errorf("remove what the controller made: %w", errors.Join(failed...))
	}
	return removed, nil
}

// removeRoles deletes those of the chart's objects that have no namespace, and returns how many there were.
func (i *Installer) removeRoles(ctx context.Context) (removed int, err error) {
	rbac := i.Access.Kube.RbacV1()
	for _, name := range []string{deploy.DaemonSet, deploy.Deployment} {
		for _, err := range []error{
			rbac.ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{}), rbac.ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{}),
		} {
			switch {
			case err == nil:
				removed++
			case !apierrors.IsNotFound(err):
				return removed, fmt.Errorf("remove permissions: %w", i.Access.Explain(err))
			}
		}
	}
	return removed, nil
}

// removeCompanions deletes the companions of NetworkPolicies: nobody would make them follow any more, and without the mesh
// there is nothing that they let through. It returns how each went.
func (i *Installer) removeCompanions(ctx context.Context) []error {
	list, err := i.Access.Kube.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{LabelSelector: netpolcheck.CompanionSelector})
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, p := range list.Items {
		opts := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}}
		errs = append(errs, i.Access.Kube.NetworkingV1().NetworkPolicies(p.Namespace).Delete(ctx, p.Name, opts))
	}
	return errs
}
