package kube

// Labels, annotations and names that are read (reference, section 1.1).
const (
	annotationRedirection  = "ambient.istio.io/redirection"
	redirectionEnabled     = "enabled"
	annotationDryRun       = "istio.io/dry-run"
	annotationDistribution = "networking.istio.io/traffic-distribution"
	annotationCanaryWeight = "istio.io/use-waypoint-canary-weight"
	annotationInbound      = "ambient.istio.io/waypoint-inbound-binding"
	annotationConnect      = "istio.io/connect-strategy"
	connectRacing          = "RACE_FIRST_TCP_CONNECT"
	annotationRegistration = "istio.io/autoRegistrationGroup"

	labelTunnel            = "networking.istio.io/tunnel"
	tunnelHTTP             = "http"
	labelUseWaypoint       = "istio.io/use-waypoint"
	labelUseWaypointNS     = "istio.io/use-waypoint-namespace"
	labelCanary            = "istio.io/use-waypoint-canary"
	labelCanaryNS          = "istio.io/use-waypoint-canary-namespace"
	waypointNone           = "none"
	labelWaypointFor       = "istio.io/waypoint-for"
	labelIngressUse        = "istio.io/ingress-use-waypoint"
	labelGatewayName       = "gateway.networking.k8s.io/gateway-name"
	labelManaged           = "gateway.istio.io/managed"
	managedMeshController  = "istio.io-mesh-controller"
	managedEastWest        = "istio.io-eastwest-controller"
	labelAutoAllocate      = "networking.istio.io/enable-autoallocate-ip"
	labelSubzone           = "topology.istio.io/subzone"
	labelZone              = "topology.kubernetes.io/zone"
	labelRegion            = "topology.kubernetes.io/region"
	labelWorkloadName      = "service.istio.io/workload-name"
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"

	// hbonePort is where waypoints listen.
	hbonePort = 15008
	// staticStrict denies whoever has no identity.
	staticStrict = "istio_converted_static_strict"
	// convertedPrefix names policies made of a PeerAuthentication's ports. No
	// user can take such a name: an object's has no underscore.
	convertedPrefix = "converted_peer_authentication_"
)

// canonical returns the canonical name and revision of what has these labels.
func canonical(labels pairs, workloadName string) (name, revision string) {
	name, ok := labels.first(labelCanonicalName, "app.kubernetes.io/name", "app")
	if !ok {
		name = workloadName
	}
	revision, ok = labels.first(labelCanonicalRevision, "app.kubernetes.io/version", "version")
	if !ok {
		revision = "latest"
	}
	return name, revision
}
