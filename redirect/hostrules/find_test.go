package hostrules_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// proc is a made-up /proc.
type proc struct {
	t    *testing.T
	root string
}

type fake struct {
	comm, args, cgroup string
	uid                int
	host               bool // in the host's network namespace
}

func newProc(t *testing.T) proc {
	p := proc{t, t.TempDir()}
	p.write("1/mountinfo", "25 1 0:20 / /proc rw - proc proc rw\n")
	p.write("meminfo", "")
	p.write("self/comm", "kubelet\n")
	return p
}

func (p proc) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// add makes a process.
func (p proc) add(pid int, f fake, ns *netns.NS) {
	p.t.Helper()
	dir := fmt.Sprint(pid)
	p.write(dir+"/comm", f.comm+"\n")
	p.write(dir+"/cmdline", f.args)
	p.write(dir+"/status", fmt.Sprintf("Name:\t%s\nUid:\t1\t2\t3\t%d\n", f.comm, f.uid))
	p.write(dir+"/stat", fmt.Sprintf("%d (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 0 0\n", pid, 1000+pid))
	p.write(dir+"/cgroup", f.cgroup)
	if err := os.MkdirAll(filepath.Join(p.root, dir, "ns"), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if !f.host {
		ns = netnstest.New(p.t)
	}
	var target string
	if err := ns.Control(func(fd int) error { target = fmt.Sprintf("/proc/self/fd/%d", fd); return nil }); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(p.root, dir, "ns", "net")); err != nil {
		p.t.Fatal(err)
	}
}

func TestFindKubelet(t *testing.T) {
	const own = "0::/system.slice/kubelet.service\n"
	kubelet := fake{comm: "kubelet", cgroup: own, host: true}
	with := func(change func(*fake)) fake {
		f := kubelet
		change(&f)
		return f
	}
	none := hostrules.ErrNoKubelet.Error()
	for _, tt := range []struct {
		name  string
		procs map[int]fake
		pid   int
		err   string
	}{
		{name: "none", err: none},
		{name: "alone", procs: map[int]fake{40: kubelet, 41: {comm: "bash", host: true}}, pid: 40},
		{name: "older_wins_in_one_cgroup", procs: map[int]fake{50: kubelet, 40: kubelet}, pid: 40},
		{name: "pod_network", procs: map[int]fake{40: with(func(f *fake) { f.host = false })}, err: none},
		{name: "in_pod_v2", procs: map[int]fake{30: with(func(f *fake) {
			f.cgroup = "0::/kubepods.slice/kubepods-besteffort.slice/cri-containerd-1.scope\n"
		}), 40: kubelet}, pid: 40},
		{name: "in_pod_v1", procs: map[int]fake{30: with(func(f *fake) { f.cgroup = "5:memory:/kubepods/pod1/c\n0::/\n" })}, err: none},
		{name: "in_pod_kind", procs: map[int]fake{30: with(func(f *fake) { f.cgroup = "0::/kubelet.slice/kubelet-kubepods.slice/x\n" })}, err: none},
		{name: "in_pod_below", procs: map[int]fake{30: with(func(f *fake) { f.cgroup = "4:cpu:/node2/kubepods/burstable/x\n" })}, err: none},
		{name: "user_process", procs: map[int]fake{30: with(func(f *fake) { f.uid = 1000 })}, err: none},
		{name: "two", procs: map[int]fake{30: with(func(f *fake) { f.cgroup = "0::/user.slice\n" }), 40: kubelet}, err: "could be it"},
		{name: "kubelite", procs: map[int]fake{40: with(func(f *fake) { f.comm, f.args = "kubelite", "/snap/kubelite\x00--kubelet-args-file=x\x00" })}, pid: 40},
		{name: "kubelite_without", procs: map[int]fake{40: with(func(f *fake) { f.comm, f.args = "kubelite", "/snap/kubelite\x00" })}, err: none},
		{name: "k3s", procs: map[int]fake{40: with(func(f *fake) { f.comm, f.args = "k3s-server", "/usr/local/bin/k3s server" })}, pid: 40},
		{name: "k3s_agent", procs: map[int]fake{40: with(func(f *fake) { f.comm, f.args = "k3s", "k3s\x00agent\x00" })}, pid: 40},
		{name: "k3s_command", procs: map[int]fake{40: with(func(f *fake) { f.comm, f.args = "k3s", "k3s\x00kubectl\x00get\x00server\x00" })}, err: none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, host := newProc(t), netnstest.New(t)
			for pid, f := range tt.procs {
				p.add(pid, f, host)
			}
			k, err := hostrules.FindKubelet(p.root, host)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || (tt.err == none) != errors.Is(err, hostrules.ErrNoKubelet) {
					t.Errorf("found %v, %v, want %q", k, err, tt.err)
				}
				return
			}
			if err != nil || k.PID != tt.pid || k.UID != 0 || k.CgroupID != 0 || !strings.Contains(k.NoCgroup, "not mounted") {
				t.Errorf("found %+v, %v, want %d", k, err, tt.pid)
			}
		})
	}
	if _, err := hostrules.FindKubelet(filepath.Join(t.TempDir(), "absent"), netnstest.New(t)); err == nil {
		t.Error("found a kubelet in nothing")
	}
}

// TestFindAndPass: a real process that is called kubelet is found with its cgroup, its
// probes pass, and when it comes back in another cgroup it is found again.
func TestFindAndPass(t *testing.T) {
	dirs, path := newCgroup(t, "kubelet.service", "kubelet2.service")
	l := newLab(t)
	find := func() (hostrules.Kubelet, error) { return hostrules.FindKubelet("/proc", l.host) }
	r, err := hostrules.New(hostrules.Config{NS: l.host, Kubelet: find})
	l.must(err)
	l.must(r.Apply(l.pods()))
	if found, err := r.SelfTest(t.Context()); err != nil || kinds(found) != "missing" {
		t.Errorf("without a kubelet SelfTest has found %v, %v", found, err)
	}

	first := l.start(l.host, "kubelet", 0, dirs[0])
	mate := l.start(l.host, "mate", 0, dirs[0])
	k, err := find()
	l.must(err)
	if k.PID != first.cmd.Process.Pid || k.Cgroup != path || k.CgroupID != cgroupID(t, dirs[0]) || k.UID != 0 || k.Comm != "kubelet" {
		t.Errorf("found %+v, want pid %d in %s", k, first.cmd.Process.Pid, path)
	}
	l.repaired(r)
	check(t, []want{{first, "kubelet", "10.1.0.2:8080", 0, "app for 10.1.0.1"}})
	found, err := r.SelfTest(t.Context())
	if err != nil || kinds(found) != "uid" || !strings.Contains(found[0].Text, fmt.Sprintf("mate (pid %d)", mate.cmd.Process.Pid)) {
		t.Errorf("SelfTest has found %v, %v, want the mate in the cgroup", found, err)
	}

	first.stop()
	l.verified(r) // it is away; what was known stays
	second := l.start(l.host, "kubelet", 0, dirs[1])
	check(t, []want{{second, "kubelet not found yet", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"}})
	l.repaired(r)
	check(t, []want{
		{second, "kubelet", "10.1.0.2:8080", 0, "app for 10.1.0.1"},
		{second, "kubelet", "[fd03::2]:8080", 0, "app for fd03::1"},
		{mate, "mate", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
	})
	if found, err := r.SelfTest(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("SelfTest has found %v, %v", found, err)
	}
}

// TestNodeInContainer: where the node is a container, with a cgroup namespace of its own,
// paths and levels are counted from its root, and the kubelet passes all the same.
func TestNodeInContainer(t *testing.T) {
	dirs, path := newCgroup(t, "node", "node/kubelet.service")
	l := newLab(t)
	init := exec.Command("unshare", "-Cm", "sh", "-ec", `mount -t cgroup2 none "$0"; echo ready; exec cat`, t.TempDir())
	init.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dirs[0].Fd()), Pdeathsig: syscall.SIGKILL}
	in, err := init.StdinPipe()
	l.must(err)
	out, err := init.StdoutPipe()
	l.must(err)
	l.must(init.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = init.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("first process of the node says %q, %v", line, err)
	}
	kubelet := l.start(l.host, "kubelet", 0, dirs[1])
	outside := l.start(l.host, "outside", 0, nil)
	root := t.TempDir()
	l.must(os.Symlink(fmt.Sprintf("/proc/%d", init.Process.Pid), filepath.Join(root, "1")))
	l.must(os.Symlink(fmt.Sprintf("/proc/%d", kubelet.cmd.Process.Pid), filepath.Join(root, fmt.Sprint(kubelet.cmd.Process.Pid))))
	k, err := hostrules.FindKubelet(root, l.host)
	if err != nil || k.Cgroup != "/kubelet.service" || k.CgroupID != cgroupID(t, dirs[1]) || len(k.Levels) < 2 || k.Levels[0] != 1 {
		t.Fatalf("found %+v, %v; the node's cgroup is %s", k, err, path)
	}
	l.rules(k)
	check(t, []want{
		{kubelet, "kubelet", "10.1.0.2:8080", 0, "app for 10.1.0.1"},
		{outside, "outside", "10.1.0.2:8080", 0, "15006 for 10.1.0.1"},
		{outside, "forger", "10.1.0.2:8080", forged, "15006 for 10.1.0.1"},
	})
	if again, err := hostrules.FindKubelet(root, l.host); err != nil || again.CgroupID != k.CgroupID {
		t.Errorf("found again %+v, %v", again, err)
	}
}

func (l *lab) repaired(r *hostrules.Rules) {
	l.Helper()
	found, left, err := r.Repair()
	if err != nil || len(left) > 0 || len(found) == 0 || found[0].Kind != hostrules.KindMoved {
		l.Fatalf("Repair found %v, left %v, %v", found, left, err)
	}
	l.verified(r)
}

func TestNodeAddresses(t *testing.T) {
	l := &lab{TB: t, host: netnstest.New(t)}
	l.shell(`ip link add eth0 type bridge; ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad; ip link set eth0 up
		ip addr add 192.0.2.1/32 dev lo
		ip link add kube-ipvs0 type bridge; ip addr add 10.96.0.1/32 dev kube-ipvs0
		ip link add br0 type bridge; ip addr add 10.244.0.1/24 dev br0; ip addr add 169.254.1.1/32 dev br0`)
	got, err := hostrules.NodeAddresses(l.host)
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for _, a := range []string{"10.0.0.1", "10.244.0.1", "192.0.2.1", "fd00::1"} {
		want = append(want, netip.MustParseAddr(a))
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestManyNodeAddresses: each address is read once, however many interfaces there are. A node has one for each pod, and with
// IPVS an address for each service.
func TestManyNodeAddresses(t *testing.T) {
	const interfaces, services = 100, 500
	l := &lab{TB: t, host: netnstest.New(t)}
	l.shell(fmt.Sprintf(`ip link add kube-ipvs0 type bridge
		for i in $(seq %d); do echo "link add br$i type bridge"; done | ip -b -
		for i in $(seq %d); do echo "addr add 10.96.$((i / 250)).$((i %% 250))/32 dev kube-ipvs0"; done | ip -b -`, interfaces, services))
	allocs := testing.AllocsPerRun(1, func() {
		if got, err := hostrules.NodeAddresses(l.host); err != nil || len(got) > 0 {
			t.Errorf("got %v, %v", got, err)
		}
	})
	if most := 100.0 * (interfaces + services); allocs > most {
		t.Errorf("%.0f allocations for %d interfaces and %d addresses, want %.0f at most", allocs, interfaces, services, most)
	}
}
