package netpol

import (
	"net/netip"
	"slices"
	"strings"
)

// Label is one label of an object.
type Label struct{ Key, Value string }

// Labels are the labels of an object, ordered by key, each key once. Immutable.
type Labels []Label

// MakeLabels returns the labels of a map.
func MakeLabels(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	l := make(Labels, 0, len(m))
	for k, v := range m {
		l = append(l, Label{k, v})
	}
	slices.SortFunc(l, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return l
}

// Get returns the value of a label and whether there is one.
func (l Labels) Get(key string) (string, bool) {
	for i := range l {
		if l[i].Key == key {
			return l[i].Value, true
		}
	}
	return "", false
}

// Op is how a Requirement compares.
type Op uint8

// The zero value is no operator; a Requirement that has it cannot be
// understood.
const (
	_ Op = iota
	In
	NotIn
	Exists
	DoesNotExist
)

// String returns the name that Kubernetes uses.
func (o Op) String() string { return name(o, "None", "In", "NotIn", "Exists", "DoesNotExist") }

// Requirement is one condition on labels, as in a Kubernetes label selector.
// An object without the label satisfies NotIn. In and NotIn need Values, the
// others have none.
type Requirement struct {
	Key    string
	Op     Op
	Values []string
}

// Selector selects the objects whose labels satisfy every requirement; without
// any it selects all. A matchLabels entry is an In with one value.
type Selector struct{ Requirements []Requirement }

// Protocol is a transport protocol.
type Protocol uint8

// The zero value is TCP, as in Kubernetes. AnyProtocol is for a Port only.
const (
	TCP Protocol = iota
	UDP
	SCTP
	AnyProtocol
)

// String returns the name that Kubernetes uses.
func (p Protocol) String() string { return name(p, "TCP", "UDP", "SCTP", "any") }

// Port is an entry of a rule's ports. With a Name it is the port, or ports,
// that the destination pod names so; what is no pod has none. Otherwise it is
// Port, or Port to End (inclusive) when End is not 0, or every port of the
// protocol when both are 0.
type Port struct {
	Protocol  Protocol
	Port, End uint16
	Name      string
}

// Peer is an entry of a rule's from or to. It is of one kind:
//
//   - pods: Pods or Namespaces, or both, are set. Pods nil is all pods of the
//     selected namespaces, Namespaces nil is the policy's own namespace (which
//     only a policy of the tier Namespaced has).
//   - addresses: Block, without Except. A pod's address counts like any other.
//   - Networks: addresses in any of them.
//   - Nodes: addresses of the nodes selected.
//   - Domains: names, of which "*.example.com" stands for all names below
//     example.com. Only for rules that allow.
//
// One of no kind or of two cannot be understood.
type Peer struct {
	Namespaces, Pods *Selector

	Block  netip.Prefix
	Except []netip.Prefix

	Networks []netip.Prefix
	Nodes    *Selector
	Domains  []string
}

// Action is what a matching rule means.
type Action uint8

// The zero value is Allow (Accept of a ClusterNetworkPolicy), which is all that
// rules of the tier Namespaced have. Deny refuses. Pass skips the rest of the
// tier.
const (
	Allow Action = iota
	Deny
	Pass
)

// String returns the name used in dumps.
func (a Action) String() string { return name(a, "Allow", "Deny", "Pass") }

// Rule matches when one of its peers and one of its ports does. The zero Rule
// matches nothing.
type Rule struct {
	// Name is optional and for people.
	Name   string
	Action Action
	// AnyPeer matches every peer, known or not, as a NetworkPolicy's rule
	// without from or to does. Peers is empty then.
	AnyPeer bool
	Peers   []Peer
	// AnyPort matches every port of every protocol, as a rule without ports
	// does. Ports is empty then.
	AnyPort bool
	Ports   []Port
	// Invalid is set by a source that could not read a part of the rule, and
	// says which. As ClusterNetworkPolicy's text demands, such a rule matches
	// nothing when it allows; otherwise it denies everything.
	Invalid string
}

// Tier is the place of a policy in the order of evaluation.
type Tier uint8

// Tiers are evaluated in this order. The zero value is no tier, and a policy
// that has it cannot be understood: it is taken for one of Admin, or of
// Namespaced when it has a namespace.
const (
	_ Tier = iota
	Admin
	Namespaced
	Baseline
)

// String returns the name used in dumps.
func (t Tier) String() string { return name(t, "None", "Admin", "Namespaced", "Baseline") }

// Policy is a NetworkPolicy (tier Namespaced) or a ClusterNetworkPolicy (tiers
// Admin and Baseline, no namespace). Immutable after it was given to a Set.
type Policy struct {
	Tier      Tier
	Namespace string
	Name      string
	// Priority orders the policies of Admin, and those of Baseline: lower
	// first, and by name where equal (the API leaves that open).
	Priority int32
	// Namespaces and Pods select the subject, the pods that the policy
	// governs. Namespaces is nil for Namespaced, which governs pods of its own
	// namespace, and required otherwise.
	Namespaces *Selector
	Pods       Selector
	// Ingress and Egress say which directions it governs: policyTypes with
	// defaults applied, and for a ClusterNetworkPolicy whether it has such
	// rules.
	Ingress, Egress           bool
	IngressRules, EgressRules []Rule
	// Invalid is set by a source that could not read a part of the policy
	// outside of its rules, and says which. Such a policy allows nothing: one
	// of Namespaced isolates its subject, another one denies at its place. If
	// it governs neither direction it is taken to govern both.
	Invalid string
}

// NamedPort is a port that a pod's containers name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Pod is a pod with an address of its own. Pods of the host's network are not
// given to a Set: policies neither select them nor know them as peers, their
// address is the node's. Immutable after it was given to a Set.
type Pod struct {
	// UID is the UID of the workload (workload.Workload.UID).
	UID       string
	Namespace string
	Labels    Labels
	Ports     []NamedPort
}

// Namespace is a namespace with its labels. Immutable after it was given to a
// Set.
type Namespace struct {
	Name   string
	Labels Labels
}

// Node is a node with its labels and addresses, for rules that name nodes.
// Immutable after it was given to a Set.
type Node struct {
	Name      string
	Labels    Labels
	Addresses []netip.Addr
}

// Kind says what a Key is the key of.
type Kind uint8

// Kinds of objects. The zero value is none.
const (
	_ Kind = iota
	KindPolicy
	KindPod
	KindNamespace
	KindNode
)

// String returns the name used in dumps.
func (k Kind) String() string { return name(k, "None", "Policy", "Pod", "Namespace", "Node") }

// Key names an object of a Set. Namespace is that of a NetworkPolicy and empty
// for everything else; Name is a pod's UID.
type Key struct {
	Kind            Kind
	Namespace, Name string
}

// String returns a text for logs.
func (k Key) String() string {
	if k.Kind != KindPolicy {
		return strings.ToLower(k.Kind.String()) + " " + k.Name
	}
	if k.Namespace == "" {
		return "cluster-netpol " + k.Name
	}
	return "netpol " + k.Namespace + "/" + k.Name
}

// Object is what a Set holds: *Policy, *Pod, *Namespace or *Node.
type Object interface {
	// Key returns what the object is stored under.
	Key() Key
	object() // no others
}

// Key returns the key of the policy.
func (p *Policy) Key() Key { return Key{KindPolicy, p.Namespace, p.Name} }

// Key returns the key of the pod, which has its UID.
func (p *Pod) Key() Key { return Key{Kind: KindPod, Name: p.UID} }

// Key returns the key of the namespace.
func (n *Namespace) Key() Key { return Key{Kind: KindNamespace, Name: n.Name} }

// Key returns the key of the node.
func (n *Node) Key() Key { return Key{Kind: KindNode, Name: n.Name} }

func (*Policy) object()    {}
func (*Pod) object()       {}
func (*Namespace) object() {}
func (*Node) object()      {}
