// Package enrol decides which pods are in the mesh and what of their traffic is captured: labels of a pod and of its
// namespace in, a decision with its reason out.
//
// Labels, annotations and their meaning are Istio's (ambient mode), with the port and address carve-outs that Istio has
// for sidecars only. What a user got wrong never widens a hole: a carve-out that cannot be read is ignored as a whole
// and said so in a warning.
//
// The package is pure: no I/O, no clock, no Kubernetes types. Its functions may be called concurrently. Finding pods,
// capturing them and telling the user is left to others (kubenode, redirect).
package enrol

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/culvert-mesh/culvert/redirect/selector"
)

// Labels and annotations that decide, besides those of selectors.
const (
	// AnnotationSidecar marks a pod that has a sidecar proxy; such pods stay out.
	AnnotationSidecar = "sidecar.istio.io/status"
	// AnnotationAllowCarveOuts on a namespace: false ignores the carve-outs of its pods.
	AnnotationAllowCarveOuts = "culvert.io/allow-carve-outs"

	labelApp = "app"
)

// Pod is what a decision needs to know of a pod.
type Pod struct {
	Namespace, Name string
	HostNetwork     bool
	// Terminal says that all containers have ended for good (phase Succeeded or Failed).
	Terminal            bool
	Labels, Annotations map[string]string
}

// Namespace is what a decision needs to know of the pod's namespace.
type Namespace struct {
	Labels, Annotations map[string]string
}

// Settings are the administrator's choices. The zero value is usable.
type Settings struct {
	// Exclude are namespaces whose pods are never enrolled, whatever their labels say.
	Exclude []string
	// OwnNamespace and OwnApps (values of the label "app") are the mesh's own pods, which are never enrolled: the mesh
	// cannot wait for itself.
	OwnNamespace string
	OwnApps      []string
	// Selectors replace the default ones; nil means those. A pod is in when any of them takes it.
	Selectors []selector.Selector
	// ForbidCarveOuts ignores the carve-outs of all pods.
	ForbidCarveOuts bool
}

// Decision is the answer for one pod.
type Decision struct {
	In bool
	// Why says in words what decided.
	Why string
	// Selected says that a selector takes the pod: when it is not In all the same, Why is what keeps it out.
	Selected bool
	// Capture is what to capture, valid when In.
	Capture Capture
	// Warnings name what the pod's annotations say and what is not done, each a sentence. Nil when Out.
	Warnings []string
}

// Decide decides about a pod.
func Decide(pod Pod, namespace Namespace, s Settings) Decision {
	by := selector.Matching(s.Selectors, pod.Labels, namespace.Labels)
	if why := s.exclusion(pod); why != "" {
		return Decision{Why: why, Selected: by != nil}
	}
	if by == nil {
		return Decision{Why: "no selector takes the labels of pod and namespace"}
	}
	d := Decision{In: true, Why: by.String(), Selected: true}
	r := reader{pod: pod.Annotations, namespace: namespace.Annotations, forbidden: s.ForbidCarveOuts}
	d.Capture = r.capture()
	d.Warnings = r.warnings
	return d
}

// exclusion returns why a pod is out before any selector is asked (reference 1.2), or "".
func (s Settings) exclusion(pod Pod) string {
	_, sidecar := pod.Annotations[AnnotationSidecar]
	switch {
	case slices.Contains(s.Exclude, pod.Namespace):
		return fmt.Sprintf("namespace %s is excluded", pod.Namespace)
	case pod.HostNetwork:
		return "pod uses the network of its host"
	case sidecar:
		return "pod has a sidecar proxy"
	case pod.Terminal:
		return "pod has ended"
	case pod.Namespace != "" && pod.Namespace == s.OwnNamespace && slices.Contains(s.OwnApps, pod.Labels[labelApp]):
		return "pod is the mesh's own"
	}
	return ""
}

// boolean reads an annotation as the reference does: a value that is not a boolean counts as absent, with a warning.
func (r *reader) boolean(key string) (value, present bool) {
	text, present := r.pod[key]
	if !present {
		return false, false
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		r.warn("annotation %s: %.40q is not a boolean and is ignored", key, text)
		return false, false
	}
	return value, true
}
