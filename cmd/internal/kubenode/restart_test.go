package kubenode_test

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// TestRestartIsQuick: an agent that can serve at once what an earlier one has enabled is ready then, and does not wait for
// the time that it would give a certificate.
func TestRestartIsQuick(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.process("u1", "10.0.0.2")
	r.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
	})
	r.run(nil)
	select {
	case <-r.agent.Ready():
	case <-time.After(10 * time.Second):
		t.Error("not ready, though everything is in place")
	}
}

// TestStaleAnnotations: what a pod says at the agent's start is put right, also where nothing of it was ever captured.
func TestStaleAnnotations(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("other", nil, nil)
	r.namespace("team", ambient, nil)
	enabled := func(change func(object)) func(object) {
		return func(o object) {
			o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
			if change != nil {
				change(o)
			}
		}
	}
	r.pod("other/out", "u1", "10.0.0.2", enabled(nil))
	r.pod("team/on-host", "u2", "192.0.2.1", enabled(func(o object) { o["spec"].(object)["hostNetwork"] = true }))
	r.pod("team/ended", "u3", "10.0.0.3", enabled(func(o object) { o["status"].(object)["phase"] = "Failed" }))
	r.pod("team/lost", "u4", "10.0.0.4", enabled(nil)) // no process can be found
	r.run(nil)
	r.says("other/out", "")
	r.says("team/on-host", "")
	r.says("team/ended", "")
	r.says("team/lost", "pending")
	<-r.agent.Ready()
}

// TestTakenUpAgain: rules that an earlier agent has left are taken up, or taken away when the pod is out by now.
func TestTakenUpAgain(t *testing.T) {
	r := newRig(t)
	in, out, dead := r.process("u1", "10.0.0.2"), r.process("u2", "10.0.0.3"), r.process("u3", "10.0.0.4")
	for _, ns := range []*netns.NS{in, out, dead} {
		c, err := redirect.New(ns, redirect.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Apply(); err != nil {
			t.Fatal(err)
		}
	}
	enabled := func(o object) {
		o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
	}
	r.namespace("team", ambient, nil)
	r.namespace("other", nil, nil)
	r.pod("team/a", "u1", "10.0.0.2", enabled)
	r.pod("other/b", "u2", "10.0.0.3", enabled)
	r.pod("team/restarted", "u4", "", enabled) // the node was started again: no sandbox yet
	r.certErr = errNo
	r.run(nil)
	r.says("other/b", "")
	r.says("team/restarted", "pending")
	if rules(t, out) {
		t.Error("the rules of a pod that is out stay: its traffic is refused for ever")
	}
	if _, there := r.set.Pod("u1"); !there || !rules(t, in) || r.api.redirection("team/a") != "enabled" {
		t.Errorf("the pod was not taken up, or others were sent to plaintext meanwhile: %q", r.api.redirection("team/a"))
	}
	select {
	case <-r.agent.Ready():
		t.Error("ready without the certificate of an enabled pod: the earlier agent, which has it, would end")
	default:
	}
	r.with(func() { r.certErr = nil })
	r.eventually(func() string {
		if st, _ := r.set.Pod("u1"); st.State != podset.Enrolled {
			return "not enrolled"
		}
		return ""
	})
	r.says("team/a", "enabled")
	<-r.agent.Ready()
}

// TestLeftBehind: an agent that ended before it said so on the pod leaves rules that only a look into the pod's namespace
// finds. Those of pods that are out go, unless another agent serves connections there still.
func TestLeftBehind(t *testing.T) {
	r := newRig(t)
	out, served, in, foreign := r.process("u1", "10.0.0.2"), r.process("u2", "10.0.0.3"), r.process("u3", "10.0.0.4"), r.process("u4", "10.0.0.5")
	for _, ns := range []*netns.NS{out, served, in} {
		c, err := redirect.New(ns, redirect.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Apply(); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := served.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0, redirect.AgentMark)
	if err != nil {
		t.Fatal(err)
	}
	open := os.NewFile(uintptr(fd), "socket of the other agent")
	t.Cleanup(func() { _ = open.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{}); err != nil {
		t.Fatal(err)
	}
	r.namespace("team", ambient, nil)
	r.namespace("other", nil, nil)
	r.pod("other/a", "u1", "10.0.0.2", nil)
	r.pod("other/b", "u2", "10.0.0.3", nil)
	r.pod("team/c", "u3", "10.0.0.4", nil)
	r.pod("other/d", "u4", "10.0.0.5", nil)
	r.run(nil)
	r.says("team/c", "enabled")
	r.eventually(func() string {
		if rules(t, out) {
			return "the rules of a pod that is out stay: its traffic is refused for ever"
		}
		return ""
	})
	if !rules(t, in) || !rules(t, served) || rules(t, foreign) {
		t.Errorf("rules: %v of the pod that is in, %v of the one that another agent serves, %v of one that never had any", rules(t, in), rules(t, served), rules(t, foreign))
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	r.eventually(func() string {
		if rules(t, served) {
			return "the rules stay when the other agent has gone"
		}
		return ""
	})
}

// TestLeftBehindIsTriedAgain: what cannot be removed at once is not given up, or the pod's traffic would be refused for ever.
func TestLeftBehindIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("other", nil, nil)
	r.pod("other/a", "u1", "10.0.0.2", nil)
	var looks atomic.Int32
	r.run(func(c *kubenode.Config) {
		c.Clean = func(*netns.NS) (bool, error) {
			if looks.Add(1) < 3 {
				return false, errors.New("no buffer space available")
			}
			return false, nil
		}
	})
	r.eventually(func() string {
		if n := looks.Load(); n < 3 {
			return fmt.Sprintf("looked %d times", n)
		}
		return ""
	})
}

// TestSuperseded: an agent that is on its way out leaves the annotation to its successor, and is the one to write it again
// when that goes away.
func TestSuperseded(t *testing.T) {
	r := newRig(t)
	old := func(yes bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.old = yes
		r.askedOld.Store(0)
	}
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	old(true)
	r.run(nil)
	<-r.agent.Ready()
	asks := func() { // for longer than events of the pod make it ask
		t.Helper()
		r.eventually(func() string {
			if n := r.askedOld.Load(); n < 5 {
				return fmt.Sprintf("asked %d times whether there is a successor", n)
			}
			return ""
		})
	}
	asks()
	if _, there := r.set.Pod("u1"); !there || r.api.redirection("team/a") != "" {
		t.Errorf("annotated %q by an agent that has a successor", r.api.redirection("team/a"))
	}
	old(false)
	r.says("team/a", "enabled")
	old(true)
	r.namespace("team", nil, nil)
	asks()
	if _, there := r.set.Pod("u1"); there || r.api.redirection("team/a") != "enabled" {
		t.Errorf("pod there: %t, annotated %q by an agent that has a successor", there, r.api.redirection("team/a"))
	}
	old(false)
	r.says("team/a", "")
}
