package kube

import (
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// kind is a kind of object that is watched.
type kind uint8

const (
	kindPod kind = iota
	kindService
	kindEndpointSlice
	kindNode
	kindNamespace
	kindServiceEntry
	kindWorkloadEntry
	kindPeerAuthentication
	kindAuthorizationPolicy
	kindGateway
	kindGatewayClass
	kindNetworkPolicy
	kindClusterNetworkPolicy
	kindCount
)

func (k kind) String() string {
	return [...]string{
		"Pod", "Service", "EndpointSlice", "Node", "Namespace", "ServiceEntry", "WorkloadEntry",
		"PeerAuthentication", "AuthorizationPolicy", "Gateway", "GatewayClass",
		"NetworkPolicy", "ClusterNetworkPolicy",
	}[k]
}

// key names an object among those of its kind.
type key struct{ namespace, name string }

func (k key) String() string { return k.namespace + "/" + k.name }

// ref names an object.
type ref struct {
	kind kind
	key
}

// header is what is kept of the metadata of every object. The objects below
// never change once they are made.
type header struct {
	key
	uid        string
	generation int64
	created    int64 // seconds since 1970
	labels     pairs
}

func makeHeader(o metav1.Object) header {
	return header{
		key:        key{o.GetNamespace(), o.GetName()},
		uid:        string(o.GetUID()),
		generation: o.GetGeneration(),
		created:    o.GetCreationTimestamp().Unix(),
		labels:     makePairs(o.GetLabels()),
	}
}

// GetObjectMeta lets client-go find the key of a trimmed object.
func (h *header) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: h.namespace, Name: h.name}
}

func (h *header) head() *header { return h }

// object is any of the trimmed objects.
type object interface {
	metav1.ObjectMetaAccessor
	head() *header
}

type podObject struct {
	header
	account, node, workloadName text
	ips                         []netip.Addr
	ports                       pairs // numbers of named TCP ports
	hostNetwork, terminal       bool
	ready, deleting, enrolled   bool
}

type nodeObject struct {
	header
	locality  workload.Locality
	addresses []netip.Addr
}

type namespaceObject struct {
	header
	distribution distribution
	canaryWeight string
}

// distribution is the preference of near endpoints.
type distribution uint8

const (
	distributionUnset distribution = iota
	distributionAny                // asked for something that is none: not inherited
	distributionZone
	distributionNode
)

// servicePort is a port of a Service or ServiceEntry.
type servicePort struct {
	name       string
	port       uint16
	target     uint16 // 0 when it is named
	targetName string
	app        workload.AppProtocol
}

type serviceObject struct {
	header
	vips            []netip.Addr
	ports           []servicePort
	selector        pairs
	families        workload.IPFamilies
	distribution    distribution
	canaryWeight    string
	external        bool // ExternalName
	localOnly       bool
	publishNotReady bool
	affinity        time.Duration // of a client's address; 0 is none
	conditions      []Condition
	fault           string
}

// sliceObject is an EndpointSlice that Kubernetes did not derive from pods.
type sliceObject struct {
	header
	service   string
	ports     []servicePort // name and target
	endpoints []sliceEndpoint
	pods      []key // that endpoints refer to, with their UIDs
	podUIDs   []string
	fault     string
}

type sliceEndpoint struct {
	addresses []netip.Addr
	node      text
	healthy   bool
}

// endpoint is a WorkloadEntry's spec, by itself or inside a ServiceEntry.
type endpoint struct {
	address  netip.Addr // or else host
	host     string
	network  string
	account  string
	weight   uint32
	locality workload.Locality
	labels   pairs
	ports    map[string]uint16
}

type workloadEntryObject struct {
	header
	endpoint     endpoint
	workloadName string
	enrolled     bool
	conditions   []Condition
	fault        string
}

// resolution is how a ServiceEntry finds endpoints.
type resolution uint8

const (
	resolutionNone resolution = iota
	resolutionStatic
	resolutionDNS
	resolutionDynamicDNS
)

type serviceEntryObject struct {
	header
	hosts        []string
	vips         []netip.Addr
	cidrs        []netip.Prefix
	assigned     []HostAddress           // in the status, in order
	automatic    map[string][]netip.Addr // those of them that are for hosts of the entry
	visibility   workload.Visibility
	exportTo     []string // who sees it, when that is not everybody and not its own namespace alone
	hidden       bool     // nobody is to see it
	ports        []servicePort
	resolution   resolution
	endpoints    []endpoint
	selector     pairs
	selects      bool
	names        []identity.ID
	distribution distribution
	canaryWeight string
	enrolled     bool
	racing       bool // asks for a way to connect that only a waypoint has
	conditions   []Condition
	fault        string
}

// mode is one of PeerAuthentication's.
type mode uint8

const (
	modeUnset mode = iota
	modeDisable
	modePermissive
	modeStrict
)

type peerAuthenticationObject struct {
	header
	selector pairs
	mode     mode
	ports    map[uint16]mode
	fault    string // mode is then strict
	// vague: nobody can read which workloads of the namespace it selects; it may
	// be any.
	vague      bool
	conditions []Condition
}

type authorizationObject struct {
	header
	policy     *policy.Policy // nil when nothing is for agents
	selector   pairs
	targets    []targetRef
	fault      string    // why it cannot be understood
	verdict    Condition // for agents; without a type when there are targets
	conditions []Condition
}

// targetRef is what a policy for waypoints is attached to.
type targetRef struct{ group, kind, namespace, name string }

type gatewayObject struct {
	header
	class      string
	addresses  []gatewayAddress
	listeners  []listener
	binding    string
	hasBinding bool
	fault      string
}

type gatewayAddress struct {
	host string
	addr netip.Addr
}

type listener struct {
	protocol string
	port     int32
	from     string // All, Same, Selector
	selector *metav1.LabelSelector
}

type gatewayClassObject struct {
	header
	controller string
	binding    string
	hasBinding bool
}
