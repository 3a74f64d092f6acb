package installer

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/deploy"
)

// errTimeUp is the cause of a wait that took too long.
var errTimeUp = errors.New("not ready in time")

// wait returns when controller and agents of the current revision are all ready. It prints a line whenever a number
// changes. An error says what keeps which pod; it comes before the timeout where a pod will not become ready, unless that
// may be one of before the change.
func (i *Installer) wait(ctx context.Context, timeout time.Duration, before func(*corev1.Pod) bool) error {
	bounded, cancel := context.WithTimeoutCause(ctx, timeout, errTimeUp)
	defer cancel()
	said := map[string]string{}
	pods := &patience{before: before, since: map[string]trouble{}}
	var failure error
	err := i.poll(bounded, func() (bool, error) {
		ready := true
		failure = nil
		for _, p := range []func(context.Context) (progress, error){i.controller, i.agents} {
			// Requests have their own bound: the one of the wait would end them with odd errors.
			now, err := p(ctx)
			switch {
			case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.IsNotFound(err):
				return false, err
			case err != nil:
				failure = err // an API server that restarts comes back
				return false, nil
			}
			if line := now.String(); said[now.name] != line {
				said[now.name] = line
				i.say("  %s", line)
			}
			ready = ready && now.done
		}
		if ready {
			return true, nil
		}
		return false, i.waiting(ctx, said, pods)
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for Culvert: %w", context.Cause(ctx))
	}
	if failure != nil {
		return fmt.Errorf("wait for Culvert: %w: %w", err, i.Access.Explain(failure))
	}
	if errors.Is(err, errTimeUp) {
		err = fmt.Errorf("%w (%v)", errTimeUp, timeout)
	}
	first := ""
	if h, ok := errors.AsType[*hopeless](err); ok {
		first = h.pod
	}
	return fmt.Errorf("wait for Culvert: %w%s", i.Access.Explain(err), i.reasons(ctx, first))
}

// progress is how far a workload is.
type progress struct {
	name        string
	ready, want int32
	old         int32 // of the revision before
	done        bool
	nowhere     bool // no node wants it
}

// String is the line that is shown.
func (p progress) String() string {
	switch {
	case p.nowhere:
		return p.name + ": no node fits its node selector"
	case p.old > 0:
		return fmt.Sprintf("%s: %d of %d ready, %d of the old revision left", p.name, p.ready, p.want, p.old)
	}
	return fmt.Sprintf("%s: %d of %d ready", p.name, p.ready, p.want)
}

func (i *Installer) controller(ctx context.Context) (progress, error) {
	d, err := i.Access.Kube.AppsV1().Deployments(i.Namespace).Get(ctx, deploy.Deployment, metav1.GetOptions{})
	if err != nil {
		return progress{}, fmt.Errorf("read Deployment: %w", err)
	}
	return deploymentProgress(d), nil
}

func deploymentProgress(d *appsv1.Deployment) progress {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	p := progress{name: d.Name, want: want, ready: min(s.AvailableReplicas, s.UpdatedReplicas), old: max(0, s.Replicas-s.UpdatedReplicas)}
	p.done = s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas >= want && p.old == 0
	return p
}

func (i *Installer) agents(ctx context.Context) (progress, error) {
	d, err := i.Access.Kube.AppsV1().DaemonSets(i.Namespace).Get(ctx, deploy.DaemonSet, metav1.GetOptions{})
	if err != nil {
		return progress{}, fmt.Errorf("read DaemonSet: %w", err)
	}
	return daemonSetProgress(d), nil
}

func daemonSetProgress(d *appsv1.DaemonSet) progress {
	s := d.Status
	p := progress{name: d.Name, want: s.DesiredNumberScheduled, ready: min(s.NumberAvailable, s.UpdatedNumberScheduled)}
	seen := s.ObservedGeneration >= d.Generation
	p.nowhere = seen && s.DesiredNumberScheduled == 0
	p.done = seen && !p.nowhere && s.UpdatedNumberScheduled >= s.DesiredNumberScheduled && s.NumberAvailable >= s.DesiredNumberScheduled
	return p
}
