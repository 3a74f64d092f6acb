package topology

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// end is one end of a veth pair and what it is given there.
type end struct {
	space  *space
	name   string // interface name, at most 15 bytes
	addrs  []netip.Prefix
	bridge string // interface that it becomes a port of; empty for none
}

// firstIndex keeps the interface numbers that join chooses away from those that the kernel chooses. The two ends of a
// veth pair need different numbers: when they happen to be equal (each namespace counts for itself), Linux takes the end
// for a device of its own kind and reports its carrier only with the next of its batches, up to a second later.
const firstIndex = 10_000

// join makes a veth pair between two namespaces and configures both ends.
func join(a, b end) error {
	err := a.space.ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.name
		attrs.Index = int(a.space.topology.linkIndex.Add(1)) + firstIndex
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.name}
		return b.space.ns.Control(func(fd int) error {
			veth.PeerNamespace = netlink.NsFd(fd)
			return netlink.LinkAdd(veth)
		})
	})
	if err != nil {
		return fmt.Errorf("add veth pair %s, %s: %w", a.name, b.name, err)
	}
	for _, e := range []end{a, b} {
		if err := e.space.ns.Do(e.configure); err != nil {
			return fmt.Errorf("configure %s of %s: %w", e.name, e.space.name, err)
		}
	}
	for _, e := range []end{a, b} {
		if err := e.space.ns.Do(e.carries); err != nil {
			return fmt.Errorf("configure %s of %s: %w", e.name, e.space.name, err)
		}
	}
	return nil
}

// carries waits, inside the end's namespace, until the interface and its bridge pass packets.
func (e end) carries() error {
	if err := waitUp(e.name); err != nil || e.bridge == "" {
		return err
	}
	return waitUp(e.bridge)
}

// upTimeout is how long an interface may take to come up.
const upTimeout = 5 * time.Second

// waitUp waits until the kernel has noticed that an interface of the current namespace has its carrier. It does so in a
// work queue; until then the interface drops what it is given.
func waitUp(name string) error {
	for deadline := time.Now().Add(upTimeout); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not come up: it is %s", name, link.Attrs().OperState)
		}
	}
}

// configure runs inside the end's namespace.
func (e end) configure() error {
	link, err := netlink.LinkByName(e.name)
	if err != nil {
		return err
	}
	if e.bridge != "" {
		bridge, err := netlink.LinkByName(e.bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("attach to %s: %w", e.bridge, err)
		}
	}
	if err := addAddrs(link, e.addrs); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func addAddrs(link netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // otherwise it is unusable for a second or two
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// addBridge makes a bridge with addresses inside the current namespace.
func addBridge(name string, addrs []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// A bridge without an address of its own takes the lowest of its ports', so it would change when a pod comes, and the
	// others could not reach their gateway until they ask for its address again, half a minute later.
	attrs.HardwareAddr = hardwareAddr()
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := addAddrs(bridge, addrs); err != nil {
		return fmt.Errorf("configure bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", name, err)
	}
	return nil
}

// hardwareAddr makes a MAC address: locally administered, of one station.
func hardwareAddr() net.HardwareAddr {
	a := make(net.HardwareAddr, 6)
	_, _ = rand.Read(a) // never fails
	a[0] = a[0]&^1 | 2
	return a
}

// addRoute adds a route inside the current namespace.
func addRoute(dst netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", dst, via, err)
	}
	return nil
}

// setLink sets an interface of the namespace up or down. Routes that go with a link that goes down are the caller's.
func (s *space) setLink(name string, up bool) error {
	err := s.ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if !up {
			return netlink.LinkSetDown(link)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return waitUp(name)
	})
	if err != nil {
		return fmt.Errorf("set %s of %s up=%t: %w", name, s.name, up, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
