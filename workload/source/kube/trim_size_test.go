package kube

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload"
)

// wideEntry is a ServiceEntry with so many hosts and ports.
func wideEntry(hosts, ports int, spec map[string]any) *unstructured.Unstructured {
	var names, numbers []any
	for i := range hosts {
		names = append(names, fmt.Sprintf("h%d.example.com", i))
	}
	for i := range ports {
		numbers = append(numbers, map[string]any{"number": int64(1000 + i), "name": fmt.Sprintf("p%d", i)})
	}
	all := map[string]any{"hosts": names, "ports": numbers, "resolution": "STATIC"}
	maps.Copy(all, spec)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": map[string]any{"name": "ext", "namespace": "ns"}, "spec": all,
	}}
}

// TestServiceEntryTooLarge: an entry of few kilobytes that would become very much for every agent is not used, takes nothing from
// other entries, and says why. One of any use is.
func TestServiceEntryTooLarge(t *testing.T) {
	endpoints := func(n int) map[string]any {
		var out []any
		for i := range n {
			out = append(out, map[string]any{"address": fmt.Sprintf("198.18.%d.%d", i/256, i%256)})
		}
		return map[string]any{"endpoints": out, "addresses": []any{"192.0.2.1"}}
	}
	selector := map[string]any{"workloadSelector": map[string]any{"labels": map[string]any{"app": "web"}}}
	for _, tc := range []struct {
		name         string
		hosts, ports int
		spec         map[string]any
		refused      bool
	}{
		{"as-wide-as-it-may-be", 256, 256, endpoints(400), true},
		{"hosts-without-ports", 256, 0, endpoints(4096), true},
		{"names-of-peers", 256, 1, map[string]any{"subjectAltNames": []any{strings.Repeat("x", 20_000)}}, true},
		{"selector", 256, 256, selector, true},
		{"many-endpoints", 10, 5, endpoints(4096), false},
		{"many-ports", 16, 256, endpoints(64), false},
		{"many-hosts", 256, 256, nil, false},
		{"selector-of-some", 8, 128, selector, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: other, creationTimestamp: "2030-01-01T00:00:00Z"},
				spec: {hosts: [h0.example.com], addresses: [192.0.2.1], resolution: STATIC}}`))
			w.set(pod("one", []string{"10.0.0.1"}), wideEntry(tc.hosts, tc.ports, tc.spec))
			n, fault := w.store.Snapshot().ServiceCount(), w.st.faults[ref{kindServiceEntry, key{"ns", "ext"}}]
			if !tc.refused {
				if n != tc.hosts || strings.Contains(fault, "too much") {
					t.Errorf("%d services, fault %q", n, fault)
				}
				return
			}
			if n != 1 || w.service("ns/h0.example.com").Name != "other" || w.store.Snapshot().WorkloadCount() != 1 {
				t.Errorf("%d services and %d workloads, want the other entry's and the pod", n, w.store.Snapshot().WorkloadCount())
			}
			if said := w.reports[ref{kindServiceEntry, key{"ns", "ext"}}].Want; len(said) != 1 ||
				said[0].Reason != reasonInvalid || !strings.HasSuffix(said[0].Message, "nothing of it is used") || said[0].Message != fault {
				t.Errorf("the status says %+v, the log %q", said, fault)
			}
			if other := w.st.faults[ref{kindServiceEntry, key{"ns", "other"}}]; other != "" {
				t.Errorf("the other entry has the fault %q", other)
			}
			w.set(wideEntry(2, 2, endpoints(2)))
			if n := w.store.Snapshot().WorkloadCount(); n != 3 {
				t.Errorf("%d workloads when it is smaller, want 3", n)
			}
		})
	}
}

// TestEndpointSliceTooLarge: every endpoint has all ports, so two objects of some hundred kilobytes would become very much for every
// agent, also in the workloads of pods of other namespaces. No slice of any use is that large.
func TestEndpointSliceTooLarge(t *testing.T) {
	ports := func(n int) (of []corev1.ServicePort, in []discoveryv1.EndpointPort) {
		for i := range n {
			name, number := fmt.Sprintf("p%d", i), int32(i+1)
			of = append(of, corev1.ServicePort{Name: name, Port: number})
			in = append(in, discoveryv1.EndpointPort{Name: &name, Port: &number})
		}
		return of, in
	}
	for _, tc := range []struct {
		name             string
		endpoints, ports int
		pods             bool
		refused          bool
	}{
		{"addresses", 1000, 8000, false, true},
		{"pods", 1000, 8000, true, true},
		{"many-endpoints", 1000, 100, false, false},
		{"many-pods", 1000, 100, true, false},
		{"many-ports", 5, 8000, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			of, in := ports(tc.ports)
			large := slice("web-x", "web", func(s *discoveryv1.EndpointSlice) {
				s.Ports = in
				for i := range tc.endpoints {
					e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("198.18.%d.%d", i/256, i%256)}}
					if tc.pods {
						e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: fmt.Sprintf("pod-%d", i)}
					}
					s.Endpoints = append(s.Endpoints, e)
				}
			})
			w.set(pod("pod-0", []string{"198.18.0.0"}), large, service("web", nil, func(s *corev1.Service) { s.Spec.Selector, s.Spec.Ports = nil, of }))
			got := 0
			for _, e := range w.store.Snapshot().Endpoints(workload.NamespacedHostname{Namespace: "ns", Hostname: webHost}) {
				got += len(e.Ports)
			}
			want := tc.endpoints * tc.ports
			if tc.pods {
				want = tc.ports // there is one of them
			}
			if tc.refused {
				want = 0
			}
			if got != want {
				t.Errorf("%d ports of endpoints, want %d", got, want)
			}
			if fault := w.st.faults[ref{kindEndpointSlice, key{"ns", "web-x"}}]; strings.HasSuffix(fault, "nothing of it is used") != tc.refused {
				t.Errorf("fault is %q", fault)
			}
		})
	}
}
