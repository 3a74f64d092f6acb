package file_test

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/file"
)

func decode(t *testing.T, text string) file.State {
	t.Helper()
	s, err := file.Decode("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDecodeEverything(t *testing.T) {
	s, err := file.Load("testdata/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	webKey := workload.NamespacedHostname{Namespace: "shop", Hostname: "web.shop.svc"}
	web := &workload.Workload{
		UID: "cluster1//Pod/shop/web-0", Name: "web-0", Namespace: "shop", TrustDomain: "cluster.local", ServiceAccount: "default",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")}, Protocol: workload.HBONE, Node: "node1",
		WorkloadName: "web", WorkloadType: "deployment", CanonicalName: "web", CanonicalRevision: "1.10", ClusterID: "Kubernetes",
		AuthorizationPolicies: []string{"shop/selected"}, Locality: workload.Locality{Region: "r", Zone: "z", Subzone: "s"}, Capacity: 1,
		Services: map[workload.NamespacedHostname]workload.PortMap{webKey: {80: 8080, 443: 8443}},
	}
	client := &workload.Workload{
		UID: "other//Pod/shop/client", Name: "client", Namespace: "shop", TrustDomain: "td.example", ServiceAccount: "client",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Health: workload.Unhealthy, ClusterID: "other",
	}
	vm := &workload.Workload{
		UID: "vm", Name: "vm", Namespace: "legacy", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes",
		Network: "net2", Hostname: "vm.example", NetworkMode: workload.HostNetwork, NativeTunnel: true, Capacity: 1,
		ApplicationTunnel: &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088},
		Waypoint: &workload.GatewayAddress{
			Hostname: workload.NamespacedHostname{Namespace: "shop", Hostname: "waypoint.shop.svc"}, HBONEPort: 15008,
		},
		NetworkGateway: &workload.GatewayAddress{Address: workload.NewNetworkAddress("net2", netip.MustParseAddr("10.9.0.1")), HBONEPort: 15009},
		Services:       map[workload.NamespacedHostname]workload.PortMap{webKey: {80: 9090}},
	}
	for i, want := range []*workload.Workload{web, client, vm} {
		if !want.Equal(s.Workloads[i]) {
			t.Errorf("workload %d:\ngot  %+v\nwant %+v", i, s.Workloads[i], want)
		}
	}
	svc := &workload.Service{
		Name: "web", Namespace: "shop", Hostname: "web.shop.svc",
		VIPs: []workload.NetworkAddress{
			workload.NewNetworkAddress("", netip.MustParseAddr("10.2.0.1")), workload.NewNetworkAddress("net2", netip.MustParseAddr("fd00:2::1")),
		},
		CIDRVIPs: []workload.NetworkPrefix{
			{Network: "net2", Prefix: netip.MustParsePrefix("10.3.0.0/16")}, {Network: "net2", Prefix: netip.MustParsePrefix("10.4.0.0/16")},
		},
		Ports: workload.PortMap{80: 8080, 443: 0}, SubjectAltNames: []identity.ID{identity.MustParse("spiffe://td.example/ns/shop/sa/web")},
		Waypoint: &workload.GatewayAddress{Address: workload.NewNetworkAddress("", netip.MustParseAddr("10.2.0.9")), HBONEPort: 15008},
		WeightedWaypoints: []workload.WeightedWaypoint{{Destination: workload.GatewayAddress{
			Hostname: workload.NamespacedHostname{Namespace: "shop", Hostname: "w1.shop.svc"}, HBONEPort: 15008,
		}, Weight: 90}},
		LoadBalancer: &workload.LoadBalancer{
			Preferences: []workload.Scope{workload.ScopeNetwork, workload.ScopeRegion}, Mode: workload.LBFailover, HealthPolicy: workload.AllowAll,
		},
		IPFamilies: workload.FamiliesDual, Canonical: true, Visibility: workload.VisibilityNamespace,
	}
	if !svc.Equal(s.Services[0]) {
		t.Errorf("service:\ngot  %+v\nwant %+v", s.Services[0], svc)
	}
	str := func(k policy.MatchKind, v string) policy.StringMatch { return policy.StringMatch{Kind: k, Value: v} }
	want := &policy.Policy{
		Namespace: "shop", Name: "selected", Scope: policy.WorkloadSelector, Action: policy.Deny,
		Rules: [][][]policy.Match{{{{
			Namespaces:       []policy.StringMatch{str(policy.Exact, "a"), str(policy.Prefix, "b"), str(policy.Suffix, "c"), str(policy.Presence, ""), str(policy.Presence, "")},
			NotPrincipals:    []policy.StringMatch{str(policy.Exact, "td/ns/a/sa/b")},
			ServiceAccounts:  []policy.ServiceAccount{{Namespace: "n", Name: "s"}},
			SourceIPs:        []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			DestinationPorts: []uint16{80, 443}, NotDestinationIPs: []netip.Prefix{netip.MustParsePrefix("fd00::/8")},
		}}, {}}, {}},
	}
	if !reflect.DeepEqual(s.Policies[0], want) {
		t.Errorf("policy:\ngot  %+v\nwant %+v", s.Policies[0], want)
	}
	var warnings []string
	for _, w := range s.Warnings {
		warnings = append(warnings, w.Error())
	}
	if len(warnings) != 2 || !strings.HasPrefix(warnings[0], "testdata/mesh.yaml:45: subjectAltNames: ") ||
		warnings[1] != `testdata/mesh.yaml:56: endpoint "gone" of shop/web.shop.svc is no workload of this file` {
		t.Errorf("warnings %q", warnings)
	}
}

// TestDecodeLikeZtunnelExample is a file of the same form as the example that
// ztunnel ships: nearly everything left out, services only named by workloads.
func TestDecodeLikeZtunnelExample(t *testing.T) {
	s := decode(t, `
workloads:
- uid: c//v1/Pod/default/one
  name: one
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1"]
  protocol: HBONE
  node: here
  network: ""
  services:
    "default/one.example":
      80: 8080
policies:
  - action: Allow
    rules:
    - - - notDestinationPorts:
          - 9999
    name: not-9999
    namespace: default
    scope: Namespace
    dryRun: false
services:
- name: one
  namespace: default
  hostname: one.example
  vips:
    - /127.10.0.1
  ports:
    80: 8080
  subjectAltNames:
   - spiffe://cluster.local/ns/default/sa/one
  canonical: true
`)
	if len(s.Workloads) != 1 || len(s.Services) != 1 || len(s.Policies) != 1 || len(s.Warnings) != 0 {
		t.Fatalf("%d workloads, %d services, %d policies, %d warnings", len(s.Workloads), len(s.Services), len(s.Policies), len(s.Warnings))
	}
	if got := s.Workloads[0].Identity().String(); got != "spiffe://cluster.local/ns/default/sa/default" {
		t.Errorf("identity %s", got)
	}
	if got := s.Policies[0].Rules[0][0][0].NotDestinationPorts; len(got) != 1 || got[0] != 9999 {
		t.Errorf("ports %v", got)
	}
}

func TestFaults(t *testing.T) {
	const wl = "workloads:\n- {uid: u, namespace: n, workloadIps: [], "
	const svc = "services:\n- {name: s, namespace: n, hostname: h, vips: [], ports: {}, "
	const pol = "policies:\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: "
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "f.yaml:1: no content; an empty mesh is written {}"},
		{"only-comment", "# nothing\n", "f.yaml:1: no content; an empty mesh is written {}"},
		{"syntax", "workloads:\n- {uid: x\nservices: []", "f.yaml:"},
		{"tab", "workloads:\n\t- uid: x", "f.yaml:2: found character that cannot start any token"},
		{"second-document", "{}\n---\n{}\n", "f.yaml:2: second document; all belongs into one"},
		{"list", "- a", "f.yaml:1: file: want a mapping, have a list"},
		{"unknown-top-key", "workloads: []\nworkload: []", `f.yaml:2: file: unknown key "workload"`},
		{"key-twice", "workloads: []\nworkloads: []", `f.yaml:2: file: key "workloads" is there twice`},
		{"workloads-no-list", "workloads: {}", "f.yaml:1: workloads: want a list, have a mapping"},
		{"unknown-workload-key", wl + "\n  nmae: x}", `f.yaml:3: workload: unknown key "nmae"`},
		{"snake-case", wl + "service_account: x}", `f.yaml:2: workload: unknown key "service_account"`},
		{"no-namespace", "workloads:\n- uid: u", "f.yaml:2: workload: namespace is missing"},
		{"no-uid", "workloads:\n- namespace: n", "f.yaml:2: workload: uid is missing"},
		{"workload-no-mapping", "workloads:\n- x", `f.yaml:2: workload: want a mapping, have "x"`},
		{"bad-ip", "workloads:\n- uid: u\n  namespace: n\n  workloadIps:\n  - 10.0.0.256", `f.yaml:5: workloadIps: ParseAddr("10.0.0.256")`},
		{"bad-protocol", wl + "protocol: hbone}", `f.yaml:2: workload protocol: "hbone" is none of TCP, HBONE`},
		{"null-protocol", wl + "protocol: }", "f.yaml:2: workload protocol: want a string, have nothing"},
		{"bad-status", wl + "status: Down}", `f.yaml:2: workload status: "Down" is none of Healthy, Unhealthy`},
		{"bad-bool", wl + `nativeTunnel: "true"}`, `f.yaml:2: workload nativeTunnel: want true or false, have "true"`},
		{"bad-capacity", wl + "capacity: -1}", `f.yaml:2: workload capacity: want a number up to 4294967295, have "-1"`},
		{"bad-port", wl + "services: {n/h: {80: 70000}}}", `f.yaml:2: services: want a number up to 65535, have "70000"`},
		{"bad-service-key", wl + "services: {h: {80: 80}}}", `f.yaml:2: services: parse namespaced hostname "h": want namespace/hostname`},
		{"bad-gateway", wl + "waypoint: {destination: x, hboneMtlsPort: 1}}", `f.yaml:2: workload waypoint destination: parse gateway destination "x": want network/ip or namespace/hostname`},
		{"gateway-without-port", wl + "waypoint: {destination: n/x}}", "f.yaml:2: workload waypoint: hboneMtlsPort is missing"},
		{"bad-identity", wl + "protocol: HBONE, serviceAccount: a/b}", `f.yaml:2: workload "u": trustDomain "cluster.local", namespace "n" and serviceAccount "a/b" form no identity`},
		{"uid-twice", "workloads:\n- {uid: u, namespace: n}\n- {uid: u, namespace: n}", `f.yaml:3: workload "u" is in line 2 already`},
		{"service-without-ports", "services:\n- {name: s, namespace: n, hostname: h, vips: []}", "f.yaml:2: service: ports is missing"},
		{"service-without-host", "services:\n- {name: s, namespace: n, hostname: '', vips: [], ports: {}}", `f.yaml:2: service: namespace "n" and hostname "" form no name`},
		{"service-twice", svc + "canonical: true}\n- {name: t, namespace: n, hostname: h, vips: [], ports: {}}", `f.yaml:3: service "n/h" is in line 2 already`},
		{"bad-vip", "services:\n- name: s\n  namespace: n\n  hostname: h\n  ports: {}\n  vips:\n  - 10.0.0.1", `f.yaml:7: vips: parse network address "10.0.0.1": want network/ip`},
		{"bad-cidr", svc + "cidrVips: [{network: '', cidr: 10.0.0.0}]}", "f.yaml:2: cidrVips cidr: netip.ParsePrefix"},
		{"bad-scope", svc + "loadBalancer: {routingPreferences: [Rack], mode: Strict}}", `f.yaml:2: routingPreferences: "Rack" is none of Region, Zone, Subzone, Node, Cluster, Network`},
		{"balancer-without-mode", svc + "loadBalancer: {}}", "f.yaml:2: loadBalancer: mode is missing"},
		{"bad-affinity", svc + "sessionAffinity: 60}", `f.yaml:2: sessionAffinity: time: missing unit in duration "60"`},
		{"no-affinity", svc + "sessionAffinity: 0s}", "f.yaml:2: sessionAffinity: want a time above 0, have 0s"},
		{"port-twice", "services:\n- {name: s, namespace: n, hostname: h, vips: [], ports: {80: 1, 80: 2}}", "f.yaml:2: service ports: port 80 is there twice"},
		{"policy-without-dry-run", "policies:\n- {name: p, namespace: n, scope: Global, action: Deny, rules: []}", "f.yaml:2: policy: dryRun is missing"},
		{"policy-twice", pol + "[]}\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []}", `f.yaml:3: policy "n/p" is in line 2 already`},
		{"bad-action", "policies:\n- {name: p, namespace: n, scope: Global, action: Custom, dryRun: false, rules: []}", `f.yaml:2: policy action: "Custom" is none of Allow, Deny, Audit`},
		{"rule-nesting", pol + "[{destinationPorts: [80]}]}", "f.yaml:2: rule: want a list, have a mapping"},
		{"unknown-match-key", pol + "[[[{\n  destinationPort: [80]}]]]}", `f.yaml:3: match: unknown key "destinationPort"`},
		{"match-without-kind", pol + "[[[{namespaces: [a]}]]]}", `f.yaml:2: match: want one of {Exact: x}, {Prefix: x}, {Suffix: x}, {Presence: []}, have "a"`},
		{"match-unknown-kind", pol + "[[[{namespaces: [{Regex: a}]}]]]}", "f.yaml:2: match: want one of {Exact: x}, {Prefix: x}, {Suffix: x}, {Presence: []}, have a mapping"},
		{"match-without-value", pol + "[[[{namespaces: [{Exact: }]}]]]}", "f.yaml:2: match: want one of"},
		{"match-block", pol + "[[[{sourceIps: [10.0.0.1]}]]]}", "f.yaml:2: match address block: netip.ParsePrefix"},
		{"match-port", pol + "[[[{destinationPorts: [http]}]]]}", `f.yaml:2: match port: want a number up to 65535, have "http"`},
		{"match-account", pol + "[[[{serviceAccounts: [{namespace: n}]}]]]}", "f.yaml:2: match service account: serviceAccount is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := file.Decode("f.yaml", []byte(tc.text))
			if err == nil {
				t.Fatalf("accepted: %+v", s)
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
			var f file.Fault
			if !errors.As(err, &f) || f.File != "f.yaml" {
				t.Errorf("%T is no Fault", err)
			}
		})
	}
}

// A file that was given by mistake may be a secret: the log does not repeat it.
func TestForeignFileIsNotShown(t *testing.T) {
	const key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSECRETSECRETSECRET\n-----END PRIVATE KEY-----\n"
	long := strings.Repeat("SECRET", 7)
	for _, tc := range []struct{ name, text, want string }{
		{"key", key, "f.yaml:1: file: want a mapping, have a text of 120 characters"},
		{"token", long, "f.yaml:1: file: want a mapping, have a text of 42 characters"},
		{"lines", "|\n  SEC\n  RET\n", "f.yaml:1: file: want a mapping, have a text of 8 characters"},
		{"as-key", long + ": x", "f.yaml:1: file: unknown key a text of 42 characters"},
		{"as-value", "workloads:\n- " + long, "f.yaml:2: workload: want a mapping, have a text of 42 characters"},
		{"as-word", "workloads:\n- {uid: u, namespace: n, workloadIps: [], status: " + long + "}", "f.yaml:2: workload status: a text of 42 characters is none of"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := file.Decode("f.yaml", []byte(tc.text))
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(err.Error(), "SEC") {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestAllFaultsAreShown(t *testing.T) {
	_, err := file.Decode("f.yaml", []byte("workloads:\n- uid: 1\n- uid: 2\n  namespace: n\n  protocol: x\npolicies: 7\n"))
	want := "f.yaml:2: workload: namespace is missing\nf.yaml:5: workload protocol: \"x\" is none of TCP, HBONE\nf.yaml:6: policies: want a list, have \"7\""
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	_, err = file.Decode("f.yaml", []byte("workloads: ["+strings.Repeat("x,", 1000)+"]"))
	if n := strings.Count(err.Error(), "\n") + 1; n != 20 {
		t.Errorf("%d faults are shown", n)
	}
}

func TestAliases(t *testing.T) {
	s := decode(t, "workloads:\n- {uid: a, namespace: n, services: &s {n/h: {80: 8080}}}\n- {uid: b, namespace: n, services: *s}\n")
	if !maps.Equal(s.Workloads[0].Services[workload.NamespacedHostname{Namespace: "n", Hostname: "h"}], workload.PortMap{80: 8080}) ||
		len(s.Workloads[1].Services) != 1 {
		t.Error("an alias is not followed")
	}
	bomb := "policies:\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [&r [&c [" +
		strings.Repeat("{},", 500) + "]" + strings.Repeat(",*c", 500) + "]" + strings.Repeat(",*r", 500) + "]}\n"
	if _, err := file.Decode("f.yaml", []byte(bomb)); err == nil || !strings.Contains(err.Error(), "too many aliases") {
		t.Errorf("125 million matches: %v", err)
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := file.Load(t.TempDir() + "/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
}

// FuzzDecode: whatever is accepted can be written and read back to the same.
func FuzzDecode(f *testing.F) {
	example, err := os.ReadFile("testdata/mesh.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("{}"))
	f.Add([]byte("workloads: [&a {uid: u, namespace: n}, *a]"))
	f.Add([]byte("policies:\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{namespaces: [!Exact x]}]]]}"))
	f.Add([]byte(networkYAML))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := file.Decode("f.yaml", data)
		if err != nil {
			return
		}
		again := roundTrip(t, s)
		s.Warnings = nil
		for i, w := range s.Workloads {
			if !w.Equal(again.Workloads[i]) {
				t.Fatalf("workload became %+v, was %+v", again.Workloads[i], w)
			}
		}
		for i, svc := range s.Services {
			if !svc.Equal(again.Services[i]) {
				t.Fatalf("service became %+v, was %+v", again.Services[i], svc)
			}
		}
		if len(s.NetworkPolicies) != len(again.NetworkPolicies) || len(s.NetworkPolicies) > 0 && !reflect.DeepEqual(s.NetworkPolicies, again.NetworkPolicies) {
			t.Fatalf("network policies became %+v, were %+v", again.NetworkPolicies, s.NetworkPolicies)
		}
		if len(s.Policies) != len(again.Policies) || len(s.Policies) > 0 && !reflect.DeepEqual(s.Policies, again.Policies) {
			t.Fatalf("policies became %+v, were %+v", again.Policies, s.Policies)
		}
	})
}

func roundTrip(t *testing.T, s file.State) file.State {
	t.Helper()
	out, err := file.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	if string(out) == "{}\n" {
		out = []byte("{}")
	}
	again, err := file.Decode("again.yaml", out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return again
}
