package hostrules_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

const roleVariable = "CULVERT_TEST_DIALER"

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVariable); name != "" {
		dialer(name)
		return
	}
	os.Exit(netnstest.Main(m))
}

// dialer is another process of the host. It connects as the lines of its standard input
// say ("ADDRESS TOS") and answers with who served, and from where it came.
func dialer(name string) {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		addr, tos, _ := strings.Cut(lines.Text(), " ")
		answer, err := dialOnce(addr, tos)
		if err != nil {
			answer = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(answer)
	}
}

func dialOnce(addr, tosText string) (string, error) {
	tos, err := strconv.Atoi(tosText)
	if err != nil {
		return "", err
	}
	d := net.Dialer{Timeout: 10 * time.Second, Control: setTOS(tos)}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	// Every later segment has to find its way too.
	for range 3 {
		if _, err := io.WriteString(c, "ping\n"); err != nil {
			return "", err
		}
		if echo, err := r.ReadString('\n'); err != nil || echo != "ping\n" {
			return "", fmt.Errorf("echo is %q: %w", echo, err)
		}
	}
	return strings.TrimSpace(line), nil
}

func setTOS(tos int) func(network, _ string, raw syscall.RawConn) error {
	return func(network, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			if network == "tcp6" {
				inner = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TCLASS, tos)
			} else {
				inner = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS, tos)
			}
		})
		return errors.Join(err, inner)
	}
}

// lab is a node: its host namespace, an enrolled pod and another one, each behind a link
// of its own, and two more pods on a bridge of the host, the first of them enrolled.
//
//	pod 10.1.0.2 ── 10.1.0.1 host 10.2.0.1 ── 10.2.0.2 other
//	                 br0 10.3.0.1 ─┬─ 10.3.0.2 bridged
//	                               └─ 10.3.0.3 neighbour
type lab struct {
	testing.TB
	host, pod, other, bridged, neighbour *netns.NS
}

func newLab(t testing.TB) *lab {
	l := &lab{
		TB: t, host: netnstest.New(t), pod: netnstest.New(t), other: netnstest.New(t),
		bridged: netnstest.New(t), neighbour: netnstest.New(t),
	}
	netnstest.Sysctl(t, l.host, "net/ipv4/ip_forward", "1")
	netnstest.Sysctl(t, l.host, "net/ipv6/conf/all/forwarding", "1")
	l.link(1, l.pod)
	l.link(2, l.other)
	l.shell("ip link add br0 type bridge && ip addr add 10.3.0.1/24 dev br0 && ip addr add fd03::1/64 dev br0 nodad && ip link set br0 up")
	l.join(l.bridged, "bridged", "10.3.0.2/24", "fd03::2/64")
	l.join(l.neighbour, "neighbour", "10.3.0.3/24", "fd03::3/64")
	for _, pod := range []*netns.NS{l.pod, l.bridged} {
		l.serve(pod, "[::]:8080", "app", 0)
		for _, port := range []int{redirect.PortOutbound, redirect.PortInbound, redirect.PortHBONE} {
			l.serve(pod, fmt.Sprintf("[::]:%d", port), fmt.Sprint(port), redirect.AgentMark)
		}
		l.capture(pod, l.heeding())
	}
	return l
}

// link joins a pod to the host by a link with addresses of their own.
func (l *lab) link(n int, pod *netns.NS) {
	l.Helper()
	netnstest.Veth(l,
		netnstest.End{NS: l.host, Name: fmt.Sprintf("pod%d", n), Addrs: prefixes(fmt.Sprintf("10.%d.0.1/24", n), fmt.Sprintf("fd0%d::1/64", n))},
		netnstest.End{NS: pod, Name: "eth0", Addrs: prefixes(fmt.Sprintf("10.%d.0.2/24", n), fmt.Sprintf("fd0%d::2/64", n))})
	netnstest.Route(l, pod, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", n)))
	netnstest.Route(l, pod, netip.MustParsePrefix("::/0"), netip.MustParseAddr(fmt.Sprintf("fd0%d::1", n)))
}

// join puts a pod on the bridge.
func (l *lab) join(pod *netns.NS, name string, addrs ...string) {
	l.Helper()
	netnstest.Veth(l, netnstest.End{NS: l.host, Name: name}, netnstest.End{NS: pod, Name: "eth0", Addrs: prefixes(addrs...)})
	l.shell("ip link set " + name + " master br0")
	netnstest.Route(l, pod, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.3.0.1"))
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// nodeAddresses are the host's, and those of the pods that play foul: as if these could
// send from the node's address, so that the mark alone keeps them out.
func (l *lab) nodeAddresses() []netip.Addr {
	l.Helper()
	addrs, err := hostrules.NodeAddresses(l.host)
	l.must(err)
	for _, foul := range []string{"10.2.0.2", "fd02::2", "10.3.0.3", "fd03::3"} {
		addrs = append(addrs, netip.MustParseAddr(foul))
	}
	return addrs
}

// heeding lets pods heed the mark, at the addresses that rules gives to the host.
func (l *lab) heeding() redirect.Options {
	l.Helper()
	return redirect.Options{ProbeMark: true, NodeAddresses: l.nodeAddresses(), ProbeAddresses: slices.Collect(maps.Keys(l.pods()))}
}

func (l *lab) capture(pod *netns.NS, o redirect.Options) *redirect.Capture {
	l.Helper()
	c, err := redirect.New(pod, o)
	l.must(err)
	_, err = c.Apply()
	l.must(err)
	return c
}

// serve answers with its name and the client's address, and echoes.
func (l *lab) serve(ns *netns.NS, addr, name string, mark uint32) {
	l.Helper()
	listener := netnstest.Listen(l, ns, addr, netnstest.Options{Mark: mark, Transparent: mark != 0})
	netnstest.Serve(l, listener, func(c net.Conn) {
		remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if _, err := fmt.Fprintf(c, "%s for %s\n", name, remote); err == nil {
			_, _ = io.Copy(c, c)
		}
	})
}

// rules makes the host's rules for a kubelet and both enrolled pods.
func (l *lab) rules(k hostrules.Kubelet) *hostrules.Rules {
	l.Helper()
	r, err := hostrules.New(hostrules.Config{NS: l.host, Kubelet: func() (hostrules.Kubelet, error) { return k, nil }})
	l.must(err)
	l.must(r.Apply(l.pods()))
	l.verified(r)
	return r
}

func (l *lab) pods() map[netip.Addr]string {
	return map[netip.Addr]string{
		netip.MustParseAddr("10.1.0.2"): "uid-1", netip.MustParseAddr("fd01::2"): "uid-1",
		netip.MustParseAddr("10.3.0.2"): "uid-3", netip.MustParseAddr("fd03::2"): "uid-3",
	}
}

func (l *lab) verified(r *hostrules.Rules) {
	l.Helper()
	if found, err := r.Verify(); err != nil || len(found) > 0 {
		l.Fatalf("Verify: %v, %v", found, err)
	}
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// shell runs commands in the host's namespace.
func (l *lab) shell(command string) string {
	l.Helper()
	var out []byte
	netnstest.Do(l, l.host, func() error {
		var err error
		if out, err = exec.Command("sh", "-ec", command).CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return err
	})
	return string(out)
}

// process is a dialer.
type process struct {
	tb   testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	once sync.Once
}

// stop ends the process and waits for that.
func (p *process) stop() {
	p.once.Do(func() {
		_ = p.in.Close()
		_ = p.cmd.Wait()
	})
}

// start starts a dialer in ns as a user, in a cgroup unless that is nil, called name.
func (l *lab) start(ns *netns.NS, name string, uid uint32, cgroup *os.File) *process {
	l.Helper()
	// The test binary is in a directory of its owner's; a descriptor of it is not.
	binary, err := os.Open("/proc/self/exe")
	l.must(err)
	defer func() { _ = binary.Close() }()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.Env = []string{roleVariable + "=" + name}
	cmd.ExtraFiles = []*os.File{binary}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL,
	}
	if cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	}
	in, err := cmd.StdinPipe()
	l.must(err)
	out, err := cmd.StdoutPipe()
	l.must(err)
	l.must(ns.Do(cmd.Start))
	p := &process{tb: l, cmd: cmd, in: in, out: bufio.NewReader(out)}
	l.Cleanup(p.stop)
	if line, err := p.out.ReadString('\n'); err != nil || line != "ready\n" {
		l.Fatalf("process %s says %q, %v", name, line, err)
	}
	return p
}

// dial returns who serves the process at addr.
func (p *process) dial(addr string, tos int) string {
	p.tb.Helper()
	if _, err := fmt.Fprintf(p.in, "%s %d\n", addr, tos); err != nil {
		p.tb.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.tb.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// cgroupMount returns where the whole of cgroup v2 is mounted, or skips the test.
func cgroupMount(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && fields[3] == "/" {
			return fields[4]
		}
	}
	netnstest.Unable(t, "needs a mount of cgroup v2")
	return ""
}

// newCgroup makes cgroups below one of the test's own and returns their descriptors and
// the path of the first.
func newCgroup(t testing.TB, names ...string) (dirs []*os.File, path string) {
	t.Helper()
	mount := cgroupMount(t)
	top, err := os.MkdirTemp(mount, "culvert-test-")
	if err != nil {
		netnstest.Unable(t, "needs to make cgroups: "+err.Error())
	}
	t.Cleanup(func() { removeCgroup(t, top) })
	for _, name := range names {
		dir := filepath.Join(top, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		dirs = append(dirs, f)
	}
	return dirs, strings.TrimPrefix(filepath.Join(top, names[0]), mount)
}

// removeCgroup waits for the last process of a cgroup to be gone for the kernel too.
func removeCgroup(t testing.TB, dir string) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("remove cgroup: %v", err)
			return
		}
	}
}

func cgroupID(t testing.TB, dir *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
