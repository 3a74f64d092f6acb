package redirect_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/origdst"
)

// packets answers each datagram with "NAME for ORIGINAL DESTINATION", which is
// asked for with find when it is given.
func (l *lab) packets(ns *netns.NS, addr, name string, mark uint32, find func(client, local netip.AddrPort) (netip.AddrPort, error)) {
	l.Helper()
	c := netnstest.ListenPacket(l, ns, addr, netnstest.Options{Mark: mark})
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			_, client, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			answer := name
			if find != nil {
				dst, err := find(client, local)
				if err != nil {
					l.Errorf("original destination: %v", err)
				}
				answer += " for " + dst.String()
			}
			_, _ = c.WriteToUDPAddrPort([]byte(answer), client)
		}
	}()
	l.Cleanup(func() { _ = c.Close(); <-done })
}

func (l *lab) ask(ns *netns.NS, addr string, o netnstest.Options) string {
	l.Helper()
	c, err := netnstest.Dial(l, ns, "udp", addr, o)
	l.must(err)
	return l.askOn(c)
}

func (l *lab) askOn(c net.Conn) string {
	l.Helper()
	buf := make([]byte, 512)
	l.must(c.SetDeadline(time.Now().Add(5 * time.Second)))
	_, err := c.Write([]byte("?"))
	l.must(err)
	n, err := c.Read(buf)
	if err != nil {
		l.Fatalf("no answer from %s: %v", c.RemoteAddr(), err)
	}
	return string(buf[:n])
}

// newDNSLab has DNS servers at the peer and in the pod, and an agent that captures.
func newDNSLab(t *testing.T) *lab {
	l := newLab(t)
	l.packets(l.peer, "[::]:53", "peer", 0, nil)
	l.packets(l.peer, "[::]:54", "peer54", 0, nil)
	l.packets(l.pod, "127.0.0.53:53", "resolver", 0, nil)
	l.packets(l.pod, "10.0.0.2:53", "app", 0, nil)
	ct, err := origdst.Open(l.pod)
	l.must(err)
	t.Cleanup(func() { _ = ct.Close() })
	l.packets(l.pod, "127.0.0.1:15053", "agent", redirect.AgentMark, ct.UDP)
	l.packets(l.pod, "[::1]:15053", "agent", redirect.AgentMark, func(client, local netip.AddrPort) (netip.AddrPort, error) {
		return origdst.UDP(l.pod, client, local)
	})
	return l
}

func TestDNSOverUDP(t *testing.T) {
	agent := netnstest.Options{Mark: redirect.AgentMark}
	for _, tt := range []struct {
		name, addr string
		opts       netnstest.Options
		want       string
	}{
		{"v4", "10.0.0.1:53", netnstest.Options{}, "agent for 10.0.0.1:53"},
		{"v6", "[fd00::1]:53", netnstest.Options{}, "agent for [fd00::1]:53"},
		{"nowhere", "192.0.2.53:53", netnstest.Options{}, "agent for 192.0.2.53:53"},
		{"other_port", "10.0.0.1:54", netnstest.Options{}, "peer54"},
		{"agents_own_v4", "10.0.0.1:53", agent, "peer"},
		{"agents_own_v6", "[fd00::1]:53", agent, "peer"},
		{"local_resolver", "127.0.0.53:53", netnstest.Options{}, "resolver"},
		{"own_address", "10.0.0.2:53", netnstest.Options{}, "app"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newDNSLab(t)
			l.capture(redirect.Options{DNS: true})
			if got := l.ask(l.pod, tt.addr, tt.opts); got != tt.want {
				t.Errorf("query to %s is answered by %q, want %q", tt.addr, got, tt.want)
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		l := newDNSLab(t)
		l.capture(redirect.Options{})
		if got := l.ask(l.pod, "10.0.0.1:53", netnstest.Options{}); got != "peer" {
			t.Errorf("query is answered by %q without DNS capture", got)
		}
	})
	t.Run("pod_serves", func(t *testing.T) {
		l := newDNSLab(t)
		l.capture(redirect.Options{DNS: true})
		if got := l.ask(l.peer, "10.0.0.2:53", netnstest.Options{}); got != "app" {
			t.Errorf("query into the pod is answered by %q, want its own server", got)
		}
	})
}

// TestDNSZones: the agent asks upstream from the port that an application has just
// used for the same server. Without a tracking zone of their own the two would be
// one entry, and the agent's query would come back to itself.
func TestDNSZones(t *testing.T) {
	for _, server := range []string{"10.0.0.1:53", "[fd00::1]:53"} {
		t.Run(server, func(t *testing.T) {
			l := newDNSLab(t)
			l.capture(redirect.Options{DNS: true})
			app, err := netnstest.Dial(t, l.pod, "udp", server, netnstest.Options{})
			l.must(err)
			if got := l.askOn(app); got != "agent for "+server {
				t.Fatalf("application's query is answered by %q", got)
			}
			port := app.LocalAddr().(*net.UDPAddr).AddrPort()
			l.must(app.Close())
			agent := netnstest.Options{Mark: redirect.AgentMark, Local: port}
			if got := l.ask(l.pod, server, agent); got != "peer" {
				t.Errorf("agent's query from the same port is answered by %q, want peer", got)
			}
		})
	}
}

// TestUDPOfUnknownQuery: what was not redirected has no entry.
func TestUDPOfUnknownQuery(t *testing.T) {
	l := newLab(t)
	l.capture(redirect.Options{DNS: true})
	_, err := origdst.UDP(l.pod, addrPort("10.0.0.2:4444"), addrPort("127.0.0.1:15053"))
	if !errors.Is(err, origdst.ErrNotTracked) {
		t.Errorf("UDP = %v, want ErrNotTracked", err)
	}
	_, err = origdst.UDP(l.pod, addrPort("[fd00::2]:4444"), addrPort("127.0.0.1:15053"))
	if err == nil || errors.Is(err, origdst.ErrNotTracked) {
		t.Errorf("UDP with two families = %v, want an error of its own", err)
	}
}
