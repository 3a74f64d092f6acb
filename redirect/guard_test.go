package redirect_test

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestNoWayAroundCapture: a connection older than the capture has a tracking entry
// that is not redirected, and the entry outlives the connection's reset by seconds.
// A new connection between the same ports would follow it to the application (or,
// outbound, into the open) if the guard chains did not drop it; the control run,
// without them, shows that it does. When the entry is gone, the repeated SYN is
// captured like any other.
func TestNoWayAroundCapture(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		netnstest.Unable(t, "needs nft to take the guards away: "+err.Error())
	}
	for _, tt := range []struct {
		name    string
		inbound bool
		guarded bool
		o       redirect.Options
	}{
		{"inbound", true, true, redirect.Options{}}, {"inbound_control", true, false, redirect.Options{}},
		{"outbound", false, true, redirect.Options{}}, {"outbound_control", false, false, redirect.Options{}},
		{"included_port", true, true, redirect.Options{IncludeInbound: []uint16{8081}}},
		{"included_range", false, true, redirect.Options{IncludeOutboundRanges: prefixes("10.0.0.0/30")}},
		{"unmarked_probe", true, true, redirect.Options{NodeAddresses: peers, ProbeMark: true, ProbeAddresses: pods}},
		{"other_host_port", true, true, redirect.Options{NodeAddresses: peers, HostPorts: []uint16{8082}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			from, src, at, to := l.peer, "10.0.0.1:4444", l.pod, "10.0.0.2:8081"
			want := "15006 for " + to
			if !tt.inbound {
				from, src, at, to = l.pod, "10.0.0.2:4444", l.peer, "10.0.0.1:9001"
				want = "15001 for " + to
			}
			// A server that answers one message and aborts at the second.
			listener := netnstest.Listen(t, at, to, netnstest.Options{})
			netnstest.Serve(t, listener, func(c net.Conn) {
				buf := make([]byte, 5)
				_, _ = fmt.Fprintln(c, "direct")
				for range 2 {
					_, _ = io.ReadFull(c, buf)
					_, _ = c.Write(buf)
				}
				_ = c.(*net.TCPConn).SetLinger(0)
			})
			old := l.dial(from, to, netnstest.Options{Local: addrPort(src)})
			l.startAgent()
			l.capture(tt.o)
			if !tt.guarded {
				shell(t, l.pod, "nft flush chain inet culvert guard_input; nft flush chain inet culvert guard_output")
			}
			// Long enough for the guard to show, short enough for a test: the entry's
			// last ten seconds become two.
			netnstest.Sysctl(t, l.pod, "net/netfilter/nf_conntrack_tcp_timeout_close", "2")
			old.works("after the capture")
			old.works("before the abort")
			if _, err := old.r.ReadByte(); err == nil || err == io.EOF {
				t.Fatalf("old connection ended with %v, want a reset", err)
			}
			_ = old.Close()

			start := time.Now()
			c := l.dial(from, to, netnstest.Options{Local: addrPort(src)})
			if !tt.guarded {
				if c.server != "direct" {
					t.Errorf("control: served by %q, so the guard guards nothing", c.server)
				}
				return
			}
			if c.server != want {
				t.Errorf("served by %q after %v, want %q", c.server, time.Since(start), want)
			}
		})
	}
}
