package hostrules_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestForgedToOtherAddresses: a pod has addresses that its status does not name: that of a second interface (Multus on a
// bridge of the node), and a link-local one on every interface that has IPv6. The host's rules know none of them, so nobody
// takes a forged mark away there; the pod must not heed it.
func TestForgedToOtherAddresses(t *testing.T) {
	l := newLab(t)
	l.rules(hostrules.Kubelet{Comm: "kubelet", UID: kubeletUID})
	// What Multus adds to the enrolled pod: net1, on a second bridge of the node, which has an address there.
	l.shell("ip link add br1 type bridge && ip addr add 10.9.0.1/24 dev br1 && ip link set br1 up")
	netnstest.Veth(l, netnstest.End{NS: l.host, Name: "net1b"}, netnstest.End{NS: l.bridged, Name: "net1", Addrs: prefixes("10.9.0.2/24")})
	l.shell("ip link set net1b master br1")
	l.capture(l.bridged, l.heeding()) // the agent has found the node's new address

	other := l.start(l.host, "other", otherUID, nil)
	check(t, []want{
		{other, "other", "10.9.0.2:8080", 0, "15006 for 10.9.0.1"},
		{other, "forger", "10.3.0.2:8080", forged, "15006 for 10.3.0.1"}, // control: an address that the host's rules know
		{other, "forger at the second interface", "10.9.0.2:8080", forged, "15006 for 10.9.0.1"},
	})

	// Link-local: from the node's own global address, with nothing but sockets.
	zone, to := linkLocalOf(t, l.host, "br0", l.bridged, "eth0")
	if got, err := forge(l.host, netip.MustParseAddr("fd03::1"), to, zone); err != nil || strings.HasPrefix(got, "app") {
		t.Errorf("forger at the link-local address is served by %q, %v, want 15006", got, err)
	}
}

// linkLocalOf returns the number of one interface and the link-local address of another.
func linkLocalOf(t *testing.T, here *netns.NS, own string, there *netns.NS, other string) (zone int, addr [16]byte) {
	t.Helper()
	netnstest.Do(t, here, func() error {
		link, err := netlink.LinkByName(own)
		if err == nil {
			zone = link.Attrs().Index
		}
		return err
	})
	netnstest.Do(t, there, func() error {
		link, err := netlink.LinkByName(other)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				addr = [16]byte(a.IP.To16())
			}
		}
		return err
	})
	if addr == [16]byte{} {
		t.Fatal("no link-local address")
	}
	return zone, addr
}

func forge(ns *netns.NS, from netip.Addr, to [16]byte, zone int) (string, error) {
	fd := -1
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	timeout := unix.Timeval{Sec: 5}
	err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TCLASS, forged),
		unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()}),
		unix.Connect(fd, &unix.SockaddrInet6{Port: 8080, Addr: to, ZoneId: uint32(zone)}),
	)
	if err != nil {
		return "", fmt.Errorf("%s: %w", net.IP(to[:]), err)
	}
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}
