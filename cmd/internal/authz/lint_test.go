package authz

import (
	"fmt"
	"strings"
	"testing"
)

func TestLint(t *testing.T) {
	from := func(source string) string { return authzPolicy("p", `{rules: [{from: [{source: `+source+`}]}]}`) }
	in := func(namespace, text string) string {
		return strings.Replace(text, "metadata: {name:", "metadata: {namespace: "+namespace+", name:", 1)
	}
	const web = "cluster.local/ns/shop/sa/web"
	for _, tt := range []struct {
		name, objects string
		// "severity check name rule", and after " | " a part of the text
		want []string
	}{
		{"nothing", "", nil},
		{"sound", strict + from(`{principals: [`+web+`]}`), nil},
		{"unknown-namespace", strict + from(`{namespaces: [shop, bnak]}`), []string{"warning unknown-namespace p 0 | there is no namespace bnak; did you mean bank?"}},
		{"unknown-not-namespace", strict + from(`{notNamespaces: [nowhere]}`), []string{"warning unknown-namespace p 0 | there is no namespace nowhere"}},
		{"namespace-pattern", strict + from(`{namespaces: ["ba*"]}`), nil},
		{"namespace-pattern-of-nobody", strict + from(`{namespaces: ["*s*"]}`), []string{"error invalid p -1 | cannot be enforced"}},
		{"namespace-suffix-of-nobody", strict + from(`{namespaces: ["*-prod"]}`), []string{"warning matches-nobody p 0 | namespace *-prod"}},
		{"unknown-account", strict + from(`{serviceAccounts: [bank/tellr]}`), []string{"warning unknown-account p 0 | no service account tellr in namespace bank; did you mean teller?"}},
		{"account-of-own-namespace", strict + from(`{serviceAccounts: [cart]}`), nil},
		{"account-of-unknown-namespace", strict + from(`{serviceAccounts: [bnak/teller]}`), []string{"warning unknown-namespace p 0 | did you mean bank?"}},
		{"principal-of-unknown-account", strict + from(`{principals: [cluster.local/ns/shop/sa/wbe]}`), []string{"warning unknown-account p 0 | did you mean web?"}},
		{"principal-of-unknown-namespace", strict + from(`{principals: [cluster.local/ns/shpo/sa/web]}`), []string{"warning unknown-namespace p 0 | did you mean shop?"}},
		{"trust-domain", strict + from(`{principals: [cluster.locl/ns/shop/sa/web]}`), []string{"warning trust-domain p 0 | not that of the mesh, cluster.local"}},
		{"principal-form", strict + from(`{principals: [shop/web]}`), []string{"error principal-form p 0 | shop/web"}},
		{"any-principal", strict + from(`{principals: ["*"]}`), nil},
		{"principal-of-domain", strict + from(`{principals: ["cluster.local/*"]}`), nil},
		{"principal-of-domains", strict + from(`{principals: ["cluster*"]}`), nil},
		{"principal-of-other-domains", strict + from(`{principals: ["prod*"]}`), []string{"warning matches-nobody p 0 | principal prod*"}},
		{"principal-of-other-domain", strict + from(`{principals: ["prod/*"]}`), []string{"warning trust-domain p 0 | not that of the mesh"}},
		{"principal-of-unknown-names", strict + from(`{principals: ["cluster.local/ns/shpo/*"]}`), []string{"warning matches-nobody p 0 | principal cluster.local/ns/shpo/*"}},
		{"principal-suffix", strict + from(`{principals: ["*/sa/web"]}`), nil},
		{"principal-suffix-of-nobody", strict + from(`{principals: ["*/sa/nobody"]}`), []string{"warning matches-nobody p 0 | principal */sa/nobody"}},
		{"deny-by-default", authzPolicy("p", "{}"), []string{"note matches-nothing p -1 | lets nobody in but"}},
		{"deny-nobody", authzPolicy("p", "{action: DENY}"), []string{"warning matches-nothing p -1 | refuses nobody"}},
		{"invalid-audit", strict + authzPolicy("p", `{action: AUDIT, rules: [{to: [{operation: {ports: [http]}}]}]}`), []string{"error invalid p -1 | decides nothing: rule 0: ports"}},
		{"empty-list", strict + from(`{principals: []}`), []string{"warning matches-nothing p -1", "warning empty-list p 0 | the rule never matches: nobody is in a list that is empty (from 0: principals)"}},
		{"empty-list-of-one", strict + authzPolicy("p", `{rules: [{from: [{source: {principals: []}}, {source: {namespaces: [shop]}}]}]}`),
			[]string{"warning empty-list p 0 | a part of the rule never matches: nobody is in a list that is empty (from 0: principals)"}},
		{"empty-list-of-deny", strict + authzPolicy("p", `{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}, {from: [{source: {namespaces: [shop], principals: []}}]}]}`),
			[]string{"warning empty-list p 1 | the rule refuses more than it says, now from namespace shop: a list that is empty is passed over (from 0: principals)"}},
		{"empty-list-of-audit", strict + authzPolicy("p", `{action: AUDIT, rules: [{to: [{operation: {methods: [GET], ports: ["8080"]}}], from: []}]}`),
			[]string{"warning empty-list p 0 | the rule audits more than it says, now to port 8080: ", "warning l7-without-waypoint p 0 | the rule audits more"}},
		{"dry-run-that-is-none", strict + strings.Replace(from(`{namespaces: [shop]}`), "{name: p}", "{name: p, annotations: {istio.io/dry-run: 'yes'}}", 1),
			[]string{"warning dry-run p -1 | no boolean: the policy is enforced"}},
		{"allow-all", authzPolicy("p", "{rules: [{}]}"), []string{"note allows-all p 0 | matches everything"}},
		{"contradiction", strict + authzPolicy("p", `{rules: [{from: [{source: {principals: [`+web+`], namespaces: [bank]}}]}]}`),
			[]string{"warning matches-nothing p -1 | lets nobody in", "warning never-matches p 0 | contradicts itself"}},
		{"l7-allow", authzPolicy("p", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`),
			[]string{"warning matches-nothing p -1 |", "warning l7-without-waypoint p 0 | never matches"}},
		{"l7-deny", authzPolicy("p", `{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ["8080"]}}]}]}`), []string{"warning l7-without-waypoint p 0 | refuses more than it says"}},
		{"custom", authzPolicy("p", `{action: CUSTOM, provider: {name: x}, rules: [{}]}`), []string{"error custom p -1 |"}},
		{"invalid", authzPolicy("p", `{rules: [{to: [{operation: {ports: [http]}}]}]}`), []string{"error invalid p -1 | denies everything"}},
		{"unknown-field", authzPolicy("p", `{rulez: []}`), []string{"error invalid p -1 | rulez"}},
		{"no-waypoint", authzPolicy("p", `{targetRefs: [{kind: Service, name: cart}], rules: [{}]}`), []string{"error not-attached p -1 | no waypoint enforces"}},
		{"selects-nothing", strict + authzPolicy("p", `{selector: {matchLabels: {app: crat}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning selects-nothing p -1 | selects no pod: did you mean app=cart?"}},
		{"selects-nothing-by-key", strict + authzPolicy("p", `{selector: {matchLabels: {tir: front}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning selects-nothing p -1 | did you mean tier?"}},
		{"outside-of-the-mesh", in("legacy", authzPolicy("p", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`)), []string{"warning not-enforced p -1 | none of the 1 pods"}},
		{"root-allow", in("culvert-system", authzPolicy("p", `{rules: [{to: [{operation: {ports: ["8080"]}}]}]}`)), []string{"warning root-namespace p -1 | every workload of the mesh"}},
		{"root-deny-by-default", in("culvert-system", authzPolicy("p", `{}`)), []string{"note matches-nothing p -1"}},
		{"root-deny", in("culvert-system", authzPolicy("p", `{action: DENY, rules: [{to: [{operation: {ports: ["22"]}}]}]}`)), []string{"note root-namespace p -1 | for the whole mesh"}},
		{"istios-root", "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n" + in("istio-system", authzPolicy("p", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`)),
			[]string{"warning not-root p -1 | live in culvert-system here"}},
		{"istios-root-peer", in("istio-system", strict), []string{"warning not-root default -1 | live in culvert-system here"}},
		{"istios-root-peer-of-some", in("istio-system", "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}"), nil},
		{"dry-run", strings.Replace(strict+from(`{namespaces: [shop]}`), "{name: p}", "{name: p, annotations: {istio.io/dry-run: 'true'}}", 1), []string{"note dry-run p -1"}},
		{"service-port", strict + authzPolicy("p", `{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ["80"]}}]}]}`),
			[]string{"warning service-port p 0 | port 80 is a Service's; the pods behind it listen on 8080"}},
		{"shadowed-in-one", strict + authzPolicy("p", `{rules: [{from: [{source: {namespaces: [shop]}}]}, {from: [{source: {principals: [`+web+`]}}]}]}`),
			[]string{"warning shadowed p 1 | rule 0 of policy shop/p matches all"}},
		{"shadowed-by-later", strict + authzPolicy("p", `{rules: [{from: [{source: {principals: [`+web+`]}}]}, {from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning shadowed p 0 | rule 1 of policy shop/p matches all"}},
		{"twice", strict + authzPolicy("a", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`) + authzPolicy("b", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning shadowed b 0 | rule 0 of policy shop/a"}},
		{"twice-but-narrower", strict + authzPolicy("a", `{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}`) + authzPolicy("b", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning shadowed a 0 | rule 0 of policy shop/b"}},
		{"other-app-shadows-nothing", strict + authzPolicy("a", `{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}`) +
			authzPolicy("b", `{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}`), nil},
		{"denied", strict + authzPolicy("a", `{rules: [{from: [{source: {principals: [`+web+`]}}]}]}`) + authzPolicy("d", `{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"warning denied a 0 | rule 0 of policy shop/d refuses all that it allows"}},
		{"denied-by-strict", strict + authzPolicy("a", `{rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}`), []string{"warning denied a 0 | a STRICT PeerAuthentication"}},
		{"permissive-allow", from(`{namespaces: [shop]}`), []string{"note permissive p -1 | also takes plaintext"}},
		{"disabled-allow", strings.Replace(strict, "STRICT", "DISABLE", 1) + from(`{namespaces: [shop]}`), []string{"warning identity-not-seen p 0 | is not recognised there"}},
		{"permissive-deny", authzPolicy("p", `{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}`), []string{"warning plaintext-evades p 0 | can come without an identity"}},
		{"permissive-deny-under-allow", authzPolicy("p", `{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}`) + authzPolicy("q", `{rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			[]string{"note permissive q -1"}},
		{"strict-deny", strict + authzPolicy("p", `{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}`), nil},
		{"peer-selects-nothing", "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}", []string{"warning selects-nothing p -1"}},
		{"peer-ports-without-selector", "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {portLevelMtls: {8080: {mode: DISABLE}}}", []string{"error invalid p -1 | needs a selector"}},
		{"peer-twice", strict + strings.Replace(strict, "default", "other", 1), []string{"warning overruled other -1 | shop/default"}},
		{"peer-invalid", "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: LOOSE}}", []string{"error invalid p -1 | STRICT is enforced instead"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found := build(t, tt.objects).Lint()
			for i := range max(len(found), len(tt.want)) {
				if i >= len(found) {
					t.Errorf("not found: %s", tt.want[i])
					continue
				}
				f := found[i]
				got := fmt.Sprintf("%s %s %s %d", f.Severity, f.Check, f.Name, f.Rule)
				if i >= len(tt.want) {
					t.Errorf("too much: %s | %s", got, f.Text)
					continue
				}
				head, text, _ := strings.Cut(tt.want[i], " | ")
				if got != strings.TrimSuffix(head, " |") || !strings.Contains(f.Text, text) || f.Remedy == "" {
					t.Errorf("found %s | %s (%s)\nwant %s", got, f.Text, f.Remedy, tt.want[i])
				}
			}
		})
	}
}

func TestSpiffePrefix(t *testing.T) {
	found := build(t, strict+authzPolicy("p", `{rules: [{from: [{source: {principals: ["spiffe://cluster.local/ns/shop/sa/web"]}}]}]}`)).Lint()
	if len(found) != 1 || found[0].Check != "spiffe-prefix" {
		t.Errorf("found %+v", found)
	}
}

// Aliases of the trust domain are not strange.
func TestLintKnowsAliases(t *testing.T) {
	w, err := New(parse(t, town+strict+authzPolicy("p", `{rules: [{from: [{source: {principals: [old.example/ns/shop/sa/wbe]}}]}]}`)), "shop", Settings{TrustDomainAliases: []string{"old.example"}})
	if err != nil {
		t.Fatal(err)
	}
	found := w.Lint()
	if len(found) != 1 || found[0].Check != "unknown-account" {
		t.Errorf("found %+v", found)
	}
}

// Files of policies alone say nothing of what there is.
func TestLintOfPoliciesAlone(t *testing.T) {
	w, err := New(parse(t, authzPolicy("p", `{selector: {matchLabels: {app: x}}, rules: [{from: [{source: {namespaces: [a], serviceAccounts: [b/c]}}]}]}`)), "shop", Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if found := w.Lint(); Failed(found) && found[0].Check != "never-matches" && found[0].Check != "matches-nothing" {
		t.Errorf("found %+v", found)
	}
}

func BenchmarkLint(b *testing.B) {
	var text strings.Builder
	for i := range 200 {
		var rules []string
		for j := range 10 {
			rules = append(rules, fmt.Sprintf("{from: [{source: {principals: [cluster.local/ns/shop/sa/a%d]}}], to: [{operation: {ports: ['%d']}}]}", i, 1000+j))
		}
		text.WriteString(authzPolicy(fmt.Sprint("p", i), "{rules: ["+strings.Join(rules, ", ")+"]}"))
	}
	w := build(b, text.String())
	for b.Loop() {
		w.Lint()
	}
}
