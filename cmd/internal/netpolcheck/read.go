package netpolcheck

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	adminv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
)

// Add takes an object into the input: policies, namespaces, pods and what has a template of pods; all else is left out. Objects that
// name no namespace are of the one that is given. A policy with fields that are not known, or values that no API server
// would take, is an error: nobody can say what it allows. For a NetworkPolicy it returns what it became in the input.
func (in *Input) Add(u *unstructured.Unstructured, namespace string) (*networkingv1.NetworkPolicy, error) {
	about := fmt.Sprintf("%s %s", u.GetKind(), u.GetName())
	space := cmp.Or(u.GetNamespace(), namespace)
	if err := validName(u, space); err != nil {
		return nil, err
	}
	version, err := schema.ParseGroupVersion(u.GetAPIVersion())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", about, err)
	}
	group := version.Group
	switch kind := u.GetKind(); {
	case kind == "NetworkPolicy" && group == networkingv1.GroupName:
		p := new(networkingv1.NetworkPolicy)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, p, true); err != nil {
			return nil, fmt.Errorf("read %s: %w", about, err)
		}
		if err := valid(p); err != nil {
			return nil, fmt.Errorf("read %s: %w", about, err)
		}
		p.Namespace = space
		in.Policies = append(in.Policies, p)
		return p, nil
	case kind == "ClusterNetworkPolicy" && group == adminv1alpha2.GroupName:
		p := new(adminv1alpha2.ClusterNetworkPolicy)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, p); err != nil { // unknown forms are judged as such
			return nil, fmt.Errorf("read %s: %w", about, err)
		}
		in.ClusterPolicies = append(in.ClusterPolicies, p)
	case kind == "Namespace" && group == "":
		if in.Namespaces == nil {
			in.Namespaces = make(map[string]enrol.Namespace)
		}
		in.Namespaces[u.GetName()] = enrol.Namespace{Labels: u.GetLabels(), Annotations: u.GetAnnotations()}
	case kind == "Pod" && group == "":
		p := new(corev1.Pod)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, p); err != nil {
			return nil, fmt.Errorf("read %s: %w", about, err)
		}
		p.Namespace = space
		in.AddPod(p)
	default:
		if err := in.addTemplate(u, space); err != nil {
			return nil, fmt.Errorf("read %s: %w", about, err)
		}
	}
	return nil, nil
}

// AddPod takes a pod into the input.
func (in *Input) AddPod(p *corev1.Pod) {
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	pod := Pod{Pod: enrol.Pod{
		Namespace: p.Namespace, Name: p.Name, HostNetwork: p.Spec.HostNetwork, Terminal: ended, Labels: p.Labels, Annotations: p.Annotations,
	}}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			if port.Name == "" || port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
				continue
			}
			if pod.Ports == nil {
				pod.Ports = make(map[string]int32)
			}
			pod.Ports[port.Name] = port.ContainerPort
		}
	}
	in.Pods = append(in.Pods, pod)
}

// addTemplate takes the pods of a Deployment and its like.
func (in *Input) addTemplate(u *unstructured.Unstructured, namespace string) error {
	path := []string{"spec", "template"}
	switch u.GetKind() {
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job":
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec", "template"}
	default:
		return nil
	}
	template, found, err := unstructured.NestedMap(u.Object, path...)
	if err != nil || !found {
		return err
	}
	p := new(corev1.Pod)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, p); err != nil {
		return err
	}
	p.Namespace, p.Name = namespace, u.GetName()
	in.AddPod(p)
	return nil
}

// validName refuses names that no API server takes; they are printed in commands.
func validName(u *unstructured.Unstructured, namespace string) error {
	if problems := validation.IsDNS1123Subdomain(u.GetName()); len(problems) > 0 && strings.HasSuffix(u.GetKind(), "NetworkPolicy") {
		return fmt.Errorf("read %q: name: %s", u.GetName(), problems[0])
	}
	if problems := validation.IsDNS1123Label(namespace); len(problems) > 0 && namespace != "" {
		return fmt.Errorf("read %q: namespace %q: %s", u.GetName(), namespace, problems[0])
	}
	return nil
}

// valid refuses what an API server refuses and this package would misread.
func valid(p *networkingv1.NetworkPolicy) error {
	selectors := []*metav1.LabelSelector{&p.Spec.PodSelector}
	for _, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			return fmt.Errorf("policy type %q: want Ingress or Egress", t)
		}
	}
	check := func(d Direction, i int, list []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) error {
		for _, entry := range list {
			if err := validPort(entry); err != nil {
				return fmt.Errorf("%s rule %d: %w", d, i+1, err)
			}
		}
		for _, q := range peers {
			selectors = append(selectors, q.NamespaceSelector, q.PodSelector)
			if q.IPBlock == nil {
				continue
			}
			for _, block := range append([]string{q.IPBlock.CIDR}, q.IPBlock.Except...) {
				if !prefix(block).IsValid() {
					return fmt.Errorf("%s rule %d: %q is no block of addresses", d, i+1, block)
				}
			}
		}
		return nil
	}
	for i, r := range p.Spec.Ingress {
		if err := check(Ingress, i, r.Ports, r.From); err != nil {
			return err
		}
	}
	for i, r := range p.Spec.Egress {
		if err := check(Egress, i, r.Ports, r.To); err != nil {
			return err
		}
	}
	for _, s := range selectors {
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			return fmt.Errorf("selector: %w", err)
		}
	}
	return nil
}

func validPort(entry networkingv1.NetworkPolicyPort) error {
	if entry.Protocol != nil {
		switch *entry.Protocol {
		case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		default:
			return fmt.Errorf("protocol %q: want TCP, UDP or SCTP", *entry.Protocol)
		}
	}
	switch {
	case entry.Port == nil && entry.EndPort != nil:
		return fmt.Errorf("endPort %d without port", *entry.EndPort)
	case entry.Port == nil:
		return nil
	case entry.Port.Type == intstr.String && (entry.EndPort != nil || len(validation.IsValidPortName(entry.Port.StrVal)) > 0):
		return fmt.Errorf("port %q is no number and no name", entry.Port.StrVal)
	case entry.Port.Type == intstr.Int && (entry.Port.IntVal < 1 || entry.Port.IntVal > maxPort):
		return fmt.Errorf("port %d: want 1 to %d", entry.Port.IntVal, maxPort)
	case entry.EndPort != nil && (*entry.EndPort < entry.Port.IntVal || *entry.EndPort > maxPort):
		return fmt.Errorf("endPort %d: want %d to %d", *entry.EndPort, entry.Port.IntVal, maxPort)
	}
	return nil
}
