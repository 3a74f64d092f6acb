package redirect_test

import (
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// peers are the peer's addresses, as those of a node.
var peers = []netip.Addr{netip.MustParseAddr(peer4), netip.MustParseAddr(peer6)}

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
		{"included_in", redirect.Options{IncludeInbound: []uint16{8080}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"included_in_v6", redirect.Options{IncludeInbound: []uint16{8080}}, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "15006 for [fd00::2]:8080"},
		{"not_included_in", redirect.Options{IncludeInbound: []uint16{8081}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "app"},
		{"not_included_in_v6", redirect.Options{IncludeInbound: []uint16{8081}}, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "app"},
		{"included_beats_excluded", redirect.Options{IncludeInbound: []uint16{8080}, ExcludeInbound: []uint16{8080}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"never_bare", redirect.Options{IncludeInbound: []uint16{8080}}, fromPeer, "10.0.0.2:15001", netnstest.Options{}, "15006 for 10.0.0.2:15001"},
		{"included_in_hbone", redirect.Options{IncludeInbound: []uint16{8080}}, fromPeer, "10.0.0.2:15008", netnstest.Options{}, "15008 for 10.0.0.2:15008"},
		{"excluded_range", redirect.Options{ExcludeOutboundRanges: prefixes("10.0.0.0/30")}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "peer"},
		{"excluded_range_v6", redirect.Options{ExcludeOutboundRanges: prefixes("fd00::/65")}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "peer"},
		{"excluded_range_of_v4_only", redirect.Options{ExcludeOutboundRanges: prefixes("0.0.0.0/0")}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "15001 for [fd00::1]:9000"},
		{"beside_excluded_range", redirect.Options{ExcludeOutboundRanges: prefixes("10.0.0.2/31")}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "15001 for 10.0.0.1:9000"},
		{"included_range", redirect.Options{IncludeOutboundRanges: prefixes("10.0.0.0/30")}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "15001 for 10.0.0.1:9000"},
		{"included_all", redirect.Options{IncludeOutboundRanges: prefixes("0.0.0.0/0", "::/0")}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "15001 for [fd00::1]:9000"},
		{"included_all_but_loopback", redirect.Options{IncludeOutboundRanges: prefixes("0.0.0.0/0", "::/0")}, fromPod, "127.0.0.1:8080", netnstest.Options{}, "app"},
		{"beside_included_range", redirect.Options{IncludeOutboundRanges: prefixes("10.0.0.2/31")}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "peer"},
		{"included_range_of_v4_only", redirect.Options{IncludeOutboundRanges: prefixes("0.0.0.0/0")}, fromPod, "[fd00::1]:9000", netnstest.Options{}, "peer"},
		{"excluded_in_included_range", redirect.Options{IncludeOutboundRanges: prefixes("10.0.0.0/8"), ExcludeOutboundRanges: prefixes("10.0.0.1/32")}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "peer"},
		{"dns_in_excluded_range", redirect.Options{DNS: true, ExcludeOutboundRanges: prefixes("0.0.0.0/0")}, fromPod, "10.0.0.1:53", netnstest.Options{}, "15053 for 10.0.0.1:53"},
		{"no_outbound", redirect.Options{NoOutbound: true}, fromPod, "10.0.0.1:9000", netnstest.Options{}, "peer"},
		{"no_outbound_in", redirect.Options{NoOutbound: true}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"host_port", redirect.Options{NodeAddresses: peers, HostPorts: []uint16{8080}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "app"},
		{"host_port_v6", redirect.Options{NodeAddresses: peers, HostPorts: []uint16{8080}}, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "app"},
		{"host_port_other", redirect.Options{NodeAddresses: peers, HostPorts: []uint16{8081}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"host_port_not_a_host", redirect.Options{NodeAddresses: peers[1:], HostPorts: []uint16{8080}}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"host_port_other_node", redirect.Options{HostAddresses: peers, HostPorts: []uint16{8080}}, fromPeer, "[fd00::2]:8080", netnstest.Options{}, "app"},
		{"host_addresses_alone", redirect.Options{NodeAddresses: peers, HostAddresses: peers}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
		{"unmarked_probe", redirect.Options{NodeAddresses: peers, ProbeMark: true, ProbeAddresses: pods}, fromPeer, "10.0.0.2:8080", netnstest.Options{}, "15006 for 10.0.0.2:8080"},
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
