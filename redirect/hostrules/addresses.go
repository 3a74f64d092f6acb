package hostrules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// NodeAddresses returns the addresses that a process in host may call its pods from: all
// of its interfaces except loopback and link-local ones, and those of interfaces that
// only hold the virtual addresses of Services. They are sorted.
func NodeAddresses(host *netns.NS) ([]netip.Addr, error) {
	var out []netip.Addr
	err := host.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		services := map[int]bool{}
		for _, link := range links {
			if name := link.Attrs().Name; name == "kube-ipvs0" || name == "nodelocaldns" {
				services[link.Attrs().Index] = true
			}
		}
		// All at once: the kernel lists the addresses of all interfaces, whichever one is asked for. A node has an interface for
		// each pod, and with IPVS an address for each service.
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			addr, ok := netip.AddrFromSlice(a.IP)
			if addr = addr.Unmap(); ok && !services[a.LinkIndex] && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() {
				out = append(out, addr)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find addresses of node: %w", err)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
