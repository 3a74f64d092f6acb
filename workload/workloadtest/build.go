// Package workloadtest helps tests that need workloads, services and a Store,
// and holds the conformance suite that every source of them must pass.
//
// It is imported from test files only. Its functions may be called by one test
// at a time for one Store.
package workloadtest

import (
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Pod returns a healthy HBONE pod "namespace/name" with these addresses, its
// service account named like it, as mods leave it.
func Pod(key string, addresses []string, mods ...func(*workload.Workload)) *workload.Workload {
	ns, name, ok := strings.Cut(key, "/")
	if !ok {
		ns, name = "default", key
	}
	w := &workload.Workload{
		UID:            "cluster1//Pod/" + ns + "/" + name,
		Name:           name,
		Namespace:      ns,
		ServiceAccount: name,
		WorkloadName:   name,
		WorkloadType:   "pod",
		CanonicalName:  name,
		Capacity:       1,
		Protocol:       workload.HBONE,
	}
	for _, a := range addresses {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	w.SetDefaults()
	for _, mod := range mods {
		mod(w)
	}
	return w
}

// Plain makes a workload one outside the mesh.
func Plain(w *workload.Workload) { w.Protocol = workload.TCP }

// Unhealthy makes a workload not ready.
func Unhealthy(w *workload.Workload) { w.Health = workload.Unhealthy }

// Network puts a workload into a network.
func Network(network string) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Network = network }
}

// In makes a workload an endpoint of the service "namespace/hostname", with
// target ports given as pairs service port, target port.
func In(service string, ports ...uint16) func(*workload.Workload) {
	key, err := workload.ParseNamespacedHostname(service)
	if err != nil {
		panic(err)
	}
	m := PortMap(ports...)
	return func(w *workload.Workload) {
		if w.Services == nil {
			w.Services = make(map[workload.NamespacedHostname]workload.PortMap)
		}
		w.Services[key] = m
	}
}

// PortMap returns a map from pairs service port, target port.
func PortMap(ports ...uint16) workload.PortMap {
	m := make(workload.PortMap)
	for i := 0; i+1 < len(ports); i += 2 {
		m[ports[i]] = ports[i+1]
	}
	return m
}

// Service returns the service "namespace/hostname" with VIPs ("network/ip" or
// "ip") and CIDR VIPs ("network/ip/bits"), port 80 to 8080, as mods leave it.
func Service(key string, vips []string, mods ...func(*workload.Service)) *workload.Service {
	k, err := workload.ParseNamespacedHostname(key)
	if err != nil {
		panic(err)
	}
	name, _, _ := strings.Cut(k.Hostname, ".")
	s := &workload.Service{Name: name, Namespace: k.Namespace, Hostname: k.Hostname, Ports: PortMap(80, 8080)}
	for _, v := range vips {
		if !strings.Contains(v, "/") {
			v = "/" + v
		}
		if a, err := workload.ParseNetworkAddress(v); err == nil {
			s.VIPs = append(s.VIPs, a)
			continue
		}
		p, err := workload.ParseNetworkPrefix(v)
		if err != nil {
			panic(err)
		}
		s.CIDRVIPs = append(s.CIDRVIPs, p)
	}
	for _, mod := range mods {
		mod(s)
	}
	return s
}

// Canonical marks a service as canonical.
func Canonical(s *workload.Service) { s.Canonical = true }

// Private makes a service visible in its own namespace only.
func Private(s *workload.Service) { s.Visibility = workload.VisibilityNamespace }

// Ports replaces the ports of a service: pairs service port, target port.
func Ports(ports ...uint16) func(*workload.Service) {
	return func(s *workload.Service) { s.Ports = PortMap(ports...) }
}

// Balance sets the load balancer of a service.
func Balance(mode workload.Mode, preferences ...workload.Scope) func(*workload.Service) {
	return func(s *workload.Service) {
		s.LoadBalancer = &workload.LoadBalancer{Mode: mode, Preferences: preferences}
	}
}

// Gateway returns the reference "network/ip" or "namespace/hostname" with the
// port.
func Gateway(destination string, port uint16) *workload.GatewayAddress {
	g, err := workload.ParseGatewayDestination(destination, port)
	if err != nil {
		panic(err)
	}
	return &g
}

// Store returns a Store that holds the objects: *workload.Workload and
// *workload.Service.
func Store(objects ...any) *workload.Store {
	s := workload.New()
	s.Apply(Events(objects...))
	return s
}

// Snapshot returns a snapshot that holds the objects.
func Snapshot(objects ...any) *workload.Snapshot { return Store(objects...).Snapshot() }

// Events returns the upserts of the objects.
func Events(objects ...any) []workload.Event {
	var batch []workload.Event
	for _, o := range objects {
		switch o := o.(type) {
		case *workload.Workload:
			batch = append(batch, workload.Upsert(o))
		case *workload.Service:
			batch = append(batch, workload.UpsertService(o))
		default:
			panic("workloadtest: neither workload nor service")
		}
	}
	return batch
}
