package authz

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	redirection        = "ambient.istio.io/redirection"
	redirectionEnabled = "enabled"
)

// collectPods reads pods, accounts and templates. It returns the pods that take part in the translation in a form that
// their objects do not have: made of templates, or not created yet.
func (w *World) collectPods() ([]*unstructured.Unstructured, error) {
	var made []*unstructured.Unstructured
	owned := make(map[string]bool) // namespace/kind/name of what pods belong to
	var templates []*unstructured.Unstructured
	for _, u := range w.objects {
		switch gk := u.GroupVersionKind().GroupKind(); {
		case gk == (schema.GroupKind{Kind: "ServiceAccount"}):
			w.addAccount(u.GetNamespace(), u.GetName())
		case gk == (schema.GroupKind{Kind: "Pod"}):
			var p corev1.Pod
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p); err != nil {
				return nil, objectError(u, err)
			}
			if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
				continue // what it was made of may make others
			}
			own := ownerOf(&p)
			owned[p.Namespace+"/"+own.String()] = true
			if p.Status.PodIP == "" && len(p.Status.PodIPs) == 0 && p.Status.Phase == "" {
				more, err := w.imagine(&p, own)
				if err != nil {
					return nil, objectError(u, err)
				}
				made = append(made, more)
				continue
			}
			w.addPod(&p, own, false)
		case gk.Group == "apps" || gk.Group == "batch":
			templates = append(templates, u)
		}
	}
	for _, u := range templates {
		t, own, err := templateOf(u)
		if err != nil {
			return nil, objectError(u, err)
		}
		if t == nil || owned[u.GetNamespace()+"/"+own.String()] {
			continue
		}
		p := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
		p.Namespace, p.Name = u.GetNamespace(), strings.ToLower(own.kind)+"."+own.name
		more, err := w.imagine(p, own)
		if err != nil {
			return nil, objectError(u, err)
		}
		made = append(made, more)
	}
	return made, nil
}

// imagined is the n-th address of those that do not exist yet: documentation's (RFC 3849), a range for each kind.
func imagined(kind byte, n int) netip.Addr {
	addr := [16]byte{0x20, 0x01, 0x0d, 0xb8, 7: kind}
	binary.BigEndian.PutUint32(addr[12:], uint32(n))
	return netip.AddrFrom16(addr)
}

// imagine makes a pod that does not run into one that does, ready and with an imagined address, in the mesh if its labels
// ask for it.
func (w *World) imagine(p *corev1.Pod, own owner) (*unstructured.Unstructured, error) {
	p = p.DeepCopy()
	addr := imagined(0, len(w.pods)+1)
	p.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: addr.String(), PodIPs: []corev1.PodIP{{IP: addr.String()}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	p.Annotations = maps.Clone(p.Annotations)
	if p.Annotations == nil {
		p.Annotations = make(map[string]string)
	}
	delete(p.Annotations, redirection)
	if w.selected(p) {
		p.Annotations[redirection] = redirectionEnabled
	}
	if own.kind != "Pod" {
		yes := true
		p.GenerateName = own.name + "-"
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: own.kind, Name: own.name, Controller: &yes}}
	}
	w.addPod(p, own, true)
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
	return &unstructured.Unstructured{Object: content}, err
}

// imagineServices makes Services that are not created yet into ones that are, with an imagined address.
func (w *World) imagineServices() []*unstructured.Unstructured {
	var made []*unstructured.Unstructured
	for _, u := range w.objects {
		if u.GroupVersionKind().GroupKind() != (schema.GroupKind{Kind: "Service"}) {
			continue
		}
		spec, _, _ := unstructured.NestedMap(u.Object, "spec")
		ip, _ := spec["clusterIP"].(string)
		ips, _ := spec["clusterIPs"].([]any)
		if spec == nil || ip != "" || len(ips) > 0 || spec["type"] == "ExternalName" {
			continue
		}
		spec["clusterIP"] = imagined(1, len(made)+1).String()
		u = u.DeepCopy()
		u.Object["spec"] = spec
		made = append(made, u)
	}
	return made
}

func (w *World) addPod(p *corev1.Pod, own owner, template bool) {
	name := p.Spec.ServiceAccountName
	if name == "" {
		name = "default"
	}
	w.addAccount(p.Namespace, name)
	ports := make(map[uint16]bool)
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, port := range c.Ports {
			if (port.Protocol == "" || port.Protocol == corev1.ProtocolTCP) && port.ContainerPort > 0 && port.ContainerPort <= 65535 {
				ports[uint16(port.ContainerPort)] = true
			}
		}
	}
	w.pods = append(w.pods, &pod{
		namespace: p.Namespace, name: p.Name, labels: p.Labels, account: name, owner: own, ports: ports, template: template,
		in: p.Annotations[redirection] == redirectionEnabled,
	})
}

func (w *World) addAccount(namespace, name string) {
	w.accounts[account{namespace, name}] = true
	w.accounts[account{namespace, "default"}] = true // Kubernetes makes it with the namespace
	w.accountsIn[namespace] = true
}

// ownerOf returns what the pod belongs to. A Deployment is told from the name of its ReplicaSet, a CronJob from its Job's.
func ownerOf(p *corev1.Pod) owner {
	o := metav1.GetControllerOfNoCopy(p)
	if o == nil {
		return owner{"Pod", p.Name}
	}
	switch o.Kind {
	case "ReplicaSet":
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(o.Name, "-"+hash); ok {
				return owner{"Deployment", name}
			}
		}
	case "Job":
		i := strings.LastIndexByte(o.Name, '-')
		if minute := o.Name[i+1:]; i > 0 && len(minute) >= 8 && len(minute) <= 10 && strings.Trim(minute, "0123456789") == "" {
			return owner{"CronJob", o.Name[:i]}
		}
	}
	return owner{o.Kind, o.Name}
}

// templateOf returns the template of pods that an object has, or nil.
func templateOf(u *unstructured.Unstructured) (*corev1.PodTemplateSpec, owner, error) {
	own := owner{u.GetKind(), u.GetName()}
	convert := func(into any) error { return runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, into) }
	switch own.kind {
	case "Deployment":
		var o appsv1.Deployment
		err := convert(&o)
		return &o.Spec.Template, own, err
	case "StatefulSet":
		var o appsv1.StatefulSet
		err := convert(&o)
		return &o.Spec.Template, own, err
	case "DaemonSet":
		var o appsv1.DaemonSet
		err := convert(&o)
		return &o.Spec.Template, own, err
	case "ReplicaSet":
		if metav1.GetControllerOf(u) != nil {
			return nil, own, nil
		}
		var o appsv1.ReplicaSet
		err := convert(&o)
		return &o.Spec.Template, own, err
	case "Job":
		if metav1.GetControllerOf(u) != nil {
			return nil, own, nil
		}
		var o batchv1.Job
		err := convert(&o)
		return &o.Spec.Template, own, err
	case "CronJob":
		var o batchv1.CronJob
		err := convert(&o)
		return &o.Spec.JobTemplate.Spec.Template, own, err
	}
	return nil, own, nil
}
