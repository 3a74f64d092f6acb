package file

import (
	"net/netip"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

func (d *decoder) workload(n *yaml.Node) {
	const what = "workload"
	w := &workload.Workload{Capacity: 1}
	text := func(key string, to *string) func(*yaml.Node) {
		return func(n *yaml.Node) { *to = d.string(n, what+" "+key) }
	}
	seen := d.object(n, what, fields{
		"uid":               text("uid", &w.UID),
		"name":              text("name", &w.Name),
		"namespace":         text("namespace", &w.Namespace),
		"trustDomain":       text("trustDomain", &w.TrustDomain),
		"serviceAccount":    text("serviceAccount", &w.ServiceAccount),
		"network":           text("network", &w.Network),
		"workloadName":      text("workloadName", &w.WorkloadName),
		"workloadType":      text("workloadType", &w.WorkloadType),
		"canonicalName":     text("canonicalName", &w.CanonicalName),
		"canonicalRevision": text("canonicalRevision", &w.CanonicalRevision),
		"hostname":          text("hostname", &w.Hostname),
		"node":              text("node", &w.Node),
		"clusterId":         text("clusterId", &w.ClusterID),
		"workloadIps": func(n *yaml.Node) {
			d.each(n, "workloadIps", func(n *yaml.Node) {
				if a, ok := parsed(d, n, "workloadIps", netip.ParseAddr); ok {
					w.Addresses = append(w.Addresses, a.Unmap().WithZone(""))
				}
			})
		},
		"waypoint":       func(n *yaml.Node) { w.Waypoint = d.gateway(n, what+" waypoint") },
		"networkGateway": func(n *yaml.Node) { w.NetworkGateway = d.gateway(n, what+" networkGateway") },
		"protocol":       func(n *yaml.Node) { w.Protocol = enum(d, n, what+" protocol", workload.TCP, workload.HBONE) },
		"networkMode": func(n *yaml.Node) {
			w.NetworkMode = enum(d, n, what+" networkMode", workload.NetworkStandard, workload.HostNetwork)
		},
		"status":            func(n *yaml.Node) { w.Health = enum(d, n, what+" status", workload.Healthy, workload.Unhealthy) },
		"nativeTunnel":      func(n *yaml.Node) { w.NativeTunnel = d.bool(n, what+" nativeTunnel") },
		"applicationTunnel": func(n *yaml.Node) { w.ApplicationTunnel = d.tunnel(n) },
		"authorizationPolicies": func(n *yaml.Node) {
			d.each(n, "authorizationPolicies", func(n *yaml.Node) {
				w.AuthorizationPolicies = append(w.AuthorizationPolicies, d.string(n, "authorizationPolicies"))
			})
		},
		"locality": func(n *yaml.Node) { w.Locality = d.locality(n) },
		"capacity": func(n *yaml.Node) {
			w.Capacity = uint32(d.number(n, what+" capacity", 1<<32-1))
		},
		"services": func(n *yaml.Node) { w.Services = d.memberships(n) },
	})
	if !d.required(n, what, seen, "namespace") {
		return
	}
	if w.UID == "" && w.Name == "" {
		d.fault(n, "workload: uid is missing")
		return
	}
	w.SetDefaults()
	if w.UID == "" {
		w.UID = w.ClusterID + "//Pod/" + w.Namespace + "/" + w.Name
	}
	if w.Protocol == workload.HBONE && w.Identity().IsZero() {
		d.fault(n, "workload %q: trustDomain %q, namespace %q and serviceAccount %q form no identity",
			w.UID, w.TrustDomain, w.Namespace, w.ServiceAccount)
	}
	d.once(n, what, w.UID)
	d.state.Workloads = append(d.state.Workloads, w)
}

func (d *decoder) memberships(n *yaml.Node) map[workload.NamespacedHostname]workload.PortMap {
	n = d.resolve(n)
	if n.Kind != yaml.MappingNode {
		d.fault(n, "services: want a mapping from namespace/hostname to ports, have %s", describe(n))
		return nil
	}
	m := make(map[workload.NamespacedHostname]workload.PortMap)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, ok := parsed(d, n.Content[i], "services", workload.ParseNamespacedHostname)
		if _, twice := m[key]; ok && twice {
			d.fault(n.Content[i], "services: %q is there twice", key)
		}
		m[key] = d.ports(n.Content[i+1], "services")
	}
	if len(m) == 0 {
		return nil
	}
	return m
}

func (d *decoder) locality(n *yaml.Node) workload.Locality {
	var l workload.Locality
	d.object(n, "locality", fields{
		"region":  func(n *yaml.Node) { l.Region = d.string(n, "locality region") },
		"zone":    func(n *yaml.Node) { l.Zone = d.string(n, "locality zone") },
		"subzone": func(n *yaml.Node) { l.Subzone = d.string(n, "locality subzone") },
	})
	return l
}

func (d *decoder) tunnel(n *yaml.Node) *workload.ApplicationTunnel {
	if d.isNull(n) {
		return nil
	}
	t := new(workload.ApplicationTunnel)
	seen := d.object(n, "applicationTunnel", fields{
		"protocol": func(n *yaml.Node) {
			t.Protocol = enum(d, n, "applicationTunnel protocol", workload.TunnelNone, workload.TunnelProxy)
		},
		"port": func(n *yaml.Node) {
			if !d.isNull(n) {
				t.Port = d.port(n, "applicationTunnel port")
			}
		},
	})
	d.required(n, "applicationTunnel", seen, "protocol")
	return t
}

func (d *decoder) gateway(n *yaml.Node, what string) *workload.GatewayAddress {
	if d.isNull(n) {
		return nil
	}
	var g workload.GatewayAddress
	var port uint16
	seen := d.object(n, what, fields{
		"destination": func(n *yaml.Node) {
			g, _ = parsed(d, n, what+" destination", func(s string) (workload.GatewayAddress, error) {
				return workload.ParseGatewayDestination(s, 0)
			})
		},
		"hboneMtlsPort": func(n *yaml.Node) { port = d.port(n, what+" hboneMtlsPort") },
	})
	d.required(n, what, seen, "destination", "hboneMtlsPort")
	g.HBONEPort = port
	return &g
}

func (d *decoder) service(n *yaml.Node) {
	const what = "service"
	s := new(workload.Service)
	var endpoints *yaml.Node
	text := func(key string, to *string) func(*yaml.Node) {
		return func(n *yaml.Node) { *to = d.string(n, what+" "+key) }
	}
	seen := d.object(n, what, fields{
		"name":      text("name", &s.Name),
		"namespace": text("namespace", &s.Namespace),
		"hostname":  text("hostname", &s.Hostname),
		"vips": func(n *yaml.Node) {
			d.each(n, "vips", func(n *yaml.Node) {
				if a, ok := parsed(d, n, "vips", workload.ParseNetworkAddress); ok {
					s.VIPs = append(s.VIPs, a)
				}
			})
		},
		"cidrVips": func(n *yaml.Node) {
			d.each(n, "cidrVips", func(n *yaml.Node) {
				if p, ok := d.cidr(n); ok {
					s.CIDRVIPs = append(s.CIDRVIPs, p)
				}
			})
		},
		"ports":           func(n *yaml.Node) { s.Ports = d.ports(n, "service ports") },
		"endpoints":       func(n *yaml.Node) { endpoints = n },
		"subjectAltNames": func(n *yaml.Node) { d.each(n, "subjectAltNames", func(n *yaml.Node) { d.altName(n, s) }) },
		"waypoint":        func(n *yaml.Node) { s.Waypoint = d.gateway(n, what+" waypoint") },
		"weightedWaypoints": func(n *yaml.Node) {
			d.each(n, "weightedWaypoints", func(n *yaml.Node) { s.WeightedWaypoints = append(s.WeightedWaypoints, d.weighted(n)) })
		},
		"loadBalancer":    func(n *yaml.Node) { s.LoadBalancer = d.balancer(n) },
		"sessionAffinity": func(n *yaml.Node) { s.SessionAffinity = d.affinity(n) },
		"ipFamilies": func(n *yaml.Node) {
			if !d.isNull(n) {
				s.IPFamilies = enum(d, n, what+" ipFamilies", workload.FamiliesIPv4, workload.FamiliesDual)
			}
		},
		"canonical": func(n *yaml.Node) { s.Canonical = d.bool(n, what+" canonical") },
		"visibility": func(n *yaml.Node) {
			s.Visibility = enum(d, n, what+" visibility", workload.VisibilityPublic, workload.VisibilityNamespace)
		},
		"exportTo": func(n *yaml.Node) { // Culvert's addition to the format
			d.each(n, "exportTo", func(n *yaml.Node) { s.ExportTo = append(s.ExportTo, d.string(n, "exportTo")) })
		},
	})
	if !d.required(n, what, seen, "name", "namespace", "hostname", "vips", "ports") {
		return
	}
	if _, err := workload.ParseNamespacedHostname(s.Key().String()); err != nil {
		d.fault(n, "service: namespace %q and hostname %q form no name", s.Namespace, s.Hostname)
	}
	if endpoints != nil {
		d.serviceEndpoints(endpoints, s.Key())
	}
	d.once(n, what, s.Key().String())
	d.state.Services = append(d.state.Services, s)
}

// serviceEndpoints reads the form of a dump: {uid: {workloadUid, port, status}}.
func (d *decoder) serviceEndpoints(n *yaml.Node, key workload.NamespacedHostname) {
	n = d.resolve(n)
	if n.Kind != yaml.MappingNode {
		d.fault(n, "endpoints: want a mapping from workload UIDs, have %s", describe(n))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		e := endpointRef{node: n.Content[i], service: key, ports: workload.PortMap{}}
		seen := d.object(n.Content[i+1], "endpoint", fields{
			"workloadUid": func(n *yaml.Node) { e.uid = d.string(n, "endpoint workloadUid") },
			"port":        func(n *yaml.Node) { e.ports = d.ports(n, "endpoint port") },
			"status":      func(n *yaml.Node) { enum(d, n, "endpoint status", workload.Healthy, workload.Unhealthy) },
		})
		if d.required(n.Content[i+1], "endpoint", seen, "workloadUid") {
			d.endpoints = append(d.endpoints, e)
		}
	}
}

// cidr reads {network, cidr}, or "network/ip/bits".
func (d *decoder) cidr(n *yaml.Node) (workload.NetworkPrefix, bool) {
	if d.resolve(n).Kind != yaml.MappingNode {
		return parsed(d, n, "cidrVips", workload.ParseNetworkPrefix)
	}
	var p workload.NetworkPrefix
	var ok bool
	seen := d.object(n, "cidrVips", fields{
		"network": func(n *yaml.Node) { p.Network = d.string(n, "cidrVips network") },
		"cidr": func(n *yaml.Node) {
			var block netip.Prefix
			if block, ok = parsed(d, n, "cidrVips cidr", netip.ParsePrefix); ok {
				p.Prefix = block.Masked()
			}
		},
	})
	return p, d.required(n, "cidrVips", seen, "network", "cidr") && ok
}

// altName drops a name that is no identity: nobody can show it.
func (d *decoder) altName(n *yaml.Node, s *workload.Service) {
	name := d.string(n, "subjectAltNames")
	if name == "" {
		return
	}
	id, err := identity.Parse(name)
	if err != nil {
		d.warn(n, "subjectAltNames: %v", err)
		return
	}
	s.SubjectAltNames = append(s.SubjectAltNames, id)
}

func (d *decoder) weighted(n *yaml.Node) workload.WeightedWaypoint {
	var w workload.WeightedWaypoint
	seen := d.object(n, "weightedWaypoints", fields{
		"destination": func(n *yaml.Node) {
			if g := d.gateway(n, "weightedWaypoints destination"); g != nil {
				w.Destination = *g
			} else {
				d.fault(n, "weightedWaypoints: destination is missing")
			}
		},
		"weight": func(n *yaml.Node) {
			w.Weight = uint32(d.number(n, "weightedWaypoints weight", 1<<32-1))
		},
	})
	d.required(n, "weightedWaypoints", seen, "destination", "weight")
	return w
}

// affinity reads Culvert's addition to the format, for example "3h0m0s".
func (d *decoder) affinity(n *yaml.Node) time.Duration {
	v, ok := parsed(d, n, "sessionAffinity", time.ParseDuration)
	if ok && v <= 0 {
		d.fault(n, "sessionAffinity: want a time above 0, have %s", v)
	}
	return v
}

func (d *decoder) balancer(n *yaml.Node) *workload.LoadBalancer {
	if d.isNull(n) {
		return nil
	}
	l := new(workload.LoadBalancer)
	seen := d.object(n, "loadBalancer", fields{
		"routingPreferences": func(n *yaml.Node) {
			d.each(n, "routingPreferences", func(n *yaml.Node) {
				l.Preferences = append(l.Preferences, enum(d, n, "routingPreferences", workload.ScopeRegion, workload.ScopeNetwork))
			})
		},
		"mode": func(n *yaml.Node) {
			l.Mode = enum(d, n, "loadBalancer mode", workload.LBStandard, workload.LBPassthrough)
		},
		"healthPolicy": func(n *yaml.Node) {
			l.HealthPolicy = enum(d, n, "loadBalancer healthPolicy", workload.OnlyHealthy, workload.AllowAll)
		},
	})
	d.required(n, "loadBalancer", seen, "mode")
	return l
}
