// Package link joins network namespaces by veth pairs, for labs and tests, and waits until the kernel has done its part:
// it brings an interface up and makes an IPv6 address one of this host in work queues, after it has said that it has.
//
// Functions other than Join are for the namespace of the calling thread (netns.NS.Do). All may be called concurrently.
package link

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// End is one end of a veth pair and what it is given there.
type End struct {
	NS     *netns.NS
	Name   string         // interface name, at most 15 bytes
	Addrs  []netip.Prefix // addresses with their prefix length; IPv6 ones skip duplicate detection
	Bridge string         // interface that it becomes a port of; empty for none
}

// The first end gets an interface number of this range, from which the kernel does not choose. The two ends of a veth pair
// need different numbers: when they happen to be equal (each namespace counts for itself), Linux takes the end for a device
// of its own kind and reports its carrier only with the next of its batches, up to a second later.
const (
	firstIndex = 10_000
	indexes    = 1 << 30
)

// Join makes a veth pair between two namespaces, configures both ends and returns when they pass packets and answer for
// their addresses.
func Join(a, b End) error {
	err := a.NS.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.Name
		attrs.Index = firstIndex + rand.IntN(indexes)
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Name}
		return b.NS.Control(func(fd int) error {
			veth.PeerNamespace = netlink.NsFd(fd)
			return netlink.LinkAdd(veth)
		})
	})
	if err != nil {
		return fmt.Errorf("add veth pair %s, %s: %w", a.Name, b.Name, err)
	}
	for _, step := range []func(End) error{End.configure, End.settle} {
		for _, e := range []End{a, b} {
			if err := e.NS.Do(func() error { return step(e) }); err != nil {
				return fmt.Errorf("configure %s: %w", e.Name, err)
			}
		}
	}
	return nil
}

func (e End) configure() error {
	link, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if e.Bridge != "" {
		bridge, err := netlink.LinkByName(e.Bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("attach to %s: %w", e.Bridge, err)
		}
	}
	if err := AddAddrs(link, e.Addrs); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func (e End) settle() error {
	for _, name := range []string{e.Name, e.Bridge} {
		if name == "" {
			continue
		}
		if err := WaitUp(name); err != nil {
			return err
		}
		if err := waitLocal(name); err != nil {
			return err
		}
	}
	return nil
}

// timeout is how long an interface or an address may take.
const timeout = 5 * time.Second

// WaitUp waits until the kernel has noticed that an interface has its carrier. Until then the interface drops what it is
// given.
func WaitUp(name string) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(time.Millisecond) {
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

// waitLocal waits until the host answers for an interface's addresses. Until then it looks for them on the link.
func waitLocal(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	for _, addr := range addrs {
		for !addr.IP.IsLinkLocalUnicast() { // those come by themselves, after some time
			routes, err := netlink.RouteGet(addr.IP)
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if err == nil {
				err = fmt.Errorf("its route is %v", routes)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %v of %s does not become one of this host: %w", addr.IP, name, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// AddAddrs gives an interface addresses.
func AddAddrs(link netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: IPNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // otherwise it is unusable for a second or two
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// AddRoute adds a route through a gateway.
func AddRoute(dst netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: IPNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", dst, via, err)
	}
	return nil
}

// IPNet converts a prefix for package netlink.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
