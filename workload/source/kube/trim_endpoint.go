package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// maxHost is the longest DNS name (RFC 1035 section 2.3.4, as text).
const maxHost = 253

// parseHost reads a host name, with a leading "*." when a wildcard may be.
func parseHost(s string, wildcard bool) (string, error) {
	host := strings.ToLower(strings.TrimSuffix(s, "."))
	rest := host
	if wildcard {
		rest = strings.TrimPrefix(rest, "*.")
	}
	if rest == "" || len(host) > maxHost {
		return "", fmt.Errorf("host %q is no name", bounded(s))
	}
	for label := range strings.SplitSeq(rest, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("host %q is no name", bounded(s))
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("host %q is no name", bounded(s))
			}
		}
	}
	return host, nil
}

// parseLocality reads "region/zone/subzone".
func parseLocality(s string) workload.Locality {
	parts := strings.SplitN(s, "/", 4)
	parts = append(parts, "", "")
	return workload.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
}

// parseEndpoint trims a WorkloadEntry's spec.
func parseEndpoint(w *networkingv1.WorkloadEntry) (endpoint, error) {
	e := endpoint{
		network: w.GetNetwork(), account: w.GetServiceAccount(), weight: w.GetWeight(),
		locality: parseLocality(w.GetLocality()), labels: makePairs(w.GetLabels()),
	}
	for name, port := range w.GetPorts() {
		if !validPort(port) {
			return e, fmt.Errorf("port %q: %d is none", bounded(name), port)
		}
		if e.ports == nil {
			e.ports = make(map[string]uint16)
		}
		e.ports[name] = uint16(port)
	}
	if strings.HasPrefix(w.GetAddress(), "unix:") {
		return e, errors.New("address is a Unix socket, which no tunnel reaches")
	}
	if _, err := netip.ParseAddr(w.GetAddress()); err == nil {
		a, ok := parseAddr(w.GetAddress())
		if !ok {
			return e, fmt.Errorf("address %q cannot be reached", bounded(w.GetAddress()))
		}
		e.address = a
		return e, nil
	}
	var err error
	e.host, err = parseHost(w.GetAddress(), false)
	return e, err
}

// where returns the address as the UID has it.
func (e *endpoint) where() string {
	if e.address.IsValid() {
		return e.address.String()
	}
	return e.host
}

func trimWorkloadEntry(u *unstructured.Unstructured) *workloadEntryObject {
	o := &workloadEntryObject{header: makeHeader(u), conditions: istioConditions(u)}
	annotations := u.GetAnnotations()
	o.enrolled = annotations[annotationRedirection] == redirectionEnabled
	var spec networkingv1.WorkloadEntry
	if err := decodeSpec(u, &spec, false); err != nil {
		o.fault = err.Error()
		return o
	}
	// Labels may stand in two places; the metadata's go first.
	merged := maps.Clone(spec.GetLabels())
	if merged == nil {
		merged = make(map[string]string)
	}
	maps.Copy(merged, u.GetLabels())
	o.labels = makePairs(merged)
	o.workloadName = o.name
	if name := annotations[annotationRegistration]; name != "" {
		o.workloadName = name
	} else if name := o.labels.value(labelWorkloadName); name != "" {
		o.workloadName = name
	}
	var err error
	if o.endpoint, err = parseEndpoint(&spec); err != nil {
		o.fault = err.Error()
	}
	return o
}

func trimServiceEntry(u *unstructured.Unstructured) *serviceEntryObject {
	o := &serviceEntryObject{header: makeHeader(u), conditions: istioConditions(u)}
	annotations := u.GetAnnotations()
	o.enrolled = annotations[annotationRedirection] == redirectionEnabled
	o.distribution = parseDistribution(annotations[annotationDistribution])
	o.canaryWeight = annotations[annotationCanaryWeight]
	o.racing = strings.EqualFold(annotations[annotationConnect], connectRacing)
	var spec networkingv1.ServiceEntry
	if err := decodeSpec(u, &spec, false); err != nil {
		o.fault = err.Error()
		return o
	}
	var faults []string
	note := func(err error) { faults = append(faults, err.Error()) }
	switch spec.GetResolution() {
	case networkingv1.ServiceEntry_STATIC:
		o.resolution = resolutionStatic
	case networkingv1.ServiceEntry_DNS, networkingv1.ServiceEntry_DNS_ROUND_ROBIN:
		o.resolution = resolutionDNS
	case networkingv1.ServiceEntry_DYNAMIC_DNS:
		o.resolution = resolutionDynamicDNS
	}
	o.trimHosts(&spec, note)
	o.trimAddresses(&spec, note)
	o.trimPorts(&spec, note)
	seen := make(map[string]bool)
	for _, w := range spec.GetEndpoints() {
		e, err := parseEndpoint(w)
		switch {
		case err != nil:
			note(err)
		case seen[e.where()]:
			note(fmt.Errorf("endpoint %s is there twice", e.where()))
		default:
			seen[e.where()] = true
			o.endpoints = append(o.endpoints, e)
		}
	}
	if s := spec.GetWorkloadSelector(); s != nil {
		o.selects, o.selector = true, makePairs(s.GetLabels())
	}
	for _, name := range spec.GetSubjectAltNames() {
		// Names that are no identity can match no peer.
		if id, err := identity.Parse(name); err == nil {
			o.names = append(o.names, id)
		}
	}
	o.trimExport(spec.GetExportTo(), note)
	if o.size(&spec) > maxEntry {
		faults = []string{o.refuse()} // what else is wrong does not matter then
	}
	o.assigned = AssignedAddresses(u)
	if o.wantsAddresses() {
		o.automatic = make(map[string][]netip.Addr)
		for _, a := range o.assigned {
			if a.Addr.IsValid() && slices.Contains(o.hosts, a.Host) && o.takesAddress(a.Host) {
				o.automatic[a.Host] = append(o.automatic[a.Host], a.Addr)
			}
		}
	}
	o.fault = bounded(strings.Join(faults, "; "))
	return o
}

func (o *serviceEntryObject) trimHosts(spec *networkingv1.ServiceEntry, note func(error)) {
	seen := make(map[string]bool)
	for _, h := range spec.GetHosts() {
		host, err := parseHost(h, true)
		switch {
		case err != nil:
			note(err)
		case !seen[host]:
			seen[host] = true
			o.hosts = append(o.hosts, host)
		}
	}
}

func (o *serviceEntryObject) trimAddresses(spec *networkingv1.ServiceEntry, note func(error)) {
	for _, s := range spec.GetAddresses() {
		if a, ok := parseAddr(s); ok {
			o.vips = append(o.vips, a)
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil || p.Addr().Is4In6() && p.Bits() < 96:
			note(fmt.Errorf("address %q is none", bounded(s)))
		case p.IsSingleIP():
			o.vips = append(o.vips, p.Addr().Unmap())
		default:
			o.cidrs = append(o.cidrs, p.Masked())
		}
	}
}

func (o *serviceEntryObject) trimPorts(spec *networkingv1.ServiceEntry, note func(error)) {
	for _, p := range spec.GetPorts() {
		if strings.EqualFold(p.GetProtocol(), "udp") {
			continue
		}
		sp := servicePort{name: p.GetName(), port: uint16(p.GetNumber()), target: uint16(p.GetTargetPort()), app: appProtocol(p.GetProtocol())}
		if p.GetTargetPort() == 0 {
			sp.target = sp.port
		}
		if !validPort(p.GetNumber()) || p.GetTargetPort() > 65535 {
			note(fmt.Errorf("port %d with target %d is none", p.GetNumber(), p.GetTargetPort()))
			continue
		}
		o.ports = append(o.ports, sp)
	}
}

// maxAssigned bounds how many addresses of a status are looked at.
const maxAssigned = 4096

// AssignedAddresses reads the addresses that the status of a ServiceEntry has
// for its hosts, in order. What cannot be read is there as one that is not
// valid, so that it is seen to be wrong.
func AssignedAddresses(u *unstructured.Unstructured) []HostAddress {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "addresses")
	var out []HostAddress
	for _, item := range list[:min(len(list), maxAssigned)] {
		m, _ := item.(map[string]any)
		value, _ := m["value"].(string)
		host, _ := m["host"].(string)
		var a HostAddress
		if addr, ok := parseAddr(value); ok && host != "" {
			a = HostAddress{strings.ToLower(strings.TrimSuffix(host, ".")), addr}
		}
		out = append(out, a)
	}
	slices.SortFunc(out, compareHostAddresses)
	return out
}

// trimExport reads who is to see the entry. What is no namespace is left out, so
// that it is read as narrower than it is.
func (o *serviceEntryObject) trimExport(exportTo []string, note func(error)) {
	if len(exportTo) == 0 {
		return
	}
	var to []string
	for _, name := range exportTo {
		switch {
		case name == "*":
			return
		case name == ".":
			to = append(to, o.namespace)
		case name == "~":
		case len(validation.IsDNS1123Label(name)) > 0:
			note(fmt.Errorf("exportTo has %q, which is no namespace", bounded(name)))
		default:
			to = append(to, name)
		}
	}
	slices.Sort(to)
	o.visibility, o.exportTo, o.hidden = workload.VisibilityNamespace, slices.Compact(to), len(to) == 0
	if slices.Equal(o.exportTo, []string{o.namespace}) {
		o.exportTo = nil
	}
}
