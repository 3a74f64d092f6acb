package kube

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/workload"
)

// trimPod keeps what is used of a pod. Addresses that are none are left out.
func trimPod(p *corev1.Pod) *podObject {
	o := &podObject{
		header:       makeHeader(p),
		account:      intern(cmp.Or(p.Spec.ServiceAccountName, workload.DefaultServiceAccount)),
		node:         intern(p.Spec.NodeName),
		workloadName: intern(podWorkloadName(p)),
		ports:        namedPorts(p),
		hostNetwork:  p.Spec.HostNetwork,
		terminal:     p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		deleting:     p.DeletionTimestamp != nil,
		enrolled:     p.Annotations[annotationRedirection] == redirectionEnabled,
	}
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, ip := range ips {
		if a, ok := parseAddr(ip.IP); ok && !slices.Contains(o.ips, a) {
			o.ips = append(o.ips, a)
		}
	}
	o.ips = slices.Clip(o.ips)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			o.ready = c.Status == corev1.ConditionTrue
		}
	}
	return o
}

// parseAddr reads an address as a connection can have it.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// namedPorts returns the TCP ports with a name of a pod's containers and of
// the init containers that go on running. The first of a name counts.
func namedPorts(p *corev1.Pod) pairs {
	var named map[string]string
	add := func(ports []corev1.ContainerPort) {
		for _, cp := range ports {
			// The default of protocol is filled in by the API server.
			if cp.Name == "" || cp.Protocol != corev1.ProtocolTCP && cp.Protocol != "" || !validPort(cp.ContainerPort) {
				continue
			}
			if named == nil {
				named = make(map[string]string)
			}
			if _, ok := named[cp.Name]; !ok {
				named[cp.Name] = strconv.Itoa(int(cp.ContainerPort))
			}
		}
	}
	for i := range p.Spec.Containers {
		add(p.Spec.Containers[i].Ports)
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c.Ports)
		}
	}
	return makePairs(named)
}

func validPort[T int32 | uint32 | int](p T) bool { return p > 0 && p <= 65535 }

// cronJobName matches a Job that a CronJob made: its name and a time.
var cronJobName = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// podWorkloadName derives the name of the Deployment or the like from the
// pod's owner, as Istio does: it never asks for the owner itself.
func podWorkloadName(p *corev1.Pod) string {
	if name := p.Labels[labelWorkloadName]; name != "" {
		return name
	}
	if p.GenerateName == "" {
		return p.Name
	}
	owner := metav1.GetControllerOfNoCopy(p)
	if owner == nil || owner.Name == "" {
		return p.Name
	}
	switch owner.Kind {
	case "ReplicaSet":
		for _, label := range []string{"pod-template-hash", "rollouts-pod-template-hash"} {
			hash := p.Labels[label]
			if hash == "" {
				continue
			}
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok && name != "" {
				return name
			}
		}
	case "ReplicationController":
		if name := p.Labels["deploymentconfig"]; name != "" {
			return name
		}
	case "Job":
		if m := cronJobName.FindStringSubmatch(owner.Name); m != nil {
			return m[1]
		}
	}
	return owner.Name
}

func trimNode(n *corev1.Node) *nodeObject {
	o := &nodeObject{
		header: header{key: key{name: n.Name}, labels: makePairs(n.Labels)},
		locality: workload.Locality{
			Region: n.Labels[labelRegion], Zone: n.Labels[labelZone], Subzone: n.Labels[labelSubzone],
		},
	}
	for _, text := range n.Status.Addresses {
		if a, ok := parseAddr(text.Address); ok && !slices.Contains(o.addresses, a) {
			o.addresses = append(o.addresses, a)
		}
	}
	return o
}

func trimNamespace(n *corev1.Namespace) *namespaceObject {
	return &namespaceObject{
		header:       header{key: key{name: n.Name}, labels: makePairs(n.Labels)},
		distribution: parseDistribution(n.Annotations[annotationDistribution]),
		canaryWeight: n.Annotations[annotationCanaryWeight],
	}
}

// parseDistribution reads the annotation.
func parseDistribution(s string) distribution {
	switch strings.ToLower(s) {
	case "":
		return distributionUnset
	case "preferclose", "prefersamezone":
		return distributionZone
	case "prefersamenode":
		return distributionNode
	default:
		return distributionAny
	}
}

func trimService(s *corev1.Service) *serviceObject {
	o := &serviceObject{
		header:          makeHeader(s),
		selector:        makePairs(s.Spec.Selector),
		distribution:    parseDistribution(s.Annotations[annotationDistribution]),
		canaryWeight:    s.Annotations[annotationCanaryWeight],
		external:        s.Spec.Type == corev1.ServiceTypeExternalName,
		localOnly:       s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		publishNotReady: s.Spec.PublishNotReadyAddresses,
		affinity:        sessionAffinity(&s.Spec),
		families:        serviceFamilies(s.Spec.IPFamilies),
		conditions:      coreConditions(s.Status.Conditions),
	}
	if td := s.Spec.TrafficDistribution; td != nil {
		// The field knows no spelling but its own; what it does not know it
		// leaves to the annotations.
		switch *td {
		case "PreferClose", "PreferSameZone":
			o.distribution = distributionZone
		case "PreferSameNode":
			o.distribution = distributionNode
		}
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if ip == "" || ip == corev1.ClusterIPNone {
			continue
		}
		if a, ok := parseAddr(ip); ok {
			o.vips = append(o.vips, a)
		} else {
			o.fault = "cluster IP is no address"
		}
	}
	o.ports = servicePorts(s.Spec.Ports)
	return o
}

// sessionAffinity returns for how long a client's address keeps its endpoint, or
// 0 when the service does not ask for it.
func sessionAffinity(s *corev1.ServiceSpec) time.Duration {
	if s.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// servicePorts keeps TCP ports; nothing else is captured.
func servicePorts(ports []corev1.ServicePort) []servicePort {
	var out []servicePort
	for i := range ports {
		p := &ports[i]
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" || !validPort(p.Port) {
			continue
		}
		sp := servicePort{name: p.Name, port: uint16(p.Port), targetName: p.TargetPort.StrVal, app: portProtocol(p)}
		switch {
		case sp.targetName != "":
		case p.TargetPort.IntVal == 0:
			sp.target = sp.port
		case validPort(p.TargetPort.IntVal):
			sp.target = uint16(p.TargetPort.IntVal)
		default:
			continue
		}
		out = append(out, sp)
	}
	return out
}

// portProtocol reads what a port speaks. Of SMTP, DNS, MySQL and MongoDB the
// well-known ports say it too: who waited there for the client to speak first,
// to find out, would wait for ever.
func portProtocol(p *corev1.ServicePort) workload.AppProtocol {
	text := p.Name
	if p.AppProtocol != nil {
		text = *p.AppProtocol
	}
	app := appProtocol(text)
	switch p.Port {
	case 25, 53, 3306, 27017:
		if app == workload.AppUnknown {
			app = workload.AppTCP
		}
	}
	return app
}

// appProtocol reads a field appProtocol or the name of a port, of which the
// part before the first hyphen counts (reference, section 4.5).
func appProtocol(s string) workload.AppProtocol {
	s = strings.ToLower(s)
	switch s {
	case "kubernetes.io/h2c":
		return workload.AppHTTP2
	case "kubernetes.io/ws":
		return workload.AppHTTP1
	case "kubernetes.io/wss":
		return workload.AppTLS
	}
	if strings.HasPrefix(s, "grpc-web") {
		return workload.AppUnknown // is neither of the two
	}
	s, _, _ = strings.Cut(s, "-")
	switch s {
	case "http":
		return workload.AppHTTP1
	case "http2":
		return workload.AppHTTP2
	case "grpc":
		return workload.AppGRPC
	case "https", "tls":
		return workload.AppTLS
	case "tcp":
		return workload.AppTCP
	}
	return workload.AppUnknown
}

func serviceFamilies(families []corev1.IPFamily) workload.IPFamilies {
	switch {
	case len(families) > 1:
		return workload.FamiliesDual
	case len(families) == 0:
		return workload.FamiliesAutomatic
	case families[0] == corev1.IPv4Protocol:
		return workload.FamiliesIPv4
	default:
		return workload.FamiliesIPv6
	}
}

func trimSlice(s *discoveryv1.EndpointSlice) *sliceObject {
	o := &sliceObject{header: makeHeader(s), service: s.Labels[discoveryv1.LabelServiceName]}
	o.labels = pairs{}
	if o.service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return o
	}
	for _, p := range s.Ports {
		if p.Port == nil || !validPort(*p.Port) || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		sp := servicePort{target: uint16(*p.Port)}
		if p.Name != nil { // the API server fills in an empty one
			sp.name = *p.Name
		}
		o.ports = append(o.ports, sp)
	}
	seen := make(map[netip.Addr]bool)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if t := e.TargetRef; t != nil && t.Kind == kindPod.String() {
			if e.Conditions.Ready == nil || *e.Conditions.Ready { // whatever the pod says of itself
				o.pods = append(o.pods, key{cmp.Or(t.Namespace, s.Namespace), t.Name})
				o.podUIDs = append(o.podUIDs, string(t.UID))
			}
			continue
		}
		o.addEndpoint(e, seen)
	}
	o.bound()
	return o
}

func (o *sliceObject) addEndpoint(e *discoveryv1.Endpoint, seen map[netip.Addr]bool) {
	se := sliceEndpoint{healthy: e.Conditions.Ready == nil || *e.Conditions.Ready}
	if e.NodeName != nil {
		se.node = intern(*e.NodeName)
	}
	for _, s := range e.Addresses {
		a, ok := parseAddr(s)
		if !ok {
			o.fault = "endpoint " + strconv.Quote(bounded(s)) + " is no address"
			return
		}
		se.addresses = append(se.addresses, a)
	}
	switch {
	case len(se.addresses) == 0:
	case seen[se.addresses[0]]:
		o.fault = "address " + se.addresses[0].String() + " is there twice"
	default:
		seen[se.addresses[0]] = true
		o.endpoints = append(o.endpoints, se)
	}
}

// bounded shortens text of a user for logs and statuses.
func bounded(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
