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
		for _, link := range links {
			if name := link.Attrs().Name; name == "kube-ipvs0" || name == "nodelocaldns" {
				continue
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return fmt.Errorf("list addresses of interface %s: %w", link.Attrs().Name, err)
			}
			for _, a := range addrs {
				addr, ok := netip.AddrFromSlice(a.IP)
				if addr = addr.Unmap(); ok && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() {
					out = append(out, addr)
				}
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
