package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// MaxNodes is the largest number of nodes in one topology; MaxPods the largest number of pods on one node.
const (
	MaxNodes = 200
	MaxPods  = 250
)

// Config describes a topology. All fields are optional but Nodes.
type Config struct {
	// Nodes are the names of the nodes, at least one, all different.
	Nodes []string
	// CongestionControl is the TCP congestion control algorithm of every namespace ("reno"). Empty leaves the
	// machine's default. An algorithm that paces hides differences in benchmarks.
	CongestionControl string
}

// Topology is a network of nodes. It owns all namespaces and processes in it.
type Topology struct {
	cfg     Config
	dir     string
	spawner spawner
	nodes   []*Node
	wire    *space // the switch between the nodes; nil when there is one node

	mu     sync.Mutex
	spaces []*space
	procs  map[*Process]struct{}
	closed bool
}

// New builds the nodes and the wire between them. On error nothing is left behind. It needs CAP_SYS_ADMIN and
// CAP_NET_ADMIN, in the machine or in a user namespace.
func New(cfg Config) (*Topology, error) {
	if len(cfg.Nodes) == 0 || len(cfg.Nodes) > MaxNodes {
		return nil, fmt.Errorf("build topology: %d nodes, want 1 to %d", len(cfg.Nodes), MaxNodes)
	}
	t, err := empty(cfg)
	if err != nil {
		return nil, err
	}
	for i, name := range cfg.Nodes {
		if slices.Contains(cfg.Nodes[:i], name) {
			return nil, errors.Join(fmt.Errorf("build topology: two nodes are called %q", name), t.Close())
		}
		node, err := t.newNode(name, i+1)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("build node %s: %w", name, err), t.Close())
		}
		t.nodes = append(t.nodes, node)
	}
	if err := t.joinNodes(); err != nil {
		return nil, errors.Join(fmt.Errorf("join nodes: %w", err), t.Close())
	}
	return t, nil
}

func empty(cfg Config) (*Topology, error) {
	dir, err := os.MkdirTemp("", "culvert-topology-")
	if err != nil {
		return nil, fmt.Errorf("build topology: %w", err)
	}
	return &Topology{cfg: cfg, dir: dir, procs: make(map[*Process]struct{})}, nil
}

// Nodes returns the nodes in the order of Config.
func (t *Topology) Nodes() []*Node { return slices.Clone(t.nodes) }

// Node returns the node of that name, or nil.
func (t *Topology) Node(name string) *Node {
	for _, n := range t.nodes {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

// Wire is the namespace of the switch between the nodes: what crosses it is what a stranger on the network sees. It is nil
// nil when there is only one node.
func (t *Topology) Wire() *netns.NS {
	if t.wire == nil {
		return nil
	}
	return t.wire.ns
}

// Dir is a directory of the topology for files of its user, removed by Close. Below it, netns/NAME leads to each
// namespace: `nsenter --net=DIR/netns/NAME` works for whoever may look into this process.
func (t *Topology) Dir() string { return t.dir }

// Close kills the processes started in the topology, waits for them, and gives up all namespaces. It may be called
// more than once.
func (t *Topology) Close() error {
	t.mu.Lock()
	t.closed = true
	procs, spaces := t.procs, t.spaces
	t.procs, t.spaces = nil, nil
	t.mu.Unlock()

	for p := range procs {
		p.kill()
	}
	for p := range procs {
		<-p.done
	}
	t.spawner.close()
	var failed []error
	for _, s := range spaces {
		failed = append(failed, s.ns.Close())
	}
	return errors.Join(append(failed, os.RemoveAll(t.dir))...)
}

// newSpace makes a namespace with the settings that all have.
func (t *Topology) newSpace(name string) (*space, error) {
	if name == "" || name != filepath.Base(name) {
		return nil, fmt.Errorf("name %q cannot be the name of a file", name)
	}
	ns, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	s := &space{topology: t, name: name, ns: ns}
	if err := t.adopt(s); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	settings := []setting{
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		// Addresses are usable at once, and nobody advertises routers here.
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	}
	if t.cfg.CongestionControl != "" {
		settings = append(settings, setting{"net/ipv4/tcp_congestion_control", t.cfg.CongestionControl})
	}
	return s, s.apply(settings)
}

// adopt makes the topology own the namespace and gives it a path.
func (t *Topology) adopt(s *space) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return os.ErrClosed
	}
	dir := filepath.Join(t.dir, "netns")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s.path = filepath.Join(dir, s.name)
	err := s.ns.Control(func(fd int) error {
		return os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), s.path)
	})
	if err != nil {
		return fmt.Errorf("give namespace a path: %w", err)
	}
	t.spaces = append(t.spaces, s)
	return nil
}

// plan is the numbering of one node: its place on the wire and its range for pods.
type plan struct {
	wire4, wire6 netip.Prefix
	pods4, pods6 netip.Prefix
}

func planOf(index int) plan {
	i := byte(index)
	wire6 := netip.MustParseAddr("fd00:99::").As16()
	wire6[15] = i
	pods6 := netip.MustParseAddr("fd00:1::").As16()
	pods6[5] = i
	return plan{
		wire4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 99, i}), 24),
		wire6: netip.PrefixFrom(netip.AddrFrom16(wire6), 64),
		pods4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, i, 0}), 24),
		pods6: netip.PrefixFrom(netip.AddrFrom16(pods6), 64),
	}
}

// nth returns the n-th address of the range, with the range's length.
func nth(p netip.Prefix, n int) netip.Prefix {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		a[3] = byte(n)
		return netip.PrefixFrom(netip.AddrFrom4(a), p.Bits())
	}
	a := p.Addr().As16()
	a[15] = byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(a), p.Bits())
}
