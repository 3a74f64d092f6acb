package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// TestTrustDomainAliases: a principal with any of the trust domain's names means
// those with all of them.
func TestTrustDomainAliases(t *testing.T) {
	prefix := func(v string) policy.StringMatch { return policy.StringMatch{Kind: policy.Prefix, Value: v} }
	suffix := func(v string) policy.StringMatch { return policy.StringMatch{Kind: policy.Suffix, Value: v} }
	const sa = "/ns/a/sa/b"
	for _, tc := range []struct {
		name, field, value string
		want               []policy.StringMatch
	}{
		{"own", "principals", "td" + sa, []policy.StringMatch{exact("td" + sa), exact("old" + sa), exact("old-td" + sa)}},
		{"alias", "principals", "old" + sa, []policy.StringMatch{exact("td" + sa), exact("old" + sa), exact("old-td" + sa)}},
		{"local", "principals", "cluster.local" + sa, []policy.StringMatch{exact("td" + sa), exact("old" + sa), exact("old-td" + sa)}},
		{"beginning", "principals", "old/ns/a/*", []policy.StringMatch{prefix("td/ns/a/"), prefix("old/ns/a/"), prefix("old-td/ns/a/")}},
		{"other", "principals", "other" + sa, []policy.StringMatch{exact("other" + sa)}},
		{"any", "principals", "*" + sa, []policy.StringMatch{suffix(sa)}},
		{"everybody", "principals", "*", []policy.StringMatch{{Kind: policy.Presence}}},
		{"end-of-some", "principals", "*-td" + sa, []policy.StringMatch{suffix("-td" + sa), exact("td" + sa), exact("old" + sa)}},
		{"end-of-none", "principals", "*-xx" + sa, []policy.StringMatch{suffix("-xx" + sa)}},
		{"no-principal", "principals", "old*", []policy.StringMatch{prefix("old")}},
		{"exception", "notPrincipals", "old" + sa, []policy.StringMatch{exact("td" + sa), exact("old" + sa), exact("old-td" + sa)}},
		{"trust-domain", "trustDomains", "old", []policy.StringMatch{prefix("td/"), prefix("old/"), prefix("old-td/")}},
		{"local-trust-domain", "trustDomains", "cluster.local", []policy.StringMatch{prefix("cluster.local/")}},
		{"pattern-of-trust-domains", "trustDomains", "o*", []policy.StringMatch{prefix("o")}},
		{"no-trust-domain", "notTrustDomains", "td", []policy.StringMatch{prefix("td/"), prefix("old/"), prefix("old-td/")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaults()
			s.trustDomain, s.aliases = "td", []string{"old", "old-td"}
			source := policy.Match{Principals: tc.want}
			if strings.HasPrefix(tc.field, "not") {
				source = policy.Match{NotPrincipals: tc.want}
			}
			for _, spec := range []string{
				`{rules: [{from: [{source: {` + tc.field + `: ["` + tc.value + `"]}}]}]}`,
				`{rules: [{when: [{key: "` + attributeOf(tc.field) + `", ` + valuesOf(tc.field) + `: ["` + tc.value + `"]}]}]}`,
			} {
				o := translateAuthorization(authorization(t, spec), &s)
				if d := diff(only(source), o.policy.Rules); d != "" || o.fault != "" {
					t.Error(spec, o.fault, d)
				}
			}
		})
	}
}

func attributeOf(field string) string {
	if strings.HasSuffix(strings.ToLower(field), "trustdomains") {
		return keySourceDomain
	}
	return keySourcePrincipal
}

func valuesOf(field string) string {
	if strings.HasPrefix(field, "not") {
		return "notValues"
	}
	return "values"
}

// TestVacantLists: an empty list of alternatives is met by nothing. Only in an
// ALLOW rule would it otherwise say more than is written.
func TestVacantLists(t *testing.T) {
	a := []policy.StringMatch{exact("a")}
	namespaces := policy.Match{Namespaces: a}
	everything := [][][]policy.Match{nil}
	for _, tc := range []struct {
		name, rules string
		allow, deny [][][]policy.Match
		found       string
	}{
		{"from", `[{from: []}]`, nil, everything, "rule 0: from"},
		{"null-from", `[{from: null}]`, nil, everything, "rule 0: from"},
		{"to", `[{}, {to: []}]`, everything, [][][]policy.Match{nil, nil}, "rule 1: to"},
		{"principals", `[{from: [{source: {principals: [], namespaces: [a]}}]}]`, only(policy.Match{}), only(namespaces), "rule 0: from 0: principals"},
		{"one-of-two-sources", `[{from: [{source: {ipBlocks: [], namespaces: [b]}}, {source: {namespaces: [a]}}]}]`,
			[][][]policy.Match{{{{}, namespaces}}}, [][][]policy.Match{{{{Namespaces: []policy.StringMatch{exact("b")}}, namespaces}}}, "rule 0: from 0: ipBlocks"},
		{"ports", `[{to: [{operation: {ports: [], notPorts: ["80"]}}]}]`, only(policy.Match{}), only(policy.Match{NotDestinationPorts: []uint16{80}}), "rule 0: to 0: ports"},
		{"paths", `[{to: [{operation: {paths: [], ports: ["80"]}}]}]`, only(policy.Match{}), only(policy.Match{DestinationPorts: []uint16{80}}), "rule 0: to 0: paths"},
		{"values", `[{when: [{key: source.namespace, values: [], notValues: [a]}]}]`, only(policy.Match{}), only(policy.Match{NotNamespaces: a}), "rule 0: when 0: values"},
		{"no-exceptions", `[{from: [{source: {notPrincipals: [], namespaces: [a]}}]}]`, only(namespaces), only(namespaces), ""},
		{"no-conditions", `[{when: []}]`, everything, everything, ""},
		{"no-rules", `[]`, nil, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaults()
			for action, want := range map[string][][][]policy.Match{"ALLOW": tc.allow, "DENY": tc.deny, "CUSTOM": tc.deny, "AUDIT": tc.deny} {
				o := translateAuthorization(authorization(t, `{action: `+action+`, rules: `+tc.rules+`}`), &s)
				if d := diff(want, o.policy.Rules); d != "" || o.fault != "" {
					t.Error(action, o.fault, d)
				}
				if told := strings.Contains(o.verdict.Message, "empty lists"); told != (tc.found != "") || !strings.Contains(o.verdict.Message, tc.found) {
					t.Errorf("%s: verdict is %+v, want %q in it", action, o.verdict, tc.found)
				}
			}
		})
	}
}

// TestUnreadableGovernsWhomItSelects: what cannot be read denies the workloads
// that are selected or, when that is not known, all that could be.
func TestUnreadableGovernsWhomItSelects(t *testing.T) {
	const selector = `selector: {matchLabels: {app: web}}`
	for _, tc := range []struct {
		name, spec, metadata string
		scope                policy.Scope
		action               policy.Action
		dryRun, none         bool
	}{
		{"selector", `{` + selector + `, rules: [{moons: []}]}`, "", policy.WorkloadSelector, policy.Allow, false, false},
		{"selector-in-root", `{` + selector + `, rules: 5}`, "namespace: root", policy.WorkloadSelector, policy.Allow, false, false},
		{"namespace", `{rules: [{moons: []}]}`, "", policy.Namespace, policy.Allow, false, false},
		{"unknown-field-beside", `{` + selector + `, orbit: {}, rules: [{}]}`, "", policy.Namespace, policy.Allow, false, false},
		{"unreadable-selector", `{selector: {matchLabels: 5}, rules: [{}]}`, "", policy.Namespace, policy.Allow, false, false},
		{"no-object", `5`, "namespace: root", policy.Global, policy.Allow, false, false},
		{"deny", `{` + selector + `, action: DENY, rules: 5}`, "", policy.WorkloadSelector, policy.Deny, false, false},
		{"dry-run", `{` + selector + `, action: DENY, rules: 5}`, `annotations: {istio.io/dry-run: "true"}`, policy.WorkloadSelector, policy.Deny, true, false},
		{"audit", `{` + selector + `, action: AUDIT, rules: [{to: [{operation: {ports: [x]}}]}]}`, "", policy.WorkloadSelector, policy.Audit, false, false},
		{"for-waypoints", `{targetRefs: [{kind: Service, name: web}], rules: 5}`, "", 0, 0, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(service("web", nil), pod("one", []string{"10.0.0.1"}), authorization(t, tc.spec, tc.metadata))
			o := w.st.authorizations[authorization(t, "{}", tc.metadata).GetNamespace()]["p"]
			if o.fault == "" {
				t.Fatal("nothing is said of it")
			}
			if tc.none {
				if c := w.condition(kindAuthorizationPolicy, "p", conditionWaypoint); o.policy != nil || c.Status || c.Reason != reasonInvalid {
					t.Errorf("policy %+v, condition %+v", o.policy, c)
				}
				return
			}
			if p := o.policy; p.Scope != tc.scope || p.Action != tc.action || p.DryRun != tc.dryRun || p.Invalid != o.fault {
				t.Errorf("policy is %+v", p)
			}
			if o.verdict.Status || o.verdict.Reason != reasonInvalid {
				t.Errorf("verdict is %+v", o.verdict)
			}
			d := w.policies.Snapshot().Evaluate(w.pod("one"), policy.Connection{})
			if want := tc.dryRun || tc.action == policy.Audit; d.Allowed != want {
				t.Errorf("decision is %+v, want allowed %v", d, want)
			}
		})
	}
}

// TestPeerAuthenticationConditions: users hear of what is not in force.
func TestPeerAuthenticationConditions(t *testing.T) {
	w := newWorld(t)
	check := func(name, reason, text string, status bool) {
		t.Helper()
		c := w.condition(kindPeerAuthentication, name, conditionZtunnel)
		if c.Reason != reason || c.Status != status || !strings.Contains(c.Message, text) {
			t.Errorf("%s: condition is %+v, want %s %q", name, c, reason, text)
		}
	}
	const selector = `selector: {matchLabels: {app: web}}, `
	w.set(peerAuthentication(t, "a", "ns", day1, `{mtls: {mode: STRICT}}`), peerAuthentication(t, "b", "ns", day1, `{`+selector+`mtls: {mode: STRICT}}`))
	check("a", "", "", false)
	check("b", "", "", false)
	w.set(peerAuthentication(t, "c", "ns", day2, `{mtls: {mode: DISABLE}}`), peerAuthentication(t, "d", "ns", day2, `{`+selector+`mtls: {mode: DISABLE}}`))
	check("c", reasonOverruled, "ns/a", false)
	check("d", reasonOverruled, "ns/b", false)
	w.set(peerAuthentication(t, "e", "ns", day2, `{mtls: {mode: SOMETIMES}}`))
	check("e", reasonInvalid, "STRICT is enforced instead", false)
	check("a", reasonOverruled, "ns/e", false)
	w.drop(peerAuthentication(t, "e", "ns", day2, `{}`), peerAuthentication(t, "a", "ns", day1, `{}`), peerAuthentication(t, "b", "ns", day1, `{}`))
	for _, name := range []string{"a", "c", "d", "e"} {
		check(name, "", "", false)
	}
	w.set(peerAuthentication(t, "r", "root", day1, `{`+selector+`mtls: {mode: STRICT}}`))
	c := w.reports[ref{kindPeerAuthentication, key{"root", "r"}}].Want
	if len(c) != 1 || !c[0].Status || c[0].Message != peerRootSelector {
		t.Errorf("conditions are %+v", c)
	}
}

// TestNarrowedPolicyNeverLetsGo: a policy that from now on governs only who
// names it is so changed after they do.
func TestNarrowedPolicyNeverLetsGo(t *testing.T) {
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}), authorization(t, `{action: DENY, rules: [{}]}`))
	k, o := w.trimAny(authorization(t, `{action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}`))
	w.st.apply(change{ref: ref{k, o.head().key}, object: o})
	b := w.st.flush()
	denied := func(when string) {
		t.Helper()
		if d := w.policies.Snapshot().Evaluate(w.pod("one"), policy.Connection{}); !d.Denied {
			t.Errorf("%s: %+v", when, d)
		}
	}
	w.policies.Apply(b.policies, nil)
	denied("after policies")
	w.store.Apply(b.events)
	denied("after events")
	w.policies.Apply(b.narrowed, b.removals)
	denied("at the end")
	if p := w.policies.Snapshot().Policy("ns/p"); p.Scope != policy.WorkloadSelector {
		t.Errorf("policy is %+v", p)
	}
}

// TestInstancesOfGatewaysStayAnnounced: they speak nothing but HBONE.
func TestInstancesOfGatewaysStayAnnounced(t *testing.T) {
	w := newWorld(t)
	w.set(gateway(t, "wp", ""), pod("one", []string{"10.0.0.1"}, func(p *corev1.Pod) {
		p.Labels = map[string]string{labelGatewayName: "wp", labelTunnel: tunnelHTTP}
	}), peerAuthentication(t, "n", "ns", day1, `{mtls: {mode: DISABLE}}`))
	if p := w.pod("one"); !p.NativeTunnel {
		t.Errorf("it is announced as %v", p.Protocol)
	}
}

// TestMachineWithAPodsAddress: the pod has it, and the log says so as long as it
// does.
func TestMachineWithAPodsAddress(t *testing.T) {
	w := newWorld(t)
	r := ref{kindWorkloadEntry, key{"ns", "vm"}}
	w.set(custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm}, spec: {address: 10.0.0.1}}`))
	check := func(said bool) {
		t.Helper()
		if got := w.st.faults[r]; strings.Contains(got, "belongs to a pod") != said {
			t.Errorf("fault is %q", got)
		}
	}
	check(false)
	w.set(pod("one", []string{"10.0.0.1"}))
	check(true)
	w.drop(pod("one", []string{"10.0.0.1"}))
	check(false)
	w.set(pod("one", []string{"10.0.0.1"}))
	w.drop(custom(t, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm}, spec: {}}`))
	check(false)
	if len(w.st.machinesAt) > 0 {
		t.Errorf("left over: %v", w.st.machinesAt)
	}
}

// TestLargePoliciesAreBounded: what one policy may cost does not grow with the
// square of its size.
func TestLargePoliciesAreBounded(t *testing.T) {
	var principals, trustDomains []string
	for i := range maxRules {
		principals = append(principals, fmt.Sprintf("td/ns/a/sa/b%d", i))
		trustDomains = append(trustDomains, fmt.Sprintf("td%d", i))
	}
	list := func(values []string) string { return `["` + strings.Join(values, `","`) + `"]` }
	s := defaults()
	s.trustDomain, s.aliases = "td", trustDomains[:16]
	begin := time.Now()
	o := translateAuthorization(authorization(t, `{rules: [{from: [{source: {principals: `+list(principals)+`}}]}]}`), &s)
	if n := len(o.policy.Rules[0][0][0].Principals); n != 17*maxRules || o.fault != "" {
		t.Errorf("%d principals, fault %q", n, o.fault)
	}
	o = translateAuthorization(authorization(t, `{rules: [{from: [{source: {principals: `+list(principals)+`, trustDomains: `+list(trustDomains)+`}}]}]}`), &s)
	if !strings.Contains(o.fault, policyTooLarge) {
		t.Errorf("fault is %q", o.fault)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}
