package enrol

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/redirect/selector"
)

// Annotations of a pod that change what is captured.
const (
	AnnotationBypassInbound = "ambient.istio.io/bypass-inbound-capture"
	AnnotationDNS           = "ambient.istio.io/dns-capture"
	AnnotationInterfaces    = "istio.io/reroute-virtual-interfaces"

	AnnotationExcludeInboundPorts   = "traffic.sidecar.istio.io/excludeInboundPorts"
	AnnotationIncludeInboundPorts   = "traffic.sidecar.istio.io/includeInboundPorts"
	AnnotationExcludeOutboundPorts  = "traffic.sidecar.istio.io/excludeOutboundPorts"
	AnnotationExcludeOutboundRanges = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	AnnotationIncludeOutboundRanges = "traffic.sidecar.istio.io/includeOutboundIPRanges"

	// AnnotationHostPorts, on a pod or its namespace, lists TCP ports that clients in the network of a host (the API
	// server among them) may reach without mTLS. The pod's takes the place of its namespace's.
	AnnotationHostPorts = "culvert.io/allow-host-ports"

	// AnnotationOutbound, on a namespace, is ALLOW_ANY or REGISTRY_ONLY: what becomes of its pods' connections to
	// destinations that the registry does not have. It changes nothing of what is captured.
	AnnotationOutbound = "culvert.io/outbound-traffic-policy"
)

// Annotations returns the keys that decide on a pod or on its namespace; no other one needs to be kept.
func Annotations() []string {
	return []string{
		AnnotationSidecar, AnnotationAllowCarveOuts, AnnotationBypassInbound, AnnotationDNS, AnnotationInterfaces,
		AnnotationExcludeInboundPorts, AnnotationIncludeInboundPorts, AnnotationExcludeOutboundPorts,
		AnnotationExcludeOutboundRanges, AnnotationIncludeOutboundRanges, AnnotationHostPorts, AnnotationOutbound,
	}
}

// maxItems bounds each list: more is a mistake or an attack on the size of the rules.
const maxItems = 256

const maxInterfaceName = 15 // IFNAMSIZ without the end

// Capture is what is captured of an enrolled pod. The zero value captures everything but DNS, which follows the agent's
// own setting. Lists are sorted and hold nothing twice.
type Capture struct {
	// Ingress leaves inbound connections alone.
	Ingress bool
	// DNS overrides the agent's setting when it is not DNSDefault.
	DNS DNSChoice
	// VirtualInterfaces are interfaces whose arriving traffic counts as outbound.
	VirtualInterfaces []string

	// IncludeInbound, when not empty, are the only TCP ports that are captured inbound; otherwise all but ExcludeInbound.
	IncludeInbound, ExcludeInbound []uint16
	// ExcludeOutbound are TCP destination ports that are not captured.
	ExcludeOutbound []uint16
	// IncludeRanges, when not empty, are the only destinations that are captured; ExcludeRanges are taken out of them,
	// or of all.
	IncludeRanges, ExcludeRanges []netip.Prefix

	// HostPorts are TCP ports that clients in a host's network may reach in plaintext.
	HostPorts []uint16
}

// DNSChoice is what a pod wants of DNS capture.
type DNSChoice uint8

// The choices.
const (
	DNSDefault DNSChoice = iota
	DNSOn
	DNSOff
)

// Equal reports whether both capture the same.
func (c Capture) Equal(o Capture) bool {
	return c.Ingress == o.Ingress && c.DNS == o.DNS && slices.Equal(c.VirtualInterfaces, o.VirtualInterfaces) &&
		slices.Equal(c.IncludeInbound, o.IncludeInbound) && slices.Equal(c.ExcludeInbound, o.ExcludeInbound) &&
		slices.Equal(c.ExcludeOutbound, o.ExcludeOutbound) && slices.Equal(c.IncludeRanges, o.IncludeRanges) &&
		slices.Equal(c.ExcludeRanges, o.ExcludeRanges) && slices.Equal(c.HostPorts, o.HostPorts)
}

// reader reads the annotations of one pod.
type reader struct {
	pod, namespace map[string]string
	forbidden      bool // by the setting
	warnings       []string
}

func (r *reader) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

func (r *reader) capture() Capture {
	var c Capture
	forbidden := r.forbiddenBy()
	if c.Ingress, _ = r.boolean(AnnotationBypassInbound); c.Ingress && forbidden != "" {
		r.ignored(AnnotationBypassInbound, forbidden)
		c.Ingress = false
	}
	if dns, present := r.boolean(AnnotationDNS); present {
		c.DNS = DNSOff
		if dns {
			c.DNS = DNSOn
		}
	}
	r.carveOuts(&c, forbidden)
	c.HostPorts = r.hostPorts(forbidden)
	return c
}

// forbiddenBy returns who forbids carve-outs, or "". A namespace whose word cannot be read forbids them: it is about
// closing a hole, so the doubt closes it.
func (r *reader) forbiddenBy() string {
	if r.forbidden {
		return "the agent's settings"
	}
	text, present := r.namespace[AnnotationAllowCarveOuts]
	if !present {
		return ""
	}
	allowed, err := strconv.ParseBool(text)
	if err != nil {
		r.warn("annotation %s of the namespace: %.40q is not a boolean and counts as false", AnnotationAllowCarveOuts, text)
	}
	if allowed {
		return ""
	}
	return "the namespace's annotation " + AnnotationAllowCarveOuts
}

func (r *reader) ignored(key, forbidden string) {
	r.warn("annotation %s is ignored: carve-outs are forbidden by %s", key, forbidden)
}

func (r *reader) carveOuts(c *Capture, forbidden string) {
	if forbidden != "" {
		for _, key := range []string{
			AnnotationExcludeInboundPorts, AnnotationIncludeInboundPorts, AnnotationExcludeOutboundPorts,
			AnnotationExcludeOutboundRanges, AnnotationIncludeOutboundRanges, AnnotationInterfaces,
		} {
			if _, present := r.pod[key]; present {
				r.ignored(key, forbidden)
			}
		}
		return
	}
	// The pod's own interface may be among them: what comes to the pod would go past its policies, as its own outbound traffic.
	c.VirtualInterfaces = carveOut(r, AnnotationInterfaces, parseInterfaces)
	c.ExcludeInbound = carveOut(r, AnnotationExcludeInboundPorts, parseOpenPorts)
	c.IncludeInbound = include(r, AnnotationIncludeInboundPorts, parseOpenPorts)
	c.ExcludeOutbound = carveOut(r, AnnotationExcludeOutboundPorts, parsePorts)
	c.ExcludeRanges = carveOut(r, AnnotationExcludeOutboundRanges, parseRanges)
	c.IncludeRanges = include(r, AnnotationIncludeOutboundRanges, parseRanges)
	if len(c.IncludeInbound) > 0 && len(c.ExcludeInbound) > 0 { // as for sidecars: exclusions are from "*"
		r.warn("annotation %s is ignored: %s says what is captured", AnnotationExcludeInboundPorts, AnnotationIncludeInboundPorts)
		c.ExcludeInbound = nil
	}
}

func (r *reader) hostPorts(forbidden string) []uint16 {
	if _, present := r.pod[AnnotationHostPorts]; present {
		if forbidden == "" {
			return carveOut(r, AnnotationHostPorts, parseOpenPorts)
		}
		r.warn("annotation %s of the pod is ignored: carve-outs are forbidden by %s", AnnotationHostPorts, forbidden)
	}
	text, present := r.namespace[AnnotationHostPorts]
	if !present {
		return nil
	}
	ports, err := parseOpenPorts(text)
	if err != nil {
		r.warn("annotation %s of the namespace is ignored: %v", AnnotationHostPorts, err)
	}
	return ports
}

// carveOut reads a list; one that cannot be read is ignored as a whole.
func carveOut[T any](r *reader, key string, parse func(string) ([]T, error)) []T {
	text, present := r.pod[key]
	if !present {
		return nil
	}
	list, err := parse(text)
	if err != nil {
		r.warn("annotation %s is ignored: %v", key, err)
		return nil
	}
	return list
}

// include reads a list of what alone is captured; "*" is everything. For a sidecar an empty list captures nothing at
// all: too much for what an unset variable in a template gives, so it is ignored here.
func include[T any](r *reader, key string, parse func(string) ([]T, error)) []T {
	text, present := r.pod[key]
	if !present || strings.TrimSpace(text) == "*" {
		return nil
	}
	if strings.TrimSpace(text) == "" {
		r.warn("annotation %s is ignored: it is empty; label the pod %s=%s to leave it out, or use %s", key, selector.LabelMode, selector.ModeNone, AnnotationBypassInbound)
		return nil
	}
	return carveOut(r, key, parse)
}

// items cuts a list at its commas. An empty text is an empty list; an empty item in a list is a mistake.
func items(text string) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	if strings.Count(text, ",") >= maxItems {
		return nil, fmt.Errorf("it has more than %d items", maxItems)
	}
	list := strings.Split(text, ",")
	for i, item := range list {
		if list[i] = strings.TrimSpace(item); list[i] == "" {
			return nil, errors.New("an item is empty")
		}
	}
	return list, nil
}

func parsePorts(text string) ([]uint16, error) {
	list, err := items(text)
	if err != nil {
		return nil, err
	}
	var out []uint16
	for _, item := range list {
		n, err := strconv.ParseUint(item, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%.40q is not a port", item)
		}
		out = append(out, uint16(n))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// parseOpenPorts reads ports of the application that others reach; the agent's own are refused.
func parseOpenPorts(text string) ([]uint16, error) {
	ports, err := parsePorts(text)
	for _, p := range ports {
		switch p {
		case 15001, 15006, 15008, 15053:
			return nil, fmt.Errorf("port %d belongs to the agent", p)
		}
	}
	return ports, err
}

func parseRanges(text string) ([]netip.Prefix, error) {
	list, err := items(text)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, item := range list {
		p, err := netip.ParsePrefix(item)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.60q is not a range of addresses (10.0.0.0/8)", item)
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), nil
}

func parseInterfaces(text string) ([]string, error) {
	list, err := items(text)
	if err != nil {
		return nil, err
	}
	for _, name := range list {
		bad := func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`/:"*\`, c) }
		if len(name) > maxInterfaceName || strings.ContainsFunc(name, bad) || name == "." || name == ".." || name == "lo" {
			return nil, fmt.Errorf("%.40q is not the name of a virtual interface", name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}
