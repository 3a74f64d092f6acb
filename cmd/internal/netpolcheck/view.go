package netpolcheck

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	adminv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

// Everywhere among Mesh.Assume stands for all namespaces.
const Everywhere = "*"

// Mesh is how the mesh is set up.
type Mesh struct {
	// Enrolment says which pods are in, as the agents are told.
	Enrolment enrol.Settings
	// Assume are namespaces to judge as if they were labelled for the mesh; Everywhere is all of them.
	Assume []string
	// DNS says that the agents capture DNS, so that it is never carried in HBONE.
	DNS bool
	// Networks are where addresses of pods are from; nil when that is not known, and any block may have pods then.
	Networks []netip.Prefix
}

// Pod is a pod, or one that a template makes.
type Pod struct {
	enrol.Pod
	// Ports are the TCP ports that its containers name.
	Ports map[string]int32
}

// Input is what there is to judge.
type Input struct {
	Policies        []*networkingv1.NetworkPolicy
	ClusterPolicies []*adminv1alpha2.ClusterNetworkPolicy
	// Namespaces by name.
	Namespaces map[string]enrol.Namespace
	Pods       []Pod
	// Whole says that these are all pods and namespaces of a cluster. Else there may be others, and namespaces that are
	// not among them count as labelled for the mesh.
	Whole bool
	Mesh  Mesh
}

// view is the input with what is looked up often.
type view struct {
	in   *Input
	pods map[string][]*Pod // by namespace, those that NetworkPolicies hold for
}

func newView(in *Input) *view {
	v := &view{in: in, pods: make(map[string][]*Pod)}
	for i := range in.Pods {
		if p := &in.Pods[i]; !p.HostNetwork && !p.Terminal {
			v.pods[p.Namespace] = append(v.pods[p.Namespace], p)
		}
	}
	return v
}

// labelsOf returns the labels of a namespace with the one that each has.
func (v *view) labelsOf(namespace string) map[string]string {
	set := maps.Clone(v.in.Namespaces[namespace].Labels)
	if set == nil {
		set = make(map[string]string)
	}
	set[nameLabel] = namespace
	return set
}

// decide says whether a pod is in the mesh.
func (v *view) decide(p enrol.Pod) enrol.Decision {
	settings := v.in.Mesh.Enrolment
	namespace, known := v.in.Namespaces[p.Namespace]
	assume := v.in.Mesh.Assume
	switch {
	case slices.Contains(assume, p.Namespace) || slices.Contains(assume, Everywhere):
		settings.Selectors = anybody()
	case !known && !v.in.Whole:
		settings.Selectors = anybody()
		d := enrol.Decide(p, namespace, settings)
		if d.In {
			d.Why = fmt.Sprintf("namespace %s is not among the files and taken to be labelled for the mesh", p.Namespace)
		}
		return d
	}
	return enrol.Decide(p, namespace, settings)
}

// anybody takes every pod that does not opt out.
func anybody() []selector.Selector {
	return []selector.Selector{{Pod: selector.Labels{{Key: selector.LabelMode, Operator: selector.NotIn, Values: []string{selector.ModeNone}}}}}
}

// members returns the known pods that a selector takes in a namespace and that are in the mesh, whether any pod may be, and
// why.
func (v *view) members(namespace string, selector *metav1.LabelSelector) (pods []*Pod, may bool, why string) {
	taken, out := 0, ""
	for _, p := range v.pods[namespace] {
		if !matches(selector, p.Labels) {
			continue
		}
		taken++
		d := v.decide(p.Pod)
		switch {
		case !d.In:
			out = d.Why
		default:
			pods, why = append(pods, p), d.Why
		}
	}
	switch {
	case len(pods) > 0:
		return pods, true, why
	case taken > 0:
		return nil, false, out
	}
	d := v.decide(enrol.Pod{Namespace: namespace, Labels: selector.MatchLabels}) // one that may come
	return nil, d.In, d.Why
}

// named tells whether a container port of this name is 15008 in all of the pods.
func named(pods []*Pod) func(string) bool {
	return func(name string) bool {
		return len(pods) > 0 && !slices.ContainsFunc(pods, func(p *Pod) bool { return p.Ports[name] != Port })
	}
}

// podsAmong returns the known pods that are among peers.
func (v *view) podsAmong(peers []peer) []*Pod {
	var out []*Pod
	for namespace, pods := range v.pods {
		set := v.labelsOf(namespace)
		for _, p := range pods {
			if slices.ContainsFunc(peers, func(q peer) bool {
				return q.namespaces != nil && matches(q.namespaces, set) && (q.pods == nil || matches(q.pods, p.Labels))
			}) {
				out = append(out, p)
			}
		}
	}
	return out
}
