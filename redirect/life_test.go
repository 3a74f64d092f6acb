package redirect_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestOldConnectionsSurvive: whoever talked before the capture goes on talking
// directly, whichever side speaks first afterwards; new connections are captured.
func TestOldConnectionsSurvive(t *testing.T) {
	l := newLab(t)
	out4 := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
	out6 := l.dial(l.pod, "[fd00::1]:9000", netnstest.Options{})
	in4 := l.dial(l.peer, "10.0.0.2:8080", netnstest.Options{})
	in6 := l.dial(l.peer, "[fd00::2]:8080", netnstest.Options{})
	self := l.dial(l.pod, "10.0.0.2:8080", netnstest.Options{})

	// One whose server speaks first after the capture.
	speak := make(chan struct{})
	listener := netnstest.Listen(t, l.peer, "10.0.0.1:9001", netnstest.Options{})
	netnstest.Serve(t, listener, func(c net.Conn) {
		_, _ = io.WriteString(c, "late\n")
		<-speak
		_, _ = io.WriteString(c, "ping\n")
	})
	late := l.dial(l.pod, "10.0.0.1:9001", netnstest.Options{})

	l.startAgent()
	capture := l.capture(redirect.Options{DNS: true})
	close(speak)
	if line, err := late.r.ReadString('\n'); err != nil || line != "ping\n" {
		t.Errorf("server that speaks first after the capture: %q, %v", line, err)
	}
	for _, c := range []*conn{out4, out6, in4, in6, self} {
		c.works("after the capture")
	}
	// A repeated Apply (an upgrade, a repair) changes nothing for them.
	captured := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
	if !strings.HasPrefix(captured.server, "15001 ") {
		t.Errorf("new connection is served by %q", captured.server)
	}
	_, err := capture.Apply()
	l.must(err)
	for _, c := range []*conn{out4, out6, in4, in6, self, captured} {
		c.works("after a second Apply")
	}
}

// sysctlDefaults are the kernel's values of what is changed.
var sysctlDefaults = map[string]string{
	"net/ipv4/ip_local_reserved_ports":                  "\n",
	"net/netfilter/nf_conntrack_tcp_timeout_close_wait": "60\n",
	"net/netfilter/nf_conntrack_tcp_timeout_fin_wait":   "120\n",
	"net/netfilter/nf_conntrack_tcp_be_liberal":         "0\n",
	"net/ipv4/tcp_migrate_req":                          "0\n",
}

// TestLeave: StopNew lets new connections pass and the captured ones go on; Delete
// leaves the namespace as it was found.
func TestLeave(t *testing.T) {
	l := newLab(t)
	const ports = "net/ipv4/ip_local_reserved_ports"
	netnstest.Sysctl(t, l.pod, ports, "14990-15003,30000")
	before := netnstest.ReadSysctl(t, l.pod, ports)

	l.startAgent()
	capture := l.capture(redirect.Options{DNS: true})
	if got, want := netnstest.ReadSysctl(t, l.pod, ports), "14990-15090,30000\n"; got != want {
		t.Errorf("reserved ports while captured: %q, want %q", got, want)
	}
	out4 := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
	out6 := l.dial(l.pod, "[fd00::1]:9000", netnstest.Options{})
	in4 := l.dial(l.peer, "10.0.0.2:8080", netnstest.Options{})
	app := l.dialFrom("10.0.0.1:0", "10.0.0.2:8080")

	l.must(capture.StopNew())
	found, err := capture.VerifyDraining()
	if err != nil || len(found) > 0 {
		t.Errorf("VerifyDraining: %v, %v", found, err)
	}
	for _, c := range []*conn{out4, out6, in4, app} {
		c.works("after StopNew")
	}
	for addr, want := range map[string]string{"10.0.0.1:9000": "peer", "[fd00::1]:9000": "peer"} {
		if c := l.dial(l.pod, addr, netnstest.Options{}); c.server != want {
			t.Errorf("after StopNew %s is served by %q, want %q", addr, c.server, want)
		}
	}
	if c := l.dial(l.peer, "10.0.0.2:8080", netnstest.Options{}); c.server != "app" {
		t.Errorf("after StopNew the pod is served by %q, want the app", c.server)
	}

	l.must(capture.Delete())
	l.must(capture.Delete()) // once more is no error
	if text, err := capture.Text(); text != "" || err != nil {
		t.Errorf("after Delete: %s, %v", text, err)
	}
	if got := netnstest.ReadSysctl(t, l.pod, ports); got != before {
		t.Errorf("reserved ports after Delete: %q, want %q as before", got, before)
	}
	for name, want := range sysctlDefaults {
		if name == ports {
			continue
		}
		if got := netnstest.ReadSysctl(t, l.pod, name); got != want {
			t.Errorf("%s after Delete: %q, want the default %q", name, got, want)
		}
	}
	netnstest.Do(t, l.pod, noRoutingLeft)
	if c := l.dial(l.peer, "10.0.0.2:8080", netnstest.Options{}); c.server != "app" {
		t.Errorf("after Delete the pod is served by %q, want the app", c.server)
	}
}

// TestHalfClose: an answer that comes later than the kernel's timeouts for
// half-closed connections still arrives, because they are raised; the control run,
// with the timeouts put back, shows that it would be lost.
func TestHalfClose(t *testing.T) {
	const patience = 2500 * time.Millisecond // of the server, more than the lowered timeouts
	for _, tt := range []struct {
		name   string
		raised bool
	}{{"raised", true}, {"control", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			listener := netnstest.Listen(t, l.pod, "[::]:15001", netnstest.Options{Mark: redirect.AgentMark})
			netnstest.Serve(t, listener, func(c net.Conn) {
				_, _ = io.WriteString(c, "slow\n")
				question, err := io.ReadAll(c)
				if err != nil {
					return
				}
				time.Sleep(patience)
				_, _ = c.Write(question)
			})
			// Lowered before the capture, as if they were the kernel's defaults; the
			// module may not be loaded yet.
			capture := l.capture(redirect.Options{})
			l.must(capture.Delete())
			l.setTimeouts("1")
			l.capture(redirect.Options{})
			if !tt.raised {
				l.setTimeouts("1")
			}
			c := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
			_, err := io.WriteString(c, "question")
			l.must(err)
			l.must(c.Conn.(*net.TCPConn).CloseWrite())
			l.must(c.SetDeadline(time.Now().Add(patience + time.Second)))
			answer, err := io.ReadAll(c.r)
			if ok := err == nil && string(answer) == "question"; ok != tt.raised {
				t.Errorf("answer %q, %v; timeouts raised: %v", answer, err, tt.raised)
			}
		})
	}
}

// TestTransparent: the agent calls the application from the address of a client far
// away, and the answer finds the agent.
func TestTransparent(t *testing.T) {
	for _, tt := range []struct{ name, from, to string }{
		{"v4", "10.0.0.1:0", "10.0.0.2:8080"},
		{"v4_far", "198.51.100.9:41234", "10.0.0.2:8080"},
		{"v6", "[fd00::1]:0", "[fd00::2]:8080"},
		{"v6_far", "[2001:db8::9]:41234", "[fd00::2]:8080"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			capture := l.capture(redirect.Options{DNS: true})
			c := l.dialFrom(tt.from, tt.to)
			if c.server != "app" {
				t.Errorf("served by %q, want app", c.server)
			}
			c.works("from a foreign address")
			l.must(capture.StopNew())
			c.works("after StopNew")
			_, err := capture.Apply()
			l.must(err)
			c.works("after another Apply")
		})
	}
}

// TestStopNewTwiceAndBack: leaving can be repeated, and taken back.
func TestStopNewTwiceAndBack(t *testing.T) {
	l := newLab(t)
	l.startAgent()
	capture := l.capture(redirect.Options{})
	l.must(capture.StopNew())
	l.must(capture.StopNew())
	if _, err := capture.Apply(); err != nil {
		t.Fatal(err)
	}
	l.verified(capture)
	if c := l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{}); !strings.HasPrefix(c.server, "15001 ") {
		t.Errorf("after coming back served by %q", c.server)
	}
}

func TestFaultyOptions(t *testing.T) {
	ns := netnstest.New(t)
	_, err := redirect.New(ns, redirect.Options{
		VirtualInterfaces: []string{"much-too-long-for-linux", "a b"}, ExcludeInbound: []uint16{0},
	})
	if err == nil {
		t.Fatal("faulty options were accepted")
	}
	for _, part := range []string{`"much-too-long-for-linux"`, `"a b"`, "port 0"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error does not name %s: %v", part, err)
		}
	}
	if _, err := redirect.New(nil, redirect.Options{}); err == nil {
		t.Error("a missing namespace was accepted")
	}
	closed, err := redirect.New(ns, redirect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Apply(); !errors.Is(err, net.ErrClosed) && err == nil {
		t.Error("Apply in a closed namespace succeeded")
	}
}
