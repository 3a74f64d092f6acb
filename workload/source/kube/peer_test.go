package kube

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

func peerAuthentication(t testing.TB, name, ns, created, spec string) *unstructured.Unstructured {
	return custom(t, `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: %s, namespace: %s, creationTimestamp: %q}, spec: %s}`, name, ns, created, spec)
}

const (
	day1, day2 = "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"
	strictKey  = "root/istio_converted_static_strict"
	portsKey   = "ns/converted_peer_authentication_w"
)

func TestPeerAuthentication(t *testing.T) {
	nobody := []policy.StringMatch{{Kind: policy.Presence}}
	mtls := func(mode string) string { return `{mtls: {mode: ` + mode + `}}` }
	own := func(mode, ports string) string {
		return `{selector: {matchLabels: {app: web}}, mtls: {mode: ` + mode + `}, portLevelMtls: {` + ports + `}}`
	}
	exempt := func(ports ...uint16) [][][]policy.Match {
		rule := [][]policy.Match{{{NotPrincipals: nobody}}}
		for _, p := range ports {
			rule = append(rule, []policy.Match{{NotDestinationPorts: []uint16{p}}})
		}
		return [][][]policy.Match{rule}
	}
	strictPorts := func(ports ...uint16) (rules [][][]policy.Match) {
		for _, p := range ports {
			rules = append(rules, [][]policy.Match{{{NotPrincipals: nobody, DestinationPorts: []uint16{p}}}})
		}
		return rules
	}
	for _, tc := range []struct {
		name          string
		mesh, ns, own string
		policy        string
		rules         [][][]policy.Match // of the converted policy
		disabled      bool
	}{
		{"nothing", "", "", "", "", nil, false},
		{"mesh-strict", mtls("STRICT"), "", "", strictKey, nil, false},
		{"mesh-permissive", mtls("PERMISSIVE"), "", "", "", nil, false},
		{"namespace-strict", "", mtls("STRICT"), "", strictKey, nil, false},
		{"namespace-beats-mesh", mtls("STRICT"), mtls("PERMISSIVE"), "", "", nil, false},
		{"namespace-unset", mtls("STRICT"), mtls("UNSET"), "", strictKey, nil, false},
		{"namespace-empty", mtls("STRICT"), `{}`, "", strictKey, nil, false},
		{"workload-strict", "", "", own("STRICT", ""), strictKey, nil, false},
		{"workload-beats-namespace", "", mtls("STRICT"), own("PERMISSIVE", ""), "", nil, false},
		{"workload-unset", "", mtls("STRICT"), own("UNSET", ""), strictKey, nil, false},
		{"workload-disable", mtls("STRICT"), "", own("DISABLE", ""), "", nil, true},
		{"mesh-disable", mtls("DISABLE"), "", "", "", nil, true},
		{"disable-overruled", mtls("DISABLE"), mtls("STRICT"), "", strictKey, nil, false},
		{"strict-with-exempt-ports", "", "", own("STRICT", "90: {mode: DISABLE}, 80: {mode: PERMISSIVE}"), portsKey, exempt(80, 90), false},
		{"strict-with-strict-ports", "", "", own("STRICT", "80: {mode: STRICT}"), strictKey, nil, false},
		{"strict-with-unset-ports", "", "", own("STRICT", "80: {mode: UNSET}"), strictKey, nil, false},
		{"permissive-with-strict-ports", "", "", own("PERMISSIVE", "90: {mode: STRICT}, 80: {mode: STRICT}, 70: {mode: DISABLE}"), portsKey, strictPorts(80, 90), false},
		{"disable-with-strict-ports", "", "", own("DISABLE", "80: {mode: STRICT}"), portsKey, strictPorts(80), false},
		{"inherited-strict-with-exempt-ports", mtls("STRICT"), "", own("UNSET", "80: {mode: PERMISSIVE}, 81: {mode: STRICT}"), portsKey, exempt(80), false},
		{"inherited-strict-with-disabled-ports", "", mtls("STRICT"), own("UNSET", "80: {mode: DISABLE}"), portsKey, exempt(80), false},
		{"inherited-permissive-with-exempt-ports", "", mtls("PERMISSIVE"), own("UNSET", "80: {mode: PERMISSIVE}"), "", nil, false},
		{"inherited-permissive-with-strict-ports", "", "", own("UNSET", "80: {mode: STRICT}"), portsKey, strictPorts(80), false},
		{"disable-with-open-ports", "", "", own("DISABLE", "80: {mode: PERMISSIVE}, 81: {mode: DISABLE}, 82: {mode: UNSET}"), "", nil, true},
		{"inherited-disable-with-strict-ports", "", mtls("DISABLE"), own("UNSET", "80: {mode: STRICT}"), portsKey, strictPorts(80), false},
		{"port-zero", "", "", own("PERMISSIVE", "0: {mode: DISABLE}"), strictKey, nil, false},
		{"ports-without-selector", "", `{mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}}`, "", strictKey, nil, false},
		{"own-beats-unreadable-mesh", `{mtls: 5}`, "", own("PERMISSIVE", ""), "", nil, false},
		{"own-beats-unreadable-namespace", "", `{mtls: {mode: SOMETIMES}}`, own("PERMISSIVE", ""), "", nil, false},
		{"unreadable-namespace-could-be-own", "", `{selector: 5, mtls: {mode: STRICT}}`, own("PERMISSIVE", ""), strictKey, nil, false},
		{"unknown-field-could-select", "", `{moons: [full], mtls: {mode: STRICT}}`, own("PERMISSIVE", ""), strictKey, nil, false},
		{"unreadable-own", "", "", `{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE, moon: full}}`, strictKey, nil, false},
		{"unreadable-of-others", "", "", `{selector: {matchLabels: {app: db}}, mtls: {mode: PERMISSIVE, moon: full}}`, "", nil, false},
		{"unreadable-namespace", "", `{mtls: {mode: SOMETIMES}}`, "", strictKey, nil, false},
		{"unreadable-mesh", `{mtls: 5}`, "", "", strictKey, nil, false},
		{"unreadable-port", "", "", own("PERMISSIVE", "70000: {mode: DISABLE}"), strictKey, nil, false},
		{"unknown-field", "", `{mtls: {mode: PERMISSIVE, moon: full}}`, "", strictKey, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var objects []any
			for _, o := range []struct{ name, ns, spec string }{{"m", "root", tc.mesh}, {"n", "ns", tc.ns}, {"w", "ns", tc.own}} {
				if o.spec != "" {
					objects = append(objects, peerAuthentication(t, o.name, o.ns, day1, o.spec))
				}
			}
			w := newWorld(t)
			w.set(pod("one", []string{"10.0.0.1"}, enrolled))
			check := func() {
				t.Helper()
				got := w.pod("one")
				var want []string
				if tc.policy != "" {
					want = []string{tc.policy}
				}
				if d := diff(want, got.AuthorizationPolicies); d != "" {
					t.Error(d)
				}
				if disabled := got.Protocol == workload.TCP; disabled != tc.disabled {
					t.Errorf("announced without HBONE: %v, want %v", disabled, tc.disabled)
				}
				snap := w.policies.Snapshot()
				if len(objects) > 0 && snap.Policy(strictKey) == nil {
					t.Error("the static policy is missing")
				}
				p := snap.Policy(portsKey)
				switch {
				case tc.rules == nil && p != nil:
					t.Errorf("converted policy %+v, want none", p)
				case tc.rules != nil:
					want := &policy.Policy{Namespace: "ns", Name: "converted_peer_authentication_w", Scope: policy.WorkloadSelector, Action: policy.Deny, Rules: tc.rules}
					if d := diff(want, p); d != "" {
						t.Error(d)
					}
				}
			}
			w.set(objects...)
			check()
			// Away and back, each by itself and in the other order.
			for _, o := range objects {
				w.drop(o)
			}
			if got := w.pod("one"); len(got.AuthorizationPolicies) != 0 || got.Protocol != workload.HBONE || w.policies.Snapshot().Len() != 0 {
				t.Errorf("left over: %v %v, %d policies", got.AuthorizationPolicies, got.Protocol, w.policies.Snapshot().Len())
			}
			for i := range objects {
				w.set(objects[len(objects)-1-i])
			}
			check()
		})
	}
}

func TestPeerAuthenticationsOfOneLevel(t *testing.T) {
	w := newWorld(t)
	w.set(pod("one", []string{"10.0.0.1"}),
		peerAuthentication(t, "newer", "ns", day2, `{mtls: {mode: PERMISSIVE}}`),
		peerAuthentication(t, "older", "ns", day1, `{mtls: {mode: STRICT}}`))
	check := func(want ...string) {
		t.Helper()
		if d := diff(want, w.pod("one").AuthorizationPolicies); d != "" {
			t.Error(d)
		}
	}
	check(strictKey) // the oldest
	w.drop(peerAuthentication(t, "older", "ns", day1, `{}`))
	check()
	w.set(peerAuthentication(t, "newest", "ns", day2, `{mtls: {mode: 99}}`))
	check(strictKey) // one that cannot be read is taken for the strictest
	w.drop(peerAuthentication(t, "newest", "ns", day2, `{}`))
	w.set(peerAuthentication(t, "m", "root", day1, `{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}`))
	check() // in the root namespace a selector is for its own workloads
}
