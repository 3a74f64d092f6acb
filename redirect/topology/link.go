package topology

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/redirect/link"
)

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
	if err := link.AddAddrs(bridge, addrs); err != nil {
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

// setLink sets an interface of the namespace up or down. Routes that go with a link that goes down are the caller's.
func (s *space) setLink(name string, up bool) error {
	err := s.ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if !up {
			return netlink.LinkSetDown(l)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		return link.WaitUp(name)
	})
	if err != nil {
		return fmt.Errorf("set %s of %s up=%t: %w", name, s.name, up, err)
	}
	return nil
}
