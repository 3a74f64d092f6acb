package installer_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// step is what the kubelet says of a container from a time on.
type step struct {
	at     time.Duration
	status corev1.ContainerStatus
}

func waits(reason, message string, restarts int32) corev1.ContainerStatus {
	s := corev1.ContainerStatus{Name: "agent", RestartCount: restarts}
	s.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	if restarts > 0 || reason == "CrashLoopBackOff" {
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2, Reason: "Error", Message: "no such\x1b[2J loop"}
	}
	return s
}

func runs(restarts int32, ready bool) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "agent", RestartCount: restarts, Ready: ready, State: running()}
}

// kubelet has the pods of agents go through steps from now on; their DaemonSet is ready when they are.
func (r *rig) kubelet(steps []step, pods ...*corev1.Pod) {
	begin := time.Now()
	now := func() corev1.ContainerStatus {
		var status corev1.ContainerStatus
		for _, s := range steps {
			if time.Since(begin) >= s.at {
				status = s.status
			}
		}
		return status
	}
	r.kube.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		list := &corev1.PodList{}
		for _, p := range pods {
			p = p.DeepCopy()
			p.Status.ContainerStatuses = []corev1.ContainerStatus{now()}
			list.Items = append(list.Items, *p)
		}
		return true, list, nil
	})
	r.kube.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if now().Ready {
			return true, workloads(2, 3)[1], nil
		}
		return true, workloads(2, 0)[1], nil
	})
}

func restartingAt(times ...time.Duration) []step {
	var steps []step
	for n, at := range times {
		steps = append(steps, step{at, runs(int32(n), false)}, step{at + 500*time.Millisecond, waits("CrashLoopBackOff", "back-off restarting", int32(n))})
	}
	return steps
}

func pullingAt(times ...time.Duration) []step {
	var steps []step
	for _, at := range times {
		steps = append(steps, step{at, waits("ErrImagePull", "no such image", 0)}, step{at + 10*time.Second, waits("ImagePullBackOff", "back-off", 0)})
	}
	return steps
}

// A wait ends when it is certain that nothing comes of it, and not before.
func TestInstallGivesUp(t *testing.T) {
	s := time.Second
	usual := []time.Duration{0, 1 * s, 11 * s, 31 * s, 72 * s} // the kubelet's
	tests := []struct {
		name  string
		steps []step
		took  time.Duration
		want  string // "" when it becomes ready
	}{
		{
			"crashes", restartingAt(usual...), 32 * s,
			"pod a, container agent: CrashLoopBackOff after 3 restarts, at last it ended with 2 (Error): no such [2J loop: waiting longer is no use. Mend what its log says",
		},
		{"crashes-fast", restartingAt(0, 1*s, 2*s, 3*s, 4*s, 5*s), 30 * s, "CrashLoopBackOff after 5 restarts"},
		{"crashes-at-first", append(restartingAt(usual[:3]...), step{31 * s, runs(3, false)}, step{40 * s, runs(3, true)}), 40 * s, ""},
		{"crashes-now-and-then", []step{{0, runs(4, false)}, {3 * time.Minute, runs(4, true)}}, 3 * time.Minute, ""},
		{"no-image", pullingAt(0, 12*s, 35*s, 78*s, 160*s), 78 * s, "ErrImagePull: no such image: waiting longer is no use. Check image.repository"},
		{"image-late", append(pullingAt(0, 12*s, 35*s), step{85 * s, runs(0, true)}), 85 * s, ""},
		{"image-slow", append(pullingAt(0), step{4 * time.Minute, runs(0, true)}), 4 * time.Minute, ""},
		{"image-away-twice", append(append(pullingAt(0), step{11 * s, runs(0, false)}), step{70 * s, waits("ErrImagePull", "", 0)}, step{75 * s, runs(0, true)}), 75 * s, ""},
		{"image-of-no-name", []step{{0, waits("InvalidImageName", "", 0)}}, 0, "InvalidImageName"},
		{"image-never-pulled", []step{{0, waits("ErrImageNeverPull", "", 0)}}, 0, "ErrImageNeverPull"},
		{"no-secret", []step{{0, waits("CreateContainerConfigError", `secret "x" not found`, 0)}}, 60 * s, `CreateContainerConfigError: secret "x" not found`},
		{"secret-late", []step{{0, waits("CreateContainerConfigError", `secret "x" not found`, 0)}, {50 * s, runs(0, true)}}, 50 * s, ""},
		{"other", []step{{0, waits("ContainerCreating", "", 0)}}, 5 * time.Minute, "not ready in time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, workloads(2, 0)...)
				r.Poll = time.Second
				r.kubelet(tt.steps, agentPod("a", "n1"))
				o := options()
				o.KeepFailed, o.Timeout = true, 5*time.Minute
				begin := time.Now()
				err := r.Install(t.Context(), o)
				if took := time.Since(begin); took < tt.took || took > tt.took+2*time.Second {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if tt.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "left as it is") {
					t.Errorf("got %v", err)
				}
				if _, err := r.helm.Releases.Last("culvert"); err != nil {
					t.Errorf("it was removed: %v", err)
				}
			})
		})
	}
}

// The pod that is given up is told first: of many, only some are told.
func TestInstallTellsWhomItGivesUp(t *testing.T) {
	var pods []runtime.Object
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		pods = append(pods, agentPod(name, "n1"))
	}
	last := agentPod("z", "n2")
	last.Status.ContainerStatuses = []corev1.ContainerStatus{waits("InvalidImageName", "no name", 0)}
	r := newRig(t, append(workloads(2, 0), append(pods, last)...)...)
	err := r.Install(t.Context(), options())
	if err == nil || !strings.Contains(err.Error(), "\n  pod z on n2: ") || !strings.Contains(err.Error(), "… and more pods") {
		t.Errorf("got %v", err)
	}
}

// An upgrade is not given up because of the pods that it replaces; it is because of those that it makes.
func TestUpgradeGivesUpNewPodsOnly(t *testing.T) {
	crashing := append(restartingAt(0, time.Second, 11*time.Second, 31*time.Second), step{4 * time.Minute, runs(4, true)})
	of := func(name, hash string) *corev1.Pod {
		pod := agentPod(name, "n1")
		pod.Labels["controller-revision-hash"] = hash
		return pod
	}
	leaving := of("leaving", "new")
	leaving.DeletionTimestamp = stayingPod("", "", running()).DeletionTimestamp
	for name, tt := range map[string]struct {
		after *corev1.Pod
		took  time.Duration
		fails bool
	}{
		"old":          {of("a", "old"), 4 * time.Minute, false},
		"old-template": {of("b", "old"), 4 * time.Minute, false},
		"leaving":      {leaving, 4 * time.Minute, false},
		"new":          {of("b", "new"), 32 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, append(workloads(2, 3), of("a", "old"))...)
				r.Poll = time.Second
				if err := r.Install(t.Context(), options()); err != nil {
					t.Fatal(err)
				}
				applied := false
				r.onOutput("chart applied", func() { applied = true; r.kubelet(crashing, tt.after) })
				o := options()
				o.KeepFailed, o.Timeout = true, 5*time.Minute
				begin := time.Now()
				err := r.Upgrade(t.Context(), o)
				if took := time.Since(begin); took < tt.took || took > tt.took+2*time.Second || !applied {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if failed := err != nil && strings.Contains(err.Error(), "CrashLoopBackOff after 3 restarts"); failed != tt.fails {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
