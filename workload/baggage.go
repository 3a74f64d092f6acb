package workload

import (
	"errors"
	"strings"
)

// Baggage describes a workload to the peer in the "baggage" header of a
// CONNECT request and its answer. It labels telemetry and decides nothing: any
// peer may claim anything. Empty fields are absent.
type Baggage struct {
	Cluster      string
	Namespace    string
	WorkloadName string
	// WorkloadType is deployment, cronjob, pod or job.
	WorkloadType string
	Service      string // canonical name
	Revision     string // canonical revision
	Region       string
	Zone         string
}

// Keys of the header, in the order in which they are written (ztunnel's).
const (
	baggageCluster   = "k8s.cluster.name"
	baggageNamespace = "k8s.namespace.name"
	baggageService   = "service.name"
	baggageRevision  = "service.version"
	baggageRegion    = "cloud.region"
	baggageZone      = "cloud.availability_zone"
)

var errBaggageBytes = errors.New("parse baggage: byte outside visible ASCII")

// Baggage describes w.
func (w *Workload) Baggage() Baggage {
	return Baggage{
		Cluster:      w.ClusterID,
		Namespace:    w.Namespace,
		WorkloadName: w.WorkloadName,
		WorkloadType: w.WorkloadType,
		Service:      w.CanonicalName,
		Revision:     w.CanonicalRevision,
		Region:       w.Locality.Region,
		Zone:         w.Locality.Zone,
	}
}

// String returns the header value: "key=value" joined by commas, without
// percent-encoding, as ztunnel writes it. Fields that are empty or would not
// survive the way (a comma, a byte outside visible ASCII) are left out.
func (b Baggage) String() string {
	kind := b.WorkloadType
	if !isWorkloadType(kind) {
		kind = "deployment" // WDS's default
	}
	var s strings.Builder
	for _, kv := range [...][2]string{
		{baggageCluster, b.Cluster},
		{baggageNamespace, b.Namespace},
		{"k8s." + kind + ".name", b.WorkloadName},
		{baggageService, b.Service},
		{baggageRevision, b.Revision},
		{baggageRegion, b.Region},
		{baggageZone, b.Zone},
	} {
		if kv[1] == "" || !visible(kv[1]) || strings.ContainsRune(kv[1], ',') {
			continue
		}
		if s.Len() > 0 {
			s.WriteByte(',')
		}
		s.WriteString(kv[0])
		s.WriteByte('=')
		s.WriteString(kv[1])
	}
	return s.String()
}

// ParseBaggage reads all lines of the header. Unknown keys are ignored, later
// values replace earlier ones. A byte outside visible ASCII is an error, after
// which the peer counts as having said nothing.
func ParseBaggage(lines ...string) (Baggage, error) {
	var b Baggage
	for _, line := range lines {
		if !visible(line) {
			return Baggage{}, errBaggageBytes
		}
		for part := range strings.SplitSeq(line, ",") {
			key, value, ok := strings.Cut(part, "=")
			if ok {
				b.set(strings.TrimSpace(key), strings.TrimSpace(value))
			}
		}
	}
	return b, nil
}

func (b *Baggage) set(key, value string) {
	switch key {
	case baggageCluster:
		b.Cluster = value
	case baggageNamespace:
		b.Namespace = value
	case baggageService:
		b.Service = value
	case baggageRevision:
		b.Revision = value
	case baggageRegion:
		b.Region = value
	case baggageZone:
		b.Zone = value
	default:
		kind, ok := strings.CutPrefix(key, "k8s.")
		if !ok {
			return
		}
		if kind, ok = strings.CutSuffix(kind, ".name"); ok && isWorkloadType(kind) {
			b.WorkloadName, b.WorkloadType = value, kind
		}
	}
}

func isWorkloadType(s string) bool {
	return s == "deployment" || s == "cronjob" || s == "pod" || s == "job"
}

// visible reports whether s could be a header value as HTTP libraries accept
// it for text: visible ASCII, space and tab.
func visible(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c >= 0x7f {
			return false
		}
	}
	return true
}
