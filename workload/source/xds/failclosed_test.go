package xds_test

import (
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestFailClosed: a policy of which a part cannot be read denies what it would have
// governed, whether or not the server is told.
func TestFailClosed(t *testing.T) {
	port80 := []*security.Match{{DestinationPorts: []uint32{80}}}
	authorization := func(change func(*security.Authorization)) *security.Authorization {
		a := &security.Authorization{
			Namespace: "ns", Name: "p", Scope: security.Scope_NAMESPACE, Action: security.Action_ALLOW,
			Groups: []*security.Group{{Rules: []*security.Rules{{Matches: port80}}}},
		}
		change(a)
		return a
	}
	match := func(m *security.Match) func(*security.Authorization) {
		return func(a *security.Authorization) { a.Groups[0].Rules[0].Matches = []*security.Match{m} }
	}
	// strange gives a message a field that nobody knows.
	strange := func(m proto.Message) {
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	}
	unknown := &security.Match{DestinationPorts: []uint32{80}}
	strange(unknown)
	strangeString := &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: "x"}}
	strange(strangeString)
	strangeAccount := &security.ServiceAccountMatch{Namespace: "x", ServiceAccount: "y"}
	strange(strangeAccount)
	strangeAddress := &security.Address{Address: []byte{9, 9, 9, 9}, Length: 32}
	strange(strangeAddress)
	named := func(a *security.Authorization) *discovery.Resource { return resource(t, "ns/p", "v1", a) }
	tests := []struct {
		name     string
		resource *discovery.Resource
		ack      bool
		allowed  bool // in its namespace, to port 80
		elsewere bool // in another namespace
	}{
		{"sound", named(authorization(func(*security.Authorization) {})), true, true, true},
		{"not-decodable", garbage("ns/p", "v1", xds.AuthorizationType), false, false, true},
		{"audit-of-what-decides", named(authorization(func(a *security.Authorization) {
			a.Action, a.Extensions = security.Action_DENY, []*workloadapi.Extension{{Name: "culvert.io/audit"}}
		})), true, false, true},
		{"audit", named(authorization(func(a *security.Authorization) {
			a.Action, a.DryRun, a.Extensions = security.Action_DENY, true, []*workloadapi.Extension{{Name: "culvert.io/audit"}}
		})), true, true, true},
		{"no-payload", &discovery.Resource{Name: "ns/p", Version: "v1"}, false, false, true},
		{"no-name", named(&security.Authorization{Namespace: "ns"}), false, false, true},
		{"unknown-scope", named(authorization(func(a *security.Authorization) { a.Scope = 9 })), false, false, true},
		{"scope-that-wraps-to-global", named(authorization(func(a *security.Authorization) { a.Scope = 256 })), false, false, true},
		{"unknown-action", named(authorization(func(a *security.Authorization) { a.Action = 9 })), false, false, true},
		{"unknown-action-of-a-global-one", named(authorization(func(a *security.Authorization) { a.Action, a.Scope = 9, security.Scope_GLOBAL })), false, false, false},
		{"string-match-without-kind", named(authorization(match(&security.Match{Namespaces: []*security.StringMatch{{}}}))), true, false, true},
		{"bad-address", named(authorization(match(&security.Match{NotSourceIps: []*security.Address{{Address: []byte{1}}}}))), true, false, true},
		{"bad-prefix-length", named(authorization(match(&security.Match{SourceIps: []*security.Address{{Address: []byte{1, 2, 3, 4}, Length: 33}}}))), true, false, true},
		{"port-that-wraps", named(authorization(match(&security.Match{DestinationPorts: []uint32{65536 + 80}}))), true, false, true},
		{"unknown-condition", named(authorization(match(unknown))), true, false, true},
		{"unknown-condition-of-a-group", named(authorization(func(a *security.Authorization) { strange(a.Groups[0]) })), true, false, true},
		{"unknown-condition-of-a-clause", named(authorization(func(a *security.Authorization) { strange(a.Groups[0].Rules[0]) })), true, false, true},
		// A value that is not understood, beside others that match: without it the match would be wider, not empty.
		{"bad-address-beside-a-port", named(authorization(match(&security.Match{
			DestinationPorts: []uint32{80}, NotSourceIps: []*security.Address{{Address: []byte{1}}},
		}))), true, false, true},
		{"unknown-part-of-a-string", named(authorization(match(&security.Match{
			DestinationPorts: []uint32{80}, NotNamespaces: []*security.StringMatch{strangeString},
		}))), true, false, true},
		{"unknown-part-of-an-account", named(authorization(match(&security.Match{
			DestinationPorts: []uint32{80}, NotServiceAccounts: []*security.ServiceAccountMatch{strangeAccount},
		}))), true, false, true},
		{"unknown-part-of-an-address", named(authorization(match(&security.Match{
			DestinationPorts: []uint32{80}, NotSourceIps: []*security.Address{strangeAddress},
		}))), true, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t)
			r := start(t, s, xds.Config{})
			a, _, _ := s.subscribed(t)
			if answer := a.send(authorizations("n1", nil, tt.resource)); isAck(answer) != tt.ack {
				t.Errorf("answer is %v, want an ACK: %v", answer, tt.ack)
			}
			decide := func(namespace string) bool {
				return r.policies.Snapshot().Evaluate(&workload.Workload{Namespace: namespace}, policy.Connection{
					Source: identity.MustParse("spiffe://td/ns/a/sa/b"), SourceIP: netip.MustParseAddr("1.2.3.4"),
					Destination: netip.MustParseAddrPort("10.0.0.1:80"),
				}).Allowed
			}
			if got := decide("ns"); got != tt.allowed {
				t.Errorf("allowed in its namespace: %v, want %v", got, tt.allowed)
			}
			if got := decide("other"); got != tt.elsewere {
				t.Errorf("allowed elsewhere: %v, want %v", got, tt.elsewere)
			}
		})
	}
}

// TestFailClosedKeepsScope: what cannot be decoded governs what its predecessor did.
func TestFailClosedKeepsScope(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	good := &security.Authorization{Namespace: "ns", Name: "p", Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_ALLOW, Groups: []*security.Group{{}}}
	if !isAck(a.send(authorizations("n1", nil, resource(t, "ns/p", "v1", good)))) {
		t.Fatal("the good policy is refused")
	}
	a.send(authorizations("n2", nil, garbage("ns/p", "v2", xds.AuthorizationType)))
	snap := r.policies.Snapshot()
	decide := func(names ...string) bool {
		return snap.Evaluate(&workload.Workload{Namespace: "ns", AuthorizationPolicies: names}, policy.Connection{}).Allowed
	}
	if decide("ns/p") {
		t.Error("a workload that names the policy is open")
	}
	if !decide() {
		t.Error("a workload that does not name the policy is closed")
	}
	// A sound version heals it, a removal too.
	a.send(authorizations("n3", nil, resource(t, "ns/p", "v3", good)))
	if snap = r.policies.Snapshot(); !decide("ns/p") {
		t.Error("the sound version does not count")
	}
}
