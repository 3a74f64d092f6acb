package netpolcheck_test

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

// beside returns a policy's companion, nil if it needs none.
func beside(t *testing.T, p *networkingv1.NetworkPolicy, mesh netpolcheck.Mesh) *networkingv1.NetworkPolicy {
	t.Helper()
	spec := netpolcheck.CompanionSpec(p, mesh)
	if spec == nil {
		return nil
	}
	c := new(networkingv1.NetworkPolicy)
	c.Namespace, c.Name = p.Namespace, netpolcheck.CompanionName(p, 0)
	netpolcheck.SetCompanion(c, p, spec)
	return c
}

func TestCompanion(t *testing.T) {
	excluding := netpolcheck.Mesh{DNS: true}
	excluding.Enrolment.Exclude = []string{"kube-system", "shop2"}
	for _, tt := range []struct{ name, spec, want string }{
		{
			"same_pods_types_and_peers", web + "policyTypes: [Ingress, Egress], ingress: [{from: [" + client + "], ports: [{port: 80}, {port: 81}]}, {ports: [{port: 15008}]}], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: http}]}]",
			web + "policyTypes: [Ingress, Egress], ingress: [{from: [" + client + "], ports: [{protocol: TCP, port: 15008}]}], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{protocol: TCP, port: 15008}]}]",
		},
		{"types_by_default", "podSelector: {}, egress: [{ports: [{port: 80}]}]", "podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{protocol: TCP, port: 15008}]}]"},
		{"ingress_alone", "podSelector: {}, ingress: [{ports: [{port: 80}]}]", "podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: 15008}]}]"},
		{"default_deny", "podSelector: {}, policyTypes: [Ingress, Egress]", ""},
		{"all_ports", "podSelector: {}, ingress: [{}]", ""},
		{"udp", "podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]", ""},
		{"dns", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]", ""},
		{"never_in_the_mesh", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 80}]}]", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input(t, read(t, policy("p", tt.spec)), excluding, false)
			p := in.Policies[0]
			before := p.DeepCopy()
			c := beside(t, p, excluding)
			if !netpolcheck.SameSpec(&before.Spec, &p.Spec) {
				t.Error("the policy was changed")
			}
			if tt.want == "" {
				if c != nil {
					t.Errorf("made %+v", c.Spec)
				}
				return
			}
			var want networkingv1.NetworkPolicySpec
			if err := yaml.UnmarshalStrict([]byte("{"+tt.want+"}"), &want); err != nil {
				t.Fatal(err)
			}
			if c == nil || !netpolcheck.SameSpec(&c.Spec, &want) {
				t.Fatalf("made %+v, want %+v", c, want)
			}
			if !netpolcheck.IsCompanion(c) || netpolcheck.CompanionSpec(c, excluding) != nil {
				t.Error("a companion would have a companion")
			}
			// With it the mesh works under the policy.
			in.Policies = append(in.Policies, c)
			for _, f := range netpolcheck.Check(in) {
				if f.Wrong() || (f.Policy == c) != (f.State == netpolcheck.Companion) {
					t.Errorf("found %+v", f)
				}
			}
		})
	}
	other := input(t, read(t, policy("p", "podSelector: {}, ingress: [{ports: [{port: 80}]}]")), excluding, false).Policies[0]
	other.Namespace = "shop2"
	if netpolcheck.CompanionSpec(other, excluding) != nil {
		t.Error("a companion in a namespace that is never in the mesh")
	}
}

// A companion that does more than its policy is told of: it may isolate pods or let peers in.
func TestStaleCompanion(t *testing.T) {
	text := policy("p", web+"ingress: [{from: ["+client+"], ports: [{port: 80}]}]")
	for _, tt := range []struct {
		name   string
		change func(c *networkingv1.NetworkPolicy)
		want   string
	}{
		{"as_made", func(*networkingv1.NetworkPolicy) {}, "companion"},
		{"selects_more", func(c *networkingv1.NetworkPolicy) { c.Spec.PodSelector.MatchLabels = nil }, "stale"},
		{"selects_others", func(c *networkingv1.NetworkPolicy) { c.Spec.PodSelector.MatchLabels["app"] = "x" }, "stale"},
		{"other_direction", func(c *networkingv1.NetworkPolicy) {
			c.Spec.PolicyTypes = append(c.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}, "stale"},
		{"more_ports", func(c *networkingv1.NetworkPolicy) { c.Spec.Ingress[0].Ports = nil }, "stale"},
		{"more_peers", func(c *networkingv1.NetworkPolicy) { c.Spec.Ingress[0].From = nil }, "stale"},
		{"of_nothing", func(c *networkingv1.NetworkPolicy) { c.Labels[netpolcheck.LabelCompanionOf] = "gone" }, "stale"},
		{"of_another_namespace", func(c *networkingv1.NetworkPolicy) { c.Namespace = "other" }, "stale"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input(t, read(t, text), netpolcheck.Mesh{}, false)
			c := beside(t, in.Policies[0], in.Mesh)
			tt.change(c)
			in.Policies = append(in.Policies, c)
			for _, f := range netpolcheck.Check(in) {
				if f.Policy == c && string(f.State) != tt.want {
					t.Errorf("it is %s (%s), want %s", f.State, f.Why, tt.want)
				}
			}
		})
	}
}

func TestCompanionName(t *testing.T) {
	p := new(networkingv1.NetworkPolicy)
	p.UID = "1"
	seen := map[string]bool{}
	for _, name := range []string{"web", strings.Repeat("a", 253), strings.Repeat("a.", 126) + "a", strings.Repeat("a-", 119) + "." + "b"} {
		for attempt := range 3 {
			p.Name = name
			got := netpolcheck.CompanionName(p, attempt)
			if problems := validation.IsDNS1123Subdomain(got); len(problems) > 0 || seen[got] {
				t.Errorf("%.20s… attempt %d gives %s: %v", name, attempt, got, problems)
			}
			seen[got] = true
		}
	}
	p.Name = "web"
	if again := netpolcheck.CompanionName(p, 0); !seen[again] || !strings.HasPrefix(again, "web-hbone-") {
		t.Errorf("the second time it is %s", again)
	}
}

// Marks alone make a companion only together.
func TestIsCompanion(t *testing.T) {
	for _, tt := range []struct {
		labels map[string]string
		want   bool
	}{
		{nil, false},
		{map[string]string{netpolcheck.LabelManagedBy: "culvert"}, false},
		{map[string]string{netpolcheck.LabelManagedBy: "Helm", netpolcheck.LabelCompanionOf: "1"}, false},
		{map[string]string{netpolcheck.LabelManagedBy: "culvert", netpolcheck.LabelCompanionOf: "1"}, true},
	} {
		p := new(networkingv1.NetworkPolicy)
		p.Labels = tt.labels
		if got := netpolcheck.IsCompanion(p); got != tt.want {
			t.Errorf("%v: %v", tt.labels, got)
		}
	}
}
