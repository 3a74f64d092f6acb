package kube

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload/policy"
)

func authorization(t testing.TB, spec string, metadata ...string) *unstructured.Unstructured {
	return custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, %s}, spec: %s}`, strings.Join(metadata, ","), spec)
}

func exact(v string) policy.StringMatch { return policy.StringMatch{Kind: policy.Exact, Value: v} }

func blocks(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// one rule of one clause of one match.
func only(m policy.Match) [][][]policy.Match { return [][][]policy.Match{{{m}}} }

func TestAuthorizationFields(t *testing.T) {
	from := func(source string) string { return `{rules: [{from: [{source: {` + source + `}}]}]}` }
	when := func(key, values string) string { return `{rules: [{when: [{key: "` + key + `", ` + values + `}]}]}` }
	for _, tc := range []struct {
		name, spec string
		want       [][][]policy.Match
	}{
		{"nothing", `{}`, nil},
		{"everything", `{rules: [{}]}`, [][][]policy.Match{nil}},
		{"ports", `{rules: [{to: [{operation: {ports: ["80", "443"]}}]}]}`, only(policy.Match{DestinationPorts: []uint16{80, 443}})},
		{"not-ports", `{rules: [{to: [{operation: {notPorts: ["80"]}}]}]}`, only(policy.Match{NotDestinationPorts: []uint16{80}})},
		{"principals", from(`principals: ["*", "*/sa/x", "td/*", "td/ns/a/sa/b"]`), only(policy.Match{Principals: []policy.StringMatch{
			{Kind: policy.Presence}, {Kind: policy.Suffix, Value: "/sa/x"}, {Kind: policy.Prefix, Value: "td/"}, exact("td/ns/a/sa/b"),
		}})},
		{"not-principals", from(`notPrincipals: ["a"]`), only(policy.Match{NotPrincipals: []policy.StringMatch{exact("a")}})},
		{"namespaces", from(`namespaces: ["a", "b*"]`), only(policy.Match{Namespaces: []policy.StringMatch{exact("a"), {Kind: policy.Prefix, Value: "b"}}})},
		{"not-namespaces", from(`notNamespaces: ["a"]`), only(policy.Match{NotNamespaces: []policy.StringMatch{exact("a")}})},
		{"service-accounts", from(`serviceAccounts: ["sa", "other/sa"]`), only(policy.Match{ServiceAccounts: []policy.ServiceAccount{{Namespace: "ns", Name: "sa"}, {Namespace: "other", Name: "sa"}}})},
		{"not-service-accounts", from(`notServiceAccounts: ["sa"]`), only(policy.Match{NotServiceAccounts: []policy.ServiceAccount{{Namespace: "ns", Name: "sa"}}})},
		{"ip-blocks", from(`ipBlocks: ["10.0.0.1", "10.1.2.3/16", "fd00::/8", "::ffff:10.2.0.0/112"]`), only(policy.Match{SourceIPs: blocks("10.0.0.1/32", "10.1.0.0/16", "fd00::/8", "10.2.0.0/16")})},
		{"not-ip-blocks", from(`notIpBlocks: ["10.0.0.1"]`), only(policy.Match{NotSourceIPs: blocks("10.0.0.1/32")})},
		{"trust-domains", from(`trustDomains: ["td", "t*"], notTrustDomains: ["x"]`), only(policy.Match{
			Principals: []policy.StringMatch{{Kind: policy.Prefix, Value: "td/"}, {Kind: policy.Prefix, Value: "t"}}, NotPrincipals: []policy.StringMatch{{Kind: policy.Prefix, Value: "x/"}},
		})},
		{"trust-domains-and-principals", from(`trustDomains: ["td"], principals: ["*", "td/ns/a/sa/b", "x/ns/a/sa/b", "td/ns/c/*", "*/ns/d/sa/e"]`), only(policy.Match{
			Principals: []policy.StringMatch{{Kind: policy.Prefix, Value: "td/"}, exact("td/ns/a/sa/b"), {Kind: policy.Prefix, Value: "td/ns/c/"}, exact("td/ns/d/sa/e")},
		})},
		{"no-principal-of-the-trust-domains", from(`trustDomains: ["td"], principals: ["x/ns/a/sa/b"]`), only(policy.Match{Principals: []policy.StringMatch{exact("")}})},
		{"scheme", from(`principals: ["spiffe://td/ns/a/sa/b"], notPrincipals: ["spiffe://td/*"]`), only(policy.Match{
			Principals: []policy.StringMatch{exact("td/ns/a/sa/b")}, NotPrincipals: []policy.StringMatch{{Kind: policy.Prefix, Value: "td/"}},
		})},
		{"all-of-one-source", from(`namespaces: ["a"], notPrincipals: ["p"], ipBlocks: ["10.0.0.0/8"], notIpBlocks: ["10.1.0.0/16"]`), only(policy.Match{
			Namespaces: []policy.StringMatch{exact("a")}, NotPrincipals: []policy.StringMatch{exact("p")}, SourceIPs: blocks("10.0.0.0/8"), NotSourceIPs: blocks("10.1.0.0/16"),
		})},
		{"overlapping-blocks", from(`ipBlocks: ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "::ffff:10.0.0.1"], notIpBlocks: ["::/0", "0.0.0.0/0"]`), only(policy.Match{
			SourceIPs: blocks("10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "10.0.0.1/32"), NotSourceIPs: blocks("::/0", "0.0.0.0/0"),
		})},
		{"when-service-account", when("source.serviceAccount", `values: ["sa", "o/sa"], notValues: ["x"]`), only(policy.Match{
			ServiceAccounts: []policy.ServiceAccount{{Namespace: "ns", Name: "sa"}, {Namespace: "o", Name: "sa"}}, NotServiceAccounts: []policy.ServiceAccount{{Namespace: "ns", Name: "x"}},
		})},
		{"when-trust-domain", when("source.trustDomain", `values: ["td"], notValues: ["x*"]`), only(policy.Match{
			Principals: []policy.StringMatch{{Kind: policy.Prefix, Value: "td/"}}, NotPrincipals: []policy.StringMatch{{Kind: policy.Prefix, Value: "x"}},
		})},
		{"when-source-ip", when("source.ip", `values: ["10.0.0.0/8"], notValues: ["10.1.0.0/16"]`), only(policy.Match{SourceIPs: blocks("10.0.0.0/8"), NotSourceIPs: blocks("10.1.0.0/16")})},
		{"when-namespace", when("source.namespace", `values: ["a"], notValues: ["b"]`), only(policy.Match{Namespaces: []policy.StringMatch{exact("a")}, NotNamespaces: []policy.StringMatch{exact("b")}})},
		{"when-principal", when("source.principal", `values: ["a"], notValues: ["*"]`), only(policy.Match{Principals: []policy.StringMatch{exact("a")}, NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}})},
		{"when-destination-ip", when("destination.ip", `values: ["10.0.0.1"], notValues: ["::1"]`), only(policy.Match{DestinationIPs: blocks("10.0.0.1/32"), NotDestinationIPs: blocks("::1/128")})},
		{"when-port", when("destination.port", `values: ["80"], notValues: ["81"]`), only(policy.Match{DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{81}})},
		{"clauses", `{rules: [{from: [{source: {namespaces: ["a"]}}, {source: {namespaces: ["b"]}}], to: [{operation: {ports: ["1"]}}], when: [{key: source.ip, values: ["10.0.0.1"]}]}, {}]}`,
			[][][]policy.Match{{
				{{DestinationPorts: []uint16{1}}},
				{{Namespaces: []policy.StringMatch{exact("a")}}, {Namespaces: []policy.StringMatch{exact("b")}}},
				{{SourceIPs: blocks("10.0.0.1/32")}},
			}, nil}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaults()
			o := translateAuthorization(authorization(t, tc.spec), &s)
			want := &policy.Policy{Namespace: "ns", Name: "p", Scope: policy.Namespace, Rules: tc.want}
			if d := diff(want, o.policy); d != "" {
				t.Error(d)
			}
			if d := diff(Condition{Type: conditionZtunnel, Status: true, Reason: "Accepted", Message: "attached to ztunnel"}, o.verdict); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestAuthorizationL7 has the table of DESIGN.md, "Fail closed", for conditions
// that agents do not enforce.
func TestAuthorizationL7(t *testing.T) {
	port := policy.Match{DestinationPorts: []uint16{80}}
	principal := []policy.Match{{Principals: []policy.StringMatch{exact("x")}}}
	const get = `to: [{operation: {methods: ["GET"]}}]`
	for _, tc := range []struct {
		name, rules          string
		allow, deny, lenient [][][]policy.Match
	}{
		{"l7-alone", `[{` + get + `}]`, nil, [][][]policy.Match{nil}, only(policy.Match{})},
		{"l7-and-port", `[{to: [{operation: {methods: ["GET"], ports: ["80"]}}]}]`, nil, only(port), only(port)},
		{"l7-and-source", `[{from: [{source: {principals: [x]}}], ` + get + `}]`, nil,
			[][][]policy.Match{{principal}}, [][][]policy.Match{{{{}}, principal}}},
		{"one-of-two-operations", `[{to: [{operation: {paths: ["/a"]}}, {operation: {ports: ["80"]}}]}]`, nil,
			[][][]policy.Match{nil}, [][][]policy.Match{{{{}, port}}}},
		{"one-of-two-rules", `[{` + get + `}, {to: [{operation: {ports: ["80"]}}]}]`, only(port),
			[][][]policy.Match{nil, {{port}}}, [][][]policy.Match{{{{}}}, {{port}}}},
		{"header", `[{when: [{key: "request.headers[x]", values: ["1"]}]}]`, nil, [][][]policy.Match{nil}, only(policy.Match{})},
		{"unknown-key", `[{when: [{key: "new.key", values: ["1"]}, {key: destination.port, values: ["80"]}]}]`, nil, only(port), [][][]policy.Match{{{{}}, {port}}}},
		{"request-principals", `[{from: [{source: {requestPrincipals: ["*"]}}]}]`, nil, [][][]policy.Match{nil}, only(policy.Match{})},
		{"remote-ip", `[{from: [{source: {remoteIpBlocks: ["10.0.0.0/8"]}}]}]`, nil, [][][]policy.Match{nil}, only(policy.Match{})},
		{"empty-source", `[{from: [{source: {}}]}]`, only(policy.Match{}), [][][]policy.Match{nil}, only(policy.Match{})},
		{"no-source", `[{from: [{}]}]`, only(policy.Match{}), [][][]policy.Match{nil}, only(policy.Match{})},
		{"no-values", `[{when: [{key: source.ip}]}]`, only(policy.Match{}), [][][]policy.Match{nil}, only(policy.Match{})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaults()
			get := func(action string) *policy.Policy {
				o := translateAuthorization(authorization(t, `{action: `+action+`, rules: `+tc.rules+`}`), &s)
				if strings.Contains(tc.name, "l7") && (o.verdict.Reason != "UnsupportedValue" || o.verdict.Status == (action == "CUSTOM")) {
					t.Errorf("verdict is %+v", o.verdict)
				}
				return o.policy
			}
			for _, c := range []struct {
				action  string
				lenient bool
				as      policy.Action
				want    [][][]policy.Match
			}{
				{"ALLOW", false, policy.Allow, tc.allow}, {"DENY", false, policy.Deny, tc.deny},
				{"CUSTOM", false, policy.Deny, tc.deny}, {"DENY", true, policy.Deny, tc.lenient},
			} {
				s.lenientL7 = c.lenient
				want := &policy.Policy{Namespace: "ns", Name: "p", Scope: policy.Namespace, Action: c.as, Rules: c.want}
				if d := diff(want, get(c.action)); d != "" {
					t.Errorf("%s lenient %v: %s", c.action, c.lenient, d)
				}
			}
		})
	}
}

func TestAuthorizationUnreadable(t *testing.T) {
	long := strings.Repeat(`"10.0.0.1",`, maxRules+1)
	for name, spec := range map[string]string{
		"port":                `{rules: [{to: [{operation: {ports: ["http"]}}]}]}`,
		"port-zero":           `{rules: [{to: [{operation: {ports: ["0"]}}]}]}`,
		"port-too-large":      `{rules: [{to: [{operation: {notPorts: ["65536"]}}]}]}`,
		"block":               `{rules: [{from: [{source: {ipBlocks: ["10.0.0.0/33"]}}]}]}`,
		"block-zone":          `{rules: [{from: [{source: {ipBlocks: ["fe80::1%eth0"]}}]}]}`,
		"block-mapped":        `{rules: [{from: [{source: {ipBlocks: ["::ffff:0:0/95"]}}]}]}`,
		"not-block":           `{rules: [{from: [{source: {notIpBlocks: ["x"]}}]}]}`,
		"empty-value":         `{rules: [{from: [{source: {principals: [""]}}]}]}`,
		"account":             `{rules: [{from: [{source: {serviceAccounts: ["a/b/c"]}}]}]}`,
		"account-pattern":     `{rules: [{from: [{source: {serviceAccounts: ["a/*"]}}]}]}`,
		"trust-domain":        `{rules: [{from: [{source: {trustDomains: ["*.com"]}}]}]}`,
		"trust-domain-twice":  `{rules: [{from: [{source: {trustDomains: ["a"], principals: ["*/sa/b"]}}]}]}`,
		"trust-domain-path":   `{rules: [{from: [{source: {notTrustDomains: ["a/b"]}}]}]}`,
		"star-inside":         `{rules: [{from: [{source: {notNamespaces: ["a*b"]}}]}]}`,
		"star-twice":          `{action: DENY, rules: [{from: [{source: {principals: ["*a*"]}}]}]}`,
		"null-rule":           `{rules: [null]}`,
		"negative-port":       `{action: DENY, rules: [{to: [{operation: {ports: ["-1"]}}]}]}`,
		"custom":              `{action: CUSTOM, rules: [{to: [{operation: {ports: ["x"]}}]}]}`,
		"selector":            `{selector: {matchExpressions: []}, rules: [{}]}`,
		"too-many-rules":      `{rules: [` + strings.Repeat(`{},`, maxRules) + `{}]}`,
		"when":                `{rules: [{when: [{key: source.ip, values: ["x"]}]}]}`,
		"too-many-values":     `{rules: [{from: [{source: {ipBlocks: [` + long[:len(long)-1] + `]}}]}]}`,
		"second-rule":         `{rules: [{}, {to: [{operation: {ports: ["x"]}}]}]}`,
		"unknown-action":      `{action: 17}`,
		"unknown-field":       `{rules: [{from: [{source: {namespaces: ["a"], moons: ["full"]}}]}]}`,
		"wrong-type":          `{rules: 5}`,
		"unknown-action-name": `{action: FORGIVE}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := defaults()
			for metadata, scope := range map[string]policy.Scope{"": policy.Namespace, "namespace: root": policy.Global} {
				o := translateAuthorization(authorization(t, spec, metadata), &s)
				if o.policy == nil || o.policy.Invalid == "" || o.policy.Scope != scope {
					t.Fatalf("policy is %+v, want an invalid one of scope %v", o.policy, scope)
				}
				if o.policy.Validate() == nil {
					t.Error("the policy validates")
				}
				if o.verdict.Status || o.verdict.Reason != "Invalid" || !strings.Contains(o.verdict.Message, o.policy.Invalid) {
					t.Errorf("verdict is %+v", o.verdict)
				}
			}
		})
	}
}

func TestAuthorizationScopeAndAction(t *testing.T) {
	const sel = `{selector: {matchLabels: {app: web}}, rules: [{}]}`
	for _, tc := range []struct {
		name, spec, metadata string
		scope                policy.Scope
		action               policy.Action
		dryRun               bool
		reason               string
		status               bool
		text                 string // in the message
	}{
		{"namespace", `{rules: [{}]}`, "", policy.Namespace, policy.Allow, false, "Accepted", true, ""},
		{"root", `{rules: [{}]}`, "namespace: root", policy.Global, policy.Allow, false, "Accepted", true, ""},
		{"selector", sel, "", policy.WorkloadSelector, policy.Allow, false, "Accepted", true, ""},
		{"selector-in-root", sel, "namespace: root", policy.WorkloadSelector, policy.Allow, false, "Accepted", true, ""},
		{"empty-selector", `{selector: {}, rules: [{}]}`, "", policy.Namespace, policy.Allow, false, "Accepted", true, ""},
		{"deny", `{action: DENY, rules: [{}]}`, "", policy.Namespace, policy.Deny, false, "Accepted", true, ""},
		{"custom", `{action: CUSTOM, provider: {name: x}, rules: [{}]}`, "", policy.Namespace, policy.Deny, false, "UnsupportedValue", false, ""},
		{"custom-selector", `{action: CUSTOM, selector: {matchLabels: {a: b}}, rules: [{}]}`, "", policy.WorkloadSelector, policy.Deny, false, "UnsupportedValue", false, "needs a waypoint; agents deny"},
		{"custom-dry-run", `{action: CUSTOM, rules: [{}]}`, `annotations: {istio.io/dry-run: "true"}`, policy.Namespace, policy.Deny, true, "UnsupportedValue", false, "nothing is enforced"},
		{"audit", `{action: AUDIT, rules: [{}]}`, "", policy.Namespace, policy.Audit, false, "Accepted", true, "agents log"},
		{"audit-l7", `{action: AUDIT, rules: [{to: [{operation: {paths: [/x]}}]}]}`, "", policy.Namespace, policy.Audit, false, "UnsupportedValue", true, "audit by what remains"},
		{"audit-dry-run", `{action: AUDIT, rules: [{}]}`, `annotations: {istio.io/dry-run: "true"}`, policy.Namespace, policy.Audit, false, "Accepted", true, "agents log"},
		{"dry-run", `{rules: [{}]}`, `annotations: {istio.io/dry-run: "true"}`, policy.Namespace, policy.Allow, true, "Accepted", true, "nothing is enforced"},
		{"dry-run-no", `{rules: [{}]}`, `annotations: {istio.io/dry-run: "false"}`, policy.Namespace, policy.Allow, false, "Accepted", true, ""},
		{"dry-run-unreadable", `{rules: [{}]}`, `annotations: {istio.io/dry-run: "maybe"}`, policy.Namespace, policy.Allow, false, "Accepted", true, "the policy is enforced"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaults()
			o := translateAuthorization(authorization(t, tc.spec, tc.metadata), &s)
			if o.verdict.Reason != tc.reason || o.verdict.Status != tc.status || !strings.Contains(o.verdict.Message, tc.text) {
				t.Errorf("verdict is %+v", o.verdict)
			}
			if p := o.policy; p.Scope != tc.scope || p.Action != tc.action || p.DryRun != tc.dryRun || p.Invalid != "" {
				t.Errorf("policy is %+v", p)
			}
		})
	}
}

func TestSelectedWorkloadsNamePolicies(t *testing.T) {
	named := func(name, ns, selector string) *unstructured.Unstructured {
		return custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: %s, namespace: %s}, spec: {selector: {matchLabels: {%s}}, rules: [{}]}}`, name, ns, selector)
	}
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}), named("b", "ns", "app: web"), named("a", "root", "app: web"), named("c", "other", "app: web"), named("d", "ns", "app: db"))
	check := func(want ...string) {
		t.Helper()
		if d := diff(want, w.pod("one").AuthorizationPolicies); d != "" {
			t.Error(d)
		}
	}
	check("ns/b", "root/a")
	if n := w.policies.Snapshot().Len(); n != 4 {
		t.Errorf("%d policies, want 4", n)
	}
	w.set(named("d", "ns", "app: web"), named("b", "ns", "app: web, x: x1"))
	check("ns/d", "root/a")
	w.set(authorization(t, `{rules: [{}]}`)) // without a selector: no name is needed
	check("ns/d", "root/a")
	w.drop(named("d", "ns", ""), named("a", "root", ""))
	check()
	if w.policies.Snapshot().Policy("ns/d") != nil {
		t.Error("a policy is left that is gone")
	}
	// Whatever is named is there.
	w.set(named("d", "ns", "app: web"))
	w.set(custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: d}, spec: {action: AUDIT, selector: {matchLabels: {app: web}}}}`))
	check("ns/d")
	w.set(custom(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: d}, spec: {selector: {matchLabels: {app: web}}, targetRef: {kind: Service, name: web}}}`))
	check()
}

func TestPolicyTargets(t *testing.T) {
	attached := func(refs string) *unstructured.Unstructured {
		return authorization(t, `{targetRefs: [`+refs+`], rules: [{}]}`)
	}
	const svc, gw = `{kind: Service, name: web}`, `{group: gateway.networking.k8s.io, kind: Gateway, name: wp}`
	for _, tc := range []struct {
		name, refs     string
		reason, inText string
		status         bool
	}{
		{"gateway", gw, "Accepted", "ns/wp", true},
		{"no-gateway", `{group: gateway.networking.k8s.io, kind: Gateway, name: x}`, "TargetNotFound", "ns/x", false},
		{"bound-service", `{kind: Service, name: bound}`, "Accepted", "ns/wp", true},
		{"service", svc, "AncestorNotBound", "ns/web", false},
		{"no-service", `{kind: Service, name: x}`, "TargetNotFound", "ns/x", false},
		{"no-entry", `{group: networking.istio.io, kind: ServiceEntry, name: x}`, "TargetNotFound", "ns/x", false},
		{"other-kind", `{kind: Pod, name: x}`, "Invalid", "Pod", false},
		{"other-namespace", `{kind: Service, name: web, namespace: other}`, "Invalid", "namespace", false},
		{"class-outside-root", `{group: gateway.networking.k8s.io, kind: GatewayClass, name: x}`, "Invalid", "root", false},
		{"both", gw + `,` + `{kind: Service, name: bound}`, "Accepted", "", true},
		{"one-of-two", gw + `,` + svc, "PartiallyInvalid", "Service/ns/web", true},
		{"none-of-two", `{kind: Pod, name: x},` + svc, "Invalid", "Pod/ns/x", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			// The policy first: what it refers to comes later.
			w.set(attached(tc.refs))
			w.set(gateway(t, "wp", ""), service("web", nil), service("bound", nil, useWaypointLabel("wp")))
			c := w.condition(kindAuthorizationPolicy, "p", "WaypointAccepted")
			if c.Reason != tc.reason || c.Status != tc.status || !strings.Contains(c.Message, tc.inText) {
				t.Errorf("condition is %+v", c)
			}
			if n := w.policies.Snapshot().Len(); n != 0 {
				t.Errorf("%d policies for agents", n)
			}
		})
	}
}
