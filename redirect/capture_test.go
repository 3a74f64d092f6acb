package redirect_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestWhoServes asks, for each kind of connection, who gets it.
func TestWhoServes(t *testing.T) {
	const (
		fromPod  = "pod"
		fromPeer = "peer"
	)
	all := redirect.Options{DNS: true}
	marked := netnstest.Options{Mark: redirect.AgentMark}
	tests := []struct {
		name string
		o    redirect.Options
		from string
		addr string
		opts netnstest.Options
		want string
	}{
		{"outbound_v4", all, fromPod, "10.0.0.1:9000", netnstest.Options{}, "15001 for 10.0.0.1:9000"},
		{"outbound_v6", all, fromPod, "[fd00::1]:9000", netnstest.Options{}, "15001 for [fd00::1]:9000"},
		{"outbound_to_nowhere", all, fromPod, "192.0.2.7:81", netnstest.Options{}, "15001 for 192.0.2.7:81"},
		{"outbound_v6_to_nowhere", all, fromPod, "[2001:db8::7]:81", netnstest.Options{}, "15001 for [2001:db8::7]:81"},
		{"outbound_to_agents_port", all, fromPod, "10.0.0.1:15008", netnstest.Options{}, "15001 for 10.0.0.1:15008"},
		{"agent_out_v4", all, fromPod, "10.0.0.1:9000", marked, "peer"},
		{"agent_out_v6", all, fromPod, "[fd00::1]:9000", marked, "peer"},
		{"agent_mark_is_masked", all, fromPod, "10.0.0.1:9000", netnstest.Options{Mark: 0xabc539}, "peer"},
		{"other_mark", all, fromPod, "10.0.0.1:9000", netnstest.Options{Mark: 0x53a}, "15001 for 10.0.0.1:9000"},
		{"own_address_v4", all, fromPod, "10.0.0.2:8080", netnstest.Options{}, "app"},
		{"own_address_v6", all, fromPod, "[fd00::2]:8080", netnstest.Options{}, "app"},
		{"loopback_v4", all, fromPod, "127.0.0.1:8080", netnstest.Options{}, "app"},
		{"loopback_other_v4", all, fromPod, "127.8.9.10:8080", netnstest.Options{}, "app"},
		{"loopback_v6", all, fromPod, "[::1]:8080", netnstest.Options{}, "app"},
		{"inbound_v4", all, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"inbound_v6", all, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "15006 for [fd00::2]:8080"},
		{"inbound_to_closed_port", all, fromPeer, "10.0.0.2:81", netnstest.Options{}, "15006 for 10.0.0.2:81"},
		{"inbound_to_outbound_port", all, fromPeer, "10.0.0.2:15001", netnstest.Options{}, "15006 for 10.0.0.2:15001"},
		{"inbound_hbone_v4", all, fromPeer, "10.0.0.2:15008", netnstest.Options{}, "15008 for 10.0.0.2:15008"},
		{"inbound_hbone_v6", all, fromPeer, "[fd00::2]:15008", netnstest.Options{}, "15008 for [fd00::2]:15008"},
		{"peers_mark_stays_there", all, fromPeer, "10.0.0.2:8080", marked, "15006 for 10.0.0.2:8080"},
		{"dns_tcp_v4", all, fromPod, "10.0.0.1:53", netnstest.Options{}, "15053 for 10.0.0.1:53"},
		{"dns_tcp_v6", all, fromPod, "[fd00::1]:53", netnstest.Options{}, "15053 for [fd00::1]:53"},
		{"dns_tcp_off", redirect.Options{}, fromPod, "10.0.0.1:53", netnstest.Options{}, "15001 for 10.0.0.1:53"},
		{"ingress_in", redirect.Options{Ingress: true}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "app"},
		{"ingress_out", redirect.Options{Ingress: true}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "15001 for 10.0.0.1:9000"},
		{"without_ipv6_v4", redirect.Options{NoIPv6: true}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "15001 for 10.0.0.1:9000"},
		{"without_ipv6_out", redirect.Options{NoIPv6: true}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "peer"},
		{"without_ipv6_in", redirect.Options{NoIPv6: true}, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "app"},
		{"excluded_in", redirect.Options{ExcludeInbound: []uint16{8080}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "app"},
		{"excluded_out", redirect.Options{ExcludeOutbound: []uint16{9000}}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "peer"},
		{"virtual_interface", redirect.Options{VirtualInterfaces: []string{"eth0"}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15001 for 10.0.0.2:8080"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.startAgent()
			l.capture(tt.o)
			ns := l.pod
			if tt.from == fromPeer {
				ns = l.peer
			}
			c := l.dial(ns, tt.addr, tt.opts)
			if c.server != tt.want {
				t.Errorf("%s from %s is served by %q, want %q", tt.addr, tt.from, c.server, tt.want)
			}
			c.works("after connecting")
		})
	}
}

// TestRefusedWithoutAgent: rules without listeners refuse and leak nothing.
func TestRefusedWithoutAgent(t *testing.T) {
	l := newLab(t)
	l.capture(redirect.Options{DNS: true})
	for _, addr := range []string{"10.0.0.1:9000", "[fd00::1]:9000", "10.0.0.1:53"} {
		if c, err := l.tryDial(l.pod, addr, netnstest.Options{}); err == nil {
			t.Errorf("pod to %s is served by %q without an agent", addr, c.server)
		}
	}
	for _, addr := range []string{"10.0.0.2:8080", "[fd00::2]:8080"} {
		if c, err := l.tryDial(l.peer, addr, netnstest.Options{}); err == nil {
			t.Errorf("peer to %s is served by %q without an agent", addr, c.server)
		}
	}
}
