package netpolcheck_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

// read returns the objects of a text.
func read(t testing.TB, text string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := map[string]any{}
		err := decoder.Decode(&object)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(object) > 0 {
			out = append(out, &unstructured.Unstructured{Object: object})
		}
	}
}

func input(t testing.TB, objects []*unstructured.Unstructured, mesh netpolcheck.Mesh, whole bool) netpolcheck.Input {
	t.Helper()
	in := netpolcheck.Input{Mesh: mesh, Whole: whole}
	for _, u := range objects {
		if _, err := in.Add(u, "shop"); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// policy is a NetworkPolicy of namespace shop.
func policy(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: shop, uid: u-%s}\nspec: {%s}\n", name, name, spec)
}

func clusterPolicy(name, tier string, priority int, spec string) string {
	return fmt.Sprintf("---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: {tier: %s, priority: %d, %s}\n", name, tier, priority, spec)
}

func space(name, labels string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

func pod(namespace, name, labels, spec string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {%s}}\nspec: {%s}\n", name, namespace, labels, spec)
}

const (
	ambient = "istio.io/dataplane-mode: ambient"
	web     = "podSelector: {matchLabels: {app: web}}, "
	client  = "{podSelector: {matchLabels: {app: client}}}"
)

// summary is "name state ingress1 egress2 | …" with the rules that lack something, of policies that are not fine.
func summary(found []netpolcheck.Finding) string {
	var all []string
	for _, f := range found {
		if f.State == netpolcheck.Fine {
			continue
		}
		text := f.Name + " " + string(f.State)
		for _, r := range f.Rules {
			if r.Missing {
				text += fmt.Sprintf(" %s%d", r.Direction, r.Number)
			}
		}
		all = append(all, text)
	}
	return strings.Join(all, " | ")
}

type scenario struct {
	name    string
	objects string
	mesh    netpolcheck.Mesh
	whole   bool
	want    string
}

func run(t *testing.T, all []scenario) {
	t.Helper()
	for _, tt := range all {
		t.Run(tt.name, func(t *testing.T) {
			objects := read(t, tt.objects)
			found := netpolcheck.Check(input(t, objects, tt.mesh, tt.whole))
			if got := summary(found); got != tt.want {
				t.Errorf("found %q, want %q\n%+v", got, tt.want, found)
			}
			fixed(t, objects, found, tt)
		})
	}
}

// fixed wants that after the patches no NetworkPolicy is cut, and that a second look has nothing to patch.
func fixed(t *testing.T, objects []*unstructured.Unstructured, found []netpolcheck.Finding, tt scenario) {
	t.Helper()
	for _, f := range found {
		for _, u := range objects {
			if f.Policy != nil && u.GetKind() == "NetworkPolicy" && u.GetName() == f.Name {
				if err := netpolcheck.Apply(u.Object, f.Patch); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, f := range netpolcheck.Check(input(t, objects, tt.mesh, tt.whole)) {
		if f.Policy != nil && (f.State == netpolcheck.Cut || len(f.Patch) > 0) {
			t.Errorf("after the patch: %+v", f)
		}
	}
}

func TestRules(t *testing.T) {
	in := func(rules string) string { return policy("p", web+"ingress: ["+rules+"]") }
	out := func(rules string) string {
		return policy("p", web+"policyTypes: [Egress], egress: ["+rules+"]") + policy("q", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]")
	}
	run(t, []scenario{
		// The well-known example: the application's port before the mesh, that port and 15008 after joining it.
		{name: "only_application_port", objects: in("{from: [" + client + "], ports: [{protocol: TCP, port: 9090}]}"), want: "p cut ingress1"},
		{name: "both_ports", objects: in("{from: [" + client + "], ports: [{port: 9090}, {port: 15008}]}")},

		{name: "all_ports", objects: in("{from: [" + client + "]}")},
		{name: "empty_ports", objects: in("{from: [" + client + "], ports: []}")},
		{name: "default_deny", objects: policy("p", "podSelector: {}, policyTypes: [Ingress, Egress]")},
		{name: "empty_rule_list", objects: policy("p", "podSelector: {}, ingress: []")},
		{name: "rule_of_nothing_is_everything", objects: in("{}")},
		{name: "udp_only", objects: in("{from: [" + client + "], ports: [{protocol: UDP, port: 9090}, {protocol: SCTP, port: 1}]}")},
		{name: "udp_and_tcp", objects: in("{ports: [{protocol: UDP, port: 9090}, {port: 9090}]}"), want: "p cut ingress1"},
		{name: "all_tcp", objects: in("{ports: [{protocol: TCP}]}")},
		{name: "all_udp", objects: in("{ports: [{protocol: UDP}]}")},
		{name: "udp_15008_is_not_it", objects: in("{ports: [{protocol: UDP, port: 15008}, {port: 1}]}"), want: "p cut ingress1"},
		{name: "range_with_it", objects: in("{ports: [{port: 15000, endPort: 15008}]}")},
		{name: "range_beside_it", objects: in("{ports: [{port: 15009, endPort: 16000}, {port: 1, endPort: 15007}]}"), want: "p cut ingress1"},
		{name: "several_rules", objects: in("{ports: [{port: 1}]}, {ports: [{port: 15008}], from: [" + client + "]}, {ports: [{port: 2}]}"), want: "p cut ingress1 ingress3"},
		{name: "egress", objects: out("{to: [" + client + "], ports: [{port: 9090}]}"), want: "p cut egress1"},
		{name: "egress_all_ports", objects: out("{to: [" + client + "]}")},
		{name: "egress_not_among_types", objects: policy("p", web+"policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]")},
		{name: "egress_by_default_type", objects: policy("p", web+"egress: [{ports: [{port: 1}]}]"), want: "p cut egress1"},
		{name: "ingress_not_among_types", objects: policy("p", web+"policyTypes: [Egress], ingress: [{ports: [{port: 1}]}]")},
		{name: "egress_to_nameserver", mesh: netpolcheck.Mesh{DNS: true}, objects: out("{ports: [{port: 53}, {port: 53, protocol: UDP}]}")},
		{name: "egress_to_nameserver_and_more", mesh: netpolcheck.Mesh{DNS: true}, objects: out("{ports: [{port: 53}, {port: 853}]}"), want: "p cut egress1"},
		{name: "egress_to_nameserver_not_captured", objects: out("{ports: [{port: 53}]}"), want: "p cut egress1"},
		{name: "ingress_of_nameserver", mesh: netpolcheck.Mesh{DNS: true}, objects: in("{ports: [{port: 53}]}"), want: "p cut ingress1"},

		{name: "named_without_pods", objects: in("{ports: [{port: hbone}]}"), want: "p cut ingress1"},
		{name: "named_15008", objects: in("{ports: [{port: hbone}]}") + pod("shop", "a", "app: web", "containers: [{ports: [{name: hbone, containerPort: 15008}]}]")},
		{name: "named_15008_in_one_only", objects: in("{ports: [{port: hbone}]}") + pod("shop", "a", "app: web", "containers: [{ports: [{name: hbone, containerPort: 15008}]}]") + pod("shop", "b", "app: web", "containers: [{}]"), want: "p cut ingress1"},
		{name: "named_15008_udp", objects: in("{ports: [{port: hbone}]}") + pod("shop", "a", "app: web", "containers: [{ports: [{name: hbone, containerPort: 15008, protocol: UDP}]}]"), want: "p cut ingress1"},
		{name: "named_of_destination", objects: out("{to: ["+client+"], ports: [{port: hbone}]}") + pod("shop", "a", "app: client", "containers: [{ports: [{name: hbone, containerPort: 15008}]}]") + pod("shop", "b", "app: web", "containers: [{}]")},
		{name: "named_otherwise", objects: in("{ports: [{port: http}]}") + pod("shop", "a", "app: web", "containers: [{ports: [{name: http, containerPort: 8080}]}]"), want: "p cut ingress1"},
	})
}

func TestPeers(t *testing.T) {
	in := func(peers string) string {
		return policy("p", web+"ingress: [{from: ["+peers+"], ports: [{port: 80}]}]")
	}
	out := func(peers string) string {
		return policy("p", web+"policyTypes: [Egress], egress: [{to: ["+peers+"], ports: [{port: 80}, {port: 53, protocol: UDP}]}]")
	}
	excluding := netpolcheck.Mesh{}
	excluding.Enrolment.Exclude = []string{"kube-system"}
	networks := netpolcheck.Mesh{Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10::/32")}}
	system := "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}"
	run(t, []scenario{
		{name: "never_in_the_mesh", mesh: excluding, objects: in(system)},
		{name: "never_in_the_mesh_and_others", mesh: excluding, objects: in(system + ", " + client), want: "p cut ingress1"},
		{name: "by_other_labels_may", mesh: excluding, objects: in("{namespaceSelector: {matchLabels: {team: a}}}"), want: "p cut ingress1"},
		{name: "by_other_labels_is_known", whole: true, mesh: excluding, objects: in("{namespaceSelector: {matchLabels: {team: a}}}") + space("shop", ambient) + space("kube-system", "team: a")},
		{name: "not_labelled_yet", whole: true, objects: in("{namespaceSelector: {matchLabels: {team: a}}}") + space("shop", ambient) + space("other", "team: a"), want: "p cut ingress1"},
		{name: "not_there_yet", whole: true, objects: in("{namespaceSelector: {matchLabels: {team: a}}}") + space("shop", ambient), want: "p cut ingress1"},

		{name: "block", objects: in("{ipBlock: {cidr: 192.0.2.0/24}}"), want: "p cut ingress1"},
		{name: "block_mapped", mesh: networks, objects: out("{ipBlock: {cidr: '::ffff:10.244.0.0/112'}}"), want: "p cut egress1"},
		{name: "block_outside", mesh: networks, objects: out("{ipBlock: {cidr: 192.0.2.0/24}}")},
		{name: "block_with_pods", mesh: networks, objects: out("{ipBlock: {cidr: 10.0.0.0/8}}"), want: "p cut egress1"},
		{name: "block_with_some_pods", mesh: networks, objects: out("{ipBlock: {cidr: 10.244.3.0/24}}"), want: "p cut egress1"},
		{name: "block_without_pods", mesh: networks, objects: out("{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}")},
		{name: "block_without_some_pods", mesh: networks, objects: out("{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.3.0/24]}}"), want: "p cut egress1"},
		{name: "block_of_the_other_family", mesh: networks, objects: out("{ipBlock: {cidr: '::/0'}}"), want: "p cut egress1"},
		{name: "blocks_and_pods", mesh: networks, objects: out("{ipBlock: {cidr: 192.0.2.0/24}}, " + client), want: "p cut egress1"},
	})
}

// What one policy lacks another may have, companions among them.
func TestAllowedElsewhere(t *testing.T) {
	first := policy("p", web+"ingress: [{from: ["+client+"], ports: [{port: 80}]}]")
	with := func(spec string) string { return first + policy("q", spec) }
	run(t, []scenario{
		{name: "same_peers", objects: with(web + "ingress: [{from: [" + client + "], ports: [{port: 15008}]}]")},
		{name: "all_pods_everybody", objects: with("podSelector: {}, ingress: [{ports: [{port: 15008}]}]")},
		{name: "wider_peers", objects: with(web + "ingress: [{from: [{podSelector: {}}], ports: [{port: 15008}]}]")},
		{name: "wider_by_namespace", objects: with(web + "ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 15008}]}]")},
		{name: "wider_by_labels_of_namespace", objects: with(web+"ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 15008}]}]") + space("shop", ambient+", team: a")},
		{name: "wider_expression", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [x, client]}]}}], ports: [{port: 15008}]}]")},
		{name: "expression_with_other_values", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [x, z]}]}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "expression_with_some_values", objects: policy("p", web+"ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [x, z]}]}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "expression_exists", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}], ports: [{port: 15008}]}]")},
		{name: "expression_does_not_exist", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: v, operator: DoesNotExist}]}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "expression_not_others", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}}], ports: [{port: 15008}]}]")},
		{name: "expression_not_these", objects: with(web + "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x, client]}]}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "block_in_smaller_block", objects: policy("p", web+"ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "narrower_peers", objects: with(web + "ingress: [{from: [{podSelector: {matchLabels: {app: client, v: '1'}}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "other_peers", objects: with(web + "ingress: [{from: [{podSelector: {matchLabels: {app: x}}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "other_namespace_of_same_labels", objects: with(web + "ingress: [{from: [{podSelector: {matchLabels: {app: client}}, namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "other_pods", objects: with("podSelector: {matchLabels: {app: x}}, ingress: [{ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "fewer_pods", objects: with("podSelector: {matchLabels: {app: web, v: '1'}}, ingress: [{ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "other_direction", objects: with("podSelector: {}, policyTypes: [Egress], egress: [{}]"), want: "p cut ingress1"},
		{name: "rules_that_do_not_count", objects: with("podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{}]"), want: "p cut ingress1"},
		{name: "block_covers_block", objects: policy("p", web+"ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24]}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.1.0/28, 10.2.0.0/16]}}], ports: [{port: 15008}]}]")},
		{name: "hole_in_block", objects: policy("p", web+"ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.1.0/28]}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "peer_by_peer", objects: policy("p", web+"ingress: [{from: [{podSelector: {matchLabels: {app: a}}}, {podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 15008}]}, {from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 15008}]}]")},
		{name: "one_peer_lacks", objects: policy("p", web+"ingress: [{from: [{podSelector: {matchLabels: {app: a}}}, {podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 15008}]}]"), want: "p cut ingress1"},
		{name: "pods_for_everybody_in_a_whole_cluster", whole: true, objects: space("shop", ambient) + policy("p", web+"ingress: [{ports: [{port: 80}]}]") + policy("q", web+"ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 15008}]}]")},
	})
}

// Only policies matter that hold for pods of the mesh.
func TestMembership(t *testing.T) {
	p := policy("p", web+"ingress: [{ports: [{port: 80}]}]")
	excluding := netpolcheck.Mesh{}
	excluding.Enrolment.Exclude = []string{"shop"}
	run(t, []scenario{
		{name: "namespace_unknown", objects: p, want: "p cut ingress1"},
		{name: "namespace_unknown_of_a_cluster", whole: true, objects: p, want: "p outside"},
		{name: "namespace_in", objects: p + space("shop", ambient), want: "p cut ingress1"},
		{name: "namespace_not_in", objects: p + space("shop", ""), want: "p outside"},
		{name: "namespace_opted_out", objects: p + space("shop", "istio.io/dataplane-mode: none"), want: "p outside"},
		{name: "assumed", mesh: netpolcheck.Mesh{Assume: []string{"shop"}}, whole: true, objects: p + space("shop", ""), want: "p cut ingress1"},
		{name: "assumed_everywhere", mesh: netpolcheck.Mesh{Assume: []string{netpolcheck.Everywhere}}, objects: p + space("shop", ""), want: "p cut ingress1"},
		{name: "excluded", mesh: excluding, objects: p + space("shop", ambient), want: "p outside"},
		{name: "pod_in_by_itself", objects: p + space("shop", "") + pod("shop", "a", "app: web, "+ambient, ""), want: "p cut ingress1"},
		{name: "other_pod_in_by_itself", objects: p + space("shop", "") + pod("shop", "a", "app: x, "+ambient, ""), want: "p outside"},
		{name: "pods_out", objects: p + space("shop", ambient) + pod("shop", "a", "app: web, istio.io/dataplane-mode: none", ""), want: "p outside"},
		{name: "some_pods_out", objects: p + space("shop", ambient) + pod("shop", "a", "app: web, istio.io/dataplane-mode: none", "") + pod("shop", "b", "app: web", ""), want: "p cut ingress1"},
		{name: "host_network_does_not_count", objects: p + space("shop", ambient) + pod("shop", "a", "app: web", "hostNetwork: true"), want: "p cut ingress1"},
		{name: "selected_by_opting_out", objects: policy("p", "podSelector: {matchLabels: {istio.io/dataplane-mode: none}}, ingress: [{ports: [{port: 80}]}]"), want: "p outside"},
		{name: "template", objects: p + space("shop", ambient) + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\nspec: {template: {metadata: {labels: {app: web, istio.io/dataplane-mode: none}}}}\n", want: "p outside"},
		{name: "template_of_a_cron_job", objects: p + space("shop", "") + "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: d, namespace: shop}\nspec: {jobTemplate: {spec: {template: {metadata: {labels: {app: web, " + ambient + "}}}}}}\n", want: "p cut ingress1"},
	})
	notes := netpolcheck.Check(input(t, read(t, p), netpolcheck.Mesh{}, false))[0].Notes
	if len(notes) != 1 || !strings.Contains(notes[0], "namespace shop is not among the files") {
		t.Errorf("an assumption is told as %q", notes)
	}
}

func TestDNSNote(t *testing.T) {
	p := policy("p", web+"policyTypes: [Egress], egress: [{to: ["+client+"], ports: [{port: 80}]}]")
	for name, tt := range map[string]struct {
		objects string
		want    bool
	}{
		"none":       {p, true},
		"elsewhere":  {p + policy("q", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]"), false},
		"other_pods": {p + policy("q", "podSelector: {matchLabels: {app: x}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]"), true},
		"tcp_only":   {p + policy("q", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]"), true},
		"everything": {p + policy("q", "podSelector: {}, policyTypes: [Egress], egress: [{}]"), false},
		"range":      {p + policy("q", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 50, endPort: 60}]}]"), false},
	} {
		t.Run(name, func(t *testing.T) {
			notes := strings.Join(netpolcheck.Check(input(t, read(t, tt.objects+space("shop", ambient)), netpolcheck.Mesh{}, false))[0].Notes, "\n")
			if got := strings.Contains(notes, "nameserver"); got != tt.want {
				t.Errorf("notes %q", notes)
			}
		})
	}
}

// A policy that cannot be read is an error, not a guess.
func TestRefused(t *testing.T) {
	for name, spec := range map[string]string{
		"unknown_field":  "podSelector: {}, ingres: []",
		"wrong_type":     "podSelector: {}, ingress: [{ports: [{port: true}]}]",
		"protocol":       "podSelector: {}, ingress: [{ports: [{protocol: tcp, port: 1}]}]",
		"port_zero":      "podSelector: {}, ingress: [{ports: [{port: 0}]}]",
		"port_large":     "podSelector: {}, egress: [{ports: [{port: 65536}]}]",
		"end_before":     "podSelector: {}, ingress: [{ports: [{port: 2, endPort: 1}]}]",
		"end_alone":      "podSelector: {}, ingress: [{ports: [{endPort: 1}]}]",
		"bad_name":       "podSelector: {}, ingress: [{ports: [{port: \"a'b\"}]}]",
		"end_of_name":    "podSelector: {}, ingress: [{ports: [{port: a, endPort: 1}]}]",
		"block":          "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]",
		"except":         "podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/33]}}]}]",
		"operator":       "podSelector: {matchExpressions: [{key: a, operator: Like}]}",
		"operator_peers": "podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]",
		"type":           "podSelector: {}, policyTypes: [ingress]",
	} {
		t.Run(name, func(t *testing.T) {
			var in netpolcheck.Input
			if _, err := in.Add(read(t, policy("p", spec))[0], ""); err == nil {
				t.Error("taken")
			}
		})
	}
	for _, metadata := range []string{`name: "a\nb"`, `name: "a'b"`, `namespace: x`, `name: p, namespace: "a b"`} {
		for _, kind := range []string{"networking.k8s.io/v1, kind: NetworkPolicy", "networking.k8s.io/v1/v1, kind: NetworkPolicy", "policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy"} {
			var in netpolcheck.Input
			if _, err := in.Add(read(t, "{apiVersion: "+kind+", metadata: {"+metadata+"}, spec: {}}")[0], ""); err == nil {
				t.Errorf("%s with %s is taken", kind, metadata)
			}
		}
	}
}
