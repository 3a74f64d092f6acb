package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// HostTableName is the name of the tables in the host's namespace, in families inet and
// bridge.
const HostTableName = "culvert-host"

// The sets of addresses of enrolled pods, by family.
const podSet = "pods"

// When the host's rules look at a packet: before anybody has translated its destination,
// so that a connection to the address of a Service is none to a pod; and after.
const (
	prioBeforeDNAT = prioMangle
	prioAfterDNAT  = 200
)

// HostOptions choose the rules of a node's host namespace.
type HostOptions struct {
	// Pods are the addresses of enrolled pods, with the UID of each.
	Pods map[netip.Addr]string
	// Kubelet is whose connections to them get ProbeDSCP. nil means nobody's.
	Kubelet *SocketOwner
}

// SocketOwner says how to tell a process's sockets from others.
type SocketOwner struct {
	UID uint32
	// CgroupID is the process's cgroup in cgroup v2; sockets of cgroups below it are
	// others. Zero means the uid has to do.
	CgroupID uint64
	// Levels are where that cgroup may be in the tree as the kernel counts: from the
	// root, or, since Linux 6.11, from the root of the cgroup namespace of the thread
	// that makes the rules. One that is wrong matches nothing. Needed with CgroupID.
	Levels []uint32
}

// DesiredHost returns the table inet culvert-host: it marks the kubelet's connections to
// pods and takes the mark from all other packets to them that the host sends or
// forwards.
func DesiredHost(o HostOptions) (*Table, error) {
	sets, err := o.sets()
	if err != nil {
		return nil, fmt.Errorf("make host rules: %w", err)
	}
	t := &Table{Family: FamilyInet, Name: HostTableName, Sets: sets, Chains: []Chain{
		o.mark(), o.markOutput(), o.cleanOthers(), o.cleanOutput(), o.cleanForward(),
	}}
	if err := t.encode(); err != nil {
		return nil, fmt.Errorf("make host rules: %w", err)
	}
	return t, nil
}

// DesiredBridge returns the table bridge culvert-host: it takes the mark from packets to
// pods that pass from port to port of a bridge, which family inet does not see. Frames
// that hide a packet behind a second VLAN tag which means nothing are dropped: a pod would
// read through it, and a rule cannot.
func DesiredBridge(o HostOptions) (*Table, error) {
	sets, err := o.sets()
	if err != nil {
		return nil, fmt.Errorf("make bridge rules: %w", err)
	}
	c := Chain{Name: "clean_bridged", Type: "filter", Hook: "prerouting", Priority: prioRaw}
	for _, family := range bothFamilies {
		c.add(bridgedInSet(family, setName(podSet, family)), dscp(family, ProbeDSCP), counter(), setDSCP(family, 0))
	}
	for _, kind := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
		// In this order: nft 1.0.6 aborts when it lists a rule that looks into the network header behind a VLAN's type.
		c.add(untaggedTag(), etherType(kind), counter(), drop())
	}
	t := &Table{Family: FamilyBridge, Name: HostTableName, Sets: sets, Chains: []Chain{c}}
	if err := t.encode(); err != nil {
		return nil, fmt.Errorf("make bridge rules: %w", err)
	}
	return t, nil
}

var bothFamilies = [...]byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}

func (o HostOptions) sets() ([]Set, error) {
	if k := o.Kubelet; k != nil && k.CgroupID != 0 && len(k.Levels) == 0 {
		return nil, errors.New("cgroup of the kubelet: its level is missing")
	}
	var sets []Set
	for _, family := range bothFamilies {
		s := Set{Name: setName(podSet, family), Type: addrType(family)}
		for addr, uid := range o.Pods {
			if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
				return nil, fmt.Errorf("address %q of pod %s: not an address", addr, uid)
			}
			if addr.Is4() == (family == unix.NFPROTO_IPV4) {
				s.Elements = append(s.Elements, Element{Addr: addr, Comment: uid})
			}
		}
		s.sort()
		sets = append(sets, s)
	}
	return sets, nil
}

// Pods returns the addresses in the table's sets, with the UID of each: what was given to
// DesiredHost. The caller owns the map.
func (t *Table) Pods() map[netip.Addr]string {
	pods := map[netip.Addr]string{}
	if t == nil {
		return pods
	}
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			if e.other == "" && e.Comment != "" && strings.HasPrefix(s.Name, podSet) {
				pods[e.Addr] = e.Comment
			}
		}
	}
	return pods
}

func (o HostOptions) markOutput() Chain {
	c := Chain{Name: "mark_output", Type: "filter", Hook: "output", Priority: prioBeforeDNAT}
	for _, family := range bothFamilies {
		c.add(daddrInSet(family, setName(podSet, family)), l4proto(unix.IPPROTO_TCP), syn(), jump("mark_kubelet"))
	}
	return c
}

func (o HostOptions) mark() Chain {
	c := Chain{Name: "mark_kubelet"}
	below, own := o.Kubelet.matches()
	for _, m := range below {
		c.add(m, leave())
	}
	for _, m := range own {
		for _, family := range bothFamilies {
			c.add(m, nfproto(family), counter(), setDSCP(family, ProbeDSCP))
		}
	}
	return c
}

// cleanOutput looks at all protocols and segments: the mark is the kubelet's alone.
func (o HostOptions) cleanOutput() Chain {
	c := Chain{Name: "clean_output", Type: "filter", Hook: "output", Priority: prioAfterDNAT}
	for _, family := range bothFamilies {
		c.add(daddrInSet(family, setName(podSet, family)), dscp(family, ProbeDSCP), jump("clean_others"))
	}
	return c
}

func (o HostOptions) cleanOthers() Chain {
	c := Chain{Name: "clean_others"}
	below, own := o.Kubelet.matches()
	for _, m := range below {
		for _, family := range bothFamilies {
			c.add(m, nfproto(family), counter(), setDSCP(family, 0))
		}
	}
	for _, m := range own {
		c.add(m, leave())
	}
	for _, family := range bothFamilies {
		c.add(nfproto(family), counter(), setDSCP(family, 0))
	}
	return c
}

func (o HostOptions) cleanForward() Chain {
	c := Chain{Name: "clean_forward", Type: "filter", Hook: "forward", Priority: prioAfterDNAT}
	for _, family := range bothFamilies {
		c.add(daddrInSet(family, setName(podSet, family)), dscp(family, ProbeDSCP), counter(), setDSCP(family, 0))
	}
	return c
}

// matches returns what matches sockets of cgroups below the owner's, and what matches
// both these and the owner's own. Each is a list of alternatives.
func (s *SocketOwner) matches() (below, own []match) {
	switch {
	case s == nil:
		return nil, nil
	case s.CgroupID == 0:
		return nil, []match{skuid(s.UID)}
	}
	for _, level := range s.Levels {
		m := slices.Concat(skuid(s.UID), socketCgroup(level, s.CgroupID))
		own = append(own, m)
		below = append(below, slices.Concat(m, socketCgroup(level+1, 0)))
	}
	return below, own
}

// HostFeature is something of the kernel that the host's rules use where it is there.
type HostFeature string

// The features.
const (
	FeatureCgroup HostFeature = "matching sockets by cgroup v2 (nft_socket, Linux 5.13)"
	FeatureBridge HostFeature = "filtering bridges (CONFIG_NF_TABLES_BRIDGE)"
)

// TryFeature asks the kernel whether it has a feature, in a transaction in ns that undoes
// itself: nothing ever is in effect.
func TryFeature(ns *netns.NS, f HostFeature) error {
	family, c := FamilyInet, Chain{Name: "c", Type: "filter", Hook: "output"}
	c.add(socketCgroup(0, 1))
	if f == FeatureBridge {
		family, c = FamilyBridge, Chain{Name: "c", Type: "filter", Hook: "prerouting"}
		c.add(setDSCP(unix.NFPROTO_IPV4, 0))
	}
	err := ns.Do(func() error {
		return transact(func(conn *nftables.Conn) error {
			t := &Table{Family: family, Name: HostTableName + "-probe", Chains: []Chain{c}}
			if err := t.queue(conn); err != nil {
				return err
			}
			remove(conn, family, t.Name)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("%s is missing: %w", f, err)
	}
	return nil
}
