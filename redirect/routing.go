package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Policy routing: packets with the return mark go to the loopback interface, where
// the agent's transparent socket takes them. All functions work on the current
// namespace.

// formerTable is where earlier versions had the route, as istio-cni has: the CNI plugin
// sbr takes tables from this number on.
const formerTable = 100

func families(ipv6 bool) []int {
	if ipv6 && hasIPv6() {
		return []int{unix.AF_INET, unix.AF_INET6}
	}
	return []int{unix.AF_INET}
}

// hasIPv6 reports whether the loopback interface speaks IPv6; without that there
// can be no route through it, and no listener on ::1 either.
func hasIPv6() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

func familyName(family int) string {
	if family == unix.AF_INET6 {
		return "IPv6"
	}
	return "IPv4"
}

func markRule(family, table int) *netlink.Rule {
	mask := uint32(MarkMask)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Mark, r.Mask = family, RulePriority, table, ReturnMark, &mask
	return r
}

func localRoute(family, table, lo int) *netlink.Route {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == unix.AF_INET6 {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{
		Family: family, Table: table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: lo,
		Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(0, dst.Addr().BitLen())},
	}
}

func addRouting(ipv6 bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback interface up: %w", err)
	}
	for _, family := range families(ipv6) {
		if err := ensureRoute(family, lo.Attrs().Index); err != nil {
			return fmt.Errorf("add %s route of table %d: %w", familyName(family), RouteTable, err)
		}
		if err := ensureRule(family); err != nil {
			return fmt.Errorf("add %s policy rule %d: %w", familyName(family), RulePriority, err)
		}
		if err := deleteFormer(family, lo.Attrs().Index); err != nil {
			return err
		}
	}
	return nil
}

// ensureRoute adds our route unless it is there. Somebody else's in our table is left
// alone and is an error: it would be for answers that are the agent's.
func ensureRoute(family, lo int) error {
	there, foreign, err := tableRoutes(family, RouteTable, lo)
	switch {
	case err != nil || there && foreign == nil:
		return err
	case foreign != nil:
		return fmt.Errorf("somebody else has a route there: %v", foreign)
	}
	return netlink.RouteAdd(localRoute(family, RouteTable, lo))
}

// ensureRule adds our policy rule unless it is there. The kernel takes a rule of the
// same priority that is narrowed by more conditions for the same one and refuses
// ours, so that one has to go.
func ensureRule(family int) error {
	for range 8 {
		if there, err := hasRule(family, RouteTable); err != nil || there {
			return err
		}
		err := netlink.RuleAdd(markRule(family, RouteTable))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := netlink.RuleDel(markRule(family, RouteTable)); err != nil && !absent(err) {
			return err
		}
	}
	return unix.EEXIST
}

func verifyRouting(ipv6 bool) ([]Finding, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback interface: %w", err)
	}
	var found []Finding
	if lo.Attrs().Flags&net.FlagUp == 0 {
		found = append(found, Finding{PartLoopback, "interface lo is down"})
	}
	for _, family := range families(ipv6) {
		there, err := hasRule(family, RouteTable)
		if err != nil {
			return nil, err
		}
		if !there {
			found = append(found, Finding{PartRule, fmt.Sprintf("%s rule %d (mark %#x/%#x to table %d) is missing",
				familyName(family), RulePriority, ReturnMark, MarkMask, RouteTable)})
		}
		if former, err := hasRule(family, formerTable); err != nil {
			return nil, err
		} else if former {
			found = append(found, Finding{PartRule, fmt.Sprintf("%s rule to table %d is an earlier agent's", familyName(family), formerTable)})
		}
		there, foreign, err := tableRoutes(family, RouteTable, lo.Attrs().Index)
		if err != nil {
			return nil, err
		}
		if !there {
			found = append(found, Finding{PartRoute, fmt.Sprintf("%s local default route in table %d is missing",
				familyName(family), RouteTable)})
		}
		if foreign != nil {
			found = append(found, Finding{PartRoute, fmt.Sprintf("%s route in table %d is somebody else's: %v", familyName(family), RouteTable, foreign)})
		}
	}
	return found, nil
}

// hasRule reports whether our rule for a table is there.
func hasRule(family, table int) (bool, error) {
	rules, err := listRules(family)
	if err != nil {
		return false, err
	}
	for _, r := range rules {
		// Anything that narrows the rule down makes it another one.
		if r.Priority == RulePriority && r.Table == table && r.Mark == ReturnMark &&
			r.Mask != nil && *r.Mask == MarkMask && r.Src == nil && r.Dst == nil && !r.Invert &&
			r.IifName == "" && r.OifName == "" && r.IPProto <= 0 && r.Sport == nil && r.Dport == nil &&
			r.UIDRange == nil && r.Tos == 0 {
			return true, nil
		}
	}
	return false, nil
}

// listRules returns the policy rules in the order in which they are asked. A kernel
// without the family has none.
func listRules(family int) ([]netlink.Rule, error) {
	rules, err := retry(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil && !absent(err) {
		return nil, fmt.Errorf("list %s policy rules: %w", familyName(family), err)
	}
	return rules, nil
}

// tableRoutes reports whether our route is in a table, and returns one that is not ours.
func tableRoutes(family, table, lo int) (there bool, foreign *netlink.Route, err error) {
	routes, err := retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, nil, fmt.Errorf("list %s routes of table %d: %w", familyName(family), table, err)
	}
	for i, r := range routes {
		all := r.Dst == nil
		if r.Dst != nil {
			ones, _ := r.Dst.Mask.Size()
			all = ones == 0
		}
		if all && r.Type == unix.RTN_LOCAL && r.LinkIndex == lo {
			there = true
		} else {
			foreign = &routes[i]
		}
	}
	return there, foreign, nil
}

// retry repeats a dump that somebody's changes have interrupted.
func retry[T any](list func() ([]T, error)) ([]T, error) {
	var (
		items []T
		err   error
	)
	for range 5 {
		if items, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, err
}

// deleteRouting removes rules and routes of both families; absent ones are no error.
func deleteRouting() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := netlink.RuleDel(markRule(family, RouteTable)); err != nil && !absent(err) {
			errs = append(errs, fmt.Errorf("delete %s policy rule %d: %w", familyName(family), RulePriority, err))
		}
		errs = append(errs, deleteRoute(family, RouteTable, lo.Attrs().Index), deleteFormer(family, lo.Attrs().Index))
	}
	return errors.Join(errs...)
}

// deleteRoute removes our route of a table.
func deleteRoute(family, table, lo int) error {
	if err := netlink.RouteDel(localRoute(family, table, lo)); err != nil && !absent(err) {
		return fmt.Errorf("delete %s route of table %d: %w", familyName(family), table, err)
	}
	return nil
}

// deleteFormer removes what an earlier version of the agent has left in formerTable. Where
// another rule leads there, the route may be somebody else's, for a transparent proxy.
func deleteFormer(family, lo int) error {
	there, err := hasRule(family, formerTable)
	if err != nil || !there {
		return err
	}
	if err := netlink.RuleDel(markRule(family, formerTable)); err != nil && !absent(err) {
		return fmt.Errorf("delete %s policy rule of table %d: %w", familyName(family), formerTable, err)
	}
	rules, err := listRules(family)
	if err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == formerTable }) {
		return err
	}
	return deleteRoute(family, formerTable, lo)
}

// absent reports whether what should be deleted was not there, for instance because
// the kernel has no such family.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
