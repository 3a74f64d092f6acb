package telemetry

import (
	"strings"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// unknown stands for values that are missing.
const unknown = "unknown"

// overflow stands for the workloads of connections beyond the limit of series.
const overflow = "overflow"

// labelNames are the traffic labels in the reference's order. The last four are
// present only when either workload is known.
var labelNames = [numLabels]string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision",
	"destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
	"source_region", "source_zone", "destination_region", "destination_zone",
}

// Places in labelNames.
const (
	lReporter    = 0
	lSource      = 1 // the eight labels of a peer begin here, in the order of lWorkload…lCluster
	lService     = 9
	lServiceNS   = 10
	lServiceName = 11
	lDestination = 12
	lProtocol    = 20
	lFlags       = 21
	lSecurity    = 22
	lSourceArea  = 23
	lDestArea    = 25
	numLabels    = 27
	numPlain     = 23 // without locality
)

// Places of a peer's labels after lSource or lDestination.
const (
	lWorkload = iota
	lCanonicalService
	lCanonicalRevision
	lNamespace
	lPrincipal
	lApp
	lVersion
	lCluster
)

// labels is one label set; comparable, so that it can key a map. An empty locality
// value means that the group is absent.
type labels [numLabels]string

// count is how many of the labels are present.
func (l *labels) count() int {
	if l[lSourceArea] == "" {
		return numPlain
	}
	return numLabels
}

// labelsOf returns the label set of a connection without failure.
func labelsOf(c *Connection) labels {
	var l labels
	for i := range numPlain {
		l[i] = unknown
	}
	l[lReporter] = c.Direction.reporter()
	l[lProtocol] = "tcp"
	l[lFlags] = None.String()
	l[lSecurity] = c.Security.String()

	source := l.peer(lSource, lSourceArea, c.Source)
	l.principal(lSource, c.Source.ID)
	destination := l.peer(lDestination, lDestArea, c.Destination)
	id := c.Destination.ID
	if id.IsZero() && c.Destination.Workload != nil {
		id = c.Destination.Workload.Identity()
	}
	l.principal(lDestination, id)
	if source || destination {
		for i := lSourceArea; i < numLabels; i++ {
			l.set(i, l[i])
		}
	}
	if s := c.Service; s != nil {
		l.set(lService, s.Hostname)
		l.set(lServiceNS, s.Namespace)
		l.set(lServiceName, s.Name)
	}
	return l
}

// overflowLabels is the label set for connections beyond the limit.
func overflowLabels(d Direction) labels {
	l := labelsOf(&Connection{Direction: d})
	l[lSource+lWorkload] = overflow
	l[lDestination+lWorkload] = overflow
	return l
}

// peer sets the labels of one end and reports whether anything is known of it.
// With discovery data the app is the canonical name; from baggage it is the
// workload's name, as in the reference.
func (l *labels) peer(at, area int, p Peer) bool {
	var b workload.Baggage
	app := ""
	switch {
	case p.Workload != nil:
		b = p.Workload.Baggage()
		app = b.Service
	case p.Baggage != nil:
		b = *p.Baggage
		app = b.WorkloadName
	default:
		return false
	}
	l.set(at+lWorkload, b.WorkloadName)
	l.set(at+lCanonicalService, b.Service)
	l.set(at+lCanonicalRevision, b.Revision)
	l.set(at+lNamespace, b.Namespace)
	l.set(at+lApp, app)
	l.set(at+lVersion, b.Revision)
	l.set(at+lCluster, b.Cluster)
	l.set(area, b.Region)
	l.set(area+1, b.Zone)
	return true
}

func (l *labels) principal(at int, id identity.ID) {
	if !id.IsZero() {
		l.set(at+lPrincipal, id.String())
	}
}

// set stores a value in the form that may be exposed.
func (l *labels) set(i int, value string) { l[i] = orUnknown(value) }

func orUnknown(value string) string {
	if value == "" {
		return unknown
	}
	return strings.ToValidUTF8(value, "�")
}
