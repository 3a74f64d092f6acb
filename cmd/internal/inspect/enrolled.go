package inspect

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/deploy"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

// redirection is the annotation by which an agent says what it has achieved.
const redirection = "ambient.istio.io/redirection"

// maxTold is how many different warnings about pods, and how many missing permissions, are told.
const maxTold = 5

// checkPods compares which pods are to be in the mesh with which are, and what their annotations say that is not done.
func (c *cluster) checkPods(ctx context.Context) error {
	spaces, err := c.access.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", c.access.Explain(err))
	}
	byName := map[string]enrol.Namespace{}
	for _, ns := range spaces.Items {
		byName[ns.Name] = enrol.Namespace{Labels: ns.Labels, Annotations: ns.Annotations}
		if ns.Labels[selector.LabelMode] == selector.ModeAmbient && (ns.Labels["istio-injection"] == "enabled" || ns.Labels["istio.io/rev"] != "") {
			c.add(Warning, "namespace "+ns.Name, "asks for sidecars and for the mesh without them: pods that get a sidecar stay out")
		}
	}
	c.checkNetwork(ctx, spaces.Items)
	settings := c.settings()
	t := tally{late: map[string][]string{}, out: map[string][]string{}, warned: map[string][]string{}}
	options := metav1.ListOptions{Limit: 500}
	for {
		pods, err := c.access.Kube.CoreV1().Pods("").List(ctx, options)
		if err != nil {
			return fmt.Errorf("list pods: %w", c.access.Explain(err))
		}
		for i := range pods.Items {
			t.look(c, &pods.Items[i], byName, settings)
		}
		if options.Continue = pods.Continue; options.Continue == "" {
			break
		}
	}
	t.tell(c)
	return nil
}

// settings are those of the agents, as far as their flags say them.
func (c *cluster) settings() enrol.Settings { return AgentFlags(c.sets, c.namespace).Enrolment }

// Flags are what the agents' flags say that matters to others.
type Flags struct {
	// Enrolment says which pods are in the mesh.
	Enrolment enrol.Settings
	// DNS says that DNS is captured.
	DNS bool
}

// AgentFlags reads the flags of the DaemonSet of the agents among sets; Culvert is in the namespace. What is not there, or
// cannot be read, is the default.
func AgentFlags(sets []appsv1.DaemonSet, namespace string) Flags {
	f := Flags{DNS: true, Enrolment: enrol.Settings{OwnNamespace: namespace, OwnApps: []string{deploy.DaemonSet, deploy.Deployment}}}
	for _, set := range sets {
		if set.Namespace != namespace || set.Name != deploy.DaemonSet || len(set.Spec.Template.Spec.Containers) == 0 {
			continue
		}
		for _, arg := range set.Spec.Template.Spec.Containers[0].Args {
			f.read(arg)
		}
	}
	return f
}

func (f *Flags) read(arg string) {
	name, value, given := strings.Cut(arg, "=")
	yes := !given || value == "true"
	switch {
	case name == "--exclude-namespaces" && value != "":
		f.Enrolment.Exclude = strings.Split(value, ",")
	case name == "--forbid-carve-outs":
		f.Enrolment.ForbidCarveOuts = yes
	case name == "--dns":
		f.DNS = yes
	case name == "--enrol-selectors" && value != "":
		if all, err := selector.Parse(value); err == nil {
			f.Enrolment.Selectors = all
		}
	}
}

// tally counts pods.
type tally struct {
	in     int
	late   map[string][]string // state → pods that are to be in and are not
	out    map[string][]string // what keeps pods out that are labelled for the mesh → pods
	warned map[string][]string // warning → pods
}

func (t *tally) look(c *cluster, pod *corev1.Pod, spaces map[string]enrol.Namespace, s enrol.Settings) {
	terminal := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	d := enrol.Decide(enrol.Pod{
		Namespace: pod.Namespace, Name: pod.Name, HostNetwork: pod.Spec.HostNetwork, Terminal: terminal,
		Labels: pod.Labels, Annotations: pod.Annotations,
	}, spaces[pod.Namespace], s)
	state := pod.Annotations[redirection]
	name := pod.Namespace + "/" + pod.Name
	switch {
	case d.In && state == "enabled":
		t.in++
	case d.In && pod.Status.Phase == corev1.PodRunning:
		if state != "pending" { // whoever wrote something else
			state = "none"
		}
		t.late[state] = append(t.late[state], name)
	case !d.In && state == "enabled" && !terminal:
		t.late["left"] = append(t.late["left"], name)
	case !d.In && d.Selected && pod.Status.Phase == corev1.PodRunning:
		t.out[d.Why] = append(t.out[d.Why], name)
	}
	for _, w := range d.Warnings {
		t.warned[w] = append(t.warned[w], name)
	}
	if w := c.networkOf(pod.Labels); d.In && w != "" {
		t.warned[w] = append(t.warned[w], name)
	}
}

func (t *tally) tell(c *cluster) {
	c.add(OK, "pods", fmt.Sprintf("%d are in the mesh", t.in))
	for _, why := range slices.Sorted(maps.Keys(t.out)) {
		c.addOf(Note, "pods", fmt.Sprintf("%d are labelled for the mesh and stay out of it (%s)", len(t.out[why]), why), slices.Sorted(slices.Values(t.out[why])))
	}
	for i, w := range slices.Sorted(maps.Keys(t.warned)) {
		if i == maxTold {
			c.add(Warning, "pods", fmt.Sprintf("%d more warnings about annotations", len(t.warned)-maxTold))
			break
		}
		c.addOf(Warning, "pods", w, slices.Sorted(slices.Values(t.warned[w])))
	}
	text := map[string]string{
		"pending": "are not served by their agent yet (their events say why)",
		"none":    "are labelled for the mesh and not in it (their events say why)",
		"left":    "are not labelled for the mesh any more and still in it (their events say why)",
	}
	for _, state := range []string{"none", "pending", "left"} {
		if names := t.late[state]; len(names) > 0 {
			slices.Sort(names)
			c.addOf(Wrong, "pods", fmt.Sprintf("%d %s", len(names), text[state]), names)
		}
	}
}
