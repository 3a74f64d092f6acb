package netpolcheck_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

func TestAdmin(t *testing.T) {
	all := "subject: {namespaces: {}}, "
	from := func(labels string) string { return "from: [{namespaces: {matchLabels: {" + labels + "}}}]" }
	tcp := func(port string) string { return "protocols: [{tcp: {destinationPort: {number: " + port + "}}}]" }
	denyAll := clusterPolicy("deny", "Admin", 20, all+"ingress: [{action: Deny, from: [{namespaces: {}}]}]")
	shop := space("shop", ambient)
	run(t, []scenario{
		{name: "denies_everything", objects: shop + denyAll},
		{name: "denies_other_port", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("22")+"}]")},
		{name: "denies_udp", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 15008}}}]}]")},
		{name: "denies_it", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]"), want: "c cut ingress1"},
		{name: "denies_range", objects: shop + clusterPolicy("c", "Admin", 1, all+"egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 10000, end: 20000}}}}]}]"), want: "c cut egress1"},
		{name: "denies_all_in_two_ranges", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 20000}}}}, {tcp: {destinationPort: {range: {start: 20001, end: 65535}}}}]}]")},
		{name: "denies_all_but_one", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 20000}}}}, {tcp: {destinationPort: {range: {start: 20002, end: 65535}}}}]}]"), want: "c cut ingress1"},
		{name: "denies_all_but_the_last", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 65534}}}}]}]"), want: "c cut ingress1"},
		{name: "denies_it_after_accepting_it", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, from: [{namespaces: {}}], "+tcp("15008")+"}, {action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]")},
		{name: "denies_it_before_accepting_it", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}, {action: Accept, from: [{namespaces: {}}], "+tcp("15008")+"}]"), want: "c cut ingress1"},
		{name: "denies_it_after_passing", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Pass, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]")},
		{name: "denies_it_of_unknown_peers", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{}], "+tcp("15008")+"}]"), want: "c cut ingress1"},
		{name: "denies_it_of_nodes", objects: shop + clusterPolicy("c", "Admin", 1, all+"egress: [{action: Deny, to: [{nodes: {}}, {domainNames: [a.example]}], "+tcp("15008")+"}]")},

		{name: "accepts_a_port_before_denial", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]"), want: "c cut ingress1"},
		{name: "accepts_a_port_after_denial", objects: shop + denyAll + clusterPolicy("c", "Admin", 30, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]")},
		{name: "same_priority_may_be_first", objects: shop + denyAll + clusterPolicy("c", "Admin", 20, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]"), want: "c cut ingress1"},
		{name: "accepts_both_ports", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", protocols: [{tcp: {destinationPort: {number: 80}}}, {tcp: {destinationPort: {number: 15008}}}]}]")},
		{name: "accepts_all_ports", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+"}]")},
		{name: "accepts_udp", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", protocols: [{udp: {destinationPort: {number: 53}}}]}]")},
		{name: "accepts_named", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", protocols: [{destinationNamedPort: http}]}]"), want: "c cut ingress1"},
		{name: "passes_a_port", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Pass, "+from("a: b")+", "+tcp("80")+"}]"), want: "c cut ingress1"},
		{name: "accepts_it_elsewhere", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]") + clusterPolicy("d", "Admin", 2, all+"ingress: [{action: Accept, from: [{namespaces: {}}], "+tcp("15008")+"}]")},
		{name: "denies_others", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}, {action: Deny, "+from("a: c")+"}]")},
		{name: "denies_others_by_known_labels", whole: true, objects: shop + space("x", "a: b") + space("y", "c: d") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}, {action: Deny, "+from("c: d")+"}]")},
		{name: "denies_to_other_subject", objects: shop + clusterPolicy("c", "Admin", 1, "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}}, ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]") + clusterPolicy("d", "Admin", 2, "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]")},
		{name: "other_direction", objects: shop + denyAll + clusterPolicy("c", "Admin", 1, all+"egress: [{action: Accept, to: [{namespaces: {}}], "+tcp("80")+"}]")},
		{name: "networks_after_networks", objects: shop + clusterPolicy("c", "Admin", 1, all+"egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}], "+tcp("80")+"}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]"), want: "c cut egress1"},
		{name: "networks_apart", objects: shop + clusterPolicy("c", "Admin", 1, all+"egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}], "+tcp("80")+"}, {action: Deny, to: [{networks: [192.168.0.0/16]}]}]")},
		{name: "baseline_denies", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]") + clusterPolicy("d", "Baseline", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}]}]"), want: "c cut ingress1"},
		{name: "baseline_alone", objects: shop + clusterPolicy("d", "Baseline", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}, {action: Deny, from: [{namespaces: {}}]}]"), want: "d cut ingress1"},
		{name: "pass_before_baseline", objects: shop + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Pass, "+from("a: b")+", "+tcp("80")+"}]") + clusterPolicy("d", "Baseline", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}]}]")},

		{name: "accepts_a_port_over_default_deny", objects: shop + policy("p", "podSelector: {}") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]"), want: "c cut ingress1"},
		{name: "accepts_a_port_over_policy_with_it", objects: shop + policy("p", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}}], ports: [{port: 15008}]}]") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]")},
		{name: "accepts_a_port_over_policy_with_it_for_others", objects: shop + policy("p", "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {a: c}}}], ports: [{port: 15008}]}]") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]"), want: "c cut ingress1"},
		{name: "accepts_a_port_over_egress_policy", objects: shop + policy("p", "podSelector: {}, policyTypes: [Egress], egress: [{}]") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Accept, "+from("a: b")+", "+tcp("80")+"}]")},

		{name: "not_of_the_mesh", whole: true, objects: space("shop", "") + clusterPolicy("c", "Admin", 1, all+"ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]"), want: "c outside"},
		{name: "subject_elsewhere", whole: true, objects: shop + clusterPolicy("c", "Admin", 1, "subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: other}}}, ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]"), want: "c outside"},
		{name: "subject_not_in_files", objects: shop + clusterPolicy("c", "Admin", 1, "subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: other}}}, ingress: [{action: Deny, from: [{namespaces: {}}], "+tcp("15008")+"}]"), want: "c cut ingress1"},
	})
}

// What can be proposed is an exact patch; a denial is left to a person.
func TestAdminProposal(t *testing.T) {
	text := space("shop", ambient) + clusterPolicy("c", "Admin", 1, `subject: {namespaces: {}}, egress: [
		{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}, {action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 20000}}}}]}]`)
	found := netpolcheck.Check(input(t, read(t, text), netpolcheck.Mesh{}, false))
	patch, err := json.Marshal(found[0].Patch)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"op":"test","path":"/spec/egress/0/protocols","value":[{"tcp":{"destinationPort":{"number":80}}}]},{"op":"add","path":"/spec/egress/0/protocols/-","value":{"tcp":{"destinationPort":{"number":15008}}}}]`
	if string(patch) != want {
		t.Errorf("patch is\n%s\nwant\n%s", patch, want)
	}
	if why := found[0].Rules[1].Why; !strings.Contains(why, "Leave 15008 out") {
		t.Errorf("of the denial it says %q", why)
	}
	if !found[0].Wrong() || found[0].Policy != nil {
		t.Errorf("found %+v", found[0])
	}
}
