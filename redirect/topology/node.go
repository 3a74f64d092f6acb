package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/culvert-mesh/culvert/redirect/link"
)

// Names of interfaces in every topology.
const (
	PodInterface  = "eth0"  // of a pod
	WireInterface = "wire0" // of a node, towards the other nodes
	bridgeName    = "br0"
)

var (
	default4 = netip.MustParsePrefix("0.0.0.0/0")
	default6 = netip.MustParsePrefix("::/0")
)

// Node is a namespace that stands for a machine: a bridge for its pods and a wire to the other nodes.
type Node struct {
	*space
	plan  plan
	index int

	mu   sync.Mutex
	next int // number of the next pod's address
	pods []*Pod
}

// Pod is a namespace attached to its node's bridge (or, in a Pair, to the other pod).
type Pod struct {
	*space
	node *Node
	addr netip.Addr
	six  netip.Addr
	port string // interface of the node, the other end of PodInterface
}

func (t *Topology) newNode(name string, index int) (*Node, error) {
	s, err := t.newSpace(name)
	if err != nil {
		return nil, err
	}
	n := &Node{space: s, plan: planOf(index), index: index, next: 2}
	err = n.apply([]setting{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
		// The strict setting of some machines is inherited and would drop packets of pods.
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
	})
	if err != nil {
		return nil, err
	}
	gateway := []netip.Prefix{nth(n.plan.pods4, 1), nth(n.plan.pods6, 1)}
	return n, n.ns.Do(func() error { return addBridge(bridgeName, gateway) })
}

// joinNodes connects the nodes through a switch in a namespace of its own.
func (t *Topology) joinNodes() error {
	if len(t.nodes) == 1 {
		return nil
	}
	wire, err := t.newSpace("wire")
	if err != nil {
		return err
	}
	t.wire = wire
	if err := wire.ns.Do(func() error { return addBridge(bridgeName, nil) }); err != nil {
		return err
	}
	for _, n := range t.nodes {
		if err := link.Join(n.wireEnd(), link.End{NS: wire.ns, Name: n.switchPort(), Bridge: bridgeName}); err != nil {
			return fmt.Errorf("join %s to the switch: %w", n.name, err)
		}
	}
	for _, n := range t.nodes {
		if err := n.ns.Do(func() error { return n.addRoutes(t.nodes) }); err != nil {
			return fmt.Errorf("route from %s: %w", n.name, err)
		}
	}
	return nil
}

func (n *Node) switchPort() string { return fmt.Sprintf("port%d", n.index) }

func (n *Node) wireEnd() link.End {
	return link.End{NS: n.ns, Name: WireInterface, Addrs: []netip.Prefix{n.plan.wire4, n.plan.wire6}}
}

// addRoutes leads to the pods of the other nodes. It runs inside the node's namespace.
func (n *Node) addRoutes(all []*Node) error {
	for _, other := range all {
		if other == n {
			continue
		}
		err := errors.Join(
			link.AddRoute(other.plan.pods4, other.plan.wire4.Addr()),
			link.AddRoute(other.plan.pods6, other.plan.wire6.Addr()),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// Addr is the node's IPv4 address on the wire.
func (n *Node) Addr() netip.Addr { return n.plan.wire4.Addr() }

// Addr6 is the node's IPv6 address on the wire.
func (n *Node) Addr6() netip.Addr { return n.plan.wire6.Addr() }

// PodRange is the IPv4 range of the node's pods.
func (n *Node) PodRange() netip.Prefix { return n.plan.pods4 }

// PodRange6 is the IPv6 range of the node's pods.
func (n *Node) PodRange6() netip.Prefix { return n.plan.pods6 }

// Pods returns the node's pods in the order they were added.
func (n *Node) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods)
}

// AddPod makes a pod on the node. Its name must be unique in the topology. On error nothing is left of it but its
// address, which is not used again.
func (n *Node) AddPod(name string) (*Pod, error) {
	number, err := n.takeNumber()
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	s, err := n.topology.newSpace(name)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	addrs := []netip.Prefix{nth(n.plan.pods4, number), nth(n.plan.pods6, number)}
	p := &Pod{space: s, node: n, addr: addrs[0].Addr(), six: addrs[1].Addr(), port: fmt.Sprintf("pod%d", number)}
	err = link.Join(
		link.End{NS: p.ns, Name: PodInterface, Addrs: addrs},
		link.End{NS: n.ns, Name: p.port, Bridge: bridgeName},
	)
	if err == nil {
		err = p.ns.Do(func() error {
			return errors.Join(
				link.AddRoute(default4, nth(n.plan.pods4, 1).Addr()),
				link.AddRoute(default6, nth(n.plan.pods6, 1).Addr()),
			)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	n.mu.Lock()
	n.pods = append(n.pods, p)
	n.mu.Unlock()
	return p, nil
}

func (n *Node) takeNumber() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next > MaxPods+1 {
		return 0, fmt.Errorf("node %s has %d pods already", n.name, MaxPods)
	}
	n.next++
	return n.next - 1, nil
}

// SetWire plugs the node's cable into the switch or pulls it: the node keeps its routes and loses its carrier.
func (n *Node) SetWire(up bool) error {
	if n.topology.wire == nil {
		return fmt.Errorf("set wire of %s: it is alone", n.name)
	}
	return n.topology.wire.setLink(n.switchPort(), up)
}

// Node is the pod's node; nil in a Pair.
func (p *Pod) Node() *Node { return p.node }

// Addr is the pod's IPv4 address.
func (p *Pod) Addr() netip.Addr { return p.addr }

// Addr6 is the pod's IPv6 address.
func (p *Pod) Addr6() netip.Addr { return p.six }

// SetLink sets the node's end of the pod's link up or down: the pod keeps its routes and loses its carrier.
func (p *Pod) SetLink(up bool) error {
	if p.node == nil {
		return fmt.Errorf("set link of %s: it has no node", p.name)
	}
	return p.node.setLink(p.port, up)
}
