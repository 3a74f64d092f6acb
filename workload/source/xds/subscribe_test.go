package xds_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestSubscribe: the first request of each type, and what goes with the stream.
func TestSubscribe(t *testing.T) {
	s := startServer(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, s, xds.Config{
		TokenFile: token, ClusterID: "cluster1", Headers: map[string]string{"X-Mesh": "m"},
		Node: xds.Node{
			IP: "10.0.0.9", PodName: "node-abc", Namespace: "culvert-system", NodeName: "worker1",
			Metadata: map[string]any{"DNS_CAPTURE": "true", "LABELS": map[string]any{"a": 1}},
		},
	})
	a, addresses, policies := s.subscribed(t)
	if addresses.GetTypeUrl() != xds.AddressType || policies.GetTypeUrl() != xds.AuthorizationType {
		t.Errorf("types are %s, %s", addresses.GetTypeUrl(), policies.GetTypeUrl())
	}
	for _, r := range []interface {
		GetResourceNamesSubscribe() []string
		GetResourceNamesUnsubscribe() []string
		GetInitialResourceVersions() map[string]string
		GetResponseNonce() string
	}{addresses, policies} {
		if len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe())+len(r.GetInitialResourceVersions()) != 0 || r.GetResponseNonce() != "" {
			t.Errorf("first request is %v, want a wildcard", r)
		}
	}
	node := addresses.GetNode()
	if want := "ztunnel~10.0.0.9~node-abc.culvert-system~culvert-system.svc.cluster.local"; node.GetId() != want {
		t.Errorf("node id is %q, want %q", node.GetId(), want)
	}
	if policies.GetNode().GetId() != node.GetId() {
		t.Errorf("second request has node %v", policies.GetNode())
	}
	want := map[string]any{
		"NAME": "node-abc", "NAMESPACE": "culvert-system", "INSTANCE_IPS": "10.0.0.9", "NODE_NAME": "worker1",
		"DNS_CAPTURE": "true", "LABELS": map[string]any{"a": 1.0},
	}
	if d := cmp.Diff(want, node.GetMetadata().AsMap()); d != "" {
		t.Errorf("node metadata (-want +got):\n%s", d)
	}
	for key, want := range map[string]string{"authorization": "Bearer first", "clusterid": "cluster1", "x-mesh": "m"} {
		if got := a.metadata.Get(key); len(got) != 1 || got[0] != want {
			t.Errorf("metadata %s is %q, want %q", key, got, want)
		}
	}

	// Another attempt takes the token as it is then.
	if err := os.WriteFile(token, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.end <- nil
	if got := s.accept(t).metadata.Get("authorization"); len(got) != 1 || got[0] != "Bearer second" {
		t.Errorf("authorization of the second stream is %q", got)
	}
}

func TestSubscribeWithoutPodFacts(t *testing.T) {
	s := startServer(t)
	start(t, s, xds.Config{})
	a, addresses, _ := s.subscribed(t)
	if want := "ztunnel~1.1.1.1~.~.svc.cluster.local"; addresses.GetNode().GetId() != want {
		t.Errorf("node id is %q, want %q", addresses.GetNode().GetId(), want)
	}
	if got := a.metadata.Get("authorization"); got != nil {
		t.Errorf("authorization is %q without a token", got)
	}
}
