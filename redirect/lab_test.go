package redirect_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/origdst"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// lab is a pod and a peer outside, joined by a veth pair. Whoever serves a
// connection first says its name in a line, then echoes.
//
//	peer 10.0.0.1, fd00::1 ── 10.0.0.2, fd00::2 pod (app on 8080, agent's listeners)
type lab struct {
	testing.TB
	peer, pod *netns.NS
}

const (
	peer4, peer6 = "10.0.0.1", "fd00::1"
	pod4, pod6   = "10.0.0.2", "fd00::2"
)

var pods = []netip.Addr{netip.MustParseAddr(pod4), netip.MustParseAddr(pod6)}

func newLab(t testing.TB) *lab {
	l := &lab{TB: t, peer: netnstest.New(t), pod: netnstest.New(t)}
	netnstest.Veth(t,
		netnstest.End{NS: l.peer, Name: "eth0", Addrs: prefixes(peer4+"/24", peer6+"/64")},
		netnstest.End{NS: l.pod, Name: "eth0", Addrs: prefixes(pod4+"/24", pod6+"/64")})
	netnstest.Route(t, l.pod, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(peer4))
	netnstest.Route(t, l.pod, netip.MustParsePrefix("::/0"), netip.MustParseAddr(peer6))
	l.serve(l.pod, "[::]:8080", "app", 0)
	l.serve(l.peer, "[::]:9000", "peer", 0)
	return l
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// startAgent opens the listeners of an agent in the pod. They say their port and
// the original destination.
func (l *lab) startAgent() {
	l.Helper()
	for _, port := range []int{redirect.PortOutbound, redirect.PortInbound, redirect.PortHBONE} {
		l.serve(l.pod, fmt.Sprintf("[::]:%d", port), fmt.Sprint(port), redirect.AgentMark)
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		l.serve(l.pod, fmt.Sprintf("%s:%d", host, redirect.PortDNS), fmt.Sprint(redirect.PortDNS), redirect.AgentMark)
	}
}

func (l *lab) serve(ns *netns.NS, addr, name string, mark uint32) {
	l.Helper()
	listener := netnstest.Listen(l, ns, addr, netnstest.Options{Mark: mark, Transparent: mark != 0})
	netnstest.Serve(l, listener, func(c net.Conn) {
		greeting := name
		if mark != 0 {
			dst, err := originalDst(c.(*net.TCPConn))
			if err != nil {
				l.Errorf("original destination at %s: %v", name, err)
				return
			}
			greeting += " for " + dst.String()
		}
		if _, err := fmt.Fprintf(c, "%s\n", greeting); err != nil {
			return
		}
		if _, err := io.Copy(c, c); err == nil {
			_ = c.(*net.TCPConn).CloseWrite()
		}
	})
}

func originalDst(c *net.TCPConn) (dst netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return dst, err
	}
	ctlErr := raw.Control(func(fd uintptr) { dst, err = origdst.TCP(int(fd)) })
	if ctlErr != nil {
		return dst, ctlErr
	}
	return dst, err
}

// capture makes the capture of the pod and applies it.
func (l *lab) capture(o redirect.Options) *redirect.Capture {
	l.Helper()
	c, err := redirect.New(l.pod, o)
	if err != nil {
		l.Fatal(err)
	}
	l.must(c.Reserve())
	left, err := c.Apply()
	if err != nil || len(left) > 0 {
		l.Fatalf("Apply: %v, left %v", err, left)
	}
	l.verified(c)
	return c
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) verified(c *redirect.Capture) {
	l.Helper()
	found, err := c.Verify()
	if err != nil || len(found) > 0 {
		l.Fatalf("Verify: %v, %v", found, err)
	}
}

// conn is a connection whose server has said its name.
type conn struct {
	l *lab
	net.Conn
	r      *bufio.Reader
	server string
}

// dial connects from ns and returns who served.
func (l *lab) dial(ns *netns.NS, addr string, o netnstest.Options) *conn {
	l.Helper()
	c, err := l.tryDial(ns, addr, o)
	if err != nil {
		l.Fatalf("dial %s from %s: %v", addr, l.name(ns), err)
	}
	return c
}

func (l *lab) tryDial(ns *netns.NS, addr string, o netnstest.Options) (*conn, error) {
	l.Helper()
	nc, err := netnstest.Dial(l, ns, "tcp", addr, o)
	if err != nil {
		return nil, err
	}
	c := &conn{l: l, Conn: nc, r: bufio.NewReader(nc)}
	l.must(nc.SetDeadline(time.Now().Add(10 * time.Second)))
	line, err := c.r.ReadString('\n')
	c.server = strings.TrimSpace(line)
	return c, err
}

func (l *lab) name(ns *netns.NS) string {
	if ns == l.pod {
		return "pod"
	}
	return "peer"
}

// works sends something and wants it back.
func (c *conn) works(when string) {
	c.l.Helper()
	if err := c.echo(); err != nil {
		c.l.Errorf("%s: connection served by %q: %v", when, c.server, err)
	}
}

func (c *conn) echo() error {
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err == nil && line != "ping\n" {
		err = fmt.Errorf("echo came back as %q", line)
	}
	return err
}

// setTimeout writes both conntrack timeouts that redirect raises.
func (l *lab) setTimeouts(value string) {
	l.Helper()
	for _, name := range []string{"close_wait", "fin_wait"} {
		netnstest.Sysctl(l, l.pod, "net/netfilter/nf_conntrack_tcp_timeout_"+name, value)
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
