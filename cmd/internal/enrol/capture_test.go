package enrol_test

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestCapture(t *testing.T) {
	for _, tt := range []struct {
		name           string
		pod, namespace labels
		forbid         bool
		want           enrol.Capture
		warning        string // the only one, a part of it; "" for none
	}{
		{name: "nothing"},
		{name: "ingress", pod: labels{enrol.AnnotationBypassInbound: "true"}, want: enrol.Capture{Ingress: true}},
		{name: "ingress_false", pod: labels{enrol.AnnotationBypassInbound: "0"}},
		{name: "ingress_unreadable", pod: labels{enrol.AnnotationBypassInbound: "yes"}, warning: `"yes" is not a boolean`},
		{name: "dns_on", pod: labels{enrol.AnnotationDNS: "T"}, want: enrol.Capture{DNS: enrol.DNSOn}},
		{name: "dns_off", pod: labels{enrol.AnnotationDNS: "false"}, want: enrol.Capture{DNS: enrol.DNSOff}},
		{name: "dns_unreadable", pod: labels{enrol.AnnotationDNS: "off"}, warning: "is ignored"},
		{name: "interfaces", pod: labels{enrol.AnnotationInterfaces: "k6t-eth0, br1,br1"}, want: enrol.Capture{VirtualInterfaces: []string{"br1", "k6t-eth0"}}},
		{name: "interface_too_long", pod: labels{enrol.AnnotationInterfaces: "br1,sixteen-letters-"}, warning: "not the name of a virtual interface"},
		{name: "interface_loopback", pod: labels{enrol.AnnotationInterfaces: "lo"}, warning: "not the name"},
		{name: "interface_quote", pod: labels{enrol.AnnotationInterfaces: `a"b`}, warning: "not the name"},

		{name: "exclude_inbound", pod: labels{enrol.AnnotationExcludeInboundPorts: "9090, 80,80"}, want: enrol.Capture{ExcludeInbound: []uint16{80, 9090}}},
		{name: "exclude_inbound_empty", pod: labels{enrol.AnnotationExcludeInboundPorts: ""}},
		{name: "exclude_inbound_all", pod: labels{enrol.AnnotationExcludeInboundPorts: "*"}, warning: `"*" is not a port`},
		{name: "exclude_inbound_part_bad", pod: labels{enrol.AnnotationExcludeInboundPorts: "80,http"}, warning: `"http" is not a port`},
		{name: "exclude_inbound_zero", pod: labels{enrol.AnnotationExcludeInboundPorts: "0"}, warning: "not a port"},
		{name: "exclude_inbound_large", pod: labels{enrol.AnnotationExcludeInboundPorts: "65536"}, warning: "not a port"},
		{name: "exclude_inbound_range", pod: labels{enrol.AnnotationExcludeInboundPorts: "80-90"}, warning: "not a port"},
		{name: "exclude_inbound_hole", pod: labels{enrol.AnnotationExcludeInboundPorts: "80,,90"}, warning: "an item is empty"},
		{name: "exclude_inbound_many", pod: labels{enrol.AnnotationExcludeInboundPorts: strings.Repeat("1,", 256) + "1"}, warning: "more than 256"},
		{name: "exclude_inbound_agent", pod: labels{enrol.AnnotationExcludeInboundPorts: "80,15008"}, warning: "15008 belongs to the agent"},
		{name: "exclude_outbound_hbone", pod: labels{enrol.AnnotationExcludeOutboundPorts: "15008"}, want: enrol.Capture{ExcludeOutbound: []uint16{15008}}},
		{name: "host_ports_agent", pod: labels{enrol.AnnotationHostPorts: "15006"}, warning: "belongs to the agent"},
		{name: "host_ports_agent_outbound", pod: labels{enrol.AnnotationHostPorts: "80, 15001"}, warning: "port 15001 belongs to the agent"},
		{name: "host_ports_agent_tunnel", pod: labels{enrol.AnnotationHostPorts: "15008"}, warning: "port 15008 belongs to the agent"},
		{name: "host_ports_agent_dns", pod: labels{enrol.AnnotationHostPorts: "15053"}, warning: "port 15053 belongs to the agent"},
		{name: "include_inbound", pod: labels{enrol.AnnotationIncludeInboundPorts: "8080"}, want: enrol.Capture{IncludeInbound: []uint16{8080}}},
		{name: "include_inbound_all", pod: labels{enrol.AnnotationIncludeInboundPorts: "*"}},
		{name: "include_inbound_empty", pod: labels{enrol.AnnotationIncludeInboundPorts: ""}, warning: "it is empty"},
		{name: "include_inbound_blank", pod: labels{enrol.AnnotationIncludeInboundPorts: " "}, warning: "it is empty"},
		{name: "include_inbound_all_and_more", pod: labels{enrol.AnnotationIncludeInboundPorts: "*,80"}, warning: "not a port"},
		{name: "include_beats_exclude_inbound", pod: labels{enrol.AnnotationIncludeInboundPorts: "80", enrol.AnnotationExcludeInboundPorts: "80"}, want: enrol.Capture{IncludeInbound: []uint16{80}}, warning: "excludeInboundPorts is ignored"},
		{name: "bad_include_leaves_exclude", pod: labels{enrol.AnnotationIncludeInboundPorts: "x", enrol.AnnotationExcludeInboundPorts: "80"}, want: enrol.Capture{ExcludeInbound: []uint16{80}}, warning: "includeInboundPorts is ignored"},
		{name: "exclude_outbound", pod: labels{enrol.AnnotationExcludeOutboundPorts: "3306"}, want: enrol.Capture{ExcludeOutbound: []uint16{3306}}},

		{name: "exclude_ranges", pod: labels{enrol.AnnotationExcludeOutboundRanges: "10.1.2.3/8,fd00::/8"}, want: enrol.Capture{ExcludeRanges: prefixes("10.0.0.0/8", "fd00::/8")}},
		{name: "exclude_ranges_bare", pod: labels{enrol.AnnotationExcludeOutboundRanges: "10.1.2.3"}, warning: "not a range"},
		{name: "exclude_ranges_mapped", pod: labels{enrol.AnnotationExcludeOutboundRanges: "::ffff:10.0.0.0/104"}, warning: "not a range"},
		{name: "exclude_ranges_star", pod: labels{enrol.AnnotationExcludeOutboundRanges: "*"}, warning: "not a range"},
		{name: "include_ranges", pod: labels{enrol.AnnotationIncludeOutboundRanges: "10.0.0.0/8"}, want: enrol.Capture{IncludeRanges: prefixes("10.0.0.0/8")}},
		{name: "include_and_exclude_ranges", pod: labels{enrol.AnnotationIncludeOutboundRanges: "10.0.0.0/8", enrol.AnnotationExcludeOutboundRanges: "10.1.0.0/16"}, want: enrol.Capture{IncludeRanges: prefixes("10.0.0.0/8"), ExcludeRanges: prefixes("10.1.0.0/16")}},
		{name: "include_ranges_all", pod: labels{enrol.AnnotationIncludeOutboundRanges: " * "}},
		{name: "include_ranges_empty", pod: labels{enrol.AnnotationIncludeOutboundRanges: " , "}, warning: "an item is empty"},

		{name: "forbidden_by_setting", forbid: true, pod: labels{enrol.AnnotationExcludeInboundPorts: "80"}, warning: "forbidden by the agent's settings"},
		{name: "forbidden_by_namespace", namespace: labels{enrol.AnnotationAllowCarveOuts: "false"}, pod: labels{enrol.AnnotationExcludeOutboundRanges: "10.0.0.0/8"}, warning: "forbidden by the namespace's annotation"},
		{name: "allowed_by_namespace", namespace: labels{enrol.AnnotationAllowCarveOuts: "true"}, pod: labels{enrol.AnnotationExcludeInboundPorts: "80"}, want: enrol.Capture{ExcludeInbound: []uint16{80}}},
		{name: "namespace_cannot_lift_setting", forbid: true, namespace: labels{enrol.AnnotationAllowCarveOuts: "true"}, pod: labels{enrol.AnnotationExcludeInboundPorts: "80"}, warning: "forbidden by the agent's settings"},
		{name: "namespace_unreadable_forbids", namespace: labels{enrol.AnnotationAllowCarveOuts: "no"}, warning: "counts as false"},
		{name: "forbidden_interfaces", forbid: true, pod: labels{enrol.AnnotationInterfaces: "eth0"}, warning: "reroute-virtual-interfaces is ignored: carve-outs are forbidden by the agent's settings"},
		{name: "interfaces_forbidden_by_namespace", namespace: labels{enrol.AnnotationAllowCarveOuts: "false"}, pod: labels{enrol.AnnotationInterfaces: "eth0"}, warning: "forbidden by the namespace's annotation"},
		{name: "forbidden_bypass", forbid: true, pod: labels{enrol.AnnotationBypassInbound: "true"}, warning: "bypass-inbound-capture is ignored: carve-outs are forbidden by the agent's settings"},
		{name: "bypass_forbidden_by_namespace", namespace: labels{enrol.AnnotationAllowCarveOuts: "false"}, pod: labels{enrol.AnnotationBypassInbound: "true"}, warning: "bypass-inbound-capture is ignored: carve-outs are forbidden by the namespace's annotation"},

		{name: "host_ports", pod: labels{enrol.AnnotationHostPorts: "8443"}, want: enrol.Capture{HostPorts: []uint16{8443}}},
		{name: "host_ports_of_namespace", namespace: labels{enrol.AnnotationHostPorts: "8443"}, want: enrol.Capture{HostPorts: []uint16{8443}}},
		{name: "host_ports_pod_replaces", namespace: labels{enrol.AnnotationHostPorts: "8443"}, pod: labels{enrol.AnnotationHostPorts: ""}},
		{name: "host_ports_bad", pod: labels{enrol.AnnotationHostPorts: "https"}, warning: "is ignored"},
		{name: "host_ports_bad_namespace", namespace: labels{enrol.AnnotationHostPorts: "https"}, warning: "of the namespace is ignored"},
		{name: "host_ports_forbidden_pod", forbid: true, namespace: labels{enrol.AnnotationHostPorts: "1"}, pod: labels{enrol.AnnotationHostPorts: "2"}, want: enrol.Capture{HostPorts: []uint16{1}}, warning: "of the pod is ignored"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := enrol.Decide(enrol.Pod{Annotations: tt.pod}, enrol.Namespace{Annotations: tt.namespace}, enrol.Settings{Selectors: all(), ForbidCarveOuts: tt.forbid})
			if !d.In || !d.Capture.Equal(tt.want) {
				t.Errorf("capture = %+v, want %+v", d.Capture, tt.want)
			}
			switch {
			case tt.warning == "" && len(d.Warnings) > 0:
				t.Errorf("warned %q", d.Warnings)
			case tt.warning != "" && (len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], tt.warning)):
				t.Errorf("warned %q, want %q", d.Warnings, tt.warning)
			}
		})
	}
}

func all() []selector.Selector { return []selector.Selector{{}} }

func TestCaptureEqual(t *testing.T) {
	different := []enrol.Capture{
		{}, {Ingress: true}, {DNS: enrol.DNSOn}, {DNS: enrol.DNSOff}, {VirtualInterfaces: []string{"a"}}, {IncludeInbound: []uint16{1}},
		{ExcludeInbound: []uint16{1}}, {ExcludeOutbound: []uint16{1}}, {IncludeRanges: prefixes("10.0.0.0/8")}, {ExcludeRanges: prefixes("10.0.0.0/8")},
		{HostPorts: []uint16{1}},
	}
	for i, a := range different {
		for j, b := range different {
			if a.Equal(b) != (i == j) {
				t.Errorf("Equal(%+v, %+v) = %v", a, b, !(i == j))
			}
		}
	}
}

// FuzzAnnotations looks for texts that open more than they say: a carve-out is either exactly its items or nothing, and
// in the latter case somebody is told.
func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{"", "80", "80,443", " 80 , 81", "80-90", "*", "10.0.0.0/8", "10.0.0.0/8,::/0", "true", "0", "eth0,br-1", "65536", ",", "+80", "８０", "0x50"} {
		f.Add(seed, seed, false)
		f.Add(seed, "false", true)
	}
	keys := []string{
		enrol.AnnotationBypassInbound, enrol.AnnotationDNS, enrol.AnnotationInterfaces, enrol.AnnotationExcludeInboundPorts,
		enrol.AnnotationIncludeInboundPorts, enrol.AnnotationExcludeOutboundPorts, enrol.AnnotationExcludeOutboundRanges,
		enrol.AnnotationIncludeOutboundRanges, enrol.AnnotationHostPorts,
	}
	f.Fuzz(func(t *testing.T, text, allow string, forbid bool) {
		for _, key := range keys {
			d := enrol.Decide(enrol.Pod{Annotations: labels{key: text}}, enrol.Namespace{Annotations: labels{enrol.AnnotationAllowCarveOuts: allow}},
				enrol.Settings{Selectors: all(), ForbidCarveOuts: forbid})
			c := d.Capture
			opened := len(c.IncludeInbound) + len(c.ExcludeInbound) + len(c.ExcludeOutbound) + len(c.IncludeRanges) + len(c.ExcludeRanges) + len(c.HostPorts)
			if forbid && (opened > 0 || c.Ingress || len(c.VirtualInterfaces) > 0) {
				t.Fatalf("%s=%q opened %+v although forbidden", key, text, c)
			}
			if opened > strings.Count(text, ",")+1 {
				t.Fatalf("%s=%q opened %+v", key, text, c)
			}
			if slices.Contains(c.ExcludeInbound, 0) || slices.Contains(c.HostPorts, 0) {
				t.Fatalf("%s=%q opened port 0", key, text)
			}
			silent := c.Equal(enrol.Capture{}) && len(d.Warnings) == 0
			if _, err := strconv.ParseBool(text); silent && err != nil && strings.TrimSpace(text) != "" && strings.TrimSpace(text) != "*" {
				t.Fatalf("%s=%q is ignored and nobody is told", key, text)
			}
		}
	})
}
