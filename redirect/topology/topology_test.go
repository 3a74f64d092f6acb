package topology_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func build(t *testing.T, cfg topology.Config) *topology.Topology {
	t.Helper()
	netnstest.Require(t)
	top, err := topology.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	})
	return top
}

func addPod(t *testing.T, n *topology.Node, name string) *topology.Pod {
	t.Helper()
	p, err := n.AddPod(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// dialer is a place that connections are made from.
type dialer interface {
	Name() string
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// exchange sends a line from one place to a listener in a pod and wants it back, and that the listener saw the source.
func exchange(t *testing.T, from dialer, source netip.Addr, to *topology.Pod, addr netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := to.Listen(ctx, netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != source {
			served <- fmt.Errorf("source is %s, want %s", got, source)
			return
		}
		_, err = io.Copy(c, c)
		served <- err
	}()
	c, err := from.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("%s to %s: got %q, %v", from.Name(), to.Name(), line, err)
	}
	c.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestEverybodyReachesEverybody(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1", "n2", "n3"}, CongestionControl: "reno"})
	var pods []*topology.Pod
	for i, n := range top.Nodes() {
		for j := range 2 {
			pods = append(pods, addPod(t, n, fmt.Sprintf("pod-%d-%d", i, j)))
		}
	}
	for _, from := range pods {
		for _, to := range pods {
			exchange(t, from, from.Addr(), to, to.Addr())
			exchange(t, from, from.Addr6(), to, to.Addr6())
		}
	}
	n1 := top.Node("n1")
	exchange(t, n1, n1.PodRange().Addr().Next(), pods[0], pods[0].Addr()) // own pods see the bridge's address
	exchange(t, n1, n1.Addr(), pods[2], pods[2].Addr())
	exchange(t, n1, n1.Addr6(), pods[2], pods[2].Addr6())
	for _, p := range pods {
		if got, err := p.ReadSysctl("net/ipv4/tcp_congestion_control"); err != nil || got != "reno" {
			t.Errorf("%s: congestion control %q, %v, want reno", p.Name(), got, err)
		}
	}
	if got := len(n1.Pods()); got != 2 {
		t.Errorf("n1 lists %d pods, want 2", got)
	}
}

func TestPair(t *testing.T) {
	netnstest.Require(t)
	pair, err := topology.NewPair("client", "server", "reno")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	}()
	exchange(t, pair.A, pair.A.Addr(), pair.B, pair.B.Addr())
	exchange(t, pair.B, pair.B.Addr6(), pair.A, pair.A.Addr6())
	if err := pair.A.SetLink(false); err == nil {
		t.Error("the cable of a pair was pulled")
	}
}

func TestStartedProcessIsInside(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1"}})
	pod := addPod(t, top.Node("n1"), "a")
	out, err := pod.Output(exec.Command("readlink", "/proc/self/ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != pod.NS().String() {
		t.Errorf("process ran in %s, want %s", got, pod.NS())
	}
	// The spawning thread came home: the next process of this program is outside.
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if out, err := exec.Command("readlink", "/proc/self/ns/net").Output(); err != nil || strings.TrimSpace(string(out)) != own.String() {
		t.Errorf("a process outside ran in %s, %v", out, err)
	}
}

func TestPathWorksForOtherProcesses(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1"}})
	pod := addPod(t, top.Node("n1"), "a")
	out, err := exec.Command("nsenter", "--net="+pod.Path(), "readlink", "/proc/self/ns/net").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != pod.NS().String() {
		t.Errorf("nsenter entered %s, want %s", got, pod.NS())
	}
}

func TestResolvConfOfPod(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1"}})
	pod, other := addPod(t, top.Node("n1"), "a"), addPod(t, top.Node("n1"), "b")
	const text = "nameserver 10.2.0.10\nsearch default.svc.cluster.local\n"
	if err := pod.SetResolvConf(text); err != nil {
		t.Fatal(err)
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		netnstest.Unable(t, "needs a machine with /etc/resolv.conf: "+err.Error())
	}
	for range 2 { // the second process must not see what the first left
		if out, err := pod.Output(exec.Command("cat", "/etc/resolv.conf")); err != nil || string(out) != text {
			t.Errorf("in the pod: %q, %v", out, err)
		}
		if out, err := other.Output(exec.Command("cat", "/etc/resolv.conf")); err != nil || string(out) != string(host) {
			t.Errorf("in the other pod: %q, %v", out, err)
		}
	}
	if now, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(now) != string(host) {
		t.Errorf("the machine's own file changed: %q, %v", now, err)
	}
	if out, err := os.ReadFile(pod.ResolvConf()); err != nil || string(out) != text {
		t.Errorf("ResolvConf: %q, %v", out, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), top.Dir()) {
		t.Errorf("a mount of the topology is left on the machine, %v", err)
	}
}

func TestProcess(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1"}})
	n := top.Node("n1")
	t.Run("stop", func(t *testing.T) {
		p, err := n.Start(exec.Command("sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		if p.Usage() == nil {
			t.Error("no usage of a process that has ended")
		}
		if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal afterwards: %v", err)
		}
	})
	t.Run("stop_of_a_deaf_one", func(t *testing.T) {
		cmd := exec.Command("sh", "-c", "trap '' TERM; echo on; while :; do sleep 1000; done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := n.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(10 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed after 10ms") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("exit_code", func(t *testing.T) {
		p, err := n.Start(exec.Command("sh", "-c", "exit 3"))
		if err != nil {
			t.Fatal(err)
		}
		exit := new(exec.ExitError)
		if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("got %v, want exit status 3", err)
		}
	})
	t.Run("missing_program", func(t *testing.T) {
		if _, err := n.Start(exec.Command("/nonexistent/program")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("working_directory", func(t *testing.T) {
		dir, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := n.Output(exec.Command("pwd")); err != nil || strings.TrimSpace(string(out)) != dir {
			t.Errorf("got %q, %v, want %s", out, err, dir)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	netnstest.Require(t)
	top, err := topology.New(topology.Config{Nodes: []string{"n1", "n2"}})
	if err != nil {
		t.Fatal(err)
	}
	pod := addPod(t, top.Node("n1"), "a")
	p, err := pod.Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("a process outlived its topology")
	}
	if _, err := os.Stat(top.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
	if err := top.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := pod.Start(exec.Command("true")); err == nil {
		t.Error("a process was started in a closed topology")
	}
	if _, err := top.Node("n1").AddPod("b"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a pod was added to a closed topology: %v", err)
	}
	if err := pod.SetResolvConf("x"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file was written in a closed topology: %v", err)
	}
	if _, err := os.Stat(top.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory came back: %v", err)
	}
}

// TestFirstConnectionIsImmediate guards against links that come up late: a lost first packet costs a second.
func TestFirstConnectionIsImmediate(t *testing.T) {
	var best time.Duration
	for range 5 { // a busy machine may delay one
		top := build(t, topology.Config{Nodes: []string{"n1", "n2"}})
		a, b := addPod(t, top.Node("n1"), "a"), addPod(t, top.Node("n2"), "b")
		began := time.Now()
		exchange(t, a, a.Addr(), b, b.Addr())
		if best = time.Since(began); best < 500*time.Millisecond {
			return
		}
	}
	t.Errorf("the first connection took %v", best)
}

func TestPulledCable(t *testing.T) {
	top := build(t, topology.Config{Nodes: []string{"n1", "n2"}})
	a, b := addPod(t, top.Node("n1"), "a"), addPod(t, top.Node("n2"), "b")
	reach := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		c, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(b.Addr(), 9).String())
		if err == nil {
			return c.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil // somebody was there to refuse
		}
		return err
	}
	if err := reach(); err != nil {
		t.Fatal(err)
	}
	for _, cable := range []struct {
		name string
		set  func(bool) error
	}{{"node", top.Node("n2").SetWire}, {"pod", b.SetLink}} {
		if err := cable.set(false); err != nil {
			t.Fatal(err)
		}
		if err := reach(); err == nil {
			t.Errorf("%s: reached over a pulled cable", cable.name)
		}
		if err := cable.set(true); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; {
			err := reach()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not reached after the cable was put back: %v", cable.name, err)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	netnstest.Require(t)
	tests := []struct {
		name string
		cfg  topology.Config
		want string
	}{
		{"no_nodes", topology.Config{}, "0 nodes"},
		{"two_of_a_name", topology.Config{Nodes: []string{"n", "n"}}, `two nodes are called "n"`},
		{"name_with_slash", topology.Config{Nodes: []string{"a/b"}}, "cannot be the name of a file"},
		{"unknown_algorithm", topology.Config{Nodes: []string{"n"}, CongestionControl: "none-such"}, "tcp_congestion_control"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			top, err := topology.New(tt.cfg)
			if err == nil {
				top.Close()
				t.Fatal("taken")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
			if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	top := build(t, topology.Config{Nodes: []string{"n1"}})
	addPod(t, top.Node("n1"), "a")
	if _, err := top.Node("n1").AddPod("a"); !errors.Is(err, os.ErrExist) {
		t.Errorf("two pods of a name: %v", err)
	}
}

// TestInUserNamespace runs the tests above as root of a user namespace only.
func TestInUserNamespace(t *testing.T) {
	if os.Getenv("TOPOLOGY_IN_USERNS") != "" {
		t.Skip("already inside")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^(TestEverybodyReachesEverybody|TestResolvConfOfPod|TestPathWorksForOtherProcesses|TestCloseEndsEverything)$", "-test.v")
	cmd.Env = append(os.Environ(), "TOPOLOGY_IN_USERNS=1", "CI=true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skip("this machine lets nobody make user namespaces")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if got := strings.Count(string(out), "--- PASS"); got != 4 {
		t.Errorf("%d tests passed inside, want 4:\n%s", got, out)
	}
}

// Pods keep their gateway's address for half a minute: it must not change when another pod comes.
func TestPodsComeWithoutNotice(t *testing.T) {
	n := build(t, topology.Config{Nodes: []string{"n"}}).Node("n")
	first := addPod(t, n, "first")
	exchange(t, n, n.PodRange().Addr().Next(), first, first.Addr())
	before := bridgeAddr(t, n)
	for i := range 8 { // one of them has a lower address than those before, all but surely
		addPod(t, n, fmt.Sprintf("pod-%d", i))
	}
	if after := bridgeAddr(t, n); after != before {
		t.Errorf("the bridge's address was %s and is %s", before, after)
	}
	exchange(t, n, n.PodRange().Addr().Next(), first, first.Addr())
}

func bridgeAddr(t *testing.T, n *topology.Node) (mac string) {
	t.Helper()
	err := n.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if strings.HasPrefix(l.Name, "br") {
				mac = l.HardwareAddr.String()
			}
		}
		return err
	})
	if err != nil || mac == "" {
		t.Fatalf("the bridge's address: %q, %v", mac, err)
	}
	return mac
}
