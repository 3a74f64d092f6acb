package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

// Config describes a lab. Binary is required.
type Config struct {
	// Binary is the culvert-node program.
	Binary string
	// Nodes are the names of the nodes; two when empty.
	Nodes []string
	// CongestionControl is that of all namespaces; empty leaves the machine's.
	CongestionControl string
	// Flags are given to every agent behind the lab's own.
	Flags []string
}

// Lab is a running mesh. Change State and Apply it; Close removes everything.
type Lab struct {
	// State is what the agents are told at the next Apply.
	State State

	cfg      Config
	topology *topology.Topology
	pods     []*Pod
	agents   []*Agent

	authority []string
}

// Pod is one pod of the lab.
type Pod struct {
	*topology.Pod
	// Workload is the pod's entry in State, nil for a pod that the mesh does not know.
	Workload *Workload
	captured bool
}

// New builds the nodes and a certificate authority; pods and agents come next.
func New(cfg Config) (*Lab, error) {
	if len(cfg.Nodes) == 0 {
		cfg.Nodes = []string{"node-a", "node-b"}
	}
	t, err := topology.New(topology.Config{Nodes: cfg.Nodes, CongestionControl: cfg.CongestionControl})
	if err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, topology: t}
	l.SetAuthority("--ca-cert="+l.CACert(), "--ca-key="+l.CAKey())
	if err := issuer.CreateFiles(l.CACert(), l.CAKey(), "cluster.local"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// CACert is the authority's certificate file.
func (l *Lab) CACert() string { return filepath.Join(l.topology.Dir(), "ca.pem") }

// CAKey is the authority's key file.
func (l *Lab) CAKey() string { return filepath.Join(l.topology.Dir(), "ca-key.pem") }

// Topology is the network below.
func (l *Lab) Topology() *topology.Topology { return l.topology }

// AddPod makes a pod that is enrolled in the mesh when its node's agent is started: HBONE, under its own service
// account. Its name doubles as the account's.
func (l *Lab) AddPod(node, namespace, name string) (*Pod, error) {
	p, err := l.addPod(node, namespace, name, "HBONE")
	if err == nil {
		p.captured = true
	}
	return p, err
}

// AddPlainPod makes a pod that the mesh knows but that is not enrolled.
func (l *Lab) AddPlainPod(node, namespace, name string) (*Pod, error) {
	return l.addPod(node, namespace, name, "TCP")
}

func (l *Lab) addPod(node, namespace, name, protocol string) (*Pod, error) {
	n := l.topology.Node(node)
	if n == nil {
		return nil, fmt.Errorf("add pod %s: no node %q", name, node)
	}
	p, err := n.AddPod(name)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	w := &Workload{
		UID: "cluster1//Pod/" + namespace + "/" + name, Name: name, Namespace: namespace, ServiceAccount: name,
		WorkloadIPs: []string{p.Addr().String(), p.Addr6().String()}, Protocol: protocol, Node: node,
		CanonicalName: name, CanonicalRevision: "v1", WorkloadName: name, WorkloadType: "deployment",
	}
	l.State.Workloads = append(l.State.Workloads, w)
	pod := &Pod{Pod: p, Workload: w}
	l.pods = append(l.pods, pod)
	return pod, nil
}

// AddService puts a service with the given virtual address in front of pods; ports map service to target port.
func (l *Lab) AddService(namespace, name string, vip netip.Addr, ports map[uint16]uint16, pods ...*Pod) *Service {
	s := &Service{Name: name, Namespace: namespace, Hostname: name + "." + namespace + ".svc.cluster.local", VIPs: []string{"/" + vip.String()}, Ports: ports}
	l.State.Services = append(l.State.Services, s)
	for _, p := range pods {
		if p.Workload.Services == nil {
			p.Workload.Services = make(map[string]map[uint16]uint16)
		}
		p.Workload.Services[namespace+"/"+s.Hostname] = ports
	}
	return s
}

// StartAgent starts the agent of a node with the lab's and further flags, and waits until it is ready.
func (l *Lab) StartAgent(node string, flags ...string) (*Agent, error) {
	a, err := l.LaunchAgent(node, flags...)
	if err != nil {
		return nil, err
	}
	if err := a.WaitReady(30 * time.Second); err != nil {
		return nil, err
	}
	return a, nil
}

// LaunchAgent starts the agent of a node without waiting for it.
func (l *Lab) LaunchAgent(node string, flags ...string) (*Agent, error) {
	n := l.topology.Node(node)
	if n == nil {
		return nil, fmt.Errorf("start agent: no node %q", node)
	}
	if err := l.Apply(); err != nil {
		return nil, err
	}
	pods := l.PodsPath(node)
	if err := l.writePods(node, pods); err != nil {
		return nil, err
	}
	args := []string{
		"--mode=node", "--node=" + node, "--cluster=cluster1", "--workloads=" + l.StatePath(), "--pods=" + pods, "--log-format=json",
	}
	return l.launch(n, slices.Concat(args, l.authority, l.cfg.Flags, flags))
}

// StartDedicated starts an agent inside a pod, for that pod alone, and waits until it is ready. The pod must not be on
// its node's list too (SetCaptured). Without --capture among the flags the rules are whatever somebody has made.
func (l *Lab) StartDedicated(p *Pod, flags ...string) (*Agent, error) {
	if err := l.Apply(); err != nil {
		return nil, err
	}
	w := p.Workload
	args := []string{
		"--mode=dedicated", "--workload=" + w.Namespace + "/" + w.Name + "/" + w.ServiceAccount, "--cluster=cluster1",
		"--workloads=" + l.StatePath(), "--log-format=json",
	}
	a, err := l.launch(p, slices.Concat(args, l.authority, l.cfg.Flags, flags))
	if err != nil {
		return nil, err
	}
	return a, a.WaitReady(30 * time.Second)
}

// LaunchWith starts the program on a node with these arguments and no others, without waiting for it.
func (l *Lab) LaunchWith(node string, args ...string) (*Agent, error) {
	n := l.topology.Node(node)
	if n == nil {
		return nil, fmt.Errorf("start agent: no node %q", node)
	}
	return l.launch(n, args)
}

// SetAuthority gives the flags by which agents that are started from now on get their certificates, instead of those
// for the lab's own authority.
func (l *Lab) SetAuthority(flags ...string) { l.authority = flags }

func (l *Lab) launch(where place, args []string) (*Agent, error) {
	a := &Agent{place: where, log: filepath.Join(l.topology.Dir(), where.Name()+"-"+strconv.Itoa(len(l.agents))+".log")}
	if err := a.start(l.cfg.Binary, args); err != nil {
		return nil, err
	}
	l.agents = append(l.agents, a)
	return a, nil
}

// ApplyPods writes the list of enrolled pods of a node again.
func (l *Lab) ApplyPods(node string) error {
	return l.writePods(node, l.PodsPath(node))
}

// PodsPath is the list of a node's enrolled pods.
func (l *Lab) PodsPath(node string) string { return filepath.Join(l.topology.Dir(), node+"-pods.yaml") }

func (l *Lab) writePods(node, path string) error {
	entries := []podEntry{}
	for _, p := range l.pods {
		if p.captured && p.Node().Name() == node {
			entries = append(entries, podEntry{UID: p.Workload.UID, Name: p.Workload.Name, Namespace: p.Workload.Namespace, ServiceAccount: p.Workload.ServiceAccount, NetNS: p.Path()})
		}
	}
	return writeYAML(path, entries)
}

// SetCaptured says whether the pod is on its node's list at the next ApplyPods or StartAgent.
func (p *Pod) SetCaptured(captured bool) { p.captured = captured }

// Close stops the agents and removes every namespace.
func (l *Lab) Close() error {
	var failed []error
	for _, a := range l.agents {
		failed = append(failed, a.Stop())
	}
	return errors.Join(append(failed, l.topology.Close())...)
}
