package kubenode_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// plugin is what the CNI plugin does with the agent.
type plugin struct {
	handoff.CNIHandler
	handoff.CNIStateHandler
}

func (r *rig) plugin() plugin {
	h := r.agent.Handoff()
	return plugin{h.(handoff.CNIHandler), h.(handoff.CNIStateHandler)}
}

// starting is a pod in the words of the plugin.
func starting(name, uid string, addrs ...string) handoff.CNIPod {
	space, short, _ := strings.Cut(name, "/")
	p := handoff.CNIPod{Namespace: space, Name: short, UID: uid}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

func dup(t *testing.T, ns *netns.NS) *netns.NS {
	t.Helper()
	d, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestStartingPod: a pod that starts is captured before its first process runs, and its address comes later.
func TestStartingPod(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.namespace("plain", nil, nil)
	r.run(nil)
	ns := netnstest.New(t)
	type answer struct {
		enrolled bool
		err      error
	}
	got := make(chan answer, 1)
	go func() { // the runtime may be faster than the informer
		enrolled, err := r.plugin().CNIAdd(t.Context(), starting("team/a", "u1", "10.0.0.2"), dup(t, ns))
		got <- answer{enrolled, err}
	}()
	pendingPhase := func(o object) { o["status"] = object{"phase": "Pending"} }
	r.pod("team/a", "u0", "", pendingPhase) // one of the same name, on its way out
	r.pod("team/a", "u1", "", pendingPhase)
	if a := <-got; !a.enrolled || a.err != nil {
		t.Fatalf("ADD = %v, %v", a.enrolled, a.err)
	}
	if !rules(t, ns) || r.host()[netip.MustParseAddr("10.0.0.2")] != "u1" {
		t.Error("the pod starts without its rules or without probes")
	}
	r.says("team/a", "enabled")
	r.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
	})
	if ok, err := r.plugin().CNICheck(t.Context(), starting("team/a", "u1"), dup(t, ns)); !ok || err != nil {
		t.Errorf("CHECK = %v, %v", ok, err)
	}
	if _, err := r.plugin().CNICheck(t.Context(), starting("team/a", "u1"), netnstest.New(t)); err == nil {
		t.Error("CHECK takes another namespace")
	}
	if r.mu.Lock(); r.searches > 0 {
		t.Errorf("%d searches of /proc for what the plugin had said", r.searches)
	}
	r.mu.Unlock()

	r.pod("plain/b", "u2", "", pendingPhase)
	if enrolled, err := r.plugin().CNIAdd(t.Context(), starting("plain/b", "u2", "10.0.0.3"), netnstest.New(t)); enrolled || err != nil {
		t.Errorf("ADD of a pod without label = %v, %v", enrolled, err)
	}
	if ok, err := r.plugin().CNICheck(t.Context(), starting("plain/b", "u2"), netnstest.New(t)); ok || err != nil {
		t.Errorf("CHECK of a pod without label = %v, %v", ok, err)
	}
	if err := r.plugin().CNIStatus(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSandboxMadeAnew: the end of a pod's old namespace does not touch its new one.
func TestSandboxMadeAnew(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "", nil)
	r.run(nil)
	old, fresh := netnstest.New(t), netnstest.New(t)
	add := func(ns *netns.NS) {
		t.Helper()
		if enrolled, err := r.plugin().CNIAdd(t.Context(), starting("team/a", "u1", "10.0.0.2"), dup(t, ns)); !enrolled || err != nil {
			t.Fatalf("ADD = %v, %v", enrolled, err)
		}
	}
	add(old)
	add(old) // the runtime tries again
	add(fresh)
	r.says("team/a", "enabled")
	if err := r.plugin().CNIDel(t.Context(), starting("team/a", "u1"), dup(t, old)); err != nil {
		t.Error(err)
	}
	if err := r.plugin().CNIDel(t.Context(), starting("team/a", "u1"), nil); err != nil {
		t.Error(err)
	}
	if st, there := r.set.Pod("u1"); !there || st.NetNS != fresh.ID() || !rules(t, fresh) {
		t.Errorf("after DEL of the old namespace: %v, %v", st, there)
	}
	if err := r.plugin().CNIDel(t.Context(), starting("team/other", "u1"), dup(t, fresh)); err != nil {
		t.Error(err)
	}
	if _, there := r.set.Pod("u1"); !there {
		t.Error("a DEL for another name took the pod out")
	}
	if err := r.plugin().CNIDel(t.Context(), starting("team/a", ""), dup(t, fresh)); err != nil {
		t.Error(err)
	}
	if pods := r.set.Pods(); len(pods) > 0 {
		t.Errorf("after DEL: %v", pods)
	}
	r.says("team/a", "pending") // not announced while it has no sandbox
}

// TestPodThatCannotStart: a pod that is to be enrolled and cannot be does not start, and nothing of it is kept.
func TestPodThatCannotStart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		uid    string
		before func(*rig)
		config func(*kubenode.Config)
		want   string
	}{
		{name: "unknown", uid: "u9", want: "under uid u1"},
		{name: "no_listeners", uid: "u1", before: func(r *rig) { r.startErr = errNo }, want: "not today"},
		{name: "no_namespace", uid: "u1", before: func(r *rig) { r.api.remove("namespaces", "team") }, want: "namespace is not known"},
		{name: "mesh_unknown", uid: "u1", config: func(c *kubenode.Config) { c.Synced = make(chan struct{}) }, want: "state of the mesh is not known"},
		{name: "api_server_away", uid: "u1", before: func(r *rig) { r.api.refuse["*"] = 500 }, want: "pods are not known yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.namespace("team", ambient, nil)
			r.pod("team/a", "u1", "", nil)
			if tt.before != nil {
				tt.before(r)
			}
			r.run(func(c *kubenode.Config) {
				c.AddTimeout = 500 * time.Millisecond
				if tt.config != nil {
					tt.config(c)
				}
			})
			ns := netnstest.New(t)
			enrolled, err := r.plugin().CNIAdd(t.Context(), starting("team/a", tt.uid, "10.0.0.2"), dup(t, ns))
			if enrolled || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ADD = %v, %v, want %q", enrolled, err, tt.want)
			}
			r.eventually(func() string {
				if pods := r.set.Pods(); len(pods) > 0 || len(r.host()) > 0 || rules(t, ns) {
					return fmt.Sprintf("kept: %v, %v", pods, r.host())
				}
				return ""
			})
		})
	}
}

// TestPodsWithoutMesh: pods that stay out start also while the mesh's state is unknown: the controller is one of them.
func TestPodsWithoutMesh(t *testing.T) {
	r := newRig(t)
	r.namespace("team", nil, nil)
	r.pod("team/a", "u1", "", nil)
	r.run(func(c *kubenode.Config) { c.Synced = make(chan struct{}) })
	if enrolled, err := r.plugin().CNIAdd(t.Context(), starting("team/a", "u1"), netnstest.New(t)); enrolled || err != nil {
		t.Errorf("ADD = %v, %v", enrolled, err)
	}
}

// TestRunningPodsBeforeTheMesh: what runs already is captured at once, though the mesh's state is not known: refused is
// better than leaked.
func TestRunningPodsBeforeTheMesh(t *testing.T) {
	r := newRig(t)
	pod := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.certErr = errNo
	r.run(func(c *kubenode.Config) { c.Synced = make(chan struct{}) })
	<-r.agent.Ready()
	if !rules(t, pod) {
		t.Error("a running pod goes on in plaintext")
	}
	r.says("team/a", "pending")
}

// TestAddEndsWithItsCaller: an ADD whose caller goes away is given up.
func TestAddEndsWithItsCaller(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.run(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if enrolled, err := r.plugin().CNIAdd(ctx, starting("team/a", "u1"), netnstest.New(t)); enrolled || err == nil {
		t.Errorf("ADD = %v, %v", enrolled, err)
	}
}

// TestStaticPod: the runtime knows a pod of a file of the node by another UID than that of the object that stands for it.
func TestStaticPod(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.namespace("plain", nil, nil)
	const file = "0123456789abcdef0123456789abcdef"
	mirror := func(o object) {
		o["status"] = object{"phase": "Pending"}
		o["metadata"].(object)["annotations"] = object{"kubernetes.io/config.hash": file, "kubernetes.io/config.mirror": file}
	}
	r.pod("plain/a", "u1", "", mirror)
	r.pod("team/b", "u2", "", mirror)
	const older = "fedcba9876543210fedcba9876543210"
	r.pod("team/c", "u3", "10.0.0.4", func(o object) {
		o["metadata"].(object)["annotations"] = object{"kubernetes.io/config.mirror": older}
	})
	running := r.process(older, "10.0.0.4")
	r.pod("team/d", "u4", "10.0.0.5", func(o object) { // one that would like not to be found
		o["metadata"].(object)["annotations"] = object{"kubernetes.io/config.hash": "none"}
	})
	pretender := r.process("u4", "10.0.0.5")
	r.run(nil)
	r.says("team/c", "enabled")
	r.says("team/d", "enabled")
	if !rules(t, running) || !rules(t, pretender) {
		t.Error("one that runs already is not captured")
	}
	if enrolled, err := r.plugin().CNIAdd(t.Context(), starting("plain/a", file, "10.0.0.2"), netnstest.New(t)); enrolled || err != nil {
		t.Errorf("ADD of one without label = %v, %v", enrolled, err)
	}
	ns := netnstest.New(t)
	if enrolled, err := r.plugin().CNIAdd(t.Context(), starting("team/b", file, "10.0.0.3"), dup(t, ns)); !enrolled || err != nil {
		t.Errorf("ADD of one with label = %v, %v", enrolled, err)
	}
	if st, there := r.set.Pod("u2"); !there || st.NetNS != ns.ID() {
		t.Errorf("the pod is %+v, %v", st, there)
	}
}

// TestNameWithoutUID: of a runtime that says no UID, a pod that is being deleted is never taken for its successor.
func TestNameWithoutUID(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["deletionTimestamp"] = "2026-01-02T03:04:05Z"
		o["spec"].(object)["serviceAccountName"] = "old"
	})
	r.run(nil)
	ns := netnstest.New(t)
	got := make(chan error, 1)
	go func() {
		_, err := r.plugin().CNIAdd(t.Context(), starting("team/a", "", "10.0.0.3"), dup(t, ns))
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("ADD did not wait for the new pod: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	r.pod("team/a", "u2", "", func(o object) { o["spec"].(object)["serviceAccountName"] = "new" })
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	for _, st := range r.set.Pods() {
		if st.NetNS == ns.ID() && (st.Pod.UID != "u2" || st.Pod.ServiceAccount != "new") {
			t.Errorf("the namespace is that of %+v", st.Pod)
		}
	}
}

// TestReplacedWhileItWaits: a namespace is never given to the pod that has taken the name since it came.
func TestReplacedWhileItWaits(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.namespace("plain", nil, nil)
	r.pod("team/a", "u1", "", nil)
	synced := make(chan struct{})
	r.run(func(c *kubenode.Config) { c.Synced = synced })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ns := netnstest.New(t)
	got := make(chan bool, 1)
	go func() {
		enrolled, _ := r.plugin().CNIAdd(ctx, starting("team/a", "u1", "10.0.0.2"), dup(t, ns))
		got <- enrolled
	}()
	time.Sleep(100 * time.Millisecond) // until it waits for the mesh
	r.pod("team/a", "u2", "", nil)
	r.pod("plain/b", "u3", "", nil)
	if _, err := r.plugin().CNIAdd(ctx, starting("plain/b", "u3"), netnstest.New(t)); err != nil { // the agent knows of all three
		t.Fatal(err)
	}
	close(synced)
	var enrolled bool
	select {
	case enrolled = <-got:
	case <-time.After(100 * time.Millisecond):
		cancel()
		enrolled = <-got
	}
	if pods := r.set.Pods(); enrolled || len(pods) > 0 {
		t.Errorf("ADD = %v, pods are %v", enrolled, pods)
	}
}
