package netlab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

const closeWait = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"

func (m *mesh) applyPods(node string) {
	m.t.Helper()
	if err := m.ApplyPods(node); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) sysctl(p *netlab.Pod, name string) string {
	m.t.Helper()
	value, err := p.ReadSysctl(name)
	if err != nil {
		m.t.Fatal(err)
	}
	return value
}

// Reference 10.4 test_server_shutdown: a pod is taken from the list while its application runs. What it has goes on,
// nobody reaches it under its identity any more, nothing is left in it, and it may come back.
func TestPodLeavesAndComesBack(t *testing.T) {
	m := build(t, withFlags("--drain-timeout=60s"))
	before := m.sysctl(m.remote, closeWait)
	m.start()
	in, out := m.hold(m.client, m.remote), m.hold(m.remote, m.client)
	m.remote.SetCaptured(false)
	m.applyPods(nodeB)
	m.eventually("new connections are refused", func() bool { _, err := m.call(m.client, at(m.remote)); return err != nil })
	m.refused(m.client, at(m.remote))
	m.mustCall(m.remote, at(m.plain), "plain")
	m.mustCall(m.plain, at(m.remote), "remote")
	m.alive(in, "into a pod that leaves")
	m.alive(out, "out of a pod that leaves")
	if state := m.dump(m.b).WorkloadState[m.remote.Workload.UID]; state == nil || state.State == "Up" || len(state.Connections.Inbound) != 1 || len(state.Connections.Outbound) != 1 {
		t.Errorf("dump of a pod that leaves: %+v", state)
	}
	m.finish(in)
	m.finish(out)
	m.eventually("pod has left", func() bool { return m.dump(m.b).WorkloadState[m.remote.Workload.UID] == nil })
	m.wantNoRules(m.remote)
	if after := m.sysctl(m.remote, closeWait); after != before {
		t.Errorf("%s is %s, was %s before", closeWait, after, before)
	}
	records := len(m.b.AccessLog())
	m.mustCall(m.remote, at(m.client), "client") // from outside the mesh now
	m.record(m.a, netlab.Record{"direction": "inbound", "src.workload": "remote", "src.identity": ""})
	m.remote.Workload.Protocol = "TCP"
	m.apply()
	m.eventually("reached plainly", func() bool { _, err := m.call(m.client, at(m.remote)); return err == nil })
	if log := m.b.AccessLog(); len(log) != records {
		t.Errorf("the agent sees a pod that has left: %v", log[records:])
	}

	m.remote.Workload.Protocol = "HBONE"
	m.apply()
	m.remote.SetCaptured(true)
	m.applyPods(nodeB)
	m.eventually("enrolled again", func() bool {
		state := m.dump(m.b).WorkloadState[m.remote.Workload.UID]
		return state != nil && state.State == "Up"
	})
	// The endpoint that refused is tried again, under its identity.
	m.mustCall(m.client, at(m.remote), "remote")
	m.record(m.b, netlab.Record{"direction": "inbound", "src.identity": spiffe("client"), "dst.identity": spiffe("remote")})
	m.mustCall(m.remote, at(m.client), "client")
	m.record(m.a, netlab.Record{"direction": "inbound", "src.identity": spiffe("remote"), "dst.identity": spiffe("client")})
}

// A pod whose connections do not end by themselves has left at the deadline, and both ends know.
func TestPodLeavesAtTheDeadline(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withFlags("--drain-timeout=1s"))
	in, out, passed := m.hold(m.client, m.remote), m.hold(m.remote, m.client), m.hold(m.plain, m.remote)
	m.remote.SetCaptured(false)
	m.applyPods(nodeB)
	for _, s := range []*session{in, out, passed} {
		m.wantReset(s)
	}
	m.eventually("pod has left", func() bool { return m.dump(m.b).WorkloadState[m.remote.Workload.UID] == nil })
	m.wantNoRules(m.remote)
	m.record(m.b, netlab.Record{"direction": "inbound", "src.workload": "client", "error": "connection closed due to connection drain"})
	m.record(m.b, netlab.Record{"direction": "inbound", "src.workload": "plain", "error": "connection closed due to connection drain"})
	m.mustCall(m.remote, at(m.plain), "plain")
}

// A pod's network goes before the list says so: the others do not notice, and the agent lets go of the namespace.
func TestPodVanishes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withFlags("--drain-timeout=1s"))
	m.hold(m.client, m.local)
	m.hold(m.local, m.remote)
	netns := m.local.NS().String()
	err := m.local.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err == nil {
		err = os.Remove(m.local.Path())
	}
	if err != nil {
		t.Fatal(err)
	}
	m.refused(m.local, at(m.remote))
	m.mustCall(m.client, at(m.remote), "remote")
	// A list that names a namespace that is not there is taken all the same: the pod is served as before.
	ghost, err := m.AddPod(nodeA, ns, "ghost")
	if err == nil {
		err = os.Remove(ghost.Path())
	}
	if err != nil {
		t.Fatal(err)
	}
	late, err := m.AddPod(nodeA, ns, "late")
	if err != nil {
		t.Fatal(err)
	}
	m.serve(late, 8080)
	m.apply()
	m.applyPods(nodeA)
	m.eventually("others enrolled", func() bool {
		state := m.dump(m.a).WorkloadState[late.Workload.UID]
		return state != nil && state.State == "Up"
	})
	m.mustCall(m.client, at(late), "late")
	for _, p := range []*netlab.Pod{ghost, m.local} {
		if line := ": pod default/" + p.Name() + ": open network namespace " + p.Path() + ": no such file or directory"; !strings.Contains(m.a.Log(), line) {
			t.Errorf("the log does not say %q", line)
		}
	}
	m.local.SetCaptured(false)
	ghost.SetCaptured(false)
	m.applyPods(nodeA)
	m.eventually("namespace is let go of", func() bool { return !m.holds(m.a, netns) })
	m.mustCall(m.client, at(m.remote), "remote")
}

// holds reports whether an agent has a namespace open.
func (m *mesh) holds(a *netlab.Agent, netns string) bool {
	m.t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", a.Process().Pid()))
	if err != nil || len(paths) == 0 {
		m.t.Fatalf("list descriptors: %v", err)
	}
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil && target == netns {
			return true
		}
	}
	return false
}

// A port that an application has is told for its pod only: the others work, and it is enrolled once the port is free.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	m := build(t)
	dns, err := m.AddPod(nodeA, ns, "dns")
	if err != nil {
		t.Fatal(err)
	}
	m.serve(dns, 8080)
	m.serve(dns, 15053)
	free := make(map[*netlab.Pod]func() error)
	tcp, err := m.local.Listen(context.Background(), "[::]:15001")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	free[m.local] = tcp.Close
	udp, err := dns.ListenPacket(context.Background(), "127.0.0.1:15053")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udp.Close() })
	hbone, err := m.AddPod(nodeA, ns, "hbone")
	if err != nil {
		t.Fatal(err)
	}
	l, err := hbone.Listen(context.Background(), hbone.Addr().String()+":15008")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	free[hbone] = l.Close
	m.serve(hbone, 8080)
	m.start()
	m.mustCall(m.client, at(m.remote), "remote")
	states := m.dump(m.a).WorkloadState
	for p, port := range map[*netlab.Pod]int{m.local: 15001, dns: 15053, hbone: 15008} {
		state := states[p.Workload.UID]
		if want := fmt.Sprintf("port %d is taken in the pod", port); state == nil || state.State != "Pending" || !strings.Contains(state.Error, want) {
			t.Errorf("dump of pod %s: %+v", p.Name(), state)
		} else if !strings.Contains(m.a.Log(), `"pod":"default/`+p.Name()+`"`) || !strings.Contains(m.a.Log(), want) {
			t.Errorf("the log does not say that %s", want)
		}
	}
	m.wantMetric(m.a, "culvert_pods", 3, `state="failed"`)
	m.wantMetric(m.a, "culvert_pods", 1, `state="enrolled"`)
	for _, close := range free {
		if err := close(); err != nil {
			t.Fatal(err)
		}
	}
	for p := range free {
		err := m.a.Wait(3*patience, "serving "+p.Name(), func() (bool, error) {
			state := m.dump(m.a).WorkloadState[p.Workload.UID]
			return state != nil && state.State == "Up" && state.Error == "", nil
		})
		if err != nil {
			t.Fatal(err)
		}
		m.mustCall(m.client, at(p), p.Name())
	}
	m.wantMetric(m.a, "culvert_pods", 1, `state="failed"`)
	m.refused(m.client, at(dns)) // announced, but not served
}
