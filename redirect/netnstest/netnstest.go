package netnstest

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/link"
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
type End = link.End

// Veth joins two namespaces by a veth pair, both ends up, with their addresses.
func Veth(tb testing.TB, a, b End) {
	tb.Helper()
	if err := link.Join(a, b); err != nil {
		tb.Fatal(err)
	}
}

// Route adds a route to dst through the gateway via.
func Route(tb testing.TB, ns *netns.NS, dst netip.Prefix, via netip.Addr) {
	tb.Helper()
	Do(tb, ns, func() error { return link.AddRoute(dst, via) })
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
