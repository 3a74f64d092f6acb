package authz

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func seen(principal, workload string, port uint16) Flow {
	ns, name, _ := strings.Cut(workload, "/")
	return Flow{Source: FlowSource{Principal: principal}, Destination: FlowDestination{Namespace: ns, Workload: name}, Port: port, Count: 1}
}

const (
	webID    = "cluster.local/ns/shop/sa/web"
	tellerID = "cluster.local/ns/bank/sa/teller"
)

func TestSuggest(t *testing.T) {
	plain := Flow{Source: FlowSource{Namespace: "legacy", Workload: "old", Address: "10.0.0.2"}, Destination: FlowDestination{Namespace: "shop", Workload: "cart"}, Port: 8080}
	service := Flow{Source: FlowSource{Principal: webID}, Destination: FlowDestination{Namespace: "shop", Workload: "cart", ServiceNamespace: "shop", Service: "cart"}}
	portless := Flow{Source: FlowSource{Principal: webID}, Destination: FlowDestination{Namespace: "shop", Workload: "cart"}}
	cartPolicy := func(rules string) string {
		return "shop/allow-seen-cart {app: cart}: " + rules
	}
	for _, tt := range []struct {
		name, objects string
		flows         []Flow
		policies      []string
		kept          int
		refused, open []string
		governed      []string
	}{
		{name: "nothing"},
		{name: "one", flows: []Flow{seen(webID, "shop/cart", 8080)}, policies: []string{cartPolicy(webID + " to 8080")}, kept: 1},
		{
			name: "same-ports-share-a-rule", flows: []Flow{seen(webID, "shop/cart", 8080), seen(tellerID, "shop/cart", 8080)},
			policies: []string{cartPolicy(tellerID + "," + webID + " to 8080")}, kept: 2,
		},
		{
			name: "other-ports-do-not", flows: []Flow{seen(webID, "shop/cart", 8080), seen(tellerID, "shop/cart", 8080), seen(tellerID, "shop/cart", 9090)},
			policies: []string{cartPolicy(webID + " to 8080; " + tellerID + " to 8080,9090")}, kept: 3,
		},
		{
			name: "two-applications", flows: []Flow{seen(webID, "shop/cart", 8080), seen(webID, "bank/teller-0", 1)},
			policies: []string{"bank/allow-seen-teller {app: teller}: " + webID + " to 1", cartPolicy(webID + " to 8080")}, kept: 2,
		},
		{name: "ports-of-the-service", flows: []Flow{service}, policies: []string{cartPolicy(webID + " to 8080")}, kept: 1},
		{name: "no-ports-known", flows: []Flow{portless}, policies: []string{cartPolicy(webID + " to all")}, kept: 1},
		{
			name: "plaintext-is-refused", flows: []Flow{seen(webID, "shop/cart", 8080), plain}, policies: []string{cartPolicy(webID + " to 8080")}, kept: 1,
			refused: []string{"legacy/old (plaintext) -> shop/cart port 8080: it comes in plaintext"},
		},
		{name: "plaintext-alone", flows: []Flow{plain}, kept: 1, open: []string{"shop/cart: only plaintext"}},
		{name: "gone", flows: []Flow{seen(webID, "shop/gone", 1)}, open: []string{"shop/gone: there are no such pods"}},
		{name: "outside", flows: []Flow{seen(webID, "legacy/old", 1)}, open: []string{"legacy/old: it is not in the mesh"}},
		{name: "governed", objects: authzPolicy("p", fromWeb), flows: []Flow{seen(webID, "shop/cart", 8080)}, kept: 1, governed: []string{"shop/cart"}},
		{
			name: "governed-but-not-all", objects: authzPolicy("p", fromWeb), flows: []Flow{seen(webID, "shop/cart", 8080), seen(webID, "shop/cart", 9090)},
			policies: []string{cartPolicy(webID + " to 9090")}, kept: 2,
		},
		{
			name: "denied", objects: authzPolicy("d", `{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}`), flows: []Flow{seen(webID, "shop/cart", 8080)},
			policies: []string{cartPolicy(webID + " to 8080")}, refused: []string{webID + " -> shop/cart port 8080: a rule of this DENY policy matches (AuthorizationPolicy shop/d)"},
		},
		{
			name: "name-is-taken", objects: authzPolicy("allow-seen-cart", "{selector: {matchLabels: {app: x}}}"), flows: []Flow{seen(webID, "shop/cart", 8080)},
			policies: []string{"shop/allow-seen-cart-2 {app: cart}: " + webID + " to 8080"}, kept: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := build(t, tt.objects).Suggest(tt.flows)
			if err != nil {
				t.Fatal(err)
			}
			var policies []string
			for _, p := range s.Policies {
				policies = append(policies, short(t, p.Object))
			}
			if !slices.Equal(policies, tt.policies) {
				t.Errorf("policies\n%s\nwant\n%s", strings.Join(policies, "\n"), strings.Join(tt.policies, "\n"))
			}
			if s.Kept != tt.kept || !prefixes(s.Refused, tt.refused) || !prefixes(s.Open, tt.open) || !slices.Equal(s.Governed, tt.governed) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func prefixes(got []Uncovered, want []string) bool {
	return slices.EqualFunc(got, want, func(u Uncovered, text string) bool { return strings.HasPrefix(u.What+": "+u.Why, text) })
}

// short writes a policy in one line.
func short(t *testing.T, object map[string]any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Metadata struct{ Namespace, Name string }
		Spec     struct {
			Action   string
			Selector struct{ MatchLabels map[string]string }
			Rules    []struct {
				From []struct {
					Source struct{ Principals []string }
				}
				To []struct{ Operation struct{ Ports []string } }
			}
		}
	}
	if err := yaml.UnmarshalStrict(text, &p); err != nil && !strings.Contains(err.Error(), "apiVersion") {
		t.Fatal(err)
	}
	var rules []string
	for _, r := range p.Spec.Rules {
		ports := "all"
		if len(r.To) > 0 {
			ports = strings.Join(r.To[0].Operation.Ports, ",")
		}
		rules = append(rules, strings.Join(r.From[0].Source.Principals, ",")+" to "+ports)
	}
	return fmt.Sprintf("%s/%s {%s}: %s", p.Metadata.Namespace, p.Metadata.Name, strings.ReplaceAll(labelsText(p.Spec.Selector.MatchLabels), "=", ": "), strings.Join(rules, "; "))
}

// A pod that calls itself by better labels than those of a group does not belong to it, and gets no more than was seen.
func TestSelectorsDoNotOverlap(t *testing.T) {
	deployment := func(name, labels string) string {
		return "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + name + ", namespace: bank}\nspec: {template: {metadata: {labels: " + labels + "}, spec: {containers: [{name: c}]}}}\n"
	}
	w := build(t, deployment("a", "{app: x, part: a}")+deployment("b", "{app: x, app.kubernetes.io/name: b}")+deployment("c", "{other: c}")+deployment("bare", "{}"))
	s, err := w.Suggest([]Flow{seen(webID, "bank/a", 1), seen(webID, "bank/b", 2), seen(webID, "bank/c", 3), seen(webID, "bank/bare", 4)})
	if err != nil {
		t.Fatal(err)
	}
	var policies []string
	for _, p := range s.Policies {
		policies = append(policies, short(t, p.Object))
	}
	want := []string{
		"bank/allow-seen-b {app.kubernetes.io/name: b}: " + webID + " to 2", "bank/allow-seen-c {other: c}: " + webID + " to 3",
		"bank/allow-seen-x {app: x,part: a}: " + webID + " to 1",
	}
	if !slices.Equal(policies, want) || !prefixes(s.Open, []string{"bank/bare: it has no labels"}) {
		t.Errorf("policies\n%s\nwant\n%s\nopen %v", strings.Join(policies, "\n"), strings.Join(want, "\n"), s.Open)
	}
}

// Ten thousand ports of one source are one rule, and more ports than a line shows keep sources apart.
func TestSuggestManyPorts(t *testing.T) {
	var flows []Flow
	for port := range uint16(20) {
		flows = append(flows, seen(webID, "shop/cart", 1000+port), seen(tellerID, "shop/cart", 1000+port))
	}
	flows = append(flows, seen(tellerID, "shop/cart", 5000))
	s, err := build(t, "").Suggest(flows)
	if err != nil || len(s.Policies) != 1 || s.Kept != len(flows) || len(s.Refused) != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	if text := short(t, s.Policies[0].Object); strings.Count(text, ";") != 1 || !strings.HasSuffix(text, "1019,5000") {
		t.Errorf("got %s", text)
	}
}

func TestFlowsMerge(t *testing.T) {
	early, late := time.Unix(100, 0), time.Unix(200, 0)
	a, b := seen(webID, "shop/cart", 1), seen(webID, "shop/cart", 1)
	a.Count, a.LastSeen, a.Source.Address = 2, early, "10.0.0.1"
	b.Count, b.LastSeen, b.Source.Address = 3, late, "10.0.0.2"
	stranger, other := Flow{Source: FlowSource{Address: "1.1.1.1"}}, Flow{Source: FlowSource{Address: "2.2.2.2"}}
	f := MergeFlows(&Flows{Since: early, Flows: []Flow{a, stranger}, Dropped: 1}, &Flows{Since: late, Flows: []Flow{b, other}, Dropped: 2, Missing: []string{"n2"}})
	if len(f.Flows) != 3 || f.Dropped != 3 || !f.Since.Equal(late) || len(f.Missing) != 1 {
		t.Fatalf("got %+v", f)
	}
	if got := f.Flows[2]; got.Count != 5 || got.Source.Address != "10.0.0.2" || !got.LastSeen.Equal(late) {
		t.Errorf("got %+v", got)
	}
}

func FuzzParseFlows(f *testing.F) {
	f.Add([]byte(`{"flows":[{"source":{"principal":"td/ns/a/sa/b"},"destination":{"namespace":"n","workload":"w"},"port":1,"count":1}]}`))
	f.Add([]byte(`{"flows":[{"source":{"address":"1.2.3.4"},"destination":{"namespace":"n","workload":"w"}}],"since":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"flows":[{"source":{"principal":"spiffe://x"}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		flows, err := ParseFlows(text)
		if err != nil {
			return
		}
		w, err := New(parse(t, town), "shop", Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if len(flows.Flows) > 20 {
			return
		}
		for i := range flows.Flows {
			flows.Flows[i].Destination = FlowDestination{Namespace: "shop", Workload: "cart"}
		}
		s, err := w.Suggest(flows.Flows)
		if err != nil {
			t.Fatal(err)
		}
		if s.Kept+len(s.Refused) != len(flows.Flows) {
			t.Errorf("%d kept, %d refused of %d", s.Kept, len(s.Refused), len(flows.Flows))
		}
		for _, u := range s.Refused {
			if !strings.Contains(u.What, "plaintext") {
				t.Errorf("refused: %+v", u)
			}
		}
	})
}
