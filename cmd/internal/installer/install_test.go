package installer_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	helmrelease "helm.sh/helm/v3/pkg/release"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/installer"
)

func TestInstall(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	o := options()
	o.Values = map[string]any{"trustDomain": "example.org"}
	if err := r.Install(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	rel, err := r.helm.Releases.Last("culvert")
	if err != nil {
		t.Fatal(err)
	}
	if rel.Info.Status != helmrelease.StatusDeployed || !strings.Contains(rel.Manifest, `TRUST_DOMAIN: "example.org"`) || !strings.Contains(rel.Manifest, "image: culvert:v1") {
		t.Errorf("release is %s:\n%s", rel.Info.Status, rel.Manifest)
	}
	ns, err := r.kube.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ns.Labels["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("namespace has labels %v", ns.Labels)
	}
	for _, want := range []string{"Kubernetes 1.36.3", "culvert-controller: 2 of 2 ready", "culvert-node: 3 of 3 ready", "Culvert v1 is ready"} {
		if !strings.Contains(r.out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, r.out)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	istio := func(ambient string) []runtime.Object {
		return []runtime.Object{
			&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "istio-cni-node", Namespace: "istio-system"}},
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-cni-config", Namespace: "istio-system"}, Data: map[string]string{"AMBIENT_ENABLED": ambient}},
		}
	}
	ztunnel := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "zt", Namespace: "other"}}
	ztunnel.Spec.Template.Labels = map[string]string{"app": "ztunnel"}
	level := func(name string) runtime.Object {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": name}}}
	}
	tests := []struct {
		name    string
		objects []runtime.Object
		prepare func(*rig, *installer.Options)
		want    string // "" means accepted
		is      error
	}{
		{name: "old-kubernetes", prepare: func(r *rig, _ *installer.Options) { r.serverVersion("v1.29.9") }, want: "too old: 1.30"},
		{name: "no-permission", prepare: func(r *rig, _ *installer.Options) { r.denied["clusterroles"], r.denied["daemonsets"] = true, true }, want: "no permission to create daemonsets, create clusterroles"},
		{name: "istio-captures", objects: istio("true"), want: "istio-cni captures pods already"},
		{name: "istio-unknown", objects: istio("true")[:1], want: "istio-cni captures pods already"},
		{name: "istio-sidecars-only", objects: istio("false")},
		{name: "istio-taken-over", objects: istio("true"), prepare: func(_ *rig, o *installer.Options) { o.TakeOver = true }},
		{name: "ztunnel", objects: []runtime.Object{ztunnel}, want: "ztunnel serves this cluster already"},
		{name: "elsewhere", objects: []runtime.Object{&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node", Annotations: map[string]string{"meta.helm.sh/release-namespace": "there"}}}}, want: "already installed in namespace there", is: installer.ErrInstalled},
		{name: "namespace-was-deleted", objects: []runtime.Object{&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node", Annotations: map[string]string{"meta.helm.sh/release-namespace": namespace}}}}},
		{name: "manifests", objects: []runtime.Object{&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node"}}}, want: "already installed by its manifests", is: installer.ErrInstalled},
		{name: "restricted-namespace", objects: []runtime.Object{level("restricted")}, want: `enforces pod security level "restricted"`},
		{name: "privileged-namespace", objects: []runtime.Object{level("privileged")}},
		{name: "dying-namespace", objects: []runtime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, DeletionTimestamp: &metav1.Time{}, Finalizers: []string{"x"}}}}, want: "is being deleted"},
		{name: "typo", prepare: func(_ *rig, o *installer.Options) { o.Values = map[string]any{"trustDomian": "x"} }, want: "trustDomian"},
		{name: "latest", prepare: func(_ *rig, o *installer.Options) {
			o.Values = map[string]any{"image": map[string]any{"tag": "latest"}}
		}, want: "tag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, append(workloads(2, 3), tt.objects...)...)
			o := options()
			if tt.prepare != nil {
				tt.prepare(r, &o)
			}
			err := r.Install(t.Context(), o)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			if _, err := r.helm.Releases.Last("culvert"); err == nil {
				t.Error("a release is left")
			}
		})
	}
}

// What can be refused is refused before anything is in the cluster, also the definitions.
func TestInstallRefusesFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		objects []runtime.Object
		prepare func(*rig, *installer.Options)
		want    string
	}{
		"wrong-value": {nil, func(_ *rig, o *installer.Options) {
			o.Values = map[string]any{"netpol": map[string]any{"enforce": "maybe"}}
		}, "read values: netpol.enforce: "},
		"kind-not-there": {nil, func(r *rig, _ *installer.Options) { r.client.BuildError = errors.New("no matches for kind") }, "no matches for kind"},
		"definitions":    {nil, func(r *rig, _ *installer.Options) { r.denied["customresourcedefinitions"] = true }, "create customresourcedefinitions, patch customresourcedefinitions"},
		"namespace": {[]runtime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
		}}}, nil, "enforces pod security level"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, append(workloads(2, 3), tt.objects...)...)
			o := options()
			o.CRDs = installer.ApplyCRDs
			if tt.prepare != nil {
				tt.prepare(r, &o)
			}
			if err := r.Install(t.Context(), o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			r.wroteNothing()
		})
	}
}

// A kernel of an old version may have what is needed, so that it is warned of, and no more.
func TestInstallWarnsOfOldKernels(t *testing.T) {
	node := func(name, os, kernel string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": os}}}
		n.Status.NodeInfo.KernelVersion = kernel
		return n
	}
	objects := []runtime.Object{node("n1", "linux", "4.18.0-553.el8_10.x86_64"), node("n2", "windows", "1.0"), node("n3", "linux", "6.12.3")}
	r := newRig(t, append(workloads(2, 3), objects...)...)
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	if got := r.out.String(); !strings.Contains(got, "may not work on n1 (4.18.0-553.el8_10.x86_64): ") {
		t.Errorf("it says\n%s", got)
	}
}

// What pods wait for is told once, as soon as it is known: an image that cannot be had may take the whole timeout.
func TestInstallSaysWhatPodsWaitFor(t *testing.T) {
	pods := []runtime.Object{}
	for _, name := range []string{"a", "b"} {
		pod := agentPod(name, "n1")
		waiting := corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "culvert:v1"`}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &waiting}}}
		pods = append(pods, pod)
	}
	r := newRig(t, append(workloads(2, 0), pods...)...)
	o := soon()
	o.KeepFailed = true
	if err := r.Install(t.Context(), o); err == nil {
		t.Error("accepted")
	}
	if got := strings.Count(r.out.String(), `culvert-node: pod a waits: ImagePullBackOff: Back-off pulling image "culvert:v1"`); got != 1 || strings.Contains(r.out.String(), "pod b") {
		t.Errorf("said %d times:\n%s", got, r.out)
	}
}

func TestInstallTwice(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	if err := r.Install(t.Context(), options()); !errors.Is(err, installer.ErrInstalled) || !strings.Contains(err.Error(), "culvert upgrade") {
		t.Errorf("got %v", err)
	}
}

// What does not become ready is told and removed.
func TestInstallRollsBackAndSaysWhy(t *testing.T) {
	waiting := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "culvert-controller-1", Namespace: namespace, Labels: map[string]string{"app": "culvert-controller"}},
		Spec:       corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such\x1b[2J image"}},
		}}},
	}
	objects := append(workloads(0, 3), waiting, warning("culvert-controller-1", "FailedMount", "no ConfigMap"), warning("culvert-node", "FailedCreate", "quota exceeded"))
	r := newRig(t, objects...)
	err := r.Install(t.Context(), soon())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"not ready in time", "pod culvert-controller-1 on n1: Pending", "ImagePullBackOff: no such [2J image",
		"FailedMount: no ConfigMap", "event of culvert-node: FailedCreate: quota exceeded", "rolled back",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if _, err := r.helm.Releases.Last("culvert"); err == nil {
		t.Error("the release is still there")
	}
	if _, err := r.kube.AppsV1().DaemonSets(namespace).Get(t.Context(), "culvert-node", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the agents are still there: %v", err)
	}
}

func TestInstallInterrupted(t *testing.T) {
	r := newRig(t, workloads(0, 0)...)
	ctx, cancel := context.WithCancel(t.Context())
	r.onOutput("ready", cancel)
	err := r.Install(ctx, options())
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := r.helm.Releases.Last("culvert"); err == nil {
		t.Error("half of it is left")
	}
}

func TestApplyFails(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	r.client.BuildError = errors.New("no matches for kind")
	err := r.Install(t.Context(), options())
	if err == nil || !strings.Contains(err.Error(), "no matches for kind") || strings.Contains(err.Error(), "rolled back") {
		t.Fatalf("got %v", err)
	}
	if _, err := r.helm.Releases.Last("culvert"); err == nil {
		t.Error("the release is still there")
	}
}

// An API server that is away for a moment ends nothing.
func TestInstallOutlastsTrouble(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	failures := 3
	r.kube.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		if failures--; failures >= 0 {
			return true, nil, errors.New("connection refused")
		}
		return false, nil, nil
	})
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	r = newRig(t, workloads(2, 3)...)
	r.kube.PrependReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if err := r.Install(t.Context(), soon()); err == nil || !strings.Contains(err.Error(), "not ready in time: read Deployment: connection refused") {
		t.Errorf("got %v", err)
	}
}
