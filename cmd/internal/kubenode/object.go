package kubenode

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
)

// The few fields of Kubernetes' objects that are needed here. Decoding into these instead of k8s.io/api keeps a node's
// whole list of pods small, and 4 MiB of generated code out of the binary.

var (
	groupVersion = schema.GroupVersion{Version: "v1"}
	appsVersion  = schema.GroupVersion{Group: "apps", Version: "v1"}
)

type pod struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              podSpec   `json:"spec"`
	Status            podStatus `json:"status"`
}

type podSpec struct {
	NodeName           string `json:"nodeName,omitempty"`
	ServiceAccountName string `json:"serviceAccountName,omitempty"`
	HostNetwork        bool   `json:"hostNetwork,omitempty"`
}

type podStatus struct {
	Phase  string  `json:"phase,omitempty"`
	PodIP  string  `json:"podIP,omitempty"`
	PodIPs []podIP `json:"podIPs,omitempty"`
}

type podIP struct {
	IP string `json:"ip"`
}

// DeepCopyObject implements runtime.Object.
func (p *pod) DeepCopyObject() runtime.Object {
	out := *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.PodIPs = slices.Clone(p.Status.PodIPs)
	return &out
}

// Of these only the metadata is looked at.
type (
	namespace = metav1.PartialObjectMetadata
	daemonSet = metav1.PartialObjectMetadata
)

// list is a list of objects, as a server sends it.
type list[T any, P interface {
	*T
	runtime.Object
}] struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []T `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *list[T, P]) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]T, len(l.Items))
	for i := range l.Items {
		if c, ok := P(&l.Items[i]).DeepCopyObject().(P); ok {
			out.Items[i] = *c
		}
	}
	return &out
}

// newScheme knows the types above under their names in Kubernetes.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypeWithName(groupVersion.WithKind("Pod"), &pod{})
	s.AddKnownTypeWithName(groupVersion.WithKind("PodList"), &list[pod, *pod]{})
	s.AddKnownTypeWithName(groupVersion.WithKind("Namespace"), &namespace{})
	s.AddKnownTypeWithName(groupVersion.WithKind("NamespaceList"), &metav1.PartialObjectMetadataList{})
	s.AddKnownTypeWithName(groupVersion.WithKind("Node"), &node{})
	s.AddKnownTypeWithName(groupVersion.WithKind("NodeList"), &list[node, *node]{})
	s.AddKnownTypeWithName(appsVersion.WithKind("DaemonSet"), &daemonSet{})
	s.AddKnownTypeWithName(appsVersion.WithKind("DaemonSetList"), &metav1.PartialObjectMetadataList{})
	metav1.AddToGroupVersion(s, groupVersion)
	metav1.AddToGroupVersion(s, appsVersion)
	return s
}

// trim drops what is not looked at from an object that an informer is about to keep.
func trim(obj any) (any, error) {
	m, ok := obj.(metav1.Object)
	if !ok {
		return obj, nil
	}
	m.SetManagedFields(nil)
	m.SetOwnerReferences(nil)
	m.SetFinalizers(nil)
	kept := map[string]string{}
	for _, key := range append(enrol.Annotations(), annotation, annotationStatic) {
		if v, present := m.GetAnnotations()[key]; present {
			kept[key] = v
		}
	}
	m.SetAnnotations(kept)
	return obj, nil
}

func (p *pod) uid() string { return string(p.UID) }

// annotationStatic is on the object that the kubelet makes for a pod of a file of the node: the UID that pod has there.
// The API server lets nobody put it on a pod later, as it does kubernetes.io/config.hash, which says the same.
const annotationStatic = "kubernetes.io/config.mirror"

// sandboxUID is the UID by which runtime and control groups know the pod.
func (p *pod) sandboxUID() string { return cmp.Or(p.Annotations[annotationStatic], p.uid()) }

func (p *pod) terminal() bool { return p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" }

// addrs returns the pod's addresses, without what is not one.
func (p *pod) addrs() []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	for _, ip := range p.Status.PodIPs {
		add(ip.IP)
	}
	add(p.Status.PodIP)
	return out
}

func (p *pod) facts() enrol.Pod {
	return enrol.Pod{
		Namespace: p.Namespace, Name: p.Name, HostNetwork: p.Spec.HostNetwork, Terminal: p.terminal(),
		Labels: p.Labels, Annotations: p.Annotations,
	}
}

// serviceAccount is never empty once a pod is admitted; the fallback is Kubernetes' own.
func (p *pod) serviceAccount() string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// sameFacts reports whether a namespace decides the same about its pods as before.
func sameFacts(a, b *namespace) bool {
	return maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}
