package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Workload is an entry of the workload file; the schema is that of reference ztunnel's LOCAL_XDS_PATH.
type Workload struct {
	UID                   string                       `yaml:"uid"`
	Name                  string                       `yaml:"name"`
	Namespace             string                       `yaml:"namespace"`
	ServiceAccount        string                       `yaml:"serviceAccount"`
	TrustDomain           string                       `yaml:"trustDomain,omitempty"`
	WorkloadIPs           []string                     `yaml:"workloadIps"`
	Hostname              string                       `yaml:"hostname,omitempty"`
	Protocol              string                       `yaml:"protocol"`
	Node                  string                       `yaml:"node"`
	Network               string                       `yaml:"network"`
	ClusterID             string                       `yaml:"clusterId,omitempty"`
	CanonicalName         string                       `yaml:"canonicalName,omitempty"`
	CanonicalRevision     string                       `yaml:"canonicalRevision,omitempty"`
	WorkloadName          string                       `yaml:"workloadName,omitempty"`
	WorkloadType          string                       `yaml:"workloadType,omitempty"`
	Waypoint              *Gateway                     `yaml:"waypoint,omitempty"`
	AuthorizationPolicies []string                     `yaml:"authorizationPolicies,omitempty"`
	Services              map[string]map[uint16]uint16 `yaml:"services"` // required there, so written when empty too
	Capacity              *uint32                      `yaml:"capacity,omitempty"`
	Status                string                       `yaml:"status,omitempty"`
}

// Gateway is where a waypoint or network gateway is: "network/ip" or "namespace/hostname".
type Gateway struct {
	Destination   string `yaml:"destination"`
	HBONEMTLSPort uint16 `yaml:"hboneMtlsPort"`
}

// Service is an entry of the workload file.
type Service struct {
	Name            string            `yaml:"name"`
	Namespace       string            `yaml:"namespace"`
	Hostname        string            `yaml:"hostname"`
	VIPs            []string          `yaml:"vips"`
	CIDRVIPs        []string          `yaml:"cidrVips,omitempty"`
	Ports           map[uint16]uint16 `yaml:"ports"`
	SubjectAltNames []string          `yaml:"subjectAltNames,omitempty"`
	Waypoint        *Gateway          `yaml:"waypoint,omitempty"`
	LoadBalancer    *LoadBalancer     `yaml:"loadBalancer,omitempty"`
	Visibility      string            `yaml:"visibility,omitempty"`
}

// LoadBalancer is how a service chooses endpoints; mode Passthrough chooses none.
type LoadBalancer struct {
	Mode               string   `yaml:"mode"`
	RoutingPreferences []string `yaml:"routingPreferences"`
}

// Policy is an entry of the workload file: rules of clauses of matches, fields as in the reference.
type Policy struct {
	Name      string               `yaml:"name"`
	Namespace string               `yaml:"namespace"`
	Scope     string               `yaml:"scope"`
	Action    string               `yaml:"action"`
	DryRun    bool                 `yaml:"dryRun"`
	Rules     [][][]map[string]any `yaml:"rules"`
}

// State is the content of the workload file.
type State struct {
	Workloads []*Workload `yaml:"workloads"`
	Services  []*Service  `yaml:"services"`
	Policies  []*Policy   `yaml:"policies"`
	// NetworkPolicies are objects of network policies, as protobuf writes them in JSON.
	NetworkPolicies []map[string]any `yaml:"networkPolicies,omitempty"`
}

// podEntry is one element of the --pods file.
type podEntry struct {
	UID            string `yaml:"uid"`
	Name           string `yaml:"name"`
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
	NetNS          string `yaml:"netns"`
}

// writeYAML replaces a file in one step, as an editor or kubelet does.
func writeYAML(path string, value any) error {
	text, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}

// Apply writes State to the file that the agents watch.
func (l *Lab) Apply() error { return writeYAML(l.StatePath(), &l.State) }

// StatePath is the workload file.
func (l *Lab) StatePath() string { return filepath.Join(l.topology.Dir(), "workloads.yaml") }

// RemovePolicy takes a policy out of State.
func (l *Lab) RemovePolicy(name string) {
	l.State.Policies = slices.DeleteFunc(l.State.Policies, func(p *Policy) bool { return p.Name == name })
}
