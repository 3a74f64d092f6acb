package kube

import "k8s.io/apimachinery/pkg/runtime/schema"

// customResource is a kind that exists when its definition does.
type customResource struct {
	kind     kind
	resource schema.GroupVersionResource
}

// definition is the name of the CustomResourceDefinition.
func (c customResource) definition() string { return c.resource.Resource + "." + c.resource.Group }

func customResources() []customResource {
	at := func(k kind, group, resource string) customResource {
		return customResource{k, schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}}
	}
	cluster := at(kindClusterNetworkPolicy, "policy.networking.k8s.io", "clusternetworkpolicies")
	cluster.resource.Version = "v1alpha2"
	const networking, security, gateway = "networking.istio.io", "security.istio.io", "gateway.networking.k8s.io"
	return []customResource{
		at(kindServiceEntry, networking, "serviceentries"),
		at(kindWorkloadEntry, networking, "workloadentries"),
		at(kindPeerAuthentication, security, "peerauthentications"),
		at(kindAuthorizationPolicy, security, "authorizationpolicies"),
		at(kindGateway, gateway, "gateways"),
		at(kindGatewayClass, gateway, "gatewayclasses"),
		cluster,
	}
}

// reporting says where conditions of a kind are written and by which field
// manager. An AuthorizationPolicy has one manager whoever enforces it: the two
// kinds of condition exclude each other.
type reporting struct {
	resource schema.GroupVersionResource
	manager  string
}

func reportingOf(k kind) reporting {
	switch k {
	case kindService:
		return reporting{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "culvert-service"}
	case kindServiceEntry:
		return reporting{schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}, "culvert-serviceentry"}
	case kindWorkloadEntry:
		return reporting{schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}, "culvert-workloadentry"}
	case kindPeerAuthentication:
		return reporting{schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}, "culvert-peerauthentication"}
	default:
		return reporting{schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}, "culvert-policy"}
	}
}
