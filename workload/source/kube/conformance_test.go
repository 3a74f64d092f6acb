package kube_test

import (
	"fmt"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// TestConformance runs the suite that all sources pass. Its states are written
// as objects: pods, ServiceEntries and AuthorizationPolicies. Those that use
// every field are beyond Kubernetes; the tables of this package cover these.
func TestConformance(t *testing.T) {
	workloadtest.Conform(t, func(t *testing.T) workloadtest.Source {
		c := newCluster(t)
		c.define(entries)
		c.define(policies)
		// With ns as the root namespace its policies are global.
		r := c.run(kube.Config{ClusterID: "cluster1", RootNamespace: "ns"})
		c.ready(r, entries, policies)
		o := &origin{c: c, held: make(map[schema.GroupVersionResource]map[string]bool)}
		return workloadtest.Source{Store: r.store, Policies: r.policies, Publish: o.publish, Expect: expect}
	})
}

// origin makes the cluster hold whole states.
type origin struct {
	c    *cluster
	held map[schema.GroupVersionResource]map[string]bool
}

func (o *origin) publish(s workloadtest.State) {
	now := map[schema.GroupVersionResource]map[string]bool{pods: {}, entries: {}, policies: {}}
	for _, svc := range s.Services {
		now[entries][svc.Name] = true
		o.c.put(entries, entryOf(svc))
	}
	for _, w := range s.Workloads {
		now[pods][w.Name] = true
		o.c.put(pods, podOf(w))
	}
	for _, p := range s.Policies {
		now[policies][p.Name] = true
		o.c.put(policies, policyOf(p))
	}
	for gvr, names := range o.held {
		for name := range names {
			if !now[gvr][name] {
				o.c.remove(gvr, "ns", name)
			}
		}
	}
	o.held = now
}

// podOf writes a workload as a pod that ServiceEntries select by labels.
func podOf(w *workload.Workload) *corev1.Pod {
	p := newPod(w.Name, w.Addresses[0].String(), func(p *corev1.Pod) {
		p.Labels = map[string]string{"service.istio.io/canonical-revision": "none"}
		p.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
		if w.Health == workload.Unhealthy {
			p.Status.Conditions = nil
		}
		for key, ports := range w.Services {
			p.Labels["in-"+key.Hostname] = "yes"
			for port, target := range ports {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{
					{Name: fmt.Sprint("p", port), ContainerPort: int32(target), Protocol: corev1.ProtocolTCP},
				}})
			}
		}
	})
	return p
}

func entryOf(s *workload.Service) *unstructured.Unstructured {
	spec := map[string]any{
		"hosts": []any{s.Hostname}, "resolution": "STATIC",
		"workloadSelector": map[string]any{"labels": map[string]any{"in-" + s.Hostname: "yes"}},
	}
	var addresses, ports []any
	for _, vip := range s.VIPs {
		addresses = append(addresses, vip.Addr.String())
	}
	for port, target := range s.Ports {
		ports = append(ports, map[string]any{"name": fmt.Sprint("p", port), "number": int64(port), "targetPort": int64(target)})
	}
	spec["addresses"], spec["ports"] = addresses, ports
	return object("networking.istio.io/v1", "ServiceEntry", s.Name, spec)
}

func policyOf(p *policy.Policy) *unstructured.Unstructured {
	spec := map[string]any{"action": map[policy.Action]string{policy.Allow: "ALLOW", policy.Deny: "DENY", policy.Audit: "AUDIT"}[p.Action]}
	var rules []any
	for range p.Rules {
		rules = append(rules, map[string]any{})
	}
	spec["rules"] = rules
	if p.Scope == policy.WorkloadSelector {
		spec["selector"] = map[string]any{"matchLabels": map[string]any{"some": "label"}}
	}
	return object("security.istio.io/v1", "AuthorizationPolicy", p.Name, spec)
}

// expect says what a state means in Kubernetes: a workload is in the services
// that are there, with their target ports where it has none of its own.
func expect(s workloadtest.State) (workloadtest.State, bool) {
	there := make(map[workload.NamespacedHostname]*workload.Service)
	out := workloadtest.State{Policies: s.Policies}
	for _, svc := range s.Services {
		if svc.Waypoint != nil {
			return s, false
		}
		one := *svc
		one.Canonical = true
		there[svc.Key()] = &one
		out.Services = append(out.Services, &one)
	}
	for _, w := range s.Workloads {
		one := *w
		one.Node, one.ClusterID, one.CanonicalRevision, one.Services = "node1", "cluster1", "none", nil
		for key, ports := range w.Services {
			svc := there[key]
			if svc == nil {
				continue
			}
			own := maps.Clone(svc.Ports)
			maps.Copy(own, ports)
			if one.Services == nil {
				one.Services = make(map[workload.NamespacedHostname]workload.PortMap)
			}
			one.Services[key] = own
		}
		out.Workloads = append(out.Workloads, &one)
	}
	return out, true
}
