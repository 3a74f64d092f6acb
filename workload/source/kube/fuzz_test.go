package kube

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// FuzzLabels: the compact form of labels says what the map says.
func FuzzLabels(f *testing.F) {
	f.Add("app", "web", "", "", "app")
	f.Add("a", "\x00", "a\x00", "b", "a")
	f.Add(strings.Repeat("k", 70000), "v", "k", "v", "k")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, ask string) {
		m := map[string]string{k1: v1, k2: v2}
		p := makePairs(m)
		for k, v := range m {
			if len(k) > 65535 || len(v) > 65535 {
				delete(m, k)
			}
		}
		if d := diff(m, p.toMap()); d != "" {
			t.Fatal(d)
		}
		want, there := m[ask]
		if got, ok := p.get(ask); ok != there || ok && got != want {
			t.Fatalf("get %q: %q, %v", ask, got, ok)
		}
		if !p.contains(makePairs(map[string]string{k1: m[k1]})) && len(m[k1]) > 0 {
			t.Fatal("does not contain a part of itself")
		}
	})
}

// FuzzAnnotations: what users write into labels and annotations that are
// parsed. Nothing panics, and what is accepted is in range.
func FuzzAnnotations(f *testing.F) {
	for _, s := range []string{"", "PROXY/15088", "NONE", "wp", "none", "http,x", "PreferClose", "50", "*.example.com", "fe80::1%eth0", "10.0.0.0/8", "a/b", "80", "*", "r/z/s/t/u", "::ffff:1.2.3.4/100"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, s, ns string) {
		parseBinding(s)
		if d := parseDistribution(s); d == distributionUnset && s != "" {
			t.Fatalf("distribution %q was taken as none", s)
		}
		parseLocality(s)
		if n := useWaypoint(makePairs(map[string]string{labelUseWaypoint: s, labelUseWaypointNS: ns}), "ns"); n.ok && (n.none || n.key.name == "" || n.key.namespace == "") {
			t.Fatalf("names %+v", n)
		}
		if h, err := parseHost(s, true); err == nil && (strings.ContainsAny(h, "/ \x00") || len(h) > maxHost) {
			t.Fatalf("host %q", h)
		}
		if b, err := parseBlock(s); err == nil && (!b.IsValid() || b.Addr().Is4In6() || b.Addr().Zone() != "" || b != b.Masked()) {
			t.Fatalf("block %v", b)
		}
		if a, ok := parseAddr(s); ok && (a.Is4In6() || a.Zone() != "" || a.IsUnspecified()) {
			t.Fatalf("address %v", a)
		}
		if p, err := parsePort(s); err == nil && p == 0 {
			t.Fatal("port 0")
		}
		if a, err := parseAccount(s, "ns"); err == nil && (a.Namespace == "" || a.Name == "" || strings.Contains(a.Name, "/")) {
			t.Fatalf("account %+v", a)
		}
		_, _ = parseMatch(s)
		_, _ = parseTrustDomain(s)
		bounded(s)
	})
}

// FuzzAuthorizationPolicy: any spec becomes a policy that is valid, or one
// that says why it denies.
func FuzzAuthorizationPolicy(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"rules":[{}]}`, `{"action":"DENY","rules":[{"from":[{"source":{"principals":["*"]}}]}]}`, `{"action":"CUSTOM"}`, `{"action":7}`,
		`{"selector":{"matchLabels":{"a":"b"}},"rules":[{"when":[{"key":"source.ip","values":["10.0.0.0/8"]}]}]}`, `{"rules":[null]}`,
		`{"rules":[{"to":[{"operation":{"ports":["80"],"methods":["GET"]}}]}]}`, `{"targetRef":{"kind":"Service","name":"x"}}`, `{"rules":[{"from":[null]}]}`,
		`{"rules":[{"from":[]},{"from":[{"source":{"principals":[],"trustDomains":["a"]}}]}]}`, `{"action":"AUDIT","selector":{"matchLabels":{"a":"b"}},"rules":5}`,
		`{"rules":[{"from":[{"source":{"trustDomains":["cluster.local","o*"],"principals":["*/ns/a/sa/b","old/*","spiffe://old/ns/a/sa/b"]}}]}]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		var v any
		if json.Unmarshal([]byte(spec), &v) != nil {
			return
		}
		u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "p", "namespace": "ns"}, "spec": v}}
		s := defaults()
		s.aliases = []string{"old", "older"}
		o := translateAuthorization(u, &s)
		if o.policy == nil {
			if len(o.targets) == 0 {
				t.Fatalf("no policy of %s: %+v", spec, o.verdict)
			}
			return
		}
		if o.policy.Invalid != o.fault || (o.verdict.Reason == reasonInvalid) != (o.fault != "") {
			t.Fatalf("policy of %s says %q, its status %+v", spec, o.policy.Invalid, o.verdict)
		}
		if err := o.policy.Validate(); (err != nil) != (o.policy.Invalid != "") {
			t.Fatalf("policy of %s: %v, but it says %q", spec, err, o.policy.Invalid)
		}
		trimPeerAuthentication(u)
		trimServiceEntry(u)
		trimWorkloadEntry(u)
		trimGateway(u)
		trimGatewayClass(u)
	})
}
