package main

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestTaints: an agent that becomes ready later frees its node, a patch that meets somebody else's is tried again with
// what is there then, and nothing else of the node's taints is lost.
func TestTaints(t *testing.T) {
	core := fake.NewClientset(node("node-a", taintKeys[0], taintKeys[1], "other"), node("node-b", taintKeys[0]),
		pod(namespace, "culvert-node-a", "culvert-node", "node-a", "10.0.0.1", false),
		pod("elsewhere", "culvert-node-b", "culvert-node", "node-b", "10.0.1.1", true)) // no agent of ours
	var once sync.Once
	core.PrependReactor("patch", "nodes", func(clienttesting.Action) (handled bool, _ runtime.Object, err error) {
		once.Do(func() {
			handled, err = true, apierrors.NewInvalid(schema.GroupKind{Kind: "Node"}, "node-a", nil)
		})
		return handled, nil, err
	})
	tc := &taints{client: core, namespace: namespace, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := tc.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	left := func(name string) []corev1.Taint {
		n, err := core.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n.Spec.Taints
	}
	eventually(t, "the watches are open", func() bool {
		n := 0
		for _, a := range core.Actions() {
			if a.GetVerb() == "watch" {
				n++
			}
		}
		return n == 2
	})
	if n := len(left("node-a")); n != 3 {
		t.Fatalf("%d taints before the agent is ready, want 3", n)
	}
	if _, err := core.CoreV1().Pods(namespace).UpdateStatus(t.Context(), pod(namespace, "culvert-node-a", "culvert-node", "node-a", "10.0.0.1", true), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node-a keeps only the other taint", func() bool { l := left("node-a"); return len(l) == 1 && l[0].Key == "other" })
	if n := tc.failed.Load(); n != 1 {
		t.Errorf("%d failures counted, want 1", n)
	}
	if n := len(left("node-b")); n != 1 {
		t.Errorf("%d taints on a node without an agent of ours, want 1", n)
	}
}

// TestReadyAgent: only an agent that serves its node, and goes on doing so, frees it.
func TestReadyAgent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(p *corev1.Pod)
		want   bool
	}{
		{"ready", func(*corev1.Pod) {}, true},
		{"not_ready", func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }, false},
		{"unknown", func(p *corev1.Pod) { p.Status.Conditions = nil }, false},
		{"other_condition", func(p *corev1.Pod) { p.Status.Conditions[0].Type = corev1.PodScheduled }, false},
		{"ended", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		{"being_deleted", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }, false},
		{"on_no_node", func(p *corev1.Pod) { p.Spec.NodeName = "" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node-a"}, Status: corev1.PodStatus{
				Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			}}
			tt.change(p)
			kept, err := trimAgent(p)
			if got := ready(kept.(*corev1.Pod)); got != tt.want || err != nil {
				t.Errorf("ready = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestTaintPatch(t *testing.T) {
	seen := []corev1.Taint{{Key: taintKeys[0], Effect: corev1.TaintEffectNoSchedule}}
	patch, err := taintPatch(seen, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"op":"test","path":"/spec/taints","value":[{"key":"culvert.io/agent-not-ready","effect":"NoSchedule"}]},{"op":"replace","path":"/spec/taints","value":[]}]`
	if string(patch) != want {
		t.Errorf("patch is\n%s, want\n%s", patch, want)
	}
}
