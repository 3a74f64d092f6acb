package redirect_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestChangeLive goes from one set of carve-outs to the next while connections of all of
// them are open. Each new one is served as the options of its time say, and all go on.
func TestChangeLive(t *testing.T) {
	l := newLab(t)
	l.startAgent()
	c := l.capture(redirect.Options{})
	var open []*conn
	for i, step := range []struct {
		o       redirect.Options
		in, out string
	}{
		{redirect.Options{}, "15006", "15001"},
		{redirect.Options{ExcludeInbound: []uint16{8080}, ExcludeOutbound: []uint16{9000}}, "app", "peer"},
		{redirect.Options{IncludeInbound: []uint16{8080}, IncludeOutboundRanges: prefixes("10.0.0.0/24", "fd00::/64")}, "15006", "15001"},
		{redirect.Options{IncludeInbound: []uint16{81}, IncludeOutboundRanges: prefixes("10.1.0.0/24")}, "app", "peer"},
		{redirect.Options{ExcludeOutboundRanges: prefixes("0.0.0.0/0", "::/0")}, "15006", "peer"},
		{redirect.Options{Ingress: true, NoOutbound: true}, "app", "peer"},
		{redirect.Options{NodeAddresses: peers, HostPorts: []uint16{8080}}, "app", "15001"},
		{redirect.Options{}, "15006", "15001"},
	} {
		l.must(c.Change(step.o))
		if i > 0 {
			if found, err := c.Verify(); err != nil || len(found) == 0 {
				t.Errorf("step %d: Verify before Repair: %v, %v", i, found, err)
			}
		}
		if _, left, err := c.Repair(); err != nil || len(left) > 0 {
			t.Fatalf("step %d: Repair: %v, %v", i, left, err)
		}
		l.verified(c)
		for _, addr := range []string{"10.0.0.2:8080", "[fd00::2]:8080"} {
			nc := l.dial(l.peer, addr, netnstest.Options{})
			if server, _, _ := strings.Cut(nc.server, " "); server != step.in {
				t.Errorf("step %d: %s is served by %q, want %q", i, addr, server, step.in)
			}
			open = append(open, nc)
		}
		for _, addr := range []string{"10.0.0.1:9000", "[fd00::1]:9000"} {
			nc := l.dial(l.pod, addr, netnstest.Options{})
			if server, _, _ := strings.Cut(nc.server, " "); server != step.out {
				t.Errorf("step %d: %s is served by %q, want %q", i, addr, server, step.out)
			}
			open = append(open, nc)
		}
		for _, nc := range open {
			nc.works("after a change")
		}
	}
}

func TestChangeRefused(t *testing.T) {
	l := &lab{TB: t, pod: netnstest.New(t)}
	c := l.capture(redirect.Options{})
	for _, o := range []redirect.Options{
		{NoIPv6: true}, {HostPorts: []uint16{redirect.PortInbound}}, {ExcludeOutboundRanges: prefixes("10.0.0.1/8")},
	} {
		if err := c.Change(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	l.verified(c)
}
