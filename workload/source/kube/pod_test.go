package kube

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netipTypes()...), cmpopts.EquateComparable(identity.ID{}), cmpopts.EquateEmpty())
}

func TestPodEveryField(t *testing.T) {
	w := newWorld(t)
	w.set(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Labels: map[string]string{
			"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z", "topology.istio.io/subzone": "s",
		}}},
		service("web", []string{"10.1.0.1"}),
		pod("web-0", []string{"10.0.0.1", "fd00::1"}, enrolled),
	)
	want := &workload.Workload{
		UID: "Kubernetes//Pod/ns/web-0", Name: "web-0", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa",
		Node: "node1", WorkloadName: "web-0", WorkloadType: "pod", CanonicalName: "web", CanonicalRevision: "latest",
		ClusterID: "Kubernetes", Locality: workload.Locality{Region: "r", Zone: "z", Subzone: "s"},
		Addresses: addrs("10.0.0.1", "fd00::1"), Capacity: 1, Protocol: workload.HBONE,
		Services: map[workload.NamespacedHostname]workload.PortMap{
			{Namespace: "ns", Hostname: "web.ns.svc.cluster.local"}: {80: 80},
		},
	}
	if d := diff(want, w.pod("web-0")); d != "" {
		t.Error(d)
	}
}

func TestPodTranslation(t *testing.T) {
	for _, tc := range []struct {
		name string
		mod  func(*corev1.Pod)
		want func(*workload.Workload) // changes to the plain one; nil: no workload
	}{
		{"plain", func(*corev1.Pod) {}, func(*workload.Workload) {}},
		{"enrolled", enrolled, func(w *workload.Workload) { w.Protocol = workload.HBONE }},
		{"pending-is-not-enrolled", func(p *corev1.Pod) { p.Annotations = map[string]string{annotationRedirection: "pending"} }, func(*workload.Workload) {}},
		{"label-alone-is-not-enrolled", func(p *corev1.Pod) { p.Labels["istio.io/dataplane-mode"] = "ambient" }, func(*workload.Workload) {}},
		{"native-tunnel", func(p *corev1.Pod) { p.Labels[labelTunnel] = "x,http" }, func(w *workload.Workload) {
			w.Protocol, w.NativeTunnel = workload.HBONE, true
		}},
		{"other-tunnel", func(p *corev1.Pod) { p.Labels[labelTunnel] = "https" }, func(*workload.Workload) {}},
		{"not-ready", func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }, func(w *workload.Workload) { w.Health = workload.Unhealthy }},
		{"no-ready-condition", func(p *corev1.Pod) { p.Status.Conditions = nil }, func(w *workload.Workload) { w.Health = workload.Unhealthy }},
		{"deleting", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: epoch} }, func(w *workload.Workload) { w.Health = workload.Unhealthy }},
		{"host-network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, func(w *workload.Workload) { w.NetworkMode = workload.HostNetwork }},
		{"succeeded", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, nil},
		{"failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, nil},
		{"pending-with-address", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, func(*workload.Workload) {}},
		{"no-address", func(p *corev1.Pod) { p.Status.PodIPs = nil }, nil},
		{"old-address-field", func(p *corev1.Pod) { p.Status.PodIPs, p.Status.PodIP = nil, "10.0.0.9" }, func(w *workload.Workload) { w.Addresses = addrs("10.0.0.9") }},
		{"address-is-none", func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.0.0.256" }, nil},
		{"mapped-address", func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "::ffff:10.0.0.1" }, func(*workload.Workload) {}},
		{"default-account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }, func(w *workload.Workload) { w.ServiceAccount = "default" }},
		{"canonical-labels", func(p *corev1.Pod) {
			p.Labels["app.kubernetes.io/name"], p.Labels["version"] = "named", "v1"
		}, func(w *workload.Workload) { w.CanonicalName, w.CanonicalRevision = "named", "v1" }},
		{"canonical-own-labels", func(p *corev1.Pod) {
			p.Labels["app.kubernetes.io/name"], p.Labels["app.kubernetes.io/version"], p.Labels["version"] = "named", "v2", "v1"
			p.Labels[labelCanonicalName], p.Labels[labelCanonicalRevision] = "own", "v3"
		}, func(w *workload.Workload) { w.CanonicalName, w.CanonicalRevision = "own", "v3" }},
		{"no-labels", func(p *corev1.Pod) { p.Labels = nil }, func(w *workload.Workload) { w.CanonicalName = "web-0" }},
		{"deployment", owned("ReplicaSet", "shop-5d4f", map[string]string{"pod-template-hash": "5d4f"}), func(w *workload.Workload) { w.WorkloadName = "shop" }},
		{"rollout", owned("ReplicaSet", "shop-5d4f", map[string]string{"rollouts-pod-template-hash": "5d4f"}), func(w *workload.Workload) { w.WorkloadName = "shop" }},
		{"replica-set", owned("ReplicaSet", "shop-5d4f", map[string]string{"pod-template-hash": "other"}), func(w *workload.Workload) { w.WorkloadName = "shop-5d4f" }},
		{"cron-job", owned("Job", "backup-28394400", nil), func(w *workload.Workload) { w.WorkloadName = "backup" }},
		{"job", owned("Job", "backup-1", nil), func(w *workload.Workload) { w.WorkloadName = "backup-1" }},
		{"deployment-config", owned("ReplicationController", "x-1", map[string]string{"deploymentconfig": "x"}), func(w *workload.Workload) { w.WorkloadName = "x" }},
		{"stateful-set", owned("StatefulSet", "db", nil), func(w *workload.Workload) { w.WorkloadName = "db" }},
		{"owner-without-generated-name", func(p *corev1.Pod) {
			owned("ReplicaSet", "shop-5d4f", nil)(p)
			p.GenerateName = ""
		}, func(*workload.Workload) {}},
		{"workload-name-label", func(p *corev1.Pod) { p.Labels[labelWorkloadName] = "given" }, func(w *workload.Workload) { w.WorkloadName = "given" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod("web-0", []string{"10.0.0.1"}, tc.mod)
			s := defaults()
			got := translatePod(trimPod(p), surroundings{}, &s)
			if tc.want == nil {
				if got != nil {
					t.Fatalf("got %+v, want no workload", got)
				}
				return
			}
			want := &workload.Workload{
				UID: "Kubernetes//Pod/ns/web-0", Name: "web-0", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa",
				Node: "node1", WorkloadName: "web-0", WorkloadType: "pod", CanonicalName: "web", CanonicalRevision: "latest",
				ClusterID: "Kubernetes", Addresses: addrs("10.0.0.1"), Capacity: 1,
			}
			tc.want(want)
			if d := diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestDisabledGoesBeforeNativeTunnel: a pod that takes plaintext alone is announced so, although it could end tunnels itself.
func TestDisabledGoesBeforeNativeTunnel(t *testing.T) {
	s := defaults()
	p := trimPod(pod("web-0", []string{"10.0.0.1"}, func(p *corev1.Pod) { p.Labels[labelTunnel] = tunnelHTTP }))
	if got := translatePod(p, surroundings{disabled: true}, &s); got.Protocol != workload.TCP || got.NativeTunnel {
		t.Errorf("protocol is %v, native tunnel %t", got.Protocol, got.NativeTunnel)
	}
}

func owned(kind, name string, labels map[string]string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		yes := true
		p.GenerateName = name + "-"
		p.OwnerReferences = []metav1.OwnerReference{
			{Kind: "Other", Name: "no-controller"}, {Kind: kind, Name: name, Controller: &yes},
		}
		for k, v := range labels {
			p.Labels[k] = v
		}
	}
}

func TestNamedPorts(t *testing.T) {
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicy("Never")
	port := func(name string, n int32, proto corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: n, Protocol: proto}
	}
	p := pod("web-0", nil, func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{
			{Ports: []corev1.ContainerPort{port("http", 8080, "TCP"), port("dns", 53, "UDP"), port("", 1, "TCP")}},
			{Ports: []corev1.ContainerPort{port("http", 9090, "TCP"), port("bad", 70000, "TCP"), port("default", 7, "")}},
		}
		p.Spec.InitContainers = []corev1.Container{
			{RestartPolicy: &always, Ports: []corev1.ContainerPort{port("metrics", 9100, "TCP")}},
			{RestartPolicy: &never, Ports: []corev1.ContainerPort{port("once", 9200, "TCP")}},
			{Ports: []corev1.ContainerPort{port("setup", 9300, "TCP")}},
		}
	})
	want := map[string]string{"http": "8080", "metrics": "9100", "default": "7"}
	if d := diff(want, trimPod(p).ports.toMap()); d != "" {
		t.Error(d)
	}
}

func TestPodsOfOneAddress(t *testing.T) {
	at := func(d time.Duration) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(epoch.Add(d)) }
	}
	notReady := func(p *corev1.Pod) { p.Status.Conditions = nil }
	deleting := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: epoch} }
	for _, tc := range []struct {
		name   string
		a, b   []func(*corev1.Pod)
		winner string
	}{
		{"newest", []func(*corev1.Pod){at(time.Second)}, []func(*corev1.Pod){at(0)}, "a"},
		{"newest-other-order", []func(*corev1.Pod){at(0)}, []func(*corev1.Pod){at(time.Second)}, "b"},
		{"ready-before-newest", []func(*corev1.Pod){at(0)}, []func(*corev1.Pod){at(time.Second), notReady}, "a"},
		{"living-before-ready", []func(*corev1.Pod){notReady}, []func(*corev1.Pod){at(time.Second), deleting}, "a"},
		{"equal", nil, nil, "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pod("a", []string{"10.0.0.1", "10.0.0.2"}, tc.a...), pod("b", []string{"10.0.0.1"}, tc.b...)
			w := newWorld(t)
			w.set(a)
			w.set(b)
			check := func(winner string) {
				t.Helper()
				got := w.store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress("", addrs("10.0.0.1")[0]))
				if got == nil || got.Name != winner {
					t.Errorf("the address belongs to %v, want %s", got, winner)
				}
			}
			check(tc.winner)
			if tc.winner == "a" {
				if got := w.pod("b"); len(got.Addresses) != 0 || got.Health != workload.Unhealthy {
					t.Errorf("the other one is %v %v, want without address and unhealthy", got.Addresses, got.Health)
				}
				w.drop(a)
				check("b")
			} else {
				if d := diff(addrs("10.0.0.2"), w.pod("a").Addresses); d != "" {
					t.Error(d)
				}
				w.drop(b)
				check("a")
			}
		})
	}
}

func TestPodLife(t *testing.T) {
	w := newWorld(t)
	w.set(pod("a", nil))
	if n := w.store.Snapshot().WorkloadCount(); n != 0 {
		t.Fatalf("%d workloads before there is an address", n)
	}
	w.set(pod("a", []string{"10.0.0.1"}))
	w.set(pod("a", []string{"10.0.0.2"})) // changed its address
	if got := w.store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress("", addrs("10.0.0.1")[0])); got != nil {
		t.Errorf("old address still leads to %v", got)
	}
	// The address goes to another pod, in one batch with the end of the first.
	w.st.apply(change{ref: ref{kindPod, key{"ns", "a"}}})
	w.set(pod("b", []string{"10.0.0.2"}))
	if got := w.store.Snapshot().WorkloadByAddress(workload.NewNetworkAddress("", addrs("10.0.0.2")[0])); got == nil || got.Name != "b" {
		t.Errorf("address leads to %v, want b", got)
	}
	// A pod that has ended gives its address away though it is still there.
	w.set(pod("b", []string{"10.0.0.2"}, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), pod("c", []string{"10.0.0.2"}))
	if got := w.pod("c"); len(got.Addresses) != 1 {
		t.Errorf("c has %v", got.Addresses)
	}
	w.drop(namespace("ns"))
	if n := w.store.Snapshot().WorkloadCount(); n != 0 {
		t.Errorf("%d workloads of a namespace that is gone", n)
	}
	w.set(namespace("ns"))
	w.pod("c")
}
