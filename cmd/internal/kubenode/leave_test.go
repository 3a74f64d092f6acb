package kubenode_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// TestLeavingIsOpen: a pod that leaves is reached without a certificate from when others hear of it, and not any more when
// it comes back.
func TestLeavingIsOpen(t *testing.T) {
	r := newRig(t)
	pod, reach := r.reachable("u1")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(func(c *kubenode.Config) { c.Settle = time.Hour })
	r.says("team/a", "enabled")
	if got := reach(); got != "refused" {
		t.Errorf("enrolled pod: the %s answered past the agent", got)
	}
	r.namespace("team", nil, nil)
	r.says("team/a", "pending")
	if got := reach(); got != "application" || !rules(t, pod) {
		t.Errorf("leaving pod: a connection is %s, rules there: %v", got, rules(t, pod))
	}
	r.namespace("team", ambient, nil)
	r.says("team/a", "enabled")
	if got := reach(); got != "refused" {
		t.Errorf("pod that is back: the %s answered past the agent", got)
	}
}

// stubborn are rules that the kernel does not let the Set take away.
type stubborn struct{ *redirect.Capture }

func (stubborn) StopNew() error { return unix.ENOMEM }
func (stubborn) Delete() error  { return unix.ENOMEM }

// TestRulesThatStay: where the Set could not take the rules of a leaving pod away, that is tried until it is done, or the
// pod would talk to nobody for the rest of its life.
func TestRulesThatStay(t *testing.T) {
	r := newRig(t)
	ns := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.capture = func(p podset.Pod) (podset.Capture, error) {
		c, err := redirect.New(p.NS, *p.Options)
		return stubborn{c}, err
	}
	var looks atomic.Int32
	r.run(func(c *kubenode.Config) {
		c.Clean = func(ns *netns.NS) (bool, error) {
			if looks.Add(1) < 3 {
				return false, unix.ENOMEM
			}
			return kubenode.Clean(ns)
		}
	})
	r.says("team/a", "enabled")
	r.namespace("team", nil, nil)
	r.eventually(func() string {
		if rules(t, ns) {
			return fmt.Sprintf("after %d looks the rules of the pod are there still", looks.Load())
		}
		return ""
	})
	r.says("team/a", "")
}

// TestLeaveAll: at the end of the mesh all pods leave it, also when the agent is not allowed anything any more.
func TestLeaveAll(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refuse int
		said   string
	}{{"permitted", 0, ""}, {"forbidden", 403, "enabled"}, {"unauthorized", 401, "enabled"}} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			a, b := r.process("u1", "10.0.0.2"), netnstest.New(t)
			r.namespace("team", ambient, nil)
			r.pod("team/a", "u1", "10.0.0.2", nil)
			r.pod("team/b", "u2", "", nil)
			r.run(nil)
			if ok, err := r.plugin().CNIAdd(t.Context(), starting("team/b", "u2", "10.0.0.3"), dup(t, b)); !ok || err != nil {
				t.Fatal(ok, err)
			}
			r.says("team/a", "enabled")
			r.says("team/b", "enabled")
			r.api.set(func() {
				if tt.refuse != 0 {
					r.api.refuse["*"] = tt.refuse
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if left := r.agent.LeaveAll(ctx); len(left) > 0 {
				t.Errorf("captured still: %v", left)
			}
			if rules(t, a) || rules(t, b) || len(r.host()) > 0 {
				t.Errorf("rules stay in the pods, or on the host: %v", r.host())
			}
			if got := r.api.redirection("team/a") + r.api.redirection("team/b"); got != tt.said+tt.said {
				t.Errorf("annotated %q", got)
			}
			// Nobody comes back.
			r.api.set(func() { delete(r.api.refuse, "*") })
			r.pod("team/c", "u3", "", nil)
			if ok, err := r.plugin().CNIAdd(t.Context(), starting("team/c", "u3", "10.0.0.4"), netnstest.New(t)); ok || err == nil && len(r.set.Pods()) > 0 {
				t.Errorf("ADD after the end = %v, %v", ok, err)
			}
		})
	}
}

// TestLeaveAllBehind: pods that cannot be opened again are told of; whoever uninstalls has to restart them.
func TestLeaveAllBehind(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.capture = func(p podset.Pod) (podset.Capture, error) {
		c, err := redirect.New(p.NS, *p.Options)
		return stubborn{c}, err
	}
	r.run(nil)
	r.says("team/a", "enabled")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	left := r.agent.LeaveAll(ctx)
	if len(left) != 1 || left[0].Pod.UID != "u1" || !errors.Is(left[0].Err, podset.ErrBehind) || !errors.Is(left[0].Err, unix.ENOMEM) {
		t.Errorf("left %+v", left)
	}
}

// TestEndWithoutLeaving: after an upgrade's end the rules are where they were.
func TestEndWithoutLeaving(t *testing.T) {
	r := newRig(t)
	pod := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")
	r.end()
	if !rules(t, pod) || r.api.redirection("team/a") != "enabled" || len(r.host()) != 1 {
		t.Errorf("the agent's end took the pod out: %q, %v", r.api.redirection("team/a"), r.host())
	}
}

// TestAPIServerAway: trouble with the API server takes nobody out, and what fails comes right when it is back.
func TestAPIServerAway(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.api.refuse["PATCH status"] = 500
	r.run(nil)
	<-r.agent.Ready()
	r.eventually(func() string {
		if _, there := r.set.Pod("u1"); !there {
			return "not enrolled"
		}
		return ""
	})
	r.api.set(func() { r.api.refuse["PATCH status"] = 0 })
	r.says("team/a", "enabled")
	r.api.set(func() { r.api.refuse["*"] = 403 })
	r.api.srv.CloseClientConnections()
	r.eventually(func() string { // the informers have noticed
		r.api.mu.Lock()
		defer r.api.mu.Unlock()
		if r.api.refused == 0 {
			return "nobody asked"
		}
		return ""
	})
	if st, there := r.set.Pod("u1"); !there {
		t.Errorf("the pod was taken out: %v", st)
	}
}

// TestHostRulesFail: what is wrong with probes is told and tried again, and keeps nobody out.
func TestHostRulesFail(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.hostErr = errNo
	r.run(nil)
	r.says("team/a", "enabled")
	r.with(func() { r.hostErr = nil })
	r.eventually(func() string {
		if got := r.host(); got[netip.MustParseAddr("10.0.0.2")] != "u1" {
			return fmt.Sprint(got)
		}
		return ""
	})
	if err := r.agent.WithAddresses(func(m map[netip.Addr]string) error {
		if len(m) != 1 || m[netip.MustParseAddr("10.0.0.2")] != "u1" {
			return fmt.Errorf("addresses %v", m)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestManyPods: a namespace of many pods is enrolled with few searches.
func TestManyPods(t *testing.T) {
	r := newRig(t)
	r.namespace("team", nil, nil)
	const pods = 40
	for i := range pods {
		ip := fmt.Sprintf("10.0.1.%d", i+1)
		r.process(fmt.Sprint("u", i), ip)
		r.pod(fmt.Sprint("team/p", i), fmt.Sprint("u", i), ip, nil)
	}
	r.run(func(c *kubenode.Config) { c.Finder = slow{r} })
	<-r.agent.Ready()
	r.namespace("team", ambient, nil)
	for i := range pods {
		r.says(fmt.Sprint("team/p", i), "enabled")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.searches > pods*3/4 {
		t.Errorf("%d searches for %d pods", r.searches, pods)
	}
	r.api.mu.Lock()
	defer r.api.mu.Unlock()
	if r.api.patches > 2*pods {
		t.Errorf("%d patches for %d pods", r.api.patches, pods)
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := kubenode.New(kubenode.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
}

// slow is a search that takes as long as one of a real /proc.
type slow struct{ kubenode.Finder }

func (s slow) Find(ctx context.Context, wanted map[string]procns.Wanted) (map[string]*netns.NS, []procns.Problem) {
	time.Sleep(20 * time.Millisecond)
	return s.Finder.Find(ctx, wanted)
}
