package hostrules_test

import (
	"os"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/hostrules"
)

const (
	kubeletUID = 23001
	otherUID   = 23002

	forged = hostrules.Mark << 2
)

// want says what a process is served by: the application directly, or the agent.
type want struct {
	process *process
	name    string
	addr    string
	tos     int
	server  string // and the address that it sees
}

func check(t *testing.T, all []want) {
	t.Helper()
	for _, w := range all {
		if got := w.process.dial(w.addr, w.tos); got != w.server {
			t.Errorf("%s to %s with TOS %#x is served by %q, want %q", w.name, w.addr, w.tos, got, w.server)
		}
	}
}

// TestKubeletByUID: where there is no cgroup to go by, the kubelet's uid passes, from the
// node's own address, and nobody else, with a forged mark or without, from the host, from
// another pod through it, or from a neighbour on its bridge. Without the host's rules the
// forgers would pass: the control.
func TestKubeletByUID(t *testing.T) {
	l := newLab(t)
	r := l.rules(hostrules.Kubelet{Comm: "kubelet", UID: kubeletUID})
	kubelet := l.start(l.host, "kubelet", kubeletUID, nil)
	other := l.start(l.host, "other", otherUID, nil)
	root := l.start(l.host, "root", 0, nil)
	foreign := l.start(l.other, "foreign", kubeletUID, nil) // the same uid in another pod
	neighbour := l.start(l.neighbour, "neighbour", kubeletUID, nil)
	// A network policy of the host, which knows addresses: the node's own may.
	l.shell(`nft 'table inet netpol {
		chain output { type filter hook postrouting priority 0; ip daddr 10.1.0.2 tcp dport 8080 ip saddr != { 10.1.0.1, 10.2.0.2 } drop; }
	}'`)
	check(t, []want{
		{kubelet, "kubelet", "10.1.0.2:8080", 0, "app for 10.1.0.1"},
		{kubelet, "kubelet", "[fd01::2]:8080", 0, "app for fd01::1"},
		{kubelet, "kubelet", "10.3.0.2:8080", 0, "app for 10.3.0.1"},
		{kubelet, "kubelet", "[fd03::2]:8080", 0, "app for fd03::1"},
		{kubelet, "kubelet with other bits", "10.1.0.2:8080", 0x03 | 8<<2, "app for 10.1.0.1"},
		{kubelet, "kubelet at the agent's port", "10.1.0.2:15001", 0, "15006 for 10.1.0.1"},

		{other, "other", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
		{other, "other", "[fd01::2]:8080", 0, "15006 for fd01::1"},
		{other, "forger", "10.1.0.2:8080", forged, "15006 for 10.1.0.1"},
		{other, "forger", "[fd01::2]:8080", forged, "15006 for fd01::1"},
		{other, "forger with ECN", "10.1.0.2:8080", forged | 2, "15006 for 10.1.0.1"},
		{root, "root", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
		{root, "forging root", "10.1.0.2:8080", forged, "15006 for 10.1.0.1"},

		{foreign, "pod", "10.1.0.2:8080", 0, "15006 for 10.2.0.2"},
		{foreign, "forging pod", "10.1.0.2:8080", forged, "15006 for 10.2.0.2"},
		{foreign, "forging pod", "[fd01::2]:8080", forged, "15006 for fd02::2"},
		{neighbour, "neighbour", "10.3.0.2:8080", 0, "15006 for 10.3.0.3"},
		{neighbour, "forging neighbour", "10.3.0.2:8080", forged, "15006 for 10.3.0.3"},
		{neighbour, "forging neighbour", "[fd03::2]:8080", forged, "15006 for fd03::3"},
	})

	l.must(r.Delete())
	check(t, []want{
		{kubelet, "kubelet without rules", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
		{other, "control: forger", "10.1.0.2:8080", forged, "app for 10.1.0.1"},
		{other, "control: forger", "[fd01::2]:8080", forged, "app for fd01::1"},
		{foreign, "control: forging pod", "10.1.0.2:8080", forged, "app for 10.2.0.2"},
		{foreign, "control: forging pod", "[fd01::2]:8080", forged, "app for fd02::2"},
		{neighbour, "control: forging neighbour", "10.3.0.2:8080", forged, "app for 10.3.0.3"},
		{neighbour, "control: forging neighbour", "[fd03::2]:8080", forged, "app for fd03::3"},
	})
}

// TestKubeletByCgroup: with cgroup v2 the same uid in another cgroup does not pass, nor in
// one below the kubelet's, nor another uid in the kubelet's own.
func TestKubeletByCgroup(t *testing.T) {
	dirs, path := newCgroup(t, "kubelet.service", "other.service", "kubelet.service/child")
	l := newLab(t)
	l.rules(hostrules.Kubelet{
		Comm: "kubelet", UID: kubeletUID, Cgroup: path, CgroupID: cgroupID(t, dirs[0]),
		Levels: []uint32{1, uint32(strings.Count(path, "/")), 7}, // wrong ones match nothing
	})
	kubelet := l.start(l.host, "kubelet", kubeletUID, dirs[0])
	outside := l.start(l.host, "outside", kubeletUID, nil)
	sibling := l.start(l.host, "sibling", kubeletUID, dirs[1])
	child := l.start(l.host, "child", kubeletUID, dirs[2])
	other := l.start(l.host, "other", otherUID, dirs[0])
	root := l.start(l.host, "root", 0, dirs[0])
	all := []want{
		{kubelet, "kubelet", "10.1.0.2:8080", 0, "app for 10.1.0.1"},
		{kubelet, "kubelet", "[fd01::2]:8080", 0, "app for fd01::1"},
	}
	for _, p := range []struct {
		*process
		name string
	}{{outside, "same uid"}, {sibling, "sibling"}, {child, "child"}, {other, "other uid"}, {root, "root"}} {
		all = append(all,
			want{p.process, p.name, "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
			want{p.process, p.name, "10.1.0.2:8080", forged, "15006 for 10.1.0.1"},
			want{p.process, p.name, "[fd01::2]:8080", forged, "15006 for fd01::1"})
	}
	check(t, all)
}

// TestServiceIsNoProbe: what the kubelet's process sends to the address of a Service that
// leads to an enrolled pod is no probe (in k3s the API server is the same process).
func TestServiceIsNoProbe(t *testing.T) {
	l := newLab(t)
	l.rules(hostrules.Kubelet{Comm: "kubelet", UID: kubeletUID})
	l.shell(`nft 'table inet proxy {
		chain output { type nat hook output priority -100; ip daddr 10.96.0.7 dnat ip to 10.1.0.2; }
		chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.7 dnat ip to 10.1.0.2; }
	}'`)
	l.shell("ip route add 10.96.0.0/16 dev pod1")
	kubelet := l.start(l.host, "kubelet", kubeletUID, nil)
	other := l.start(l.host, "other", otherUID, nil)
	foreign := l.start(l.other, "foreign", otherUID, nil)
	check(t, []want{
		{kubelet, "kubelet by Service", "10.96.0.7:8080", 0, "15006 for 10.1.0.1"},
		{other, "forger by Service", "10.96.0.7:8080", forged, "15006 for 10.1.0.1"},
		{foreign, "forging pod by Service", "10.96.0.7:8080", forged, "15006 for 10.2.0.2"},
	})
}

// TestProbesEnded: a pod whose capture does not trust the mark, and one that the host does
// not know, are reached by nobody directly.
func TestProbesEnded(t *testing.T) {
	l := newLab(t)
	r := l.rules(hostrules.Kubelet{Comm: "kubelet", UID: kubeletUID})
	kubelet := l.start(l.host, "kubelet", kubeletUID, nil)
	l.capture(l.pod, redirect.Options{NodeAddresses: l.nodeAddresses()})
	check(t, []want{{kubelet, "kubelet", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"}})
	l.must(r.Apply(nil))
	check(t, []want{{kubelet, "kubelet", "10.3.0.2:8080", 0, "15006 for 10.3.0.1"}})
}

func TestMissingConfig(t *testing.T) {
	if _, err := hostrules.New(hostrules.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
	if os.Getenv(roleVariable) != "" {
		t.Error("the role is set")
	}
}
