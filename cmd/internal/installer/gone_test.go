package installer_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/installer"
)

// stayingPod is an agent's pod that is being deleted, with a grace of half a minute.
func stayingPod(name, node string, state corev1.ContainerState) *corev1.Pod {
	grace := int64(30)
	p := agentPod(name, node)
	p.UID = "uid"
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now().Add(30 * time.Second)}, &grace
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Ready: true, State: state}}}
	return p
}

func running() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
}

func over(message string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", Message: message}}
}

func secret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
}

// A pod that the cluster cannot end keeps nothing else from being removed, is told with what keeps it, and is not waited
// for when no good can come of it.
func TestUninstallEndsWherePodsDoNot(t *testing.T) {
	unready := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	unready.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Message: "Kubelet stopped posting node status."}}
	tests := []struct {
		name    string
		objects []runtime.Object
		took    time.Duration // about
		want    []string
	}{
		{
			"node-cannot-clear-it-away", []runtime.Object{stayingPod("a", "n1", over("")), warning("a", "FailedKillPod", "cni plugin not initialized"), unready}, 15 * time.Second,
			[]string{
				"1 pods of culvert-node do not end:", "pod a on n1: has done its work and ended", "kubectl delete pod -n mesh a --force",
				"event of a: FailedKillPod: cni plugin not initialized",
			},
		},
		{"node-is-away", []runtime.Object{stayingPod("a", "n1", running()), unready}, time.Minute, []string{"pod a on n1: its node is not ready (Kubelet stopped posting node status.)"}},
		{"does-not-end", []runtime.Object{stayingPod("a", "n1", running())}, time.Minute, []string{"pod a on n1: runs still"}},
	}
	old := warning("a", "FailedMount", "of its beginning")
	old.LastTimestamp = metav1.NewTime(time.Now().Add(-time.Minute))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, append(workloads(2, 3), append(tt.objects, secret("culvert-ca"), old)...)...)
				r.Poll = time.Second
				if err := r.Install(t.Context(), options()); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				err := r.Uninstall(t.Context(), installer.UninstallOptions{Timeout: time.Hour, DeleteNamespace: true})
				if took := time.Since(begin); took < tt.took-time.Second || took > tt.took+5*time.Second {
					t.Errorf("ended after %v, want about %v", took, tt.took)
				}
				for _, want := range append(tt.want, "the release is removed, but not everything is clean") {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("error lacks %q:\n%v", want, err)
					}
				}
				if err != nil && strings.Contains(err.Error(), "of its beginning") {
					t.Errorf("error has an event of before the deletion:\n%v", err)
				}
				if _, err := r.helm.Releases.Last("culvert"); err == nil {
					t.Error("one pod kept the release")
				}
				if _, err := r.kube.CoreV1().Secrets(namespace).Get(t.Context(), "culvert-ca", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					t.Errorf("one pod kept the authority: %v", err)
				}
				if _, err := r.kube.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					t.Errorf("one pod kept the namespace: %v", err)
				}
			})
		})
	}
}

// Agents that take their time are waited for, through troubles of the API server, and what they say at the end is told.
func TestUninstallHearsAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod, unheard := stayingPod("a", "n1", running()), stayingPod("b", "n2", running())
		pod.Spec.Volumes = []corev1.Volume{{Name: "net", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc/cni/net.d"}}}}
		pod.Spec.Containers = []corev1.Container{{VolumeMounts: []corev1.VolumeMount{{Name: "net", MountPath: "/host/cni/net.d"}}}}
		r := newRig(t, append(workloads(2, 3), pod, unheard)...)
		r.Poll = time.Second
		if err := r.Install(t.Context(), options()); err != nil {
			t.Fatal(err)
		}
		troubles := 2
		r.kube.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			if troubles--; troubles >= 0 {
				return true, nil, errors.New("connection refused")
			}
			return false, nil, nil
		})
		time.AfterFunc(50*time.Second, func() {
			pod, unheard := pod.DeepCopy(), unheard.DeepCopy()
			pod.Status.ContainerStatuses[0].State = over("CNI plugin: /host/cni/net.d/x is \u009b2Jnot valid\npod shop/web is captured still")
			unheard.Status.ContainerStatuses[0].State = over("The container could not be located when the pod was terminated")
			unheard.Status.ContainerStatuses[0].State.Terminated.Reason = "ContainerStatusUnknown" // the kubelet's own words
			pods := r.kube.CoreV1().Pods(namespace)
			for _, p := range []*corev1.Pod{pod, unheard} {
				if _, err := pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
					t.Error(err)
				}
				if err := pods.Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
		err := r.Uninstall(t.Context(), installer.UninstallOptions{Timeout: time.Hour})
		want := "left on node n1:\n    CNI plugin: /etc/cni/net.d/x is  2Jnot valid\n    pod shop/web is captured still"
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "do not end") || strings.Contains(err.Error(), "n2") {
			t.Errorf("got %v, want %q", err, want)
		}
		if strings.Count(r.out.String(), "connection refused; asking again") != 1 {
			t.Errorf("of the trouble it says:\n%s", r.out)
		}
	})
}

// The timeout bounds the wait whatever pods may still do.
func TestUninstallTimeout(t *testing.T) {
	r := newRig(t, append(workloads(2, 3), stayingPod("a", "far-away", running()))...)
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	err := r.Uninstall(t.Context(), installer.UninstallOptions{Timeout: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "far-away") {
		t.Fatalf("got %v", err)
	}
}

// Where no release is, what one has left is removed, but not from under an installation that came otherwise.
func TestUninstallWithoutRelease(t *testing.T) {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node"}}
	of := func(namespace string) runtime.Object {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "culvert-node", Annotations: map[string]string{"meta.helm.sh/release-namespace": namespace}}}
	}
	tests := []struct {
		name    string
		objects []runtime.Object
		want    string // "" means that something was removed
		ca      bool
	}{
		{"nothing", nil, "not installed in namespace mesh: nothing to do", false},
		{"left", []runtime.Object{secret("culvert-ca")}, "", false},
		{"manifests", []runtime.Object{secret("culvert-ca"), role}, "not installed in namespace mesh by culvert install: already installed by its manifests", true},
		{"elsewhere", []runtime.Object{secret("culvert-ca"), of("there")}, "not installed in namespace mesh by culvert install: already installed in namespace there", true},
		{"namespace-was-deleted", []runtime.Object{of("mesh")}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.objects...)
			err := r.Uninstall(t.Context(), installer.UninstallOptions{Timeout: time.Minute})
			if tt.want == "" && (err != nil || !strings.Contains(r.out.String(), "what was left of it is removed now (1 objects)")) {
				t.Errorf("got %v\n%s", err, r.out)
			}
			if tt.want != "" && (!errors.Is(err, installer.ErrNotInstalled) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			_, err = r.kube.CoreV1().Secrets(namespace).Get(t.Context(), "culvert-ca", metav1.GetOptions{})
			if got := err == nil; got != tt.ca {
				t.Errorf("authority is there: %v", got)
			}
		})
	}
}

// What a failed installation made goes with it; an authority of before stays.
func TestInstallRollsBackAuthority(t *testing.T) {
	for _, before := range []bool{true, false} {
		r := newRig(t, workloads(2, 0)...)
		made := func() {
			if err := r.kube.Tracker().Add(secret("culvert-ca")); err != nil {
				t.Error(err)
			}
		}
		if before {
			made()
		} else {
			r.onOutput("ready", made)
		}
		if err := r.Install(t.Context(), soon()); err == nil || !strings.Contains(err.Error(), "rolled back: nothing of it is left") {
			t.Fatalf("got %v", err)
		}
		_, err := r.kube.CoreV1().Secrets(namespace).Get(t.Context(), "culvert-ca", metav1.GetOptions{})
		if got := err == nil; got != before {
			t.Errorf("authority was there before: %v, and is: %v", before, got)
		}
	}
}
