package redirect_test

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// rulesOf returns the policy rules of a family in their order, without ours.
func (l *lab) rulesOf(family string) string {
	l.Helper()
	var out []byte
	netnstest.Do(l, l.pod, func() (err error) {
		out, err = exec.Command("sh", "-ec", "ip "+family+" rule | grep -v 0x111 | cut -f2-").CombinedOutput()
		return err
	})
	return string(out)
}

// TestRulesOfApplication: a policy rule that an application adds after enrolment (wg-quick, keepalived, the CNI plugin sbr)
// comes before ours, wherever that is, when nobody says where to put it. The audit puts ours before it again, so that answers
// to the agent come to the agent, and the application's rules keep their order.
func TestRulesOfApplication(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules []string // of the application, besides its routes
		moved bool     // the audit has to put ours before them
		keeps bool     // an answer comes to the agent at once
	}{
		{"wg_quick", []string{"rule add not fwmark 51820 table 51820", "rule add table main suppress_prefixlength 0"}, true, false},
		{"explicit", []string{"rule add pref 5210 table 51820"}, false, true},
		{"before_ours", []string{"rule add pref 7 table 51820"}, true, false},
		{"first", []string{"rule add pref 1 table 51820"}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, plain := newLab(t), newLab(t)
			l.startAgent()
			capture := l.capture(redirect.Options{})
			held := l.dialFrom(peer4+":0", "10.0.0.2:8080")
			for family, gateway := range map[string]string{"-4": peer4, "-6": peer6} {
				for _, rule := range append([]string{"route add default via " + gateway + " table 51820"}, tt.rules...) {
					shell(t, l.pod, "ip "+family+" "+rule)
					shell(t, plain.pod, "ip "+family+" "+rule)
				}
			}
			if _, err := l.tryDialFrom("198.51.100.9:0", "10.0.0.2:8080"); (err == nil) != tt.keeps {
				t.Errorf("control: the agent calls the application: %v", err)
			}
			_, err := io.WriteString(held, "ping\n") // whose echo must not go to the peer, which would refuse it
			l.must(err)
			found, left, err := capture.Repair()
			if err != nil || (len(found) == 2) != tt.moved || len(left) > 0 {
				t.Errorf("audit: %v, left %v, %v", found, left, err)
			}
			works := func(when string) {
				t.Helper()
				l.verified(capture)
				l.dialFrom("198.51.100.9:0", "10.0.0.2:8080").works(when)
				l.dialFrom("[2001:db8::9]:0", "[fd00::2]:8080").works(when)
				for _, family := range []string{"-4", "-6"} {
					if got, want := l.rulesOf(family), plain.rulesOf(family); got != want {
						t.Errorf("%s: rules of the application are\n%s, without the mesh\n%s", when, got, want)
					}
				}
			}
			works("after the audit")
			l.must(held.SetDeadline(time.Now().Add(20 * time.Second)))
			if line, err := held.r.ReadString('\n'); err != nil || line != "ping\n" {
				t.Errorf("what the application said before the audit: %q, %v", line, err)
			}
			for _, family := range []string{"-4", "-6"} { // this one comes last of all at 0 where it can come nowhere else
				shell(t, l.pod, "ip "+family+" rule add from 192.0.2.1 table 51820 2>/dev/null || ip "+family+" rule add from 2001:db8::1 table 51820")
				shell(t, plain.pod, "ip "+family+" rule add from 192.0.2.1 table 51820 2>/dev/null || ip "+family+" rule add from 2001:db8::1 table 51820")
			}
			if _, left, err := capture.Repair(); err != nil || len(left) > 0 {
				t.Errorf("audit: left %v, %v", left, err)
			}
			works("after a further rule")
			for _, ns := range []*lab{l, plain} {
				for _, family := range []string{"-4", "-6"} {
					shell(t, ns.pod, "while ip "+family+" rule del table 51820 2>/dev/null; do :; done; ip "+family+" rule del table main suppress_prefixlength 0 2>/dev/null || :")
				}
			}
			if _, left, err := capture.Repair(); err != nil || len(left) > 0 {
				t.Errorf("audit: left %v, %v", left, err)
			}
			works("when the application's rules are gone")
			shell(t, l.pod, fmt.Sprintf("ip rule | grep -q '^%d:.*0x111'", redirect.RulePriority))
			l.must(capture.Delete())
			netnstest.Do(t, l.pod, noRoutingLeft)
		})
	}
}

// TestRuleBeforeAll: nothing can be put before a rule at 0. The audit says so once, in the same words each time.
func TestRuleBeforeAll(t *testing.T) {
	l := newLab(t)
	l.startAgent()
	capture := l.capture(redirect.Options{})
	shell(t, l.pod, "ip rule add pref 0 from 10.0.0.2 table 51820")
	for range 2 {
		found, left, err := capture.Repair()
		if err != nil || len(found) != 1 || fmt.Sprint(found) != fmt.Sprint(left) || !strings.Contains(found[0].Text, "somebody else comes before all others") {
			t.Errorf("audit: %v, left %v, %v", found, left, err)
		}
	}
	shell(t, l.pod, "ip rule del pref 0 from 10.0.0.2 table 51820")
	l.verified(capture)
}
