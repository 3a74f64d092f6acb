package installer

import (
	"cmp"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// After these, waiting for a container is no use.
//
// Culvert's programs do not end because of what comes late in a slow start (API server, controller, DNS, certificates):
// they wait for it. Nor does a pod crash whose volume is not there yet: it has no container before. Who ends again and again
// has faulty settings, or a node that lacks something.
const (
	// enoughRestarts are those of a container that has crashed each time. The kubelet restarts at once at first, then after
	// 10 s, 20 s and so on.
	enoughRestarts = 3
	// leastCrashing is for kubelets that are set to restart sooner: with the usual ones so many restarts take that long.
	leastCrashing = 30 * time.Second
	// leastWaiting is how long an image may not be had, or a container not be made. The kubelet tries four or five times
	// until then, at growing intervals with images: a registry that is away for a moment ends nothing.
	leastWaiting = time.Minute
)

// hopeless is a pod that does not become ready however long one waits.
type hopeless struct {
	pod       string
	container string
	why       string // with what it says itself
	mend      string // what to do
}

func (h *hopeless) Error() string {
	return fmt.Sprintf("pod %s, container %s: %s: waiting longer is no use. %s", h.pod, h.container, h.why, h.mend)
}

// patience is what one wait knows of pods.
type patience struct {
	// before reports whether a pod may be of a revision from before the change: what ails it may be what the change mends.
	before func(*corev1.Pod) bool
	// since is what each container was last seen to have to get over, and since when. Times are taken here: the cluster's
	// clock may be another.
	since map[string]trouble
}

type trouble struct {
	kind string
	at   time.Time
}

// none says of a new installation that no pod is from before.
func none(*corev1.Pod) bool { return false }

// present returns a function that reports whether a pod may be of one of the revisions that there are pods of now.
func (i *Installer) present(ctx context.Context) func(*corev1.Pod) bool {
	pods, err := i.pods(ctx)
	if err != nil {
		return func(*corev1.Pod) bool { return true } // not known: no pod is given up
	}
	there := make(map[string]bool, len(pods))
	for n := range pods {
		there[revision(&pods[n])] = true
	}
	return func(pod *corev1.Pod) bool { return there[revision(pod)] }
}

// revision is a hash of the template that the Deployment or the DaemonSet made the pod of.
func revision(pod *corev1.Pod) string {
	return cmp.Or(pod.Labels["pod-template-hash"], pod.Labels["controller-revision-hash"], string(pod.UID))
}

// giveUp returns a container for which waiting is no use, or nil.
func (p *patience) giveUp(pods []corev1.Pod, now time.Time) *hopeless {
	for n := range pods {
		pod := &pods[n]
		if pod.DeletionTimestamp != nil || p.before(pod) {
			continue
		}
		for c := range pod.Status.ContainerStatuses {
			if h := p.judge(pod, &pod.Status.ContainerStatuses[c], now); h != nil {
				return h
			}
		}
	}
	return nil
}

// judge decides about one container.
func (p *patience) judge(pod *corev1.Pod, c *corev1.ContainerStatus, now time.Time) *hopeless {
	key := string(pod.UID) + "/" + pod.Name + "/" + c.Name
	kind, w := kindOfTrouble(c), c.State.Waiting
	if p.since[key].kind != kind {
		p.since[key] = trouble{kind, now}
	}
	if kind == "" || w == nil {
		return nil // well, or at it again after a crash
	}
	lasted := now.Sub(p.since[key].at)
	h := &hopeless{pod: pod.Name, container: c.Name, why: w.Reason + ": " + short(w.Message)}
	switch w.Reason {
	case "InvalidImageName", "ErrImageNeverPull":
		h.mend = mendImage
		return h
	case "ErrImagePull": // a try has just failed; ImagePullBackOff may hide one that is under way
		h.mend = mendImage
		return h.after(lasted, leastWaiting)
	case "CreateContainerConfigError", "CreateContainerError":
		h.mend = "Mend what is said there"
		return h.after(lasted, leastWaiting)
	case "CrashLoopBackOff":
		if c.RestartCount < enoughRestarts {
			return nil
		}
		h.why = fmt.Sprintf("%s after %d restarts%s", w.Reason, c.RestartCount, lastEnd(c))
		h.mend = "Mend what its log says: mostly a value (--set, --values), or what the node lacks"
		return h.after(lasted, leastCrashing)
	}
	return nil
}

// after returns h if the trouble has lasted for long enough.
func (h *hopeless) after(lasted, least time.Duration) *hopeless {
	if lasted < least {
		return nil
	}
	return h
}

// mendImage is what to do about an image that cannot be had.
const mendImage = "Check image.repository, image.tag and image.digest, imagePullSecrets, and whether the nodes reach the registry"

// kindOfTrouble tells what a container has to get over, or "".
func kindOfTrouble(c *corev1.ContainerStatus) string {
	if w := c.State.Waiting; w != nil {
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff":
			return "image"
		case "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError":
			return w.Reason
		}
	}
	if c.RestartCount > 0 && !c.Ready {
		return "crash"
	}
	return ""
}

// lastEnd tells how the last run of a container ended.
func lastEnd(c *corev1.ContainerStatus) string {
	t := c.LastTerminationState.Terminated
	if t == nil {
		return ""
	}
	text := fmt.Sprintf(", at last it ended with %d (%s)", t.ExitCode, t.Reason)
	if t.Message != "" {
		text += ": " + short(t.Message)
	}
	return text
}
