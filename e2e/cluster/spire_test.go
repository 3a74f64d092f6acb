package cluster

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/e2e/cluster/kube"
	"github.com/culvert-mesh/culvert/identity"
)

// Certificates come from SPIRE instead of the controller: pods speak under SPIRE's roots, and a pod that SPIRE does not know
// speaks not at all. Neither a renewal nor SPIRE's agents going away and coming back breaks anything.
func TestSpireIdentity(t *testing.T) {
	nodes := needNodes(t)
	noMesh(t)
	s := startSpire(t, nodes)
	m := ownMesh(t, "--set=spire.adminSocket="+spireSocket)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	const short = 40 * time.Second
	s.grantPod(ns.name, "client", time.Hour)
	s.grantPod(ns.name, "server", short)
	client, server := ns.pod("client", onNode(n1)), ns.pod("server", onNode(n2))
	wait(t, "the agent is told that it is no delegate", func() error { return m.agentSays(t, n1, "PermissionDenied: no identity issued") })
	s.authorize()
	client.ready().enrolled()
	server.ready().enrolled()
	wantTLS(t, client, server)
	roots := s.roots()
	first := shown(t, server)[0]
	if _, err := first.Verify(x509.VerifyOptions{Roots: roots.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("what the server shows is not SPIRE's: %v", err)
	}

	// Without a certificate a pod does not start, or is refused: both are right, and both end when SPIRE learns of it.
	unknown := ns.pod("unknown", onNode(n1))
	consistently(t, "a pod that SPIRE does not know", 5*time.Second, func() error {
		if p, err := unknown.get(); err != nil || !ready(p) {
			return err
		}
		if r, err := unknown.get1("http://" + server.ip + ":8080/"); err == nil && r.Error == "" {
			return fmt.Errorf("it is answered: %v", r.Body)
		}
		return nil
	})
	s.grantPod(ns.name, "unknown", time.Hour)
	unknown.ready().enrolled()
	wantTLS(t, unknown, server)

	load := client.start("load", "--pause=50ms", "http://"+server.ip+":8080/")
	across := client.hold(4, server.ip+":9000")
	renewed := s.renewal(server)
	begin := time.Now()
	s.restart(5 * time.Second)
	again := s.renewal(server)
	t.Logf("renewed %v after SPIRE's agents were killed", time.Since(begin).Round(time.Second))
	if !renewed.NotAfter.After(first.NotAfter) || !again.NotAfter.After(renewed.NotAfter) {
		t.Errorf("certificates end at %v, %v, %v", first.NotAfter, renewed.NotAfter, again.NotAfter)
	}
	// Who comes now is known too.
	s.grantPod(ns.name, "late", time.Hour)
	wantTLS(t, ns.run("late", onNode(n2)).enrolled(), server)
	t.Logf("held: %+v", across.unbroken())
	t.Logf("requests: %d", load.faultless().Requests)
}

// renewal waits until the pod shows another certificate than now.
func (s *spire) renewal(a *app) *x509.Certificate {
	s.t.Helper()
	before := shown(s.t, a)[0]
	after := before
	wait(s.t, "the certificate of "+a.name+" is renewed", func() error {
		if after = shown(s.t, a)[0]; after.Equal(before) {
			return errors.New("it is the same")
		}
		return nil
	})
	return after
}

// agentSays reports whether the log of a node's agent has a text.
func (m *installation) agentSays(t *testing.T, node, text string) error {
	t.Helper()
	agent, err := m.agent(t.Context(), node)
	if err != nil {
		return err
	}
	log, err := m.env.client.CoreV1().Pods(system).GetLogs(agent.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err == nil && !strings.Contains(string(log), text) {
		err = errors.New("it is not")
	}
	return err
}

const (
	// spireSocket is the admin socket of SPIRE's agent on each node, in a directory that only this test makes.
	spireSocket = "/run/spire/private/admin.sock"
	spireNodes  = "spiffe://cluster.local/nodes"
)

// spire is a SPIRE server with an agent for each node, which run as the configuration in docs/spire.md says. They are
// processes of this machine, which sees those of the nodes; only the admin sockets are the nodes' own.
type spire struct {
	t      *testing.T
	dir    string
	port   string
	server *process
	agents map[string]*process
}

// startSpire starts SPIRE until the test ends.
func startSpire(t *testing.T, nodes *kube.Cluster) *spire {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire") // not t.TempDir: its path can be longer than a socket's may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &spire{t: t, dir: dir, port: freePort(t), agents: make(map[string]*process)}
	version, err := exec.CommandContext(t.Context(), s.program("spire-server"), "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("ask SPIRE for its version (make bin/spire/built builds it): %v: %s", err, version)
	}
	t.Logf("this is SPIRE %s: a server and an agent for each node", strings.TrimSpace(string(version)))

	s.server = s.run("server", "spire-server", "run", "-config", s.configure("server", "server.conf", ""))
	wait(t, "SPIRE's server answers", func() error {
		_, err := s.ask("healthcheck")
		return err
	})
	bundle, err := s.ask("bundle", "show")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodes.Nodes() {
		root := fmt.Sprintf("/proc/%d/root", nodes.Node(name).PID())
		t.Cleanup(func() {
			if err := os.RemoveAll(root + filepath.Dir(filepath.Dir(spireSocket))); err != nil {
				t.Error(err)
			}
		})
		config := s.configure(name, "agent.conf", root)
		if err := os.WriteFile(filepath.Join(dir, name, "bundle.pem"), []byte(bundle), 0o600); err != nil {
			t.Fatal(err)
		}
		s.agents[name] = s.run(name, "spire-agent", "run", "-config", config, "-joinToken", s.token())
		s.agents[name].socket = root + spireSocket
	}
	for _, agent := range s.agents {
		agent.listens()
	}
	return s
}

func (s *spire) program(name string) string { return shared.program("spire/" + name) }

// configure writes a configuration of the documentation with the places of this test.
func (s *spire) configure(name, file, root string) string {
	s.t.Helper()
	own := filepath.Join(s.dir, name)
	if err := os.Mkdir(own, 0o700); err != nil {
		s.t.Fatal(err)
	}
	places := strings.NewReplacer(
		"/var/lib/spire/server", own, "/run/spire/server", own, "/var/lib/spire/agent", own, "/run/spire/agent", own,
		spireSocket, root+spireSocket, "spire-server.example.com", "127.0.0.1", "0.0.0.0", "127.0.0.1", "8081", s.port,
	)
	page, err := os.ReadFile("../../docs/spire.md")
	if err != nil {
		s.t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "```hcl\n# "+file+"\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		s.t.Fatalf("docs/spire.md has no %s", file)
	}
	path := filepath.Join(own, file)
	if err := os.WriteFile(path, []byte(places.Replace(text)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// ask calls the server's own command.
func (s *spire) ask(args ...string) (string, error) {
	args = append(args, "-socketPath", filepath.Join(s.dir, "server", "api.sock"))
	out, err := exec.CommandContext(s.t.Context(), s.program("spire-server"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("spire-server %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// token is a join token for a node.
func (s *spire) token() string {
	s.t.Helper()
	out, err := s.ask("token", "generate", "-spiffeID", spireNodes, "-output", "json")
	if err != nil {
		s.t.Fatal(err)
	}
	var token struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal([]byte(out), &token); err != nil || token.Value == "" {
		s.t.Fatalf("join token: %v: %s", err, out)
	}
	return token.Value
}

// grant registers an entry for a service account, whose certificates live for ttl.
func (s *spire) grant(namespace, account string, ttl time.Duration, selectors ...string) {
	s.t.Helper()
	args := []string{
		"entry", "create", "-parentID", spireNodes, "-spiffeID", "spiffe://cluster.local/ns/" + namespace + "/sa/" + account,
		"-x509SVIDTTL", strconv.Itoa(int(ttl.Seconds())),
	}
	for _, selector := range selectors {
		args = append(args, "-selector", selector)
	}
	if _, err := s.ask(args...); err != nil {
		s.t.Fatal(err)
	}
}

// grantPod registers an entry for the pods of a service account.
func (s *spire) grantPod(namespace, account string, ttl time.Duration) {
	s.t.Helper()
	s.grant(namespace, account, ttl, "k8s:ns:"+namespace, "k8s:sa:"+account)
}

// authorize registers Culvert's agents as the delegates.
func (s *spire) authorize() {
	s.t.Helper()
	program, err := os.ReadFile(shared.program("culvert-node"))
	if err != nil {
		s.t.Fatal(err)
	}
	digest := sha256.Sum256(program)
	s.grant(system, "culvert-node", time.Hour, "unix:uid:0", "unix:sha256:"+hex.EncodeToString(digest[:]))
}

// roots are SPIRE's own.
func (s *spire) roots() *identity.Bundle {
	s.t.Helper()
	out, err := s.ask("bundle", "show")
	if err != nil {
		s.t.Fatal(err)
	}
	bundle, err := identity.ParseBundle(identity.MustTrustDomain("cluster.local"), []byte(out))
	if err != nil {
		s.t.Fatal(err)
	}
	return bundle
}

// restart kills the agents of all nodes and, after a while, starts them again. They were attested before.
func (s *spire) restart(pause time.Duration) {
	s.t.Helper()
	for _, agent := range s.agents {
		agent.kill()
	}
	time.Sleep(pause)
	for name, agent := range s.agents {
		s.agents[name] = s.run(name, "spire-agent", "run", "-config", filepath.Join(s.dir, name, "agent.conf"))
		s.agents[name].socket = agent.socket
	}
	for _, agent := range s.agents {
		agent.listens()
	}
}

// process is a program that runs until it is killed, at the latest when the test ends.
type process struct {
	t      *testing.T
	name   string
	log    string
	socket string
	cmd    *exec.Cmd
	ended  chan struct{}
}

func (s *spire) run(name, program string, args ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, name: name, log: filepath.Join(s.dir, name, "log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(s.program(program), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread that started it ends
		defer runtime.UnlockOSThread()
		started <- p.cmd.Start()
		if p.cmd.Process != nil {
			_ = p.cmd.Wait() // it is killed
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		p.kill()
		if text, err := os.ReadFile(p.log); s.t.Failed() && err == nil {
			s.t.Logf("SPIRE's %s:\n%s", name, text[max(0, len(text)-8<<10):])
		}
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// listens waits until the agent's admin socket answers.
func (p *process) listens() {
	p.t.Helper()
	wait(p.t, "SPIRE's agent of "+p.name+" listens", func() error {
		select {
		case <-p.ended:
			p.t.Fatalf("SPIRE's agent of %s has ended", p.name)
		default:
		}
		conn, err := (&net.Dialer{}).DialContext(p.t.Context(), "unix", p.socket)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// freePort is a port of the loopback interface that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
