package redirect_test

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestTableOfSomebodyElse: the CNI plugin "sbr" (source based routing, which Multus users chain behind macvlan, ipvlan and
// SR-IOV) puts the routes of a second interface into tables from number 100 on. Enrolling such a pod must not take that
// route away, and letting it go must leave it as it was.
func TestTableOfSomebodyElse(t *testing.T) {
	for _, family := range []struct {
		name, gateway, from, far string
		all                      string
		af                       int
	}{
		{"v4", "10.9.0.1", "10.9.0.2", "203.0.113.9", "0.0.0.0/0", unix.AF_INET},
		{"v6", "fd09::1", "fd09::2", "2001:db8::9", "::/0", unix.AF_INET6},
	} {
		t.Run(family.name, func(t *testing.T) {
			l := newLab(t)
			storage := netnstest.New(t)
			netnstest.Veth(t,
				netnstest.End{NS: storage, Name: "eth0", Addrs: prefixes("10.9.0.1/24", "fd09::1/64")},
				netnstest.End{NS: l.pod, Name: "net1", Addrs: prefixes("10.9.0.2/24", "fd09::2/64")})
			// What the plugin does: default route of net1 in table 100, and a rule by source address.
			netnstest.Do(t, l.pod, func() error {
				net1, err := netlink.LinkByName("net1")
				if err != nil {
					return err
				}
				p := netip.MustParsePrefix(family.all)
				if err := netlink.RouteAdd(&netlink.Route{
					Family: family.af, Table: 100, LinkIndex: net1.Attrs().Index, Gw: net.ParseIP(family.gateway),
					Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(0, p.Addr().BitLen())},
				}); err != nil {
					return err
				}
				r := netlink.NewRule()
				from := netip.MustParseAddr(family.from)
				r.Family, r.Table = family.af, 100
				r.Src = &net.IPNet{IP: from.AsSlice(), Mask: net.CIDRMask(from.BitLen(), from.BitLen())}
				return netlink.RuleAdd(r)
			})
			leaves := func(when string) {
				t.Helper()
				netnstest.Do(t, l.pod, func() error {
					net1, err := netlink.LinkByName("net1")
					if err != nil {
						return err
					}
					routes, err := netlink.RouteGetWithOptions(net.ParseIP(family.far), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(family.from)})
					if err != nil {
						t.Errorf("%s: no route from %s any more: %v", when, family.from, err)
						return nil
					}
					if routes[0].LinkIndex != net1.Attrs().Index {
						t.Errorf("%s: what the application sends from %s goes to %v, want net1", when, family.from, routes[0])
					}
					return nil
				})
			}
			leaves("before")
			c, err := redirect.New(l.pod, redirect.Options{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Apply()
			l.must(err)
			leaves("enrolled")
			l.must(c.Delete())
			leaves("after leaving")
		})
	}
}

// former makes in the pod what earlier versions of the agent had there.
func (l *lab) former(t *testing.T) {
	t.Helper()
	for _, ip := range []string{"ip", "ip -6"} {
		shell(t, l.pod, ip+" rule add pref 32764 fwmark 0x111/0xfff lookup 100; "+ip+" route add local default dev lo table 100")
	}
}

// TestFormerTable: what an earlier version has left in table 100 goes when the pod's capture is applied, or the pod leaves, and
// the answers of applications find their way meanwhile.
func TestFormerTable(t *testing.T) {
	l := newLab(t)
	l.startAgent()
	capture := l.capture(redirect.Options{})
	held := l.dialFrom("198.51.100.9:0", "10.0.0.2:8080")
	held6 := l.dialFrom("[2001:db8::9]:0", "[fd00::2]:8080")
	gone := func(when string) {
		t.Helper()
		for _, command := range []string{"ip rule", "ip -6 rule"} {
			shell(t, l.pod, "! "+command+" | grep 'lookup 100'")
		}
		for _, command := range []string{"ip route show table all", "ip -6 route show table all"} {
			shell(t, l.pod, "! "+command+" | grep 'table 100 '")
		}
		held.works(when)
		held6.works(when)
	}
	l.former(t)
	_, err := capture.Apply()
	l.must(err)
	gone("after Apply")

	l.former(t)
	found, left, err := capture.Repair()
	if text := fmt.Sprint(found); err != nil || len(left) > 0 || strings.Count(text, "to table 100 is an earlier agent's") != 2 {
		t.Errorf("Repair: found %v, left %v, %v", found, left, err)
	}
	gone("after Repair")

	l.former(t)
	shell(t, l.pod, "ip rule add fwmark 0x1 lookup 100") // of a transparent proxy, with the very same route
	_, err = capture.Apply()
	l.must(err)
	shell(t, l.pod, "ip route show table 100 | grep '^local default'")
	shell(t, l.pod, "ip rule del fwmark 0x1 lookup 100; ip route flush table 100")

	l.former(t)
	l.must(capture.Delete())
	netnstest.Do(t, l.pod, noRoutingLeft)
	shell(t, l.pod, "! ip rule | grep 'lookup 100'; ! ip -6 rule | grep 'lookup 100'")
}

// TestTableTaken: where somebody has taken our table after all, enrolment is refused and says why, and nothing of it goes.
func TestTableTaken(t *testing.T) {
	l := newLab(t)
	table := strconv.Itoa(redirect.RouteTable)
	shell(t, l.pod, "ip -6 route add default via fd00::1 table "+table)
	c, err := redirect.New(l.pod, redirect.Options{})
	l.must(err)
	if _, err := c.Apply(); err == nil || !strings.Contains(err.Error(), "add IPv6 route of table "+table+": somebody else has a route there") {
		t.Errorf("Apply: %v", err)
	}
	if there, err := c.Present(); err != nil || there {
		t.Errorf("captured all the same: %v, %v", there, err)
	}
	l.must(c.Delete())
	shell(t, l.pod, "ip -6 route show table "+table+" | grep '^default via fd00::1'")

	shell(t, l.pod, "ip -6 route flush table "+table)
	_, err = c.Apply()
	l.must(err)
	shell(t, l.pod, "ip route add 198.51.100.0/24 via 10.0.0.1 table "+table)
	if found, _, err := c.Repair(); err == nil || !strings.Contains(fmt.Sprint(found), "IPv4 route in table "+table+" is somebody else's") {
		t.Errorf("Repair: found %v, %v", found, err)
	}
}
