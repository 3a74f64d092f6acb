package main

import (
	"maps"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/culvert-mesh/culvert/e2e/cluster/truth"
)

// judge asks the oracle about all connections between different pods.
func judge(r *truth.Round) []truth.Verdict {
	var policies []*networkingv1.NetworkPolicy
	for i := range r.Policies {
		p := r.Policies[i].DeepCopy()
		truth.Default(p) // the matcher takes what an API server stores
		policies = append(policies, p)
	}
	oracle := matcher.BuildNetworkPolicies(false, policies)
	namespaces := make(map[string]map[string]string)
	for _, n := range r.Namespaces {
		labels := maps.Clone(n.Labels)
		if labels == nil {
			labels = make(map[string]string)
		}
		// "The Kubernetes control plane sets an immutable label
		// kubernetes.io/metadata.name on all namespaces."
		labels[corev1.LabelMetadataName] = n.Name
		namespaces[n.Name] = labels
	}
	var out []truth.Verdict
	for i := range r.Pods {
		for j := range r.Pods {
			from, to := &r.Pods[i], &r.Pods[j]
			if i == j {
				continue // "A Pod cannot block access to itself", of which the matcher knows nothing
			}
			for _, port := range r.Ports {
				traffic := &matcher.Traffic{
					Source: peer(from, namespaces), Destination: peer(to, namespaces),
					ResolvedPort: int(port), ResolvedPortName: nameOf(to, port), Protocol: corev1.ProtocolTCP,
				}
				v := oracle.IsTrafficAllowed(traffic)
				out = append(out, truth.Verdict{From: from.String(), To: to.String(), Port: port, Egress: v.Egress.IsAllowed(), Ingress: v.Ingress.IsAllowed()})
			}
		}
	}
	return out
}

func peer(p *truth.Pod, namespaces map[string]map[string]string) *matcher.TrafficPeer {
	out := &matcher.TrafficPeer{IP: p.Address.String()}
	if p.Namespace != "" {
		out.Internal = &matcher.InternalPeer{Namespace: p.Namespace, PodLabels: p.Labels, NamespaceLabels: namespaces[p.Namespace]}
	}
	return out
}

func nameOf(p *truth.Pod, port int32) string {
	for name, number := range p.Named {
		if number == port {
			return name
		}
	}
	return ""
}
