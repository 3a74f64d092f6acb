package installer

import (
	"context"
	"errors"
	"fmt"

	"helm.sh/helm/v3/pkg/action"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/deploy"
)

// Install installs Culvert where it is not yet. When it fails after it began, what it made is removed again (not the
// definitions, and not the namespace), unless KeepFailed says otherwise; the error says why.
func (i *Installer) Install(ctx context.Context, o Options) error {
	// Before anything is changed: values that the chart does not take.
	if _, err := deploy.Render(i.Chart, i.Namespace, o.Values); err != nil {
		return err
	}
	if err := i.preflight(ctx); err != nil {
		return err
	}
	if o.CRDs != OnlyCRDs {
		if err := i.mustBeNew(ctx); err != nil {
			return err
		}
		if !o.TakeOver {
			if err := i.noOtherCapture(ctx); err != nil {
				return err
			}
		}
	}
	if err := i.definitions(ctx, o.CRDs); err != nil || o.CRDs == OnlyCRDs {
		return err
	}
	if err := i.namespace(ctx); err != nil {
		return err
	}
	keepCA := i.hasCA(ctx) // one of before is not of this installation
	install := action.NewInstall(i.Helm)
	install.ReleaseName = release
	install.Namespace = i.Namespace
	install.SkipCRDs = true
	install.Timeout = o.Timeout
	_, err := install.RunWithContext(ctx, i.Chart, o.Values)
	if err != nil {
		return i.undoInstall(ctx, o, keepCA, fmt.Errorf("apply chart: %w", i.Access.Explain(err)))
	}
	i.say("chart applied in namespace %s", i.Namespace)
	if !o.Wait {
		return nil
	}
	if err := i.wait(ctx, o.Timeout); err != nil {
		return i.undoInstall(ctx, o, keepCA, err)
	}
	i.say("Culvert %s is ready. Put a namespace into the mesh: kubectl label namespace NAME istio.io/dataplane-mode=ambient", i.Chart.AppVersion())
	return nil
}

// definitions does with the custom resource definitions what the mode says.
func (i *Installer) definitions(ctx context.Context, mode CRDMode) error {
	if mode == SkipCRDs {
		return nil
	}
	crds, err := deploy.CRDs()
	if err != nil {
		return fmt.Errorf("%w (or --crds=skip, if the cluster has them)", err)
	}
	return i.ApplyCRDs(ctx, crds)
}

// namespace makes the namespace, with the labels that the agent's pod needs. One that is there must have them if it has
// others.
func (i *Installer) namespace(ctx context.Context) error {
	const enforce = "pod-security.kubernetes.io/enforce"
	namespaces := i.Access.Kube.CoreV1().Namespaces()
	have, err := namespaces.Get(ctx, i.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		labels := deploy.NamespaceLabels()
		labels["app.kubernetes.io/managed-by"] = fieldManager
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: i.Namespace, Labels: labels}}
		if _, err := namespaces.Create(ctx, ns, metav1.CreateOptions{FieldManager: fieldManager}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create namespace %s: %w", i.Namespace, i.Access.Explain(err))
		}
		return nil
	case err != nil:
		return fmt.Errorf("read namespace %s: %w", i.Namespace, i.Access.Explain(err))
	case have.DeletionTimestamp != nil:
		return fmt.Errorf("namespace %s is being deleted: wait until it is gone", i.Namespace)
	}
	if level := have.Labels[enforce]; level != "" && level != "privileged" {
		return fmt.Errorf("namespace %s enforces pod security level %q, which refuses the agent: kubectl label --overwrite namespace %s %s=privileged", i.Namespace, level, i.Namespace, enforce)
	}
	return nil
}

// hasCA reports whether the authority's Secret is there. In doubt it is.
func (i *Installer) hasCA(ctx context.Context) bool {
	_, err := i.Access.Kube.CoreV1().Secrets(i.Namespace).Get(ctx, authority, metav1.GetOptions{})
	return !apierrors.IsNotFound(err)
}

// undoInstall removes a failed installation and returns why it failed.
func (i *Installer) undoInstall(ctx context.Context, o Options, keepCA bool, cause error) error {
	if o.KeepFailed {
		return fmt.Errorf("%w\nleft as it is, as asked; culvert uninstall removes it", cause)
	}
	have, err := i.last()
	if err != nil || have == nil {
		return errors.Join(cause, err) // nothing was begun
	}
	i.say("rolling back: removing what was installed")
	// The user's interrupt must not leave half of it.
	unclean, err := i.remove(context.WithoutCancel(ctx), o.Timeout, keepCA)
	switch {
	case err != nil:
		return fmt.Errorf("%w\nrolling back failed too: %w", cause, err)
	case len(unclean) > 0:
		return fmt.Errorf("%w\nrolled back, but not everything is clean:\n%w", cause, errors.Join(unclean...))
	}
	return fmt.Errorf("%w\nrolled back: nothing of it is left but the custom resource definitions and the namespace", cause)
}
