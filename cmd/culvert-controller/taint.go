package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// taintKeys are the taints that keep pods off a node whose agent is not ready: ours, and that of istio-cni, which cluster
// builders know.
var taintKeys = [...]string{"culvert.io/agent-not-ready", "cni.istio.io/not-ready"}

const (
	// agentSelector finds the agents' pods in the controller's namespace.
	agentSelector = "app=culvert-node"
	patchTimeout  = 10 * time.Second
	byNode        = "node"
)

// taints takes the taints off nodes once an agent on them is ready. It never puts one on.
type taints struct {
	client    kubernetes.Interface
	namespace string
	log       *slog.Logger

	nodes, agents cache.SharedIndexInformer
	queue         workqueue.TypedRateLimitingInterface[string] // names of nodes

	removed, failed atomic.Uint64
}

// Run works until ctx ends.
func (t *taints) Run(ctx context.Context) error {
	t.queue = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	nodes := informers.NewSharedInformerFactoryWithOptions(t.client, 0, informers.WithTransform(trimNode))
	agents := informers.NewSharedInformerFactoryWithOptions(t.client, 0, informers.WithTransform(trimAgent), informers.WithNamespace(t.namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = agentSelector }))
	t.nodes, t.agents = nodes.Core().V1().Nodes().Informer(), agents.Core().V1().Pods().Informer()
	if err := t.watch(); err != nil {
		return fmt.Errorf("watch nodes and agents: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		t.queue.ShutDown()
		nodes.Shutdown()
		agents.Shutdown()
	}()
	nodes.Start(ctx.Done())
	agents.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), t.nodes.HasSynced, t.agents.HasSynced) {
		return nil // stopping
	}
	stop := context.AfterFunc(ctx, t.queue.ShutDown)
	defer stop()
	for t.work(ctx) {
	}
	return nil
}

func (t *taints) watch() error {
	err := t.agents.AddIndexers(cache.Indexers{byNode: func(o any) ([]string, error) {
		if p, ok := o.(*corev1.Pod); ok && p.Spec.NodeName != "" {
			return []string{p.Spec.NodeName}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return err
	}
	if _, err := t.agents.AddEventHandler(onChange(func(o any) {
		if p, ok := o.(*corev1.Pod); ok && ready(p) {
			t.queue.Add(p.Spec.NodeName)
		}
	})); err != nil {
		return err
	}
	_, err = t.nodes.AddEventHandler(onChange(func(o any) {
		if n, ok := o.(*corev1.Node); ok && slices.ContainsFunc(n.Spec.Taints, unwanted) {
			t.queue.Add(n.Name)
		}
	}))
	return err
}

func onChange(fn func(any)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{AddFunc: fn, UpdateFunc: func(_, now any) { fn(now) }}
}

// trimNode keeps what is used of a node.
func trimNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Spec:       corev1.NodeSpec{Taints: n.Spec.Taints},
	}, nil
}

// trimAgent keeps what is used of an agent's pod.
func trimAgent(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec: corev1.PodSpec{NodeName: p.Spec.NodeName},
		Status: corev1.PodStatus{Phase: p.Status.Phase, Conditions: slices.DeleteFunc(slices.Clone(p.Status.Conditions), func(c corev1.PodCondition) bool {
			return c.Type != corev1.PodReady
		})},
	}, nil
}

// ready reports whether the agent serves its node.
func ready(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning &&
		slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
}

func unwanted(t corev1.Taint) bool { return slices.Contains(taintKeys[:], t.Key) }

// work takes one node. It reports false when there will be no more.
func (t *taints) work(ctx context.Context) bool {
	name, shutdown := t.queue.Get()
	if shutdown {
		return false
	}
	defer t.queue.Done(name)
	err := t.free(ctx, name)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		t.queue.Forget(name)
	case ctx.Err() != nil:
	default:
		t.failed.Add(1)
		t.log.Warn("node keeps its taint for now", "node", name, "error", err)
		t.queue.AddRateLimited(name)
	}
	return true
}

// free removes the taints from a node with a ready agent.
func (t *taints) free(ctx context.Context, name string) error {
	o, exists, err := t.nodes.GetIndexer().GetByKey(name)
	if err != nil || !exists {
		return err
	}
	node, ok := o.(*corev1.Node)
	if !ok || !slices.ContainsFunc(node.Spec.Taints, unwanted) {
		return nil
	}
	agents, err := t.agents.GetIndexer().ByIndex(byNode, name)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(agents, func(o any) bool { p, ok := o.(*corev1.Pod); return ok && ready(p) }) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(node.Spec.Taints), unwanted)
	patch, err := taintPatch(node.Spec.Taints, rest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	if _, err := t.client.CoreV1().Nodes().Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: "culvert-controller"}); err != nil {
		return fmt.Errorf("remove taint: %w", err)
	}
	t.removed.Add(1)
	t.log.Info("taint removed, the node's agent is ready", "node", name)
	return nil
}

// taintPatch replaces the taints if they are still what was seen: somebody else's new taint is not lost.
func taintPatch(seen, rest []corev1.Taint) ([]byte, error) {
	if rest == nil {
		rest = []corev1.Taint{} // an empty list, not null
	}
	type operation struct {
		Op    string         `json:"op"`
		Path  string         `json:"path"`
		Value []corev1.Taint `json:"value"`
	}
	return json.Marshal([]operation{{"test", "/spec/taints", seen}, {"replace", "/spec/taints", rest}})
}
