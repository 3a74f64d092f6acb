package installer_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chartutil"
	kubefake "helm.sh/helm/v3/pkg/kube/fake"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/installer"
	"github.com/culvert-mesh/culvert/deploy"
)

const namespace = "mesh"

// rig is an installer on a cluster of fakes. Helm's objects go nowhere; the test puts the ones that matter into kube.
type rig struct {
	*installer.Installer
	t       *testing.T
	kube    *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	helm    *action.Configuration
	client  *kubefake.FailingKubeClient
	out     *bytes.Buffer
	denied  map[string]bool // resources that may not be created
}

func newRig(t *testing.T, objects ...runtime.Object) *rig {
	t.Helper()
	r := &rig{t: t, kube: fake.NewClientset(objects...), out: &bytes.Buffer{}, denied: map[string]bool{}}
	r.serverVersion("v1.36.3")
	r.kube.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview)
		review.Status.Allowed = !r.denied[review.Spec.ResourceAttributes.Resource]
		return true, review, nil
	})
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	r.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{crds: "CustomResourceDefinitionList"})
	r.dynamic.PrependReactor("patch", "customresourcedefinitions", func(a clienttesting.Action) (bool, runtime.Object, error) {
		crd := &unstructured.Unstructured{}
		if err := json.Unmarshal(a.(clienttesting.PatchAction).GetPatch(), &crd.Object); err != nil {
			return true, nil, err
		}
		established := []any{map[string]any{"type": "Established", "status": "True"}}
		if err := unstructured.SetNestedSlice(crd.Object, established, "status", "conditions"); err != nil {
			return true, nil, err
		}
		if err := r.dynamic.Tracker().Create(crds, crd, ""); err != nil {
			return true, crd, r.dynamic.Tracker().Update(crds, crd, "")
		}
		return true, crd, nil
	})
	r.client = &kubefake.FailingKubeClient{PrintingKubeClient: kubefake.PrintingKubeClient{Out: io.Discard}}
	r.helm = &action.Configuration{
		Releases:       storage.Init(driver.NewMemory()),
		KubeClient:     r.client,
		Capabilities:   chartutil.DefaultCapabilities.Copy(),
		Log:            func(string, ...any) {},
		HookOutputFunc: func(_, _, _ string) io.Writer { return io.Discard },
	}
	r.helm.Capabilities.KubeVersion = chartutil.KubeVersion{Version: "v1.36.3", Major: "1", Minor: "36"}
	r.use("v1")
	return r
}

// use makes the installer that of a version of the programs.
func (r *rig) use(programs string) {
	r.t.Helper()
	chart, err := deploy.Chart(programs)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Installer, err = installer.New(installer.Config{
		Access: &access.Access{Kube: r.kube, Dynamic: r.dynamic, Server: "https://here"},
		Helm:   r.helm, Chart: chart, Namespace: namespace, Out: r.out, Poll: time.Millisecond,
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) serverVersion(v string) {
	r.kube.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: v}
}

// wroteNothing checks that the cluster was only asked.
func (r *rig) wroteNothing() {
	r.t.Helper()
	for _, a := range append(r.dynamic.Actions(), r.kube.Actions()...) {
		if verb := a.GetVerb(); verb != "get" && verb != "list" && a.GetResource().Resource != "selfsubjectaccessreviews" {
			r.t.Errorf("%s %s", verb, a.GetResource().Resource)
		}
	}
}

// options that wait for a moment and leave definitions alone, which fakes have none of.
func options() installer.Options {
	return installer.Options{CRDs: installer.SkipCRDs, Wait: true, Timeout: time.Minute}
}

// soon are options for what will not become ready.
func soon() installer.Options {
	o := options()
	o.Timeout = 50 * time.Millisecond
	return o
}

// workloads returns controller and agents, of which so many are ready.
func workloads(controllers, agents int32) []runtime.Object {
	two := int32(2)
	return []runtime.Object{
		&appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "culvert-controller", Namespace: namespace},
			Spec:       appsv1.DeploymentSpec{Replicas: &two},
			Status:     appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: controllers},
		},
		&appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: "culvert-node", Namespace: namespace},
			Status:     appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: agents},
		},
	}
}

func agentPod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": "culvert-node"}},
		Spec:       corev1.PodSpec{NodeName: node},
	}
}

func warning(object, reason, message string) *corev1.Event {
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: object + "." + reason, Namespace: namespace},
		InvolvedObject: corev1.ObjectReference{Name: object},
		Type:           corev1.EventTypeWarning, Reason: reason, Message: message,
	}
}

// onOutput calls fn once, when a line of output contains the text.
func (r *rig) onOutput(text string, fn func()) {
	r.Out = writerFunc(func(p []byte) (int, error) {
		if fn != nil && bytes.Contains(p, []byte(text)) {
			fn()
			fn = nil
		}
		return r.out.Write(p)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// podsLeaveAfter makes the pods of agents and of controllers go only when they have been asked for so often, and checks
// the order: agents, chart, what the controllers made.
func (r *rig) podsLeaveAfter(lists int) {
	deleted := false
	left := map[string]int{"app=culvert-node": lists, "app=culvert-controller": lists}
	r.kube.PrependReactor("delete", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		deleted = true
		return false, nil, nil
	})
	r.kube.PrependReactor("delete", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if left["app=culvert-controller"] > 0 {
			r.t.Error("the authority went while controllers were running: they would make it again")
		}
		return false, nil, nil
	})
	r.kube.PrependReactor("list", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		selector := a.(clienttesting.ListAction).GetListRestrictions().Labels.String()
		if !deleted {
			r.t.Error("waits for pods of agents that were not deleted")
		}
		_, err := r.helm.Releases.Last("culvert")
		if chart := err == nil; chart != (selector == "app=culvert-node") {
			r.t.Errorf("waits for %s while the chart is there: %v", selector, chart)
		}
		list := &corev1.PodList{}
		if left[selector]--; left[selector] > 0 {
			pod := agentPod("some-pod", "n1")
			pod.Labels["app"] = strings.TrimPrefix(selector, "app=") // the fake client filters what it gets
			list.Items = append(list.Items, *pod)
		}
		return true, list, nil
	})
}
