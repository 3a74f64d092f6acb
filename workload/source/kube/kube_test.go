package kube_test

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

func TestNewRefuses(t *testing.T) {
	full := kube.Config{Config: &rest.Config{Host: "https://127.0.0.1:1"}, Store: workload.New(), Policies: policy.New()}
	if _, err := kube.New(full); err != nil {
		t.Fatal(err)
	}
	for name, mod := range map[string]func(*kube.Config){
		"no-config":    func(c *kube.Config) { c.Config = nil },
		"no-store":     func(c *kube.Config) { c.Store = nil },
		"no-policies":  func(c *kube.Config) { c.Policies = nil },
		"trust-domain": func(c *kube.Config) { c.TrustDomain = "not a domain" },
		"client":       func(c *kube.Config) { c.Config = &rest.Config{Host: "::bad::"} },
	} {
		cfg := full
		mod(&cfg)
		if _, err := kube.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFollowsCluster(t *testing.T) {
	c := newCluster(t)
	c.put(pods, newPod("a", "10.0.0.1"))
	r := c.run(kube.Config{})
	c.ready(r)
	if r.store.Snapshot().WorkloadCount() != 1 {
		t.Fatal("the pod is not there when the source has synced")
	}
	got, ok := r.Pod("ns", "a")
	if !ok || got.UID != "uid-a" || got.ServiceAccount != "a" || got.Node != "node1" || got.Labels["app"] != "a" || len(got.IPs) != 1 {
		t.Errorf("Pod: %+v, %v", got, ok)
	}
	if list := r.PodsOnNode("node1"); len(list) != 1 || list[0].Name != "a" {
		t.Errorf("PodsOnNode: %+v", list)
	}
	c.put(services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{"10.1.0.1"}, Selector: map[string]string{"app": "a"}, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	r.eventually(t, "the pod is in the service", func() bool {
		return len(r.store.Snapshot().Endpoints(workload.NamespacedHostname{Namespace: "ns", Hostname: "a.ns.svc.cluster.local"})) == 1
	})
	c.put(pods, newPod("a", "10.0.0.1", func(p *corev1.Pod) {
		p.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
	}))
	r.eventually(t, "the pod is enrolled", func() bool {
		return r.store.Snapshot().Workload("Kubernetes//Pod/ns/a").Protocol == workload.HBONE
	})
	c.remove(pods, "ns", "a")
	r.eventually(t, "the pod is gone", func() bool { return r.store.Snapshot().WorkloadCount() == 0 })
	if _, ok := r.Pod("ns", "a"); ok || len(r.PodsOnNode("node1")) != 0 {
		t.Error("the pod is still known")
	}
}

func TestCustomResourcesComeAndGo(t *testing.T) {
	c := newCluster(t)
	c.put(entries, object("networking.istio.io/v1", "ServiceEntry", "ext", map[string]any{"hosts": []any{"a.example.com"}}))
	r := c.run(kube.Config{})
	c.ready(r) // not being defined is no reason to wait
	if r.store.Snapshot().ServiceCount() != 0 {
		t.Fatal("an object of a kind that is not defined is there")
	}
	c.define(entries)
	r.eventually(t, "the service is there", func() bool { return r.store.Snapshot().ServiceCount() == 1 })
	c.watched(entries)
	c.put(entries, object("networking.istio.io/v1", "ServiceEntry", "more", map[string]any{"hosts": []any{"b.example.com"}}))
	r.eventually(t, "both services are there", func() bool { return r.store.Snapshot().ServiceCount() == 2 })
	c.remove(definitions, "", "serviceentries.networking.istio.io")
	r.eventually(t, "the services are gone", func() bool { return r.store.Snapshot().ServiceCount() == 0 })
	c.define(entries)
	r.eventually(t, "the services are back", func() bool { return r.store.Snapshot().ServiceCount() == 2 })
}

// TestWaitsForPolicies: a source that cannot see the policies is not in sync.
func TestWaitsForPolicies(t *testing.T) {
	c := newCluster(t)
	c.define(policies)
	c.refuse(policies, errors.New("not allowed"))
	c.put(pods, newPod("a", "10.0.0.1"))
	c.put(policies, object("security.istio.io/v1", "AuthorizationPolicy", "p", map[string]any{"action": "DENY", "rules": []any{map[string]any{}}}))
	r := c.run(kube.Config{})
	c.watched(pods, services, namespaces, nodes, slices, definitions)
	select {
	case <-r.Synced():
		t.Fatal("synced without the policies")
	case <-time.After(50 * time.Millisecond):
	}
	if r.store.Snapshot().WorkloadCount() != 0 {
		t.Error("workloads are published without the policies")
	}
	c.refuse(policies, nil)
	c.ready(r, policies)
	if r.policies.Snapshot().Policy("ns/p") == nil {
		t.Error("the policy is missing")
	}
}

// TestBadObjectSpoilsItselfOnly: one that cannot be decoded stands among others.
func TestBadObjectSpoilsItselfOnly(t *testing.T) {
	c := newCluster(t)
	c.define(policies)
	c.put(policies, object("security.istio.io/v1", "AuthorizationPolicy", "bad", map[string]any{"rules": "all"}))
	c.put(policies, object("security.istio.io/v1", "AuthorizationPolicy", "good", map[string]any{}))
	r := c.run(kube.Config{})
	c.ready(r, policies)
	snap := r.policies.Snapshot()
	if snap.Policy("ns/good") == nil || snap.Fault("ns/good") != nil {
		t.Error("the good policy is not there")
	}
	if snap.Fault("ns/bad") == nil {
		t.Error("the bad policy has no fault")
	}
	reports, changed := r.Reports()
	if len(reports) != 2 {
		t.Errorf("reports: %+v", reports)
	}
	c.remove(policies, "ns", "bad")
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("no change of reports is told")
	}
	if reports, _ := r.Reports(); len(reports) != 1 || reports[0].Name != "good" || reports[0].Want[0].Type != "ZtunnelAccepted" {
		t.Errorf("reports: %+v", reports)
	}
}
