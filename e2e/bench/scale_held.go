package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

// Goals of the scale command.
const (
	goalHeld       = 15000
	goalHeldBytes  = 3 << 10
	goalBusyBeside = 1.3 // p99 of a busy connection, against alone
)

// spareDescriptors are those that an agent has beside held connections: listeners, tunnels, sockets made ahead.
const spareDescriptors = 500

// heldPart holds as many connections through one pair of agents as descriptors allow.
func heldPart(ctx context.Context, s *scale) (err error) {
	b, c, err := s.start(ctx, "held")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll([]*bench{b})) }()
	n := s.held
	if n == 0 {
		n = s.Descriptors - spareDescriptors
	}
	few := min(2000, n/2)
	alone, err := s.busy(ctx, b)
	if err != nil {
		return err
	}
	h, err := b.startHolding(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = h.end() }() // after an error; otherwise it has ended below
	var memories [2][]memory
	var took time.Duration
	for i, count := range []int{few, n} {
		began := time.Now()
		if err := h.hold(count); err != nil {
			return err
		}
		took = time.Since(began)
		if memories[i], err = memoriesOf(b.system.agents()); err != nil {
			return err
		}
	}
	beside, err := s.busy(ctx, b)
	if err != nil {
		return err
	}
	if err := h.end(); err != nil {
		return err
	}
	b.made += n
	after, err := s.busy(ctx, b)
	if err != nil {
		return err
	}
	if err := c.check(ctx, b.made); err != nil {
		s.broken("held: %v", err)
	}
	s.atLeast("held_connections", "connections", float64(n), goalHeld)
	s.tell("held_opened_per_second", "connections/s", float64(n-few)/took.Seconds())
	for i, side := range c.sides() {
		s.atMost("held_bytes_"+side.name, "B/connection", float64(memories[1][i].anonymous-memories[0][i].anonymous)/float64(n-few), goalHeldBytes)
		s.tell("held_anonymous_"+side.name, "MiB", float64(memories[1][i].anonymous)/(1<<20))
	}
	s.beside("held", (alone+after)/2, beside)
	return nil
}

// beside adds the rows of a busy connection, alone and with others beside it.
func (s *scale) beside(name string, alone, beside float64) {
	s.tell(name+"_p99_alone", "µs", alone)
	s.tell(name+"_p99_beside", "µs", beside)
	s.atMost(name+"_p99_ratio", "×", beside/alone, goalBusyBeside)
}

func memoriesOf(agents []*topology.Process) ([]memory, error) {
	var all []memory
	for _, p := range agents {
		m, err := settled(p, 10*time.Second)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// tunnelServers is how many pods the tunnels lead to.
const tunnelServers = 50

// manyPods is two nodes with many pods: on the first the clients, on the second the servers.
type manyPods struct {
	lab              *netlab.Lab
	clients, servers []*netlab.Pod
	agents           []*netlab.Agent
	closers          []io.Closer
}

// startMany makes a lab with pods, an echo server in each of the servers and nginx in the first.
func startMany(ctx context.Context, s *scale, clients, servers int) (*manyPods, error) {
	lab, err := netlab.New(netlab.Config{Binary: s.agent, CongestionControl: s.congestion, Flags: s.agentArgs})
	if err != nil {
		return nil, err
	}
	m := &manyPods{lab: lab}
	if err := m.populate(ctx, clients, servers); err != nil {
		return nil, errors.Join(err, m.close())
	}
	for _, node := range []string{"node-a", "node-b"} {
		a, err := lab.StartAgent(node)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.agents = append(m.agents, a)
	}
	return m, nil
}

func (m *manyPods) populate(ctx context.Context, clients, servers int) error {
	for i := range clients {
		p, err := m.lab.AddPod("node-a", "default", fmt.Sprintf("client-%d", i))
		if err != nil {
			return err
		}
		m.clients = append(m.clients, p)
	}
	for i := range servers {
		p, err := m.lab.AddPod("node-b", "default", fmt.Sprintf("server-%d", i))
		if err != nil {
			return err
		}
		m.servers = append(m.servers, p)
		l, err := echoServer(ctx, p.Pod, appHold.port)
		if err != nil {
			return err
		}
		m.closers = append(m.closers, l)
	}
	return m.serveHTTP(m.servers[0])
}

// serveHTTP runs nginx in a pod.
func (m *manyPods) serveHTTP(p *netlab.Pod) error {
	dir := m.dir()
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(nginxConfig(dir)), 0o644); err != nil {
		return err
	}
	if _, err := p.Start(exec.Command("nginx", "-c", conf, "-p", dir, "-e", "stderr")); err != nil {
		return err
	}
	return waitListening(p, appHTTP.port, 10*time.Second)
}

func (m *manyPods) dir() string { return m.lab.Topology().Dir() }

func (m *manyPods) close() error {
	for _, c := range m.closers {
		c.Close()
	}
	return m.lab.Close()
}

// besideInTurn returns the p99 of one busy connection, in microseconds, over agents that have nothing else and over agents with
// others beside: the medians of many short runs in turn, because what one answer in a hundred meets on a machine changes from
// second to second.
func besideInTurn(ctx context.Context, s *scale, alone, beside *manyPods) (aloneP99, besideP99 float64, err error) {
	var p99 [2][]float64
	for range s.rounds * shortTurns {
		for i, m := range []*manyPods{alone, beside} {
			target := netip.AddrPortFrom(m.servers[0].Addr(), appHTTP.port)
			r, err := wrkFrom(ctx, m.clients[0].Pod, m.dir(), target, shortTurn(s.duration), 1, 1)
			if err != nil {
				return 0, 0, err
			}
			p99[i] = append(p99[i], r.P99)
		}
	}
	return *median(p99[0]), *median(p99[1]), nil
}

func (m *manyPods) processes() []*topology.Process {
	var out []*topology.Process
	for _, a := range m.agents {
		out = append(out, a.Process())
	}
	return out
}

// tunnelsPart opens a tunnel from every client to every server.
func tunnelsPart(ctx context.Context, s *scale) (err error) {
	m, err := startMany(ctx, s, s.tunnels/tunnelServers, tunnelServers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	without, err := startMany(ctx, s, 1, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, without.close()) }()
	before, err := memoriesOf(m.processes())
	if err != nil {
		return err
	}
	sockets, err := m.agents[0].Metric("culvert_loop_sockets")
	if err != nil {
		return err
	}
	var c crowd
	defer c.shrink(0)
	began := time.Now()
	c.grow(ctx, s.tunnels, func(i int) (*topology.Pod, netip.AddrPort) {
		return m.clients[i/tunnelServers].Pod, netip.AddrPortFrom(m.servers[i%tunnelServers].Addr(), appHold.port)
	})
	took := time.Since(began)
	if len(c.held) != s.tunnels {
		return fmt.Errorf("%d of %d connections were opened, %d refused, %d hung: %s", len(c.held), s.tunnels, c.refused, c.hung, c.lastText)
	}
	now, err := m.agents[0].Metric("culvert_loop_sockets")
	if err != nil {
		return err
	}
	after, err := memoriesOf(m.processes())
	if err != nil {
		return err
	}
	alone, beside, err := besideInTurn(ctx, s, without, m)
	if err != nil {
		return err
	}
	if n := c.dead(); n > 0 {
		s.broken("tunnels: %d of %d connections were lost", n, s.tunnels)
	}
	s.atLeast("tunnels", "tunnels", now-sockets-float64(len(c.held)), float64(s.tunnels))
	s.tell("tunnels_opened_per_second", "tunnels/s", float64(s.tunnels)/took.Seconds())
	for i, side := range []string{"client", "server"} {
		s.tell("tunnel_bytes_"+side, "B/tunnel", float64(after[i].anonymous-before[i].anonymous)/float64(s.tunnels))
		s.tell("tunnel_anonymous_"+side, "MiB", float64(after[i].anonymous)/(1<<20))
	}
	s.beside("tunnels", alone, beside)
	return nil
}
