package redirect_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// noRoutingLeft looks for our rules and routes in the current namespace.
func noRoutingLeft() error {
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Table == redirect.RouteTable {
			return fmt.Errorf("policy rule left: %v", r)
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: redirect.RouteTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	if len(routes) > 0 {
		return fmt.Errorf("routes left: %v", routes)
	}
	return nil
}

// dialFrom is the agent calling the app from a foreign address.
func (l *lab) dialFrom(from, to string) *conn {
	l.Helper()
	return l.dial(l.pod, to, fromOf(from))
}

func (l *lab) tryDialFrom(from, to string) (*conn, error) {
	l.Helper()
	return l.tryDial(l.pod, to, fromOf(from))
}

func fromOf(addr string) netnstest.Options {
	return netnstest.Options{Mark: redirect.AgentMark, Transparent: true, Local: addrPort(addr)}
}

// TestDamage does each kind of damage, wants Verify to name it, Repair to heal it,
// and the connection that was captured before to live through both.
func TestDamage(t *testing.T) {
	for _, tool := range []string{"nft", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			netnstest.Unable(t, "needs "+tool+" to do damage: "+err.Error())
		}
	}
	const chain = "inet culvert nat_output"
	table := strconv.Itoa(redirect.RouteTable)
	tests := []struct {
		name   string
		damage []string // commands in the pod's namespace
		want   []string // parts of the findings
	}{
		{"rule_deleted", []string{"nft -a list chain " + chain + " | awk '/:15001/ {print $NF; exit}' | xargs nft delete rule " + chain + " handle"},
			[]string{`nftables: chain nat_output: rule`, `redirect to :15001" is missing`}},
		{"rule_added_first", []string{"nft insert rule " + chain + " tcp dport 443 accept"},
			[]string{`"meta l4proto tcp tcp dport 443 accept" does not belong here`}},
		{"unknown_rule", []string{"nft insert rule " + chain + " ct state established limit rate 1/second accept"},
			[]string{`chain nat_output: rule "unknown(ct `, `does not belong here`}},
		{"chain_flushed", []string{"nft flush chain " + chain}, []string{`redirect to :15001" is missing`, `redirect to :15053" is missing`}},
		{"chain_deleted", []string{"nft flush chain inet culvert guard_input", "nft delete chain inet culvert guard_input"},
			[]string{"chain guard_input is missing"}},
		{"chain_added", []string{"nft add chain inet culvert sneaky"}, []string{"chain sneaky does not belong here"}},
		{"policy_drop", []string{"nft add chain inet culvert raw_output '{ policy drop; }'"},
			[]string{`chain raw_output is "type filter hook output priority -300; policy drop;"`}},
		{"hook_changed", []string{"nft flush chain " + chain, "nft delete chain " + chain,
			"nft add chain " + chain + " '{ type nat hook output priority 5; }'"}, []string{"priority 5"}},
		{"table_deleted", []string{"nft delete table inet culvert"}, []string{"table inet culvert is missing"}},
		{"table_dormant", []string{"nft add table inet culvert '{ flags dormant; }'"}, []string{"table inet culvert has flags 0x1"}},
		{"ruleset_flushed", []string{"nft flush ruleset"}, []string{"table inet culvert is missing"}},
		{"rule_v4_gone", []string{"ip rule del pref 200"}, []string{"policy rule: IPv4 rule 200"}},
		{"rule_v6_gone", []string{"ip -6 rule del pref 200"}, []string{"policy rule: IPv6 rule 200"}},
		{"rule_narrowed", []string{"ip rule del pref 200", "ip rule add pref 200 from 10.9.9.9 fwmark 0x111/0xfff lookup " + table},
			[]string{"policy rule: IPv4 rule 199"}},
		{"route_v4_gone", []string{"ip route flush table " + table}, []string{"route: IPv4 local default route in table " + table + " is missing"}},
		{"route_v6_gone", []string{"ip -6 route flush table " + table}, []string{"route: IPv6 local default route"}},
		{"loopback_down", []string{"ip link set lo down"}, []string{"loopback: interface lo is down"}},
		{"timeout_lowered", []string{"echo 60 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"},
			[]string{"sysctl: net/netfilter/nf_conntrack_tcp_timeout_close_wait is 60 instead of 43200"}},
		{"strict_tracking", []string{"echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"},
			[]string{"be_liberal is 0 instead of 1"}},
		{"ports_unreserved", []string{"echo > /proc/sys/net/ipv4/ip_local_reserved_ports"}, []string{`lacks 15000-15090`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.startAgent()
			capture := l.capture(redirect.Options{DNS: true})
			captured := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
			for _, command := range tt.damage {
				shell(t, l.pod, command)
			}
			found, left, err := capture.Repair()
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(found)
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("findings do not contain %q: %s", want, text)
				}
			}
			if len(left) > 0 {
				t.Errorf("left after repair: %v", left)
			}
			l.verified(capture)
			captured.works("after damage and repair")
			if c := l.dial(l.pod, "[fd00::1]:9000", netnstest.Options{}); !strings.HasPrefix(c.server, "15001 ") {
				t.Errorf("after repair served by %q", c.server)
			}
			l.dialFrom("198.51.100.9:0", "10.0.0.2:8080").works("after repair")
			l.must(capture.Delete())
			for name, want := range sysctlDefaults {
				if got := netnstest.ReadSysctl(t, l.pod, name); got != want {
					t.Errorf("%s after Delete: %q, want the default %q", name, got, want)
				}
			}
		})
	}
}

func shell(t *testing.T, ns *netns.NS, command string) {
	t.Helper()
	netnstest.Do(t, ns, func() error {
		out, err := exec.Command("sh", "-ec", command).CombinedOutput()
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %s", command, out), err)
		}
		return nil
	})
}
