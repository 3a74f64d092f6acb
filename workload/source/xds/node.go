package xds

import (
	"cmp"
	"encoding/json"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// proto returns the node as a ztunnel presents itself: istiod knows the type of a
// proxy by its id, and sends workloads to ztunnels.
func (n Node) proto() *core.Node {
	ip := cmp.Or(n.IP, "1.1.1.1")
	metadata := map[string]any{
		"NAME":         n.PodName,
		"NAMESPACE":    n.Namespace,
		"INSTANCE_IPS": ip,
		"NODE_NAME":    n.NodeName,
	}
	for k, v := range n.Metadata {
		metadata[k] = v
	}
	return &core.Node{
		Id:       "ztunnel~" + ip + "~" + n.PodName + "." + n.Namespace + "~" + n.Namespace + ".svc.cluster.local",
		Metadata: toStruct(metadata),
	}
}

// toStruct converts values that JSON can express, which New has checked; by way of
// JSON, because structpb takes only a few Go types.
func toStruct(m map[string]any) *structpb.Struct {
	s := new(structpb.Struct)
	if text, err := json.Marshal(m); err == nil {
		_ = s.UnmarshalJSON(text)
	}
	return s
}
