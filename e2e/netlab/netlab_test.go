package netlab_test

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
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// agentBinary is culvert-node with the race detector, built by TestMain.
var agentBinary string

func TestMain(m *testing.M) { os.Exit(main(m)) }

func main(m *testing.M) int {
	if len(os.Args) > 2 && os.Args[1] == dropCommand {
		return runWithout(os.Args[2], os.Args[3:])
	}
	dir, err := os.MkdirTemp("", "netlab")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	agentBinary = filepath.Join(dir, "culvert-node")
	build := exec.Command("go", "build", "-race", "-o", agentBinary, "../../cmd/culvert-node")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build culvert-node: %v\n%s", err, out)
		return 1
	}
	// A program with the race detector stays for a second after its end, which adds up.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=50 "+os.Getenv("GORACE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return netnstest.Main(m)
}

const (
	nodeA, nodeB = "node-a", "node-b"
	ns           = "default"
	patience     = 10 * time.Second
)

// mesh is a lab with the pods that most scenarios want and a server in each of them:
//
//	node-a: client, local, stranger (not enrolled)      node-b: remote, plain (not enrolled)
type mesh struct {
	*netlab.Lab
	t                                      *testing.T
	client, local, remote, stranger, plain *netlab.Pod
	a, b                                   *netlab.Agent
}

type option func(*mesh, *netlab.Config)

// withFlags gives flags to both agents.
func withFlags(flags ...string) option {
	return func(_ *mesh, c *netlab.Config) { c.Flags = append(c.Flags, flags...) }
}

// build makes the lab without starting agents.
func build(t *testing.T, opts ...option) *mesh {
	t.Helper()
	netnstest.Require(t)
	m := &mesh{t: t}
	cfg := netlab.Config{Binary: agentBinary}
	for _, o := range opts {
		o(m, &cfg)
	}
	lab, err := netlab.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Lab = lab
	t.Cleanup(m.close)
	m.client, m.local, m.remote = m.pod(nodeA, "client"), m.pod(nodeA, "local"), m.pod(nodeB, "remote")
	m.stranger, m.plain = m.plainPod(nodeA, "stranger"), m.plainPod(nodeB, "plain")
	return m
}

// newMesh makes the lab and starts both agents.
func newMesh(t *testing.T, opts ...option) *mesh {
	t.Helper()
	m := build(t, opts...)
	m.start()
	return m
}

func (m *mesh) start(flags ...string) {
	m.t.Helper()
	m.a, m.b = m.agent(nodeA, flags...), m.agent(nodeB, flags...)
}

func (m *mesh) agent(node string, flags ...string) *netlab.Agent {
	m.t.Helper()
	a, err := m.StartAgent(node, flags...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.watch(node, a)
	return a
}

// dedicated starts an agent inside a pod and for it alone.
func (m *mesh) dedicated(p *netlab.Pod, flags ...string) *netlab.Agent {
	m.t.Helper()
	p.SetCaptured(false)
	a, err := m.StartDedicated(p, flags...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.watch(p.Name(), a)
	return a
}

// watch shows the agent's log when the test fails, and fails it when the agent has a data race.
func (m *mesh) watch(where string, a *netlab.Agent) {
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("log of the agent on %s:\n%s", where, a.Log())
		}
		if strings.Contains(a.Log(), "WARNING: DATA RACE") {
			m.t.Errorf("the agent on %s has a data race:\n%s", where, a.Log())
		}
	})
}

func (m *mesh) close() {
	if err := m.Close(); err != nil {
		m.t.Errorf("close lab: %v", err)
	}
}

func (m *mesh) pod(node, name string) *netlab.Pod {
	m.t.Helper()
	p, err := m.AddPod(node, ns, name)
	if err != nil {
		m.t.Fatal(err)
	}
	m.serve(p, 8080)
	return p
}

func (m *mesh) plainPod(node, name string) *netlab.Pod {
	m.t.Helper()
	p, err := m.AddPlainPod(node, ns, name)
	if err != nil {
		m.t.Fatal(err)
	}
	m.serve(p, 8080)
	return p
}

// serve runs a server that answers each line with its own name, its peer's address and the line, and ends its direction
// when its peer has.
func (m *mesh) serve(p *netlab.Pod, port uint16) {
	m.t.Helper()
	m.serveFunc(p, port, func(c *net.TCPConn) {
		lines := bufio.NewReader(c)
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s %s", p.Name(), host, line)
		}
	})
}

func (m *mesh) serveFunc(p *netlab.Pod, port uint16, handle func(*net.TCPConn)) {
	m.t.Helper()
	l, err := p.Listen(context.Background(), fmt.Sprintf("[::]:%d", port))
	if err != nil {
		m.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				handle(c.(*net.TCPConn))
				_ = c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	m.t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// at is an address with the port that every pod serves.
func at(p *netlab.Pod) netip.AddrPort { return netip.AddrPortFrom(p.Addr(), 8080) }

func onPort(p *netlab.Pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.Addr(), port) }

func at6(p *netlab.Pod) netip.AddrPort { return netip.AddrPortFrom(p.Addr6(), 8080) }

// session is one connection to a line server.
type session struct {
	*net.TCPConn
	lines *bufio.Reader
}

func (m *mesh) dial(from *netlab.Pod, to netip.AddrPort) (*session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { _ = c.Close() })
	return &session{c.(*net.TCPConn), bufio.NewReader(c)}, nil
}

// ask sends a line and returns the answer's three words: who, to whom, what.
func (s *session) ask(line string) ([]string, error) {
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(s, line); err != nil {
		return nil, err
	}
	answer, err := s.lines.ReadString('\n')
	if err != nil {
		return nil, err
	}
	words := strings.Fields(answer)
	if len(words) != 3 || words[2] != line {
		return nil, fmt.Errorf("answer %q", answer)
	}
	return words, nil
}

// call makes one connection, asks once and ends it in order.
func (m *mesh) call(from *netlab.Pod, to netip.AddrPort) ([]string, error) {
	s, err := m.dial(from, to)
	if err != nil {
		return nil, err
	}
	words, err := s.ask("hello")
	if err != nil {
		return nil, err
	}
	_ = s.CloseWrite()
	if rest, err := io.ReadAll(s.lines); err != nil || len(rest) > 0 {
		return words, fmt.Errorf("behind the answer: %q, %w", rest, err)
	}
	return words, nil
}

// mustCall is call that has to work and to reach the named pod.
func (m *mesh) mustCall(from *netlab.Pod, to netip.AddrPort, who string) []string {
	m.t.Helper()
	words, err := m.call(from, to)
	if err != nil {
		m.t.Fatalf("%s calls %s: %v", from.Name(), to, err)
	}
	if who != "" && words[0] != who {
		m.t.Fatalf("%s calls %s: %s answered, want %s", from.Name(), to, words[0], who)
	}
	return words
}

// refused is call that has to fail, by a reset and not by an orderly end: a truncated answer must not look complete.
func (m *mesh) refused(from *netlab.Pod, to netip.AddrPort) {
	m.t.Helper()
	words, err := m.call(from, to)
	if err == nil {
		m.t.Fatalf("%s calls %s: %v answered, want a refusal", from.Name(), to, words)
	}
	if errors.Is(err, io.EOF) {
		m.t.Errorf("%s calls %s: the refusal looks like an orderly end", from.Name(), to)
	}
}

// record waits for the access-log line of an agent that has all given fields.
func (m *mesh) record(a *netlab.Agent, want netlab.Record) netlab.Record {
	m.t.Helper()
	r, err := a.WaitRecord(patience, func(r netlab.Record) bool {
		for k, v := range want {
			if r.Str(k) != fmt.Sprint(v) {
				return false
			}
		}
		return true
	})
	if err != nil {
		m.t.Fatalf("no access-log line with %v: %v", want, err)
	}
	return r
}

// eventually polls a condition.
func (m *mesh) eventually(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("still not: %s", what)
		}
	}
}

func spiffe(account string) string { return "spiffe://cluster.local/ns/" + ns + "/sa/" + account }

func (m *mesh) apply() {
	m.t.Helper()
	if err := m.Apply(); err != nil {
		m.t.Fatal(err)
	}
}
