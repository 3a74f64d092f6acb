package file_test

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/file"
)

const networkYAML = `
networkPolicies:
- policy:
    tier: NAMESPACED
    namespace: shop
    name: web
    pods: {requirements: [{key: app, op: IN, values: [web]}]}
    ingress: true
    ingressRules:
    - action: ALLOW
      peers: [{pods: {namespaces: {}}}, {block: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
      ports: [{protocol: TCP, port: 80, end: 90}, {protocol: TCP, name: http}]
- pod: {uid: c//Pod/shop/web, namespace: shop, labels: {app: web}, ports: [{name: http, protocol: TCP, port: 8080}]}
- namespace: {name: shop, labels: {team: a}}
- node: {name: n1, addresses: [192.0.2.1]}
`

func TestNetworkPolicies(t *testing.T) {
	s := decode(t, networkYAML)
	want := []netpol.Object{
		&netpol.Policy{Tier: netpol.Namespaced, Namespace: "shop", Name: "web", Ingress: true,
			Pods: netpol.Selector{Requirements: []netpol.Requirement{{Key: "app", Op: netpol.In, Values: []string{"web"}}}},
			IngressRules: []netpol.Rule{{
				Peers: []netpol.Peer{{Namespaces: &netpol.Selector{}}, {Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}},
				Ports: []netpol.Port{{Port: 80, End: 90}, {Name: "http"}},
			}}},
		&netpol.Pod{UID: "c//Pod/shop/web", Namespace: "shop", Labels: netpol.Labels{{Key: "app", Value: "web"}}, Ports: []netpol.NamedPort{{Name: "http", Port: 8080}}},
		&netpol.Namespace{Name: "shop", Labels: netpol.Labels{{Key: "team", Value: "a"}}},
		&netpol.Node{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	}
	if !reflect.DeepEqual(s.NetworkPolicies, want) {
		t.Errorf("got  %+v\nwant %+v", s.NetworkPolicies, want)
	}
	if again := roundTrip(t, s); !reflect.DeepEqual(again.NetworkPolicies, want) {
		t.Errorf("written and read: %+v", again.NetworkPolicies)
	}
	for name, text := range map[string]string{
		"no-kind":  "networkPolicies:\n- {}",
		"typo":     "networkPolicies:\n- policy: {tier: NAMESPACED, namespace: a, name: b, pods: {}, ingres: true}",
		"tier":     "networkPolicies:\n- policy: {tier: MIDDLE, namespace: a, name: b, pods: {}, ingress: true}",
		"action":   "networkPolicies:\n- policy: {tier: NAMESPACED, namespace: a, name: b, pods: {}, ingress: true, ingressRules: [{anyPeer: true, anyPort: true}]}",
		"subject":  "networkPolicies:\n- policy: {tier: NAMESPACED, namespace: a, name: b, ingress: true}",
		"twice":    "networkPolicies:\n- namespace: {name: a}\n- namespace: {name: a}",
		"no-list":  "networkPolicies: {}",
		"no-value": "networkPolicies:\n- policy: {tier: NAMESPACED, namespace: a, name: b, pods: {requirements: [{key: a, op: IN}]}, ingress: true}",
	} {
		if s, err := file.Decode("f.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%s: %v, %v", name, s.NetworkPolicies, err)
		}
	}
}

func TestNetworkPoliciesOfSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.yaml")
	write(t, path, []byte(networkYAML))
	set := netpol.New()
	src, err := file.New(file.Config{Path: path, Store: workload.New(), Policies: policy.New(), NetworkPolicies: set})
	if err != nil {
		t.Fatal(err)
	}
	if set.Snapshot().Ready() {
		t.Error("ready before the file was read")
	}
	if err := src.Load(); err != nil || !set.Snapshot().Ready() || len(set.Snapshot().Objects()) != 4 {
		t.Errorf("%v, ready %v, %v", err, set.Snapshot().Ready(), set.Snapshot().Objects())
	}
	write(t, path, []byte("{}"))
	if err := src.Load(); err != nil || !set.Snapshot().Ready() || len(set.Snapshot().Objects()) != 0 {
		t.Errorf("%v, ready %v, %v", err, set.Snapshot().Ready(), set.Snapshot().Objects())
	}
}
