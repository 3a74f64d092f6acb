package procns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

const (
	uidA = "0b7c5c3e-8a1f-4b51-9d2e-6f0e1a2b3c4d"
	uidB = "1c8d6d4f-8a1f-4b51-9d2e-6f0e1a2b3c4d"
	id   = "4f1d0c2b3a49586776859403120f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d"
)

// proc is a directory like /proc, whose namespaces are real.
type proc struct {
	t    *testing.T
	root string
	host *netns.NS
}

func newProc(t *testing.T) *proc {
	p := &proc{t: t, root: t.TempDir(), host: netnstest.New(t)}
	p.add(1, "", 0, p.host)
	return p
}

// add makes a process of a pod; an empty uid makes one of none.
func (p *proc) add(pid int, uid string, started int, ns *netns.NS) {
	p.t.Helper()
	cgroup := "0::/init.scope\n"
	if uid != "" {
		cgroup = "0::/kubepods/burstable/pod" + uid + "/" + id + "\n"
	}
	dir := filepath.Join(p.root, fmt.Sprint(pid))
	var link string
	if err := ns.Control(func(fd int) error { link = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd); return nil }); err != nil {
		p.t.Fatal(err)
	}
	stat := fmt.Sprintf("%d (x) S 1 17 17 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 %d 5 1 2\n", pid, started)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "ns"), 0o700),
		os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup), 0o600),
		os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600),
		os.Symlink(link, filepath.Join(dir, "ns", "net")),
	} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *proc) find(wanted map[string]procns.Wanted) (map[string]netns.ID, []procns.Problem) {
	p.t.Helper()
	before := descriptors(p.t)
	found, problems := procns.New(p.root).Find(p.t.Context(), wanted)
	ids := map[string]netns.ID{}
	for uid, ns := range found {
		ids[uid] = ns.ID()
		if err := ns.Close(); err != nil {
			p.t.Error(err)
		}
	}
	if now := descriptors(p.t); now != before {
		p.t.Errorf("%d descriptors are open, %d before: a namespace is kept alive", now, before)
	}
	return ids, problems
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// pod returns a namespace with the address on its one interface.
func pod(t *testing.T, addr string) *netns.NS {
	t.Helper()
	ns := netnstest.New(t)
	netnstest.Veth(t, netnstest.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}},
		netnstest.End{NS: netnstest.New(t), Name: "peer"})
	return ns
}

func want(addrs ...string) procns.Wanted {
	var w procns.Wanted
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

func TestFind(t *testing.T) {
	p := newProc(t)
	a, b := pod(t, "10.1.0.7/24"), pod(t, "fd00::8/64")
	p.add(100, uidA, 50, a)
	p.add(101, uidA, 51, a)
	p.add(102, uidB, 52, b)
	p.add(103, "2d9e7e50-8a1f-4b51-9d2e-6f0e1a2b3c4d", 53, b) // nobody asks for it
	p.add(104, "", 54, a)
	found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7"), uidB: want("10.1.0.8", "fd00::8")})
	if len(found) != 2 || found[uidA] != a.ID() || found[uidB] != b.ID() || len(problems) != 0 {
		t.Errorf("found %v, %v", found, problems)
	}
}

// TestHostsNamespace: a pod's process that is still, or by hostNetwork, in the host's
// namespace is not taken, even though the addresses agree.
func TestHostsNamespace(t *testing.T) {
	p := newProc(t)
	netnstest.Veth(t, netnstest.End{NS: p.host, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.7/24")}},
		netnstest.End{NS: netnstest.New(t), Name: "peer"})
	p.add(100, uidA, 50, p.host)
	if found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")}); len(found) != 0 || len(problems) != 0 {
		t.Errorf("found %v, %v", found, problems)
	}
}

// TestVisitor: a process of pod A inside of B's namespace does not make it A's.
func TestVisitor(t *testing.T) {
	p := newProc(t)
	a, b := pod(t, "10.1.0.7/24"), pod(t, "10.1.0.8/24")
	p.add(100, uidA, 10, b) // older than A's own
	p.add(101, uidA, 50, a)
	p.add(102, uidB, 20, b)
	found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7"), uidB: want("10.1.0.8")})
	if len(found) != 2 || found[uidA] != a.ID() || found[uidB] != b.ID() || len(problems) != 0 {
		t.Errorf("found %v, %v", found, problems)
	}
}

// TestOldestWins: a container that makes a namespace with its pod's own address.
func TestOldestWins(t *testing.T) {
	a, fake := pod(t, "10.1.0.7/24"), pod(t, "10.1.0.7/24")
	for _, pids := range [][2]int{{100, 200}, {200, 100}} { // whichever is read first
		p := newProc(t)
		p.add(pids[0], uidA, 50, a)
		p.add(pids[1], uidA, 60, fake)
		p.add(300, uidA, 70, a)
		found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")})
		if len(found) != 1 || found[uidA] != a.ID() || len(problems) != 0 {
			t.Errorf("found %v, %v", found, problems)
		}
	}
}

func TestRefusals(t *testing.T) {
	p := newProc(t)
	a := pod(t, "10.1.0.7/24")
	p.add(100, uidA, 50, a)
	p.add(101, uidB, 50, a)
	found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.9"), uidB: {}})
	if len(found) != 0 || len(problems) != 2 {
		t.Fatalf("found %v, %v", found, problems)
	}
	if !errors.Is(problems[0], procns.ErrNoAddress) || problems[0].UID != uidA || problems[0].PID != 100 {
		t.Errorf("first problem is %v", problems[0])
	}
	if !strings.Contains(problems[1].Error(), "pod "+uidB+": process 101: pod has no address yet") {
		t.Errorf("second problem is %v", problems[1])
	}
}

// TestLoopback: an address of the loopback network proves nothing.
func TestLoopback(t *testing.T) {
	p := newProc(t)
	p.add(100, uidA, 50, netnstest.New(t))
	if found, _ := p.find(map[string]procns.Wanted{uidA: want("127.0.0.1", "::1")}); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}

// TestProcessesEnd: what is half gone is passed over.
func TestProcessesEnd(t *testing.T) {
	p := newProc(t)
	a := pod(t, "10.1.0.7/24")
	for i, missing := range []string{"cgroup", "stat", "ns/net"} {
		p.add(100+i, uidA, 40, a)
		if err := os.Remove(filepath.Join(p.root, fmt.Sprint(100+i), missing)); err != nil {
			t.Fatal(err)
		}
	}
	p.add(200, uidA, 50, a)
	found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")})
	if len(found) != 1 || len(problems) != 0 {
		t.Errorf("found %v, %v", found, problems)
	}
}

func TestNoHost(t *testing.T) {
	p := newProc(t)
	p.add(100, uidA, 50, pod(t, "10.1.0.7/24"))
	if err := os.RemoveAll(filepath.Join(p.root, "1")); err != nil {
		t.Fatal(err)
	}
	found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")})
	if len(found) != 0 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "find the host's network namespace") {
		t.Errorf("found %v, %v", found, problems)
	}
}

// TestHostByKernelThread: where process 1 may not be looked at. A process of that
// number that is no kernel thread proves nothing.
func TestHostByKernelThread(t *testing.T) {
	p := newProc(t)
	a := pod(t, "10.1.0.7/24")
	p.add(100, uidA, 50, a)
	p.add(2, "", 1, p.host)
	if err := os.RemoveAll(filepath.Join(p.root, "1")); err != nil {
		t.Fatal(err)
	}
	if found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")}); len(found) != 0 || len(problems) != 1 {
		t.Errorf("with a process 2: found %v, %v", found, problems)
	}
	stat := "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0\n" // as in Linux 6.18
	if err := os.WriteFile(filepath.Join(p.root, "2", "stat"), []byte(stat), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, problems := p.find(map[string]procns.Wanted{uidA: want("10.1.0.7")}); len(found) != 1 || len(problems) != 0 {
		t.Errorf("with a kernel thread: found %v, %v", found, problems)
	}
	host, err := procns.Host(p.root)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if host.ID() != p.host.ID() {
		t.Errorf("host is %s", host)
	}
}

func TestContextEnds(t *testing.T) {
	p := newProc(t)
	p.add(100, uidA, 50, pod(t, "10.1.0.7/24"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	found, problems := procns.New(p.root).Find(ctx, map[string]procns.Wanted{uidA: want("10.1.0.7")})
	if len(found) != 0 || len(problems) != 1 || !errors.Is(problems[0], context.Canceled) {
		t.Errorf("found %v, %v", found, problems)
	}
}

func TestNothingWanted(t *testing.T) {
	if found, problems := procns.New("/nowhere").Find(t.Context(), nil); found != nil || problems != nil {
		t.Errorf("found %v, %v", found, problems)
	}
}

// TestCapability: who may not look says what is missing. Needs the real /proc.
func TestCapability(t *testing.T) {
	netnstest.Require(t)
	got := make(chan []procns.Problem, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with what it gave up
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			got <- []procns.Problem{{Err: err}}
			return
		}
		for _, c := range []uint{unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN} {
			data[0].Effective &^= 1 << c
			data[0].Permitted &^= 1 << c
		}
		if err := unix.Capset(&header, &data[0]); err != nil {
			got <- []procns.Problem{{Err: err}}
			return
		}
		_, problems := procns.New("/proc").Find(context.Background(), map[string]procns.Wanted{uidA: want("10.1.0.7")})
		got <- problems
	}()
	problems := <-got
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "CAP_SYS_PTRACE") {
		t.Errorf("problems: %v", problems)
	}
}
