package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// culvert is a pair of agents with everything on that a mesh has: captured traffic, a service address, mutual TLS, a
// policy that decides by identity, the access log and metrics.
type culvert struct {
	program string
	args    []string
	limits  [2]int // descriptors that each agent may have; 0 for as many as any process
	near    bool   // both pods are of one node, so there is one agent

	lab       *lab
	home      *topology.Topology // where the agents themselves run, as on two machines
	processes []*topology.Process
}

// vip is the address of the service that stands for the server. It belongs to nobody.
var vip = netip.AddrFrom4([4]byte{10, 2, 0, 1})

// sides are the two ends in the order of agents.
func (c *culvert) sides() []side {
	sides := []side{
		{"client", "node-client", c.lab.client()},
		{"server", "node-server", c.lab.server()},
	}
	if c.near {
		sides[1].node = sides[0].node
	}
	return sides
}

// agentOf is the index of a side's agent.
func (c *culvert) agentOf(i int) int { return min(i, len(c.processes)-1) }

type side struct {
	name, node string
	pod        *topology.Pod
}

func (c *culvert) start(ctx context.Context, l *lab) error {
	c.lab = l
	home, err := topology.New(topology.Config{Nodes: []string{"node-client", "node-server"}})
	if err != nil {
		return err
	}
	c.home = home
	cert, key := filepath.Join(l.dir, "ca.pem"), filepath.Join(l.dir, "ca-key.pem")
	cli := filepath.Join(filepath.Dir(c.program), "culvert")
	if out, err := exec.CommandContext(ctx, cli, "ca", "init", "--ca-cert="+cert, "--ca-key="+key).CombinedOutput(); err != nil {
		return fmt.Errorf("make authority: %w: %s", err, out)
	}
	workloads := filepath.Join(l.dir, "workloads.yaml")
	if err := os.WriteFile(workloads, []byte(c.workloads()), 0o644); err != nil {
		return err
	}
	for i, sides := range c.agentSides() {
		pods := filepath.Join(l.dir, sides[0].name+"-pods.yaml")
		if err := os.WriteFile(pods, []byte(podList(sides)), 0o644); err != nil {
			return err
		}
		args := append([]string{
			c.program, "--mode=node", "--node=" + sides[0].node, "--workloads=" + workloads, "--pods=" + pods,
			"--ca-cert=" + cert, "--ca-key=" + key,
		}, c.args...)
		if c.limits[i] > 0 {
			args = append([]string{l.self, "tool", "limited", strconv.Itoa(c.limits[i])}, args...)
		}
		process, err := l.start(home.Nodes()[i], c.logName(i), args)
		if err != nil {
			return err
		}
		c.processes = append(c.processes, process)
	}
	for i := range c.processes {
		if err := c.waitReady(ctx, i); err != nil {
			return fmt.Errorf("agent of the %s: %w\n%s", c.sides()[i].name, err, c.logTail(i))
		}
	}
	return nil
}

// agentSides are the ends that each agent serves.
func (c *culvert) agentSides() [][]side {
	sides := c.sides()
	if c.near {
		return [][]side{sides}
	}
	return [][]side{sides[:1], sides[1:]}
}

func podList(sides []side) string {
	var b strings.Builder
	for _, s := range sides {
		fmt.Fprintf(&b, "- uid: %[1]s\n  name: %[1]s\n  namespace: default\n  serviceAccount: %[1]s\n  netns: %[2]s\n", s.name, s.pod.Path())
	}
	return b.String()
}

func (c *culvert) logName(i int) string { return "culvert-" + c.sides()[i].name }
func (c *culvert) logFile(i int) string { return filepath.Join(c.lab.dir, c.logName(i)+".log") }

func (c *culvert) logTail(i int) string {
	text, err := os.ReadFile(c.logFile(i))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

func (c *culvert) target(a app) netip.AddrPort { return netip.AddrPortFrom(vip, a.port) }
func (c *culvert) agents() []*topology.Process { return c.processes }
func (c *culvert) descriptors() int            { return 1 }

func (c *culvert) version() string {
	cli := filepath.Join(filepath.Dir(c.program), "culvert")
	out, err := exec.Command(cli, "version").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (c *culvert) stop() error {
	var failed []error
	for _, p := range c.processes {
		failed = append(failed, p.Stop(20*time.Second))
	}
	if c.home != nil {
		failed = append(failed, c.home.Close())
	}
	return errors.Join(failed...)
}

// workloads is the file that both agents read.
func (c *culvert) workloads() string {
	var b strings.Builder
	b.WriteString("workloads:\n")
	for _, s := range c.sides() {
		fmt.Fprintf(&b, `- uid: bench//Pod/default/%[1]s
  name: %[1]s
  namespace: default
  trustDomain: cluster.local
  serviceAccount: %[1]s
  workloadIps: ["%[2]s", "%[3]s"]
  protocol: HBONE
  node: %[4]s
  network: ""
`, s.name, s.pod.Addr(), s.pod.Addr6(), s.node)
		if s.name == "server" {
			b.WriteString("  services:\n    \"default/server.default.svc.cluster.local\":\n")
			for _, a := range apps() {
				fmt.Fprintf(&b, "      %[1]d: %[1]d\n", a.port)
			}
		}
	}
	fmt.Fprintf(&b, "services:\n- name: server\n  namespace: default\n  hostname: server.default.svc.cluster.local\n  vips: [\"/%s\"]\n  ports:\n", vip)
	for _, a := range apps() {
		fmt.Fprintf(&b, "    %[1]d: %[1]d\n", a.port)
	}
	b.WriteString(`policies:
- name: only-the-client
  namespace: default
  scope: Namespace
  action: Allow
  dryRun: false
  rules:
  - - - principals:
        - Exact: cluster.local/ns/default/sa/client
`)
	return b.String()
}

// get asks a server of agent i, on the agent's own machine.
func (c *culvert) get(ctx context.Context, i int, port uint16, path string) (string, error) {
	node := c.home.Nodes()[i]
	transport := &http.Transport{DialContext: node.Dial, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}

func (c *culvert) waitReady(ctx context.Context, i int) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := c.get(ctx, i, 15021, "/healthz/ready")
		if err == nil {
			return nil
		}
		select {
		case <-c.processes[i].Done():
			return fmt.Errorf("it ended: %w", c.processes[i].Wait())
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("not ready: %w", err)
		}
	}
}

// check wants every connection in the counters and in the access log of both agents, no more and no less.
func (c *culvert) check(ctx context.Context, made int) error {
	var failed []error
	for i, s := range c.sides() {
		reporter := []string{"source", "destination"}[i]
		direction := []string{"outbound", "inbound"}[i]
		opened, err := c.awaitCount(made, func() (int, error) {
			text, err := c.get(ctx, c.agentOf(i), 15020, "/metrics")
			return sumMetric(text, "istio_tcp_connections_opened_total", `reporter="`+reporter+`"`), err
		})
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("read counters of the %s's agent: %w", s.name, err))
		case opened != made:
			failed = append(failed, fmt.Errorf("%d connections were made, the %s's agent counted %d", made, s.name, opened))
		}
		logged, err := c.awaitCount(made, func() (int, error) {
			return countLines(c.logFile(c.agentOf(i)), "connection complete", "direction="+direction)
		})
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("read log of the %s's agent: %w", s.name, err))
		case logged != made:
			failed = append(failed, fmt.Errorf("%d connections were made, the %s's agent logged %d", made, s.name, logged))
		}
	}
	return errors.Join(failed...)
}

// awaitCount asks until the count is what it should be, for five seconds: the last connections may just be closing.
func (c *culvert) awaitCount(want int, count func() (int, error)) (int, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		n, err := count()
		if (err == nil && n == want) || time.Now().After(deadline) {
			return n, err
		}
	}
}

// sumMetric adds the values of all series of the metric that carry the label, in the text format.
func sumMetric(text, name, label string) int {
	sum := 0.0
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(series, name+"{") || !strings.Contains(series, label) {
			continue
		}
		value, _, _ = strings.Cut(value, " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			sum += v
		}
	}
	return int(sum)
}

// countLines counts the lines of the file that hold all of the words.
func countLines(file string, words ...string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
next:
	for lines.Scan() {
		for _, w := range words {
			if !strings.Contains(lines.Text(), w) {
				continue next
			}
		}
		n++
	}
	return n, lines.Err()
}
