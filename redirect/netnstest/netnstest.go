package netnstest

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Require skips the test when network namespaces cannot be made here, and says
// why; with CI=true it fails instead.
func Require(tb testing.TB) {
	tb.Helper()
	ns, err := netns.New()
	if err == nil {
		err = ns.Close()
	}
	if err != nil {
		unable(tb, err)
	}
}

func unable(tb testing.TB, err error) {
	tb.Helper()
	Unable(tb, fmt.Sprintf("needs private network namespaces: %v (run as root or under unshare -Urn)", err))
}

// Unable skips the test with reason, or fails it where CI=true.
func Unable(tb testing.TB, reason string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("cannot run in CI: %s", reason)
	}
	tb.Skip(reason)
}

// New returns a new namespace with its loopback up and no other interface. It is
// closed at the end of the test. Where that cannot be had it does as Require.
func New(tb testing.TB) *netns.NS {
	tb.Helper()
	ns, err := netns.New()
	if err != nil {
		unable(tb, err)
	}
	tb.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Do calls f inside ns and fails the test when it returns an error. f must not
// call methods of tb that end the goroutine (Fatal, FailNow, Skip).
func Do(tb testing.TB, ns *netns.NS, f func() error) {
	tb.Helper()
	if err := ns.Do(f); err != nil {
		tb.Fatal(err)
	}
}

// End is one end of a veth pair.
type End struct {
	NS    *netns.NS
	Name  string         // interface name, at most 15 bytes
	Addrs []netip.Prefix // addresses with their prefix length; IPv6 ones skip duplicate detection
}

// Veth joins two namespaces by a veth pair, both ends up, with their addresses.
func Veth(tb testing.TB, a, b End) {
	tb.Helper()
	err := a.NS.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.Name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Name}
		return b.NS.Control(func(fd int) error {
			veth.PeerNamespace = netlink.NsFd(fd)
			return netlink.LinkAdd(veth)
		})
	})
	if err != nil {
		tb.Fatalf("add veth pair %s, %s: %v", a.Name, b.Name, err)
	}
	for _, end := range []End{a, b} {
		if err := end.NS.Do(end.configure); err != nil {
			tb.Fatalf("configure %s: %v", end.Name, err)
		}
	}
}

func (e End) configure() error {
	link, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	for _, p := range e.Addrs {
		addr := &netlink.Addr{IPNet: IPNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // otherwise the address is unusable for a second or two
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// Route adds a route to dst through the gateway via.
func Route(tb testing.TB, ns *netns.NS, dst netip.Prefix, via netip.Addr) {
	tb.Helper()
	err := ns.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: IPNet(dst), Gw: via.AsSlice()})
	})
	if err != nil {
		tb.Fatalf("add route to %s via %s: %v", dst, via, err)
	}
}

// Sysctl writes value to the file of /proc/sys/name that belongs to ns; name has
// slashes ("net/ipv4/ip_forward").
func Sysctl(tb testing.TB, ns *netns.NS, name, value string) {
	tb.Helper()
	Do(tb, ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

// ReadSysctl returns what the file of /proc/sys/name that belongs to ns holds.
func ReadSysctl(tb testing.TB, ns *netns.NS, name string) string {
	tb.Helper()
	var text []byte
	Do(tb, ns, func() error {
		var err error
		text, err = os.ReadFile("/proc/sys/" + name)
		return err
	})
	return string(text)
}
