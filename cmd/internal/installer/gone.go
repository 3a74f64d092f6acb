package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/deploy"
)

// After these, waiting for a pod that is being deleted is no use.
const (
	// overdue is added to the grace that the pod has: the node kills it then, if it is there.
	overdue = 30 * time.Second
	// clearing is for a pod whose containers have all ended: the node has only to clear it away.
	clearing = 15 * time.Second
)

// errStuck is the cause of a wait that ended because nothing would come of it.
var errStuck = errors.New("pods do not go")

// waitGone returns when no pod of that label "app" is left, saying how many are while it waits. It gives up when the
// timeout is over, or before when no pod is left that could still go by itself; the error says what keeps each.
func (i *Installer) waitGone(ctx context.Context, app string, timeout time.Duration) error {
	bounded, cancel := context.WithTimeoutCause(ctx, timeout, errTimeUp)
	defer cancel()
	left := -1
	var pods []corev1.Pod
	var trouble error
	limits := map[types.UID]*limit{}
	err := i.poll(bounded, func() (bool, error) {
		list, err := i.Access.Kube.CoreV1().Pods(i.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		switch {
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return false, err
		case err != nil:
			if trouble == nil {
				i.say("  %v; asking again", i.Access.Explain(err)) // an API server that restarts comes back
			}
			trouble = err
			return false, nil
		}
		pods, trouble = list.Items, nil
		if len(pods) != left {
			left = len(pods)
			i.say("  %s: %d pods left", app, left)
		}
		if left > 0 && !stillGoing(pods, limits, time.Now()) {
			return false, errStuck
		}
		return left == 0, nil
	})
	switch {
	case trouble != nil && ctx.Err() == nil:
		return fmt.Errorf("wait for pods of %s to end: %w: %w", app, err, i.Access.Explain(trouble))
	case errors.Is(err, errTimeUp), errors.Is(err, errStuck):
		return fmt.Errorf("%d pods of %s do not end:%s", len(pods), app, i.whatKeeps(ctx, pods))
	}
	return i.Access.Explain(err)
}

// limit is until when a pod may take.
type limit struct {
	until time.Time
	ended bool
}

// stillGoing reports whether a pod is left that may go by itself. Times are taken here: the cluster's clock may be another.
func stillGoing(pods []corev1.Pod, limits map[types.UID]*limit, now time.Time) bool {
	going := false
	for i := range pods {
		p := &pods[i]
		l := limits[p.UID]
		if l == nil {
			grace := overdue
			if s := p.DeletionGracePeriodSeconds; s != nil {
				grace += time.Duration(*s) * time.Second
			} else if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
				grace += time.Duration(*s) * time.Second
			}
			l = &limit{until: now.Add(grace)}
			limits[p.UID] = l
		}
		if !l.ended && ended(p) {
			l.ended, l.until = true, now.Add(clearing)
		}
		going = going || now.Before(l.until)
	}
	return going
}

// ended reports whether all containers of a pod have ended, for good if it is being deleted.
func ended(p *corev1.Pod) bool {
	return len(p.Status.ContainerStatuses) > 0 && !slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.State.Terminated == nil
	})
}

// whatKeeps says of each pod why it does not go, and what can be done.
func (i *Installer) whatKeeps(ctx context.Context, pods []corev1.Pod) string {
	var b strings.Builder
	for n := range pods {
		if n == maxPods {
			fmt.Fprintf(&b, "\n  … and more pods")
			break
		}
		p := &pods[n]
		fmt.Fprintf(&b, "\n  pod %s on %s: ", p.Name, p.Spec.NodeName)
		switch absent := i.absent(ctx, p.Spec.NodeName); {
		case ended(p):
			fmt.Fprintf(&b, "has done its work and ended, but the node cannot clear it away. Mend the node, or kubectl delete pod -n %s %s --force", p.Namespace, p.Name)
		case absent != "":
			fmt.Fprintf(&b, "its node is not ready (%s). When it is back, the pod cleans up there and ends", absent)
		default:
			fmt.Fprintf(&b, "runs still")
		}
		i.eventsOf(ctx, &b, p.Name, deletedAt(p))
	}
	return b.String()
}

// deletedAt is when the deletion of a pod was asked for; the zero time of a pod that is not being deleted.
func deletedAt(p *corev1.Pod) time.Time {
	if p.DeletionTimestamp == nil || p.DeletionGracePeriodSeconds == nil {
		return time.Time{}
	}
	return p.DeletionTimestamp.Add(-time.Duration(*p.DeletionGracePeriodSeconds) * time.Second)
}

// absent says why a node does not answer, or "".
func (i *Installer) absent(ctx context.Context, name string) string {
	if name == "" {
		return ""
	}
	node, err := i.Access.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "" // the rest is told all the same
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return short(c.Message)
		}
	}
	return ""
}

// listen notes what pods of agents say at their end, until the returned function is called; that returns it, a line a
// node. They say what they could not clean.
func (i *Installer) listen(ctx context.Context, app string) (heard func() []string) {
	ctx, cancel := context.WithCancel(ctx)
	said := map[string]string{} // by pod
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A watch ends with the bound of requests; the next one begins with what is there.
		_ = i.poll(ctx, func() (bool, error) {
			w, err := i.Access.Kube.CoreV1().Pods(i.Namespace).Watch(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
			if err != nil {
				return false, nil //nolint:nilerr // what is heard is an addition to what is seen
			}
			defer w.Stop()
			for {
				select {
				case event, open := <-w.ResultChan():
					if !open {
						return false, nil
					}
					if p, ok := event.Object.(*corev1.Pod); ok {
						note(said, p)
					}
				case <-ctx.Done():
					return true, nil
				}
			}
		})
	}()
	return func() []string {
		cancel()
		<-done
		var lines []string
		for _, text := range said {
			lines = append(lines, text)
		}
		slices.Sort(lines)
		return lines
	}
}

// note keeps what a container wrote for the kubelet; with other reasons the message is of the kubelet or the runtime.
func note(said map[string]string, p *corev1.Pod) {
	for _, c := range p.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.Message != "" && (t.Reason == "Completed" || t.Reason == "Error") {
			var b strings.Builder
			fmt.Fprintf(&b, "node %s:", p.Spec.NodeName)
			for line := range strings.Lines(deploy.HostPaths(&p.Spec).Replace(t.Message)) {
				fmt.Fprintf(&b, "\n    %s", short(strings.TrimSpace(line)))
			}
			said[p.Name] = b.String()
		}
	}
}
