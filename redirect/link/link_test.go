package link_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/link"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// TestJoin: as soon as Join returns each end is up and answers for its addresses. Many are made, as the kernel needs a
// moment that is mostly short.
func TestJoin(t *testing.T) {
	netnstest.Require(t)
	for range 30 {
		a := link.End{NS: netnstest.New(t), Name: "eth0", Addrs: prefixes("10.0.0.2/24", "fd00::2/64")}
		b := link.End{NS: netnstest.New(t), Name: "eth0", Addrs: prefixes("10.0.0.1/24", "fd00::1/64")}
		if err := link.Join(a, b); err != nil {
			t.Fatal(err)
		}
		for _, e := range []link.End{a, b} {
			netnstest.Do(t, e.NS, func() error {
				for _, p := range e.Addrs {
					routes, err := netlink.RouteGet(p.Addr().AsSlice())
					if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL {
						t.Errorf("route to %v: %v, %v", p.Addr(), routes, err)
					}
				}
				return nil
			})
		}
	}
}

func TestJoinFails(t *testing.T) {
	netnstest.Require(t)
	a, b := netnstest.New(t), netnstest.New(t)
	for name, ends := range map[string][2]link.End{
		"no-such-bridge": {{NS: a, Name: "one"}, {NS: b, Name: "one", Bridge: "br7"}},
		"name-too-long":  {{NS: a, Name: "sixteen-letters-"}, {NS: b, Name: "two"}},
		"address-twice":  {{NS: a, Name: "three", Addrs: prefixes("10.0.0.2/24", "10.0.0.2/24")}, {NS: b, Name: "three"}},
	} {
		if err := link.Join(ends[0], ends[1]); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Log(err)
		}
	}
}
