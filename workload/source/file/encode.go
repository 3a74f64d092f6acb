package file

import (
	"fmt"
	"net/netip"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// Encode writes the state as a file that Decode reads back to the same.
// Warnings are not written. What Decode would refuse is written all the same.
func Encode(s State) ([]byte, error) {
	var doc document
	for _, w := range s.Workloads {
		doc.Workloads = append(doc.Workloads, encodeWorkload(w))
	}
	for _, svc := range s.Services {
		doc.Services = append(doc.Services, encodeService(svc))
	}
	for _, p := range s.Policies {
		doc.Policies = append(doc.Policies, encodePolicy(p))
	}
	for _, o := range s.NetworkPolicies {
		object, err := encodeNetworkPolicy(o)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Key(), err)
		}
		doc.NetworkPolicies = append(doc.NetworkPolicies, object)
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode workloads: %w", err)
	}
	return out, nil
}

type document struct {
	Workloads []yamlWorkload `yaml:"workloads,omitempty"`
	Services  []yamlService  `yaml:"services,omitempty"`
	Policies  []yamlPolicy   `yaml:"policies,omitempty"`

	NetworkPolicies []map[string]any `yaml:"networkPolicies,omitempty"`
}

type yamlWorkload struct {
	UID               string                      `yaml:"uid"`
	Name              string                      `yaml:"name,omitempty"`
	Namespace         string                      `yaml:"namespace"`
	TrustDomain       string                      `yaml:"trustDomain,omitempty"`
	ServiceAccount    string                      `yaml:"serviceAccount,omitempty"`
	Network           string                      `yaml:"network,omitempty"`
	IPs               []string                    `yaml:"workloadIps"`
	Waypoint          *yamlGateway                `yaml:"waypoint,omitempty"`
	NetworkGateway    *yamlGateway                `yaml:"networkGateway,omitempty"`
	Protocol          string                      `yaml:"protocol"`
	NetworkMode       string                      `yaml:"networkMode,omitempty"`
	WorkloadName      string                      `yaml:"workloadName,omitempty"`
	WorkloadType      string                      `yaml:"workloadType,omitempty"`
	CanonicalName     string                      `yaml:"canonicalName,omitempty"`
	CanonicalRevision string                      `yaml:"canonicalRevision,omitempty"`
	Hostname          string                      `yaml:"hostname,omitempty"`
	Node              string                      `yaml:"node,omitempty"`
	NativeTunnel      bool                        `yaml:"nativeTunnel,omitempty"`
	ApplicationTunnel *yamlTunnel                 `yaml:"applicationTunnel,omitempty"`
	Policies          []string                    `yaml:"authorizationPolicies,omitempty"`
	Status            string                      `yaml:"status"`
	ClusterID         string                      `yaml:"clusterId,omitempty"`
	Locality          *yamlLocality               `yaml:"locality,omitempty"`
	Capacity          uint32                      `yaml:"capacity"`
	Services          map[string]workload.PortMap `yaml:"services"`
}

type yamlGateway struct {
	Destination   string `yaml:"destination"`
	HBONEMTLSPort uint16 `yaml:"hboneMtlsPort"`
}

type yamlTunnel struct {
	Protocol string  `yaml:"protocol"`
	Port     *uint16 `yaml:"port"`
}

type yamlLocality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

type yamlService struct {
	Name         string           `yaml:"name"`
	Namespace    string           `yaml:"namespace"`
	Hostname     string           `yaml:"hostname"`
	VIPs         []string         `yaml:"vips"`
	CIDRVIPs     []yamlCIDR       `yaml:"cidrVips,omitempty"`
	Ports        workload.PortMap `yaml:"ports"`
	SANs         []string         `yaml:"subjectAltNames,omitempty"`
	Waypoint     *yamlGateway     `yaml:"waypoint,omitempty"`
	Weighted     []yamlWeighted   `yaml:"weightedWaypoints,omitempty"`
	LoadBalancer *yamlBalancer    `yaml:"loadBalancer,omitempty"`
	Affinity     time.Duration    `yaml:"sessionAffinity,omitempty"`
	IPFamilies   string           `yaml:"ipFamilies,omitempty"`
	Canonical    bool             `yaml:"canonical"`
	Visibility   string           `yaml:"visibility"`
	ExportTo     []string         `yaml:"exportTo,omitempty"`
}

type yamlCIDR struct {
	Network string `yaml:"network"`
	CIDR    string `yaml:"cidr"`
}

type yamlWeighted struct {
	Destination *yamlGateway `yaml:"destination"`
	Weight      uint32       `yaml:"weight"`
}

type yamlBalancer struct {
	Preferences  []string `yaml:"routingPreferences"`
	Mode         string   `yaml:"mode"`
	HealthPolicy string   `yaml:"healthPolicy"`
}

type yamlPolicy struct {
	Name      string          `yaml:"name"`
	Namespace string          `yaml:"namespace"`
	Scope     string          `yaml:"scope"`
	Action    string          `yaml:"action"`
	Rules     [][][]yamlMatch `yaml:"rules"`
	DryRun    bool            `yaml:"dryRun"`
}

type yamlMatch struct {
	Namespaces          []map[string]any `yaml:"namespaces,omitempty"`
	NotNamespaces       []map[string]any `yaml:"notNamespaces,omitempty"`
	Principals          []map[string]any `yaml:"principals,omitempty"`
	NotPrincipals       []map[string]any `yaml:"notPrincipals,omitempty"`
	ServiceAccounts     []yamlAccount    `yaml:"serviceAccounts,omitempty"`
	NotServiceAccounts  []yamlAccount    `yaml:"notServiceAccounts,omitempty"`
	SourceIPs           []string         `yaml:"sourceIps,omitempty"`
	NotSourceIPs        []string         `yaml:"notSourceIps,omitempty"`
	DestinationIPs      []string         `yaml:"destinationIps,omitempty"`
	NotDestinationIPs   []string         `yaml:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16         `yaml:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16         `yaml:"notDestinationPorts,omitempty"`
}

type yamlAccount struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

func encodeWorkload(w *workload.Workload) yamlWorkload {
	y := yamlWorkload{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount,
		Network: w.Network, IPs: texts(w.Addresses, netip.Addr.String), Waypoint: encodeGateway(w.Waypoint),
		NetworkGateway: encodeGateway(w.NetworkGateway), Protocol: w.Protocol.String(), WorkloadName: w.WorkloadName,
		WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel, Policies: w.AuthorizationPolicies,
		Status: w.Health.String(), ClusterID: w.ClusterID, Capacity: w.Capacity,
		Services: make(map[string]workload.PortMap),
	}
	if w.NetworkMode != workload.NetworkStandard {
		y.NetworkMode = w.NetworkMode.String()
	}
	if t := w.ApplicationTunnel; t != nil {
		y.ApplicationTunnel = &yamlTunnel{Protocol: t.Protocol.String()}
		if t.Port != 0 {
			y.ApplicationTunnel.Port = &t.Port
		}
	}
	if w.Locality != (workload.Locality{}) {
		y.Locality = &yamlLocality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	for key, ports := range w.Services {
		y.Services[key.String()] = orEmpty(ports)
	}
	return y
}

func encodeService(s *workload.Service) yamlService {
	y := yamlService{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname,
		VIPs: texts(s.VIPs, workload.NetworkAddress.String), Ports: orEmpty(s.Ports),
		SANs: texts(s.SubjectAltNames, identity.ID.String), Waypoint: encodeGateway(s.Waypoint),
		Affinity: s.SessionAffinity, IPFamilies: s.IPFamilies.String(), Canonical: s.Canonical, Visibility: s.Visibility.String(), ExportTo: s.ExportTo,
	}
	for _, p := range s.CIDRVIPs {
		y.CIDRVIPs = append(y.CIDRVIPs, yamlCIDR{Network: p.Network, CIDR: p.Prefix.String()})
	}
	for i := range s.WeightedWaypoints {
		w := &s.WeightedWaypoints[i]
		y.Weighted = append(y.Weighted, yamlWeighted{Destination: encodeGateway(&w.Destination), Weight: w.Weight})
	}
	if l := s.LoadBalancer; l != nil {
		y.LoadBalancer = &yamlBalancer{
			Preferences: texts(l.Preferences, workload.Scope.String), Mode: l.Mode.String(), HealthPolicy: l.HealthPolicy.String(),
		}
	}
	return y
}

func encodePolicy(p *policy.Policy) yamlPolicy {
	y := yamlPolicy{
		Name: p.Name, Namespace: p.Namespace, Scope: p.Scope.String(), Action: p.Action.String(), DryRun: p.DryRun,
		Rules: [][][]yamlMatch{},
	}
	for _, r := range p.Rules {
		rule := [][]yamlMatch{}
		for _, c := range r {
			clause := []yamlMatch{}
			for i := range c {
				clause = append(clause, encodeMatch(&c[i]))
			}
			rule = append(rule, clause)
		}
		y.Rules = append(y.Rules, rule)
	}
	return y
}

func encodeMatch(m *policy.Match) yamlMatch {
	return yamlMatch{
		Namespaces: encodeStrings(m.Namespaces), NotNamespaces: encodeStrings(m.NotNamespaces),
		Principals: encodeStrings(m.Principals), NotPrincipals: encodeStrings(m.NotPrincipals),
		ServiceAccounts: encodeAccounts(m.ServiceAccounts), NotServiceAccounts: encodeAccounts(m.NotServiceAccounts),
		SourceIPs: texts(m.SourceIPs, netip.Prefix.String), NotSourceIPs: texts(m.NotSourceIPs, netip.Prefix.String),
		DestinationIPs: texts(m.DestinationIPs, netip.Prefix.String), NotDestinationIPs: texts(m.NotDestinationIPs, netip.Prefix.String),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func encodeStrings(ms []policy.StringMatch) []map[string]any {
	var out []map[string]any
	for _, m := range ms {
		if m.Kind == policy.Presence {
			out = append(out, map[string]any{m.Kind.String(): []any{}})
			continue
		}
		out = append(out, map[string]any{m.Kind.String(): m.Value})
	}
	return out
}

func encodeAccounts(as []policy.ServiceAccount) []yamlAccount {
	var out []yamlAccount
	for _, a := range as {
		out = append(out, yamlAccount{Namespace: a.Namespace, ServiceAccount: a.Name})
	}
	return out
}

func encodeGateway(g *workload.GatewayAddress) *yamlGateway {
	if g == nil {
		return nil
	}
	y := &yamlGateway{Destination: g.Address.String(), HBONEMTLSPort: g.HBONEPort}
	if !g.Hostname.IsZero() {
		y.Destination = g.Hostname.String()
	}
	return y
}

func orEmpty(m workload.PortMap) workload.PortMap {
	if m == nil {
		return workload.PortMap{}
	}
	return m
}

func texts[T any](in []T, f func(T) string) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}
