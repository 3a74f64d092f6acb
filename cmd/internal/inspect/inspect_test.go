package inspect_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
)

const namespace = "mesh"

// agents answers by pod and path.
type agents struct {
	mu      sync.Mutex
	answers map[string]string // "pod path"
}

func (a *agents) Get(_ context.Context, ns, pod, path string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ns != namespace {
		return nil, fmt.Errorf("wrong namespace %s", ns)
	}
	text, ok := a.answers[pod+" "+path]
	if !ok {
		return nil, errors.New("connection refused\x1b[31m")
	}
	return []byte(text), nil
}

func connect(v string, objects ...runtime.Object) *access.Access {
	return connectAs(v, func(authv1.SubjectAccessReviewSpec) bool { return true }, objects...)
}

// connectAs is a cluster that allows what the function says.
func connectAs(v string, allowed func(authv1.SubjectAccessReviewSpec) bool, objects ...runtime.Object) *access.Access {
	kube := fake.NewClientset(objects...)
	kube.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: v}
	kube.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authv1.SubjectAccessReview)
		review.Status.Allowed = allowed(review.Spec)
		return true, review, nil
	})
	return &access.Access{Kube: kube, Server: "https://here"}
}

func node(name, kernel string, taints ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KernelVersion: kernel}}}
	for _, key := range taints {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

func agent(name, node string, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": "culvert-node", "istio.io/dataplane-mode": "none"}},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{VolumeMounts: []corev1.VolumeMount{{Name: "net", MountPath: "/host/cni/net.d"}, {Name: "token", MountPath: "/var"}}}},
			Volumes: []corev1.Volume{
				{Name: "net", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc/cni/net.d"}}}, {Name: "token"},
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func workloads(image string, available int32) []runtime.Object {
	two := int32(2)
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node", Namespace: namespace}}
	set.Spec.Template.Spec.Containers = []corev1.Container{{Image: "culvert:v1", Args: []string{"--exclude-namespaces=kube-system,left-out"}}}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "culvert-controller", Namespace: namespace}, Status: appsv1.DeploymentStatus{AvailableReplicas: available}}
	d.Spec.Replicas = &two
	d.Spec.Template.Spec.Containers = []corev1.Container{{Image: image}}
	return []runtime.Object{set, d}
}

// upgrading is an upgrade that is stuck: what was there before goes on, what comes after it has no image.
func upgrading() []runtime.Object {
	all := workloads("culvert:v2", 2)
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			o.Spec.Template.Spec.Containers[0].Image = "culvert:v2"
			o.Status = appsv1.DaemonSetStatus{DesiredNumberScheduled: 1, CurrentNumberScheduled: 1, NumberReady: 1, NumberAvailable: 1}
		case *appsv1.Deployment:
			o.Status.Replicas, o.Status.UpdatedReplicas = 3, 1
		}
	}
	next := agent("a2", "n1", false)
	next.Status.Phase = corev1.PodPending
	next.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}
	return append(all, node("n1", "6.1.0"), agent("a1", "n1", true), next)
}

func appPod(ns, name, redirection string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if redirection != "" {
		p.Annotations = map[string]string{"ambient.istio.io/redirection": redirection}
	}
	return p
}

// annotated is a pod whose annotations ask for what is not done.
func annotated(name string) *corev1.Pod {
	p := appPod("shop", name, "enabled", nil)
	p.Annotations["traffic.sidecar.istio.io/excludeInboundPorts"] = "many"
	return p
}

func onHost(name string, labels map[string]string) *corev1.Pod {
	p := appPod("shop", name, "", labels)
	p.Spec.HostNetwork = true
	return p
}

func space(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

var ambient = map[string]string{"istio.io/dataplane-mode": "ambient"}

func daemonSet(ns, name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}
}

const fine = `{"kubernetes":{"probes":[],"cniPluginReady":true,"cni":{"file":"10-kindnet.conflist","network":"kindnet","plugins":["ptp","portmap","culvert-cni"]}}}`

func TestCluster(t *testing.T) {
	good := append(workloads("culvert:v1", 2), node("n1", "6.1.0-13-amd64"), agent("a1", "n1", true), space("shop", ambient), appPod("shop", "web", "enabled", nil), daemonSet("kube-system", "kindnet"))
	crashed := agent("a2", "n2", true)
	crashed.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3, LastTerminationState: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
	}}}
	tests := []struct {
		name    string
		version string
		objects []runtime.Object
		dump    string
		failed  bool
		want    []string // "level about: text" each contained in a line
	}{
		{name: "good", objects: good, want: []string{
			"ok cluster: Kubernetes 1.36.3", "ok CNI: kindnet (DaemonSet kube-system/kindnet)", "ok node n1: kernel 6.1.0-13-amd64", "ok node n1: agent a1 is ready",
			`ok CNI: network "kindnet" of 10-kindnet.conflist: ptp, portmap, culvert-cni (node n1)`,
			"ok node n1: CNI plugin is in place", "ok node n1: of its processes only the kubelet passes", "ok pods: 1 are in the mesh", "ok Deployment culvert-controller: 2 replicas",
		}},
		{name: "absent", objects: []runtime.Object{node("n1", "6.1.0")}, want: []string{"note Culvert: is not installed in namespace mesh"}},
		{name: "old-kubernetes", version: "v1.28.1", objects: good, failed: true, want: []string{"error cluster: server runs Kubernetes v1.28.1, which is too old"}},
		{name: "old-kernel", objects: append(slices.Clone(good), node("n2", "4.19.0"), agent("a2", "n2", true)), failed: true, want: []string{"error node n2: kernel 4.19.0 is too old: NAT in inet tables needs Linux 5.2"}},
		{name: "no-agent", objects: append(slices.Clone(good), node("n2", "6.1.0")), failed: true, want: []string{"error node n2: has no agent"}},
		{name: "agent-not-ready", objects: append(slices.Clone(good), node("n2", "6.1.0", "culvert.io/agent-not-ready"), agent("a2", "n2", false)), failed: true, want: []string{"error node n2: agent a2 runs, but is not ready", "note node n2: has taint culvert.io/agent-not-ready until"}},
		{name: "taint-stays", objects: append(slices.Clone(good), node("n2", "6.1.0", "cni.istio.io/not-ready"), agent("a2", "n2", true)), failed: true, want: []string{"error node n2: still has taint cni.istio.io/not-ready"}},
		{name: "no-controller", objects: append(workloads("culvert:v1", 0), node("n1", "6.1.0"), agent("a1", "n1", true)), failed: true, want: []string{"error Deployment culvert-controller: no replica is available"}},
		{name: "missing-controller", objects: append(slices.Clone(good[:1]), good[2:]...), failed: true, want: []string{"error Deployment culvert-controller: is missing (culvert upgrade puts it back): agents go on"}},
		{name: "missing-daemonset", objects: good[1:], failed: true, want: []string{"error DaemonSet culvert-node: is missing (culvert upgrade puts it back)"}},
		{name: "crashed-agent", objects: append(slices.Clone(good), node("n2", "6.1.0"), crashed), want: []string{"ok node n2: agent a2 is ready", "warning node n2: agent a2 was restarted 3 times; at last it ended at 2026-01-02T03:04:05Z with 137 (OOMKilled)"}},
		{name: "half-a-controller", objects: append(workloads("culvert:v0", 1), node("n1", "6.1.0"), agent("a1", "n1", true)), want: []string{"warning Deployment culvert-controller: 1 of 2", "warning DaemonSet culvert-node: is of another image"}},
		{name: "stuck-upgrade", objects: upgrading(), want: []string{
			"warning Deployment culvert-controller: 1 of 3 replicas are of the last change (culvert:v2) yet", "warning DaemonSet culvert-node: 0 of 1 agents are of the last change (culvert:v2) yet",
			"ok node n1: agent a1 is ready", "warning node n1: agent a2, which is to take over from a1, is not ready: ImagePullBackOff no such image",
		}},
		{name: "open-probes", objects: good, dump: `{"kubernetes":{"cniPluginReady":true,"probes":["uid: every process of root passes"]}}`, want: []string{"warning node n1: probes: uid: every process of root passes"}},
		{name: "network-policies-off", objects: good, dump: `{"kubernetes":{"probes":[],"cniPluginReady":true},"networkPolicies":{"state":"not evaluated: left to the CNI"}}`, want: []string{"note node n1: network policies: not evaluated"}},
		{name: "network-policies-missing", objects: good, failed: true, dump: `{"kubernetes":{"probes":[],"cniPluginReady":true},"networkPolicies":{"evaluated":true,"state":"evaluated"}}`, want: []string{"error node n1: its agent has not heard of network policies yet"}},
		{name: "older-controller", objects: good, failed: true, dump: `{"kubernetes":{"pending":["network policies, which the controller does not know","state manager"],"probes":[],"cniPluginReady":true},"networkPolicies":{"evaluated":true,"state":"evaluated"}}`, want: []string{
			"error node n1: its agent waits for network policies, and lets nobody in without, but its controller does not know them: it is older than the agent",
		}},
		{name: "network-policy-fault", objects: good, dump: `{"kubernetes":{"probes":[],"cniPluginReady":true},"networkPolicies":{"evaluated":true,"ready":true,"faults":{"netpol a/b":"no such port"}}}`, want: []string{"warning node n1: netpol a/b allows less than it says, because it cannot be understood: no such port"}},
		{name: "no-kubelet", objects: good, dump: `{"kubernetes":{"cniPluginReady":true,"probes":["missing: no kubelet was found"]}}`, failed: true, want: []string{"error node n1: probes: missing"}},
		{name: "no-plugin", objects: good, dump: `{"kubernetes":{"probes":[],"cniPluginReady":false,"cniPluginError":"/host/cni/net.d/x is not JSON\u001b[0m"}}`, failed: true, want: []string{"error node n1: CNI plugin is not in place: /etc/cni/net.d/x is not JSON"}},
		{name: "agent-waits", objects: good, dump: `{"kubernetes":{"pending":["CNI plugin","state manager","workload proxy manager"],"probes":[],"cniPluginReady":false}}`, failed: true, want: []string{
			"error node n1: its agent has heard of no controller", "error node n1: its agent is not done with the pods", "error node n1: CNI plugin is not in place yet",
		}},
		{name: "nonsense", objects: good, dump: `<html>`, want: []string{"warning node n1: its agent could not be asked"}},
		{name: "networks", objects: append(slices.Clone(good), node("n2", "6.1.0"), agent("a2", "n2", true), node("n3", "6.1.0"), agent("a3", "n3", true)), dump: `{"kubernetes":{"probes":[],"cniPluginReady":true,"cni":{"file":"x\u001b.conf","network":"y"}}}`, want: []string{
			`ok CNI: network "y" of x .conf: (node n1)`, `ok CNI: network "kindnet" of 10-kindnet.conflist: ptp, portmap, culvert-cni (2 nodes)`,
		}},
		{name: "silent", objects: good, dump: "-", want: []string{"warning node n1: its agent could not be asked what it found: connection refused"}},
		{name: "late-pods", objects: append(slices.Clone(good), appPod("shop", "late", "", nil), appPod("shop", "early", "", nil), appPod("shop", "half", "pending", nil), appPod("other", "stays", "enabled", nil), space("other", nil)), failed: true, want: []string{
			"error pods: 2 are labelled for the mesh and not in it (their events say why) shop/early,shop/late", "error pods: 1 are not served by their agent yet", "shop/half",
			"error pods: 1 are not labelled for the mesh any more and still in it (their events say why) other/stays",
		}},
		{name: "foreign-state", objects: append(slices.Clone(good), appPod("shop", "odd", "disabled", nil)), failed: true, want: []string{
			"error pods: 1 are labelled for the mesh and not in it (their events say why) shop/odd",
		}},
		{name: "annotations", objects: append(slices.Clone(good), annotated("b"), annotated("a")), want: []string{"warning pods: annotation traffic.sidecar.istio.io/excludeInboundPorts is ignored", `"many" is not a port shop/a,shop/b`}},
		{name: "other-network", objects: append(slices.Clone(good), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "culvert", Namespace: "mesh"}, Data: map[string]string{"NETWORK": "east"},
		}, space("mesh", map[string]string{"topology.istio.io/network": "west"}), appPod("shop", "same", "enabled", map[string]string{"topology.istio.io/network": "east"}),
			appPod("shop", "far", "enabled", map[string]string{"topology.istio.io/network": "south"})), want: []string{
			`warning namespace mesh: label topology.istio.io/network=west has no effect: all pods of this cluster are in network "east"`,
			`warning pods: label topology.istio.io/network=south has no effect: all pods of this cluster are in network "east", by the value network shop/far`,
		}},
		{name: "left-out-pods", objects: append(slices.Clone(good), space("left-out", ambient), appPod("left-out", "x", "", nil), appPod("shop", "n", "", map[string]string{"istio.io/dataplane-mode": "none"})), want: []string{"ok pods: 1 are in the mesh"}},
		{name: "host-network", objects: append(slices.Clone(good), onHost("x", ambient), onHost("y", nil), onHost("n", map[string]string{"istio.io/dataplane-mode": "none"})), want: []string{
			"note pods: 2 are labelled for the mesh and stay out of it (pod uses the network of its host) shop/x,shop/y",
		}},
		{name: "sidecars-too", objects: append(slices.Clone(good), space("both", map[string]string{"istio.io/dataplane-mode": "ambient", "istio-injection": "enabled"})), want: []string{"warning namespace both: asks for sidecars"}},
		{name: "cilium", objects: append(slices.Clone(good), daemonSet("kube-system", "cilium"), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "cilium-config", Namespace: "kube-system"}, Data: map[string]string{"cni-exclusive": "true", "kube-proxy-replacement": "true"},
		}), want: []string{"warning CNI: Cilium removes other plugins", "warning CNI: Cilium translates services"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.version == "" {
				tt.version = "v1.36.3"
			}
			asked := &agents{answers: map[string]string{"a1 /config_dump": fine, "a2 /config_dump": fine, "a3 /config_dump": fine}}
			switch tt.dump {
			case "":
			case "-":
				delete(asked.answers, "a1 /config_dump")
			default:
				asked.answers["a1 /config_dump"] = tt.dump
			}
			found := inspect.Cluster(t.Context(), connect(tt.version, tt.objects...), asked, namespace, "kind: Nothing")
			var lines []string
			for _, f := range found {
				lines = append(lines, fmt.Sprintf("%s %s: %s %s", f.Level, f.About, f.Text, strings.Join(f.Names, ",")))
			}
			text := strings.Join(lines, "\n")
			if got := inspect.Failed(found); got != tt.failed {
				t.Errorf("failed: %v, want %v:\n%s", got, tt.failed, text)
			}
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("lacks %q:\n%s", want, text)
				}
			}
			if strings.ContainsRune(text, 0x1b) {
				t.Errorf("escape sequences are shown: %q", text)
			}
		})
	}
}

// TestClusterOrder: nodes are told of in the order of their names, whoever answers first.
func TestClusterOrder(t *testing.T) {
	objects, asked := workloads("culvert:v1", 2), &agents{answers: map[string]string{}}
	var want []string
	for i := range 30 {
		pod, name := fmt.Sprintf("a%02d", 99-i), fmt.Sprintf("n%02d", i)
		objects = append(objects, node(name, "6.1.0"), agent(pod, name, true))
		asked.answers[pod+" /config_dump"] = fine
		want = append(want, "node "+name)
	}
	var got []string
	for _, f := range inspect.Cluster(t.Context(), connect("v1.36.3", objects...), asked, namespace, "kind: Nothing") {
		if f.Text == "CNI plugin is in place" {
			got = append(got, f.About)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestClusterRefused: what may not be read is said, and the rest is told all the same.
func TestClusterRefused(t *testing.T) {
	a := connect("v1.36.3", append(workloads("culvert:v1", 2), node("n1", "6.1.0"), agent("a1", "n1", true))...)
	a.Kube.(*fake.Clientset).PrependReactor("list", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, "", errors.New("not you"))
	})
	found := inspect.Cluster(t.Context(), a, &agents{}, namespace, "kind: Nothing")
	last := found[len(found)-1]
	if len(found) < 5 || last.Level != inspect.Wrong || !strings.HasPrefix(last.Text, "list namespaces: no permission: ") {
		t.Errorf("got %v", found)
	}
}

func TestPlaintext(t *testing.T) {
	const one = `{"since":"2026-01-01T10:00:00Z","overflow":2,"connections":[
	 {"direction":"inbound","source":{"address":"10.0.0.9"},"destination":{"namespace":"shop","workload":"db","serviceAccount":"db"},"port":5432,"count":7,"firstSeen":"2026-01-01T10:01:00Z","lastSeen":"2026-01-01T10:05:00Z"},
	 {"direction":"outbound","source":{"namespace":"shop","workload":"web","serviceAccount":"web","address":"10.0.0.1"},"destination":{"namespace":"shop","workload":"db"},"port":5432,"count":3,"firstSeen":"2026-01-01T10:02:00Z","lastSeen":"2026-01-01T10:03:00Z"}]}`
	const two = `{"since":"2026-01-01T10:02:00Z","connections":[
	 {"direction":"inbound","source":{"namespace":"shop","workload":"web","serviceAccount":"web","address":"10.0.0.2"},"destination":{"namespace":"shop","workload":"db"},"port":5432,"count":4,"firstSeen":"2026-01-01T10:01:30Z","lastSeen":"2026-01-01T10:06:00Z"}]}`
	pending := agent("a4", "n4", false)
	pending.Status.Phase = corev1.PodPending
	a := connect("v1.36.3", agent("a1", "n1", true), agent("a2", "n2", true), agent("a3", "n3", true), pending)
	report, err := inspect.Plaintext(t.Context(), a, &agents{answers: map[string]string{"a1 /plaintext": one, "a2 /plaintext": two}}, namespace)
	if err != nil {
		t.Fatal(err)
	}
	if report.Agents != 2 || report.Overflow != 2 || !report.Since.Equal(time.Date(2026, 1, 1, 10, 2, 0, 0, time.UTC)) {
		t.Errorf("report: %+v", report)
	}
	if len(report.Missing) != 2 || !strings.HasPrefix(report.Missing[0], "node n3: connection refused") || !strings.Contains(report.Missing[1], "n4") || strings.ContainsRune(report.Missing[0], 0x1b) {
		t.Errorf("missing: %q", report.Missing)
	}
	if len(report.Connections) != 2 {
		t.Fatalf("connections: %+v", report.Connections)
	}
	web, stranger := report.Connections[0], report.Connections[1]
	if web.Source.String() != "shop/web" || web.Count != 4 || !slices.Equal(web.Nodes, []string{"n1", "n2"}) || web.Source.Address != "10.0.0.2" || web.FirstSeen.Minute() != 1 {
		t.Errorf("the same pair seen at both ends: %+v", web)
	}
	if stranger.Source.String() != "10.0.0.9" || stranger.Destination.String() != "shop/db" || stranger.Count != 7 {
		t.Errorf("the stranger: %+v", stranger)
	}
}

func TestPlaintextWithoutAgents(t *testing.T) {
	if _, err := inspect.Plaintext(t.Context(), connect("v1.36.3"), &agents{}, namespace); !errors.Is(err, inspect.ErrNoAgents) {
		t.Errorf("got %v", err)
	}
}

func TestClean(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"escape", "a\x1b[31mb\nc", "a [31mb c"},
		{"direction", "a\u202eb", "a b"},
		{"not-utf8", "a\xffb", "a?b"},
		{"plain", "äöü → x", "äöü → x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := inspect.Clean(tt.text); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if got := inspect.Clean(strings.Repeat("ä", 1000)); len(got) > 510 || !strings.HasSuffix(got, "…") {
		t.Errorf("%d bytes", len(got))
	}
}

func TestMachine(t *testing.T) {
	found := inspect.Machine()
	if len(found) < 2 || found[0].About != "this machine" {
		t.Errorf("found %+v", found)
	}
}
