package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

const (
	nodes       = 4
	podsPerNode = 3
	namespace   = "default"
	servicePort = 80

	// With half of it left a certificate is renewed, so about every ten seconds.
	certificateLife = 20 * time.Second
	// Tunnels without connections are closed soon, so that descriptors can be counted at the end.
	poolIdle = 5 * time.Second
)

// mesh is the lab with what the run changes in it.
type mesh struct {
	lab     *netlab.Lab
	agents  []*netlab.Agent // by node
	pods    []*netlab.Pod   // with applications: by number
	loads   int             // the first of pods that make connections; the others are guests
	visitor *netlab.Pod     // what policy is tried on

	mu sync.Mutex // guards the lab's state
}

// service is a name with virtual addresses.
type service struct {
	name  string
	vips  []string
	brief bool
	times int // how often it is among the targets
}

func services() []service {
	return []service{
		{name: "all", vips: []string{"10.2.0.1", "fd00:2::1"}, times: 6},
		{name: "half", vips: []string{"10.2.0.2"}, times: 3},
		{name: "guests", vips: []string{"10.2.0.3"}, brief: true, times: 2},
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i+1) }

// build makes nodes, pods and services; agents come with start.
func build(agent string) (*mesh, error) {
	names := make([]string, nodes)
	for i := range names {
		names[i] = nodeName(i)
	}
	lab, err := netlab.New(netlab.Config{Binary: agent, Nodes: names, Flags: []string{
		"--secret-ttl=" + certificateLife.String(), "--pool-idle-timeout=" + poolIdle.String(),
	}})
	if err != nil {
		return nil, err
	}
	m := &mesh{lab: lab, loads: nodes * podsPerNode}
	if err := m.populate(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return m, nil
}

func (m *mesh) populate() error {
	add := func(node int, name string) error {
		p, err := m.lab.AddPod(nodeName(node), namespace, name)
		m.pods = append(m.pods, p)
		return err
	}
	for i := range m.loads {
		if err := add(i%nodes, fmt.Sprintf("app-%d-%d", i%nodes+1, i/nodes+1)); err != nil {
			return err
		}
	}
	for node := 0; node < nodes; node += 2 {
		if err := add(node, fmt.Sprintf("guest-%d", node+1)); err != nil {
			return err
		}
	}
	var err error
	if m.visitor, err = m.lab.AddPod(nodeName(1), namespace, "visitor"); err != nil {
		return err
	}
	for _, s := range services() {
		pods := []*netlab.Pod{}
		for _, i := range m.behind(s.name) {
			pods = append(pods, m.pods[i])
		}
		entry := m.lab.AddService(namespace, s.name, netip.MustParseAddr(s.vips[0]), map[uint16]uint16{servicePort: appPort}, pods...)
		for _, vip := range s.vips[1:] {
			entry.VIPs = append(entry.VIPs, "/"+vip)
		}
	}
	m.lab.State.Policies = append(m.lab.State.Policies, m.allow())
	return nil
}

// behind lists the pods that may be endpoints of a service.
func (m *mesh) behind(service string) []int {
	var out []int
	for i := range m.pods {
		switch {
		case service == "guests" && i >= m.loads, service == "all" && i < m.loads, service == "half" && i < m.loads && i%2 == 0:
			out = append(out, i)
		}
	}
	return out
}

// allow is the policy that everything runs under: applications and the visitor may, others may not.
func (m *mesh) allow() *netlab.Policy {
	var clauses []map[string]any
	for _, p := range append(slices.Clone(m.pods), m.visitor) {
		clauses = append(clauses, map[string]any{"principals": []any{map[string]any{"Exact": principal(p.Name())}}})
	}
	rules := make([][][]map[string]any, 0, len(clauses))
	for _, c := range clauses {
		rules = append(rules, [][]map[string]any{{c}})
	}
	return &netlab.Policy{Name: "only-the-mesh", Namespace: namespace, Scope: "Namespace", Action: "Allow", Rules: rules}
}

// deny is a policy that refuses one service account.
func deny(name, account string) *netlab.Policy {
	match := map[string]any{"principals": []any{map[string]any{"Exact": principal(account)}}}
	return &netlab.Policy{Name: name, Namespace: namespace, Scope: "Namespace", Action: "Deny", Rules: [][][]map[string]any{{{match}}}}
}

func principal(account string) string { return "cluster.local/ns/" + namespace + "/sa/" + account }

func (m *mesh) start() error {
	for i := range nodes {
		a, err := m.lab.StartAgent(nodeName(i))
		if err != nil {
			return err
		}
		m.agents = append(m.agents, a)
	}
	return nil
}

// targets is what applications connect to.
func (m *mesh) targets() []target {
	var out []target
	for _, p := range m.pods[:m.loads] {
		out = append(out, target{Name: p.Name(), Addrs: []string{
			netip.AddrPortFrom(p.Addr(), appPort).String(), netip.AddrPortFrom(p.Addr6(), appPort).String(),
		}})
	}
	for _, s := range services() {
		t := target{Name: s.name, Brief: s.brief}
		for _, vip := range s.vips {
			t.Addrs = append(t.Addrs, netip.AddrPortFrom(netip.MustParseAddr(vip), servicePort).String())
		}
		for range s.times {
			out = append(out, t)
		}
	}
	return out
}

// enter tells the ledger who is who.
func (m *mesh) enter(l *ledger) {
	for i, p := range m.pods {
		l.pods[p.Addr()], l.pods[p.Addr6()] = i, i
		l.members[p.Name()] = []int{i}
	}
	for _, s := range services() {
		l.members[s.name] = m.behind(s.name)
	}
}

// edit changes what the agents are told.
func (m *mesh) edit(change func(s *netlab.State)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.lab.State)
	return m.lab.Apply()
}

func serviceKey(name string) string {
	return namespace + "/" + name + "." + namespace + ".svc.cluster.local"
}

// setEndpoint puts a pod behind a service or takes it away.
func (m *mesh) setEndpoint(service string, pod int, in bool) error {
	return m.edit(func(*netlab.State) {
		w := m.pods[pod].Workload
		if in {
			w.Services[serviceKey(service)] = map[uint16]uint16{servicePort: appPort}
		} else {
			delete(w.Services, serviceKey(service))
		}
	})
}

// setPolicy adds or removes a policy.
func (m *mesh) setPolicy(p *netlab.Policy, in bool) error {
	return m.edit(func(s *netlab.State) {
		m.lab.RemovePolicy(p.Name)
		if in {
			s.Policies = append(s.Policies, p)
		}
	})
}

// setEnrolled makes a pod and its workload known to the mesh or takes them out of it.
func (m *mesh) setEnrolled(pod int, in bool) error {
	p := m.pods[pod]
	err := m.edit(func(s *netlab.State) {
		s.Workloads = slices.DeleteFunc(s.Workloads, func(w *netlab.Workload) bool { return w == p.Workload })
		if in {
			s.Workloads = append(s.Workloads, p.Workload)
		}
		p.SetCaptured(in)
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lab.ApplyPods(p.Node().Name())
}

// agentOf is the agent of a pod's node.
func (m *mesh) agentOf(pod int) *netlab.Agent {
	for i, a := range m.agents {
		if nodeName(i) == m.pods[pod].Node().Name() {
			return a
		}
	}
	return nil
}
