package installer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/deploy"
)

// Bounds of what is told: the reasons are for reading in a terminal.
const (
	maxPods   = 6
	maxEvents = 3
	logLines  = 5
)

// waiting says once what pods wait for that may not come, and returns an error where waiting is no use.
func (i *Installer) waiting(ctx context.Context, said map[string]string, p *patience) error {
	pods, err := i.pods(ctx)
	if err != nil {
		return nil // the numbers are what counts; they are asked for again
	}
	for _, pod := range pods {
		for _, c := range pod.Status.ContainerStatuses {
			w := c.State.Waiting
			if w == nil {
				continue
			}
			switch w.Reason {
			case "ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError":
				if name := pod.Labels["app"]; said[name+w.Reason] == "" {
					said[name+w.Reason] = pod.Name
					i.say("  %s: pod %s waits: %s: %s", name, pod.Name, w.Reason, short(w.Message))
				}
			}
		}
	}
	if h := p.giveUp(pods, time.Now()); h != nil {
		return h
	}
	return nil
}

// reasons says, for each pod that is not ready, what its containers, conditions, events and last lines of log say; and
// for the workloads what keeps them from having pods. The pod of that name comes first: of many, only some are told. It
// returns "" when it finds nothing.
func (i *Installer) reasons(ctx context.Context, first string) string {
	var b strings.Builder
	for _, name := range []string{deploy.Deployment, deploy.DaemonSet} {
		i.eventsOf(ctx, &b, name, time.Time{})
	}
	pods, err := i.pods(ctx)
	if err != nil {
		fmt.Fprintf(&b, "\n  pods could not be read: %v", i.Access.Explain(err))
	}
	if n := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Name == first }); n > 0 {
		pods[0], pods[n] = pods[n], pods[0]
	}
	told := 0
	for _, pod := range pods {
		if ready(&pod) {
			continue
		}
		if told++; told > maxPods {
			fmt.Fprintf(&b, "\n  … and more pods")
			break
		}
		i.podReasons(ctx, &b, &pod)
	}
	return b.String()
}

// pods returns controllers and agents.
func (i *Installer) pods(ctx context.Context) ([]corev1.Pod, error) {
	selector := fmt.Sprintf("app in (%s,%s)", deploy.Deployment, deploy.DaemonSet)
	list, err := i.Access.Kube.CoreV1().Pods(i.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (i *Installer) podReasons(ctx context.Context, b *strings.Builder, pod *corev1.Pod) {
	where := pod.Spec.NodeName
	if where == "" {
		where = "no node"
	}
	fmt.Fprintf(b, "\n  pod %s on %s: %s", pod.Name, where, pod.Status.Phase)
	for _, c := range pod.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Type == corev1.PodScheduled {
			fmt.Fprintf(b, "\n    %s: %s", c.Reason, short(c.Message))
		}
	}
	crashed := false
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			fmt.Fprintf(b, "\n    %s: %s", w.Reason, short(w.Message))
		}
		for _, t := range []*corev1.ContainerStateTerminated{c.State.Terminated, c.LastTerminationState.Terminated} {
			if t != nil {
				fmt.Fprintf(b, "\n    ended with %d (%s), %d restarts", t.ExitCode, t.Reason, c.RestartCount)
				crashed = true
				break
			}
		}
		if c.State.Running != nil && !c.Ready {
			fmt.Fprintf(b, "\n    runs, but is not ready")
			crashed = true // its log says why
		}
	}
	i.eventsOf(ctx, b, pod.Name, time.Time{})
	if crashed {
		i.logOf(ctx, b, pod)
	}
}

// eventsOf adds the newest warnings about an object since a time, but for failed probes: they say of who is not ready that
// it is not.
func (i *Installer) eventsOf(ctx context.Context, b *strings.Builder, name string, since time.Time) {
	selector := fields.Set{"involvedObject.name": name, "type": corev1.EventTypeWarning}.AsSelector().String()
	list, err := i.Access.Kube.CoreV1().Events(i.Namespace).List(ctx, metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		return // there may be no permission for events; the rest is told all the same
	}
	// A server selects; what does not is selected here.
	events := slices.DeleteFunc(list.Items, func(e corev1.Event) bool {
		old := !e.LastTimestamp.IsZero() && e.LastTimestamp.Time.Before(since)
		return e.InvolvedObject.Name != name || e.Type != corev1.EventTypeWarning || e.Reason == "Unhealthy" || old
	})
	slices.SortFunc(events, func(x, y corev1.Event) int { return y.LastTimestamp.Compare(x.LastTimestamp.Time) })
	for n, e := range events {
		if n == maxEvents {
			break
		}
		fmt.Fprintf(b, "\n    event of %s: %s: %s", name, e.Reason, short(e.Message))
	}
}

// logOf adds the last lines that a container wrote, of the run before if that crashed.
func (i *Installer) logOf(ctx context.Context, b *strings.Builder, pod *corev1.Pod) {
	lines := int64(logLines)
	previous := slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.State.Waiting != nil && c.LastTerminationState.Terminated != nil
	})
	options := &corev1.PodLogOptions{TailLines: &lines, Previous: previous}
	text, err := i.Access.Kube.CoreV1().Pods(i.Namespace).GetLogs(pod.Name, options).DoRaw(ctx)
	if err != nil {
		return // a container that never ran has none
	}
	paths := deploy.HostPaths(&pod.Spec)
	for line := range strings.Lines(string(text)) {
		fmt.Fprintf(b, "\n    log: %s", short(strings.TrimSpace(paths.Replace(line))))
	}
}

// short keeps foreign text to one line of bounded length, without control characters that a terminal would obey.
func short(text string) string { return cmp.Or(inspect.Clean(text), "no message") }
