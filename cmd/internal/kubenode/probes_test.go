package kubenode_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// heeding notes at which addresses a pod heeds the mark of probes, and complains when the host does not guard one of them.
type heeding struct {
	*rig
	mu    sync.Mutex
	addrs []netip.Addr
}

type heedingCapture struct {
	podset.Capture
	h     *heeding
	addrs []netip.Addr
}

func (c heedingCapture) Apply() ([]redirect.Finding, error) {
	guarded := c.h.host()
	for _, addr := range c.addrs {
		if guarded[addr] == "" {
			c.h.t.Errorf("the pod heeds the mark at %s, where the host guards it not yet", addr)
		}
	}
	left, err := c.Capture.Apply()
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.addrs = c.addrs
	return left, err
}

// Remove implements kubenode.HostRules.
func (h *heeding) Remove(addr netip.Addr, uid string) error {
	if h.heeds(addr) {
		h.t.Errorf("the host guards %s no more, where the pod heeds the mark still", addr)
	}
	return h.rig.Remove(addr, uid)
}

func (h *heeding) heeds(addr netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.addrs, addr)
}

// at waits until the pod heeds the mark at exactly these addresses, and the host guards them alone.
func (h *heeding) at(want ...string) {
	h.t.Helper()
	h.eventually(func() string {
		h.mu.Lock()
		got := fmt.Sprint(h.addrs)
		h.mu.Unlock()
		if guarded := len(h.host()); got != fmt.Sprint(want) || guarded != len(want) {
			return fmt.Sprintf("the pod heeds the mark at %v, and the host guards %d addresses; want %v", got, guarded, want)
		}
		return ""
	})
}

func newHeeding(t *testing.T) *heeding {
	h := &heeding{rig: newRig(t)}
	h.namespace("team", ambient, nil)
	h.capture = func(p podset.Pod) (podset.Capture, error) {
		c, err := redirect.New(p.NS, *p.Options)
		return heedingCapture{c, h, p.Options.ProbeAddresses}, err
	}
	return h
}

func (h *heeding) start() {
	h.run(func(c *kubenode.Config) {
		c.HostRules = h
		c.Options = func() redirect.Options {
			return redirect.Options{ProbeMark: true, NodeAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
		}
	})
}

// TestWhereProbesAreHeeded: a pod heeds the mark of probes at the addresses that the host guards, as long as it does: first
// those that the CNI plugin was given, then those of its status.
func TestWhereProbesAreHeeded(t *testing.T) {
	h := newHeeding(t)
	h.pod("team/a", "u1", "", nil)
	h.start()
	ns := h.process("u1", "10.0.0.2")
	if enrolled, err := h.plugin().CNIAdd(t.Context(), starting("team/a", "u1", "10.0.0.2", "fd00::2", "::1"), dup(t, ns)); !enrolled || err != nil {
		t.Fatalf("ADD = %v, %v", enrolled, err)
	}
	if !h.heeds(netip.MustParseAddr("10.0.0.2")) || !h.heeds(netip.MustParseAddr("fd00::2")) {
		t.Error("a starting pod refuses its probes")
	}
	h.says("team/a", "enabled")
	addresses := func(ips ...string) {
		h.pod("team/a", "u1", "", func(o object) {
			var list []any
			for _, ip := range ips {
				list = append(list, object{"ip": ip})
			}
			o["status"].(object)["podIPs"] = list
		})
	}
	addresses("10.0.0.2")
	h.at("10.0.0.2")
	addresses("10.0.0.2", "fd00::7")
	h.at("10.0.0.2", "fd00::7")
	h.with(func() { h.hostErr = errNo })
	addresses("10.0.0.2", "fd00::8")
	h.eventually(func() string {
		if h.heeds(netip.MustParseAddr("fd00::7")) {
			return "the pod heeds the mark at an address that it has no more"
		}
		return ""
	})
	if !h.heeds(netip.MustParseAddr("10.0.0.2")) {
		t.Error("the pod refuses its probes at one address because of another")
	}
	h.with(func() { h.hostErr = nil })
	h.at("10.0.0.2", "fd00::8")
}

// TestProbesOfPodsNotFound: the host goes on guarding the address of a pod that an earlier agent has enrolled and this one does
// not find at its start.
func TestProbesOfPodsNotFound(t *testing.T) {
	h := newHeeding(t)
	h.pod("team/a", "u1", "10.0.0.2", nil)
	h.start()
	select {
	case <-h.agent.Ready():
	case <-time.After(patience):
		t.Fatal("the agent is not ready")
	}
	if err := h.agent.WithAddresses(func(addrs map[netip.Addr]string) error {
		if fmt.Sprint(addrs) != "map[10.0.0.2:u1]" {
			t.Errorf("addresses of pods are %v", addrs)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	h.process("u1", "10.0.0.2")
	h.at("10.0.0.2")
}

// TestProbesOfRunningPods: a pod that an earlier agent has enrolled, and let heed the mark at any address, heeds it where the
// host guards it.
func TestProbesOfRunningPods(t *testing.T) {
	h := newHeeding(t)
	ns := h.process("u1", "10.0.0.2")
	earlier, err := redirect.New(ns, redirect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := earlier.Apply(); err != nil {
		t.Fatal(err)
	}
	h.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
	})
	h.start()
	h.at("10.0.0.2")
	h.end()
	now, err := redirect.New(ns, redirect.Options{ProbeMark: true,
		NodeAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, ProbeAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	if found, err := now.Verify(); err != nil || len(found) > 0 {
		t.Errorf("Verify: %v, %v", found, err)
	}
}
