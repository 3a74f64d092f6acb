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
	// Nothing is written before all that can be refused was asked.
	if _, err := deploy.Render(i.Chart, i.Namespace, o.Values); err != nil {
		return err
	}
	if err := i.preflight(ctx, o.CRDs); err != nil {
		return err
	}
	if o.CRDs != OnlyCRDs {
		if err := i.installable(ctx, o); err != nil {
			return err
		}
	}
	if err := i.definitions(ctx, o.CRDs); err != nil || o.CRDs == OnlyCRDs {
		return err
	}
	if err := i.makeNamespace(ctx); err != nil {
		return err
	}
	keepCA := i.hasCA(ctx) // one of before is not of this installation
	if _, err := i.installation(o).RunWithContext(ctx, i.Chart, o.Values); err != nil {
		return i.undoInstall(ctx, o, keepCA, fmt.Errorf("apply chart: %w", i.Access.Explain(err)))
	}
	i.say("chart applied in namespace %s", i.Namespace)
	if !o.Wait {
		return nil
	}
	if err := i.wait(ctx, o.Timeout, none); err != nil {
		return i.undoInstall(ctx, o, keepCA, err)
	}
	i.say("Culvert %s is ready. Put a namespace into the mesh: kubectl label namespace NAME istio.io/dataplane-mode=ambient", i.Chart.AppVersion())
	return nil
}

// installable asks whether the chart can be installed with these options.
func (i *Installer) installable(ctx context.Context, o Options) error {
	if err := i.mustBeNew(ctx); err != nil {
		return err
	}
	if !o.TakeOver {
		if err := i.noOtherCapture(ctx); err != nil {
			return err
		}
	}
	if _, err := i.namespaceThere(ctx); err != nil {
		return err
	}
	rehearsal := i.installation(o)
	rehearsal.DryRunOption = rehearse
	r, err := rehearsal.RunWithContext(ctx, i.Chart, o.Values)
	if err != nil {
		return i.refused(err)
	}
	return i.kernels(ctx, r.Manifest)
}

// refused says why the chart cannot be applied with the values.
func (i *Installer) refused(err error) error {
	if faults := deploy.ValueFaults(err); faults != "" {
		return fmt.Errorf("read values: %s", faults)
	}
	return fmt.Errorf("try chart: %w", i.Access.Explain(err))
}

func (i *Installer) installation(o Options) *action.Install {
	install := action.NewInstall(i.Helm)
	install.ReleaseName = release
	install.Namespace = i.Namespace
	install.SkipCRDs = true
	install.Timeout = o.Timeout
	return install
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

// podSecurity is the label of a namespace that says which pods may be in it.
const podSecurity = "pod-security.kubernetes.io/enforce"

// namespaceThere reports whether the namespace is there. One that is must let the agent's pod in.
func (i *Installer) namespaceThere(ctx context.Context) (bool, error) {
	have, err := i.Access.Kube.CoreV1().Namespaces().Get(ctx, i.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read namespace %s: %w", i.Namespace, i.Access.Explain(err))
	case have.DeletionTimestamp != nil:
		return true, fmt.Errorf("namespace %s is being deleted: wait until it is gone", i.Namespace)
	}
	if level := have.Labels[podSecurity]; level != "" && level != "privileged" {
		return true, fmt.Errorf("namespace %s enforces pod security level %q, which refuses the agent: kubectl label --overwrite namespace %s %s=privileged", i.Namespace, level, i.Namespace, podSecurity)
	}
	return true, nil
}

// makeNamespace makes the namespace where it is absent, with the labels that the agent's pod needs.
func (i *Installer) makeNamespace(ctx context.Context) error {
	if there, err := i.namespaceThere(ctx); there || err != nil {
		return err
	}
	labels := deploy.NamespaceLabels()
	labels["app.kubernetes.io/managed-by"] = fieldManager
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: i.Namespace, Labels: labels}}
	if _, err := i.Access.Kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{FieldManager: fieldManager}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", i.Namespace, i.Access.Explain(err))
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
