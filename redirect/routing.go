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

// Where earlier versions had route and rule, as istio-cni has: the CNI plugin sbr takes
// tables from this number on, and any rule added later came before this one.
const (
	formerTable    = 100
	formerPriority = 32764
)

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

func markRule(family, table, priority int) *netlink.Rule {
	mask := uint32(MarkMask)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Mark, r.Mask = family, priority, table, ReturnMark, &mask
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
			return err
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

// ensureRule puts our policy rule where it belongs, and takes it away elsewhere.
func ensureRule(family int) error {
	rules, err := listRules(family)
	if err != nil {
		return err
	}
	priority, _ := place(rules)
	if !hasRule(rules, RouteTable, priority) {
		if err := netlink.RuleAdd(markRule(family, RouteTable, priority)); err != nil {
			return fmt.Errorf("add %s policy rule %d: %w", familyName(family), priority, err)
		}
	}
	for _, r := range rules {
		if r.Priority != priority && isMarkRule(r, RouteTable) {
			if err := deleteRule(family, r.Table, r.Priority); err != nil {
				return err
			}
		}
	}
	return nil
}

// place returns the priority by which our rule comes before all others but that of local
// addresses, and a rule that comes before it nevertheless. The kernel puts a rule of which
// nobody says where one before all but the first, and at 0 when it cannot count on down.
// So ours moves when one was added, and the application's own stay in their order.
func place(rules []netlink.Rule) (priority int, before *netlink.Rule) {
	priority = RulePriority
	first, needed := false, false // ours is the first of those at 0, and has to stay
	for i, r := range rules {
		switch {
		case isMarkRule(r, RouteTable):
			first = first || r.Priority == 0 && before == nil
		case isFormer(r), r.Priority == 0 && r.Table == unix.RT_TABLE_LOCAL:
		case r.Priority == 0 && first:
			needed = true
		case r.Priority == 0:
			before = &rules[i]
		default:
			priority = min(priority, r.Priority-1)
		}
	}
	if needed {
		return 0, nil
	}
	return priority, before
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
		rules, err := listRules(family)
		if err != nil {
			return nil, err
		}
		priority, before := place(rules)
		if !hasRule(rules, RouteTable, priority) {
			found = append(found, Finding{PartRule, fmt.Sprintf("%s rule %d (mark %#x/%#x to table %d, before all others) is missing",
				familyName(family), priority, ReturnMark, MarkMask, RouteTable)})
		}
		if before != nil {
			found = append(found, inTheWay(family, before))
		}
		if slices.ContainsFunc(rules, isFormer) {
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

// routingLeft returns what addRouting cannot put right.
func routingLeft(ipv6 bool) ([]Finding, error) {
	var left []Finding
	for _, family := range families(ipv6) {
		rules, err := listRules(family)
		if err != nil {
			return nil, err
		}
		if _, before := place(rules); before != nil {
			left = append(left, inTheWay(family, before))
		}
	}
	return left, nil
}

func inTheWay(family int, r *netlink.Rule) Finding {
	return Finding{PartRule, fmt.Sprintf("%s rule of somebody else comes before all others, and may lead answers past the agent: %v", familyName(family), r)}
}

// isMarkRule reports whether a rule is ours for a table, wherever it stands. Anything that
// narrows it down makes it another one.
func isMarkRule(r netlink.Rule, table int) bool {
	return r.Table == table && r.Mark == ReturnMark &&
		r.Mask != nil && *r.Mask == MarkMask && r.Src == nil && r.Dst == nil && !r.Invert &&
		r.IifName == "" && r.OifName == "" && r.IPProto <= 0 && r.Sport == nil && r.Dport == nil &&
		r.UIDRange == nil && r.Tos == 0
}

func isFormer(r netlink.Rule) bool {
	return r.Priority == formerPriority && isMarkRule(r, formerTable)
}

func hasRule(rules []netlink.Rule, table, priority int) bool {
	return slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == priority && isMarkRule(r, table) })
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
		rules, err := listRules(family)
		errs = append(errs, err)
		for _, r := range rules {
			if isMarkRule(r, RouteTable) {
				errs = append(errs, deleteRule(family, r.Table, r.Priority))
			}
		}
		errs = append(errs, deleteRoute(family, RouteTable, lo.Attrs().Index), deleteFormer(family, lo.Attrs().Index))
	}
	return errors.Join(errs...)
}

func deleteRule(family, table, priority int) error {
	if err := netlink.RuleDel(markRule(family, table, priority)); err != nil && !absent(err) {
		return fmt.Errorf("delete %s policy rule %d: %w", familyName(family), priority, err)
	}
	return nil
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
	rules, err := listRules(family)
	if err != nil || !slices.ContainsFunc(rules, isFormer) {
		return err
	}
	if err := deleteRule(family, formerTable, formerPriority); err != nil {
		return err
	}
	if slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == formerTable && !isFormer(r) }) {
		return nil
	}
	return deleteRoute(family, formerTable, lo)
}

// absent reports whether what should be deleted was not there, for instance because
// the kernel has no such family.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
