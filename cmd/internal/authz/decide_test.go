package authz

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
)

const fromWeb = `{selector: {matchLabels: {app: cart}}, rules: [
  {from: [{source: {namespaces: [bank]}}], to: [{operation: {ports: ["9090"]}}]},
  {from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], to: [{operation: {ports: ["8080"]}}]}]}`

func TestDecide(t *testing.T) {
	const cart = "deployment/cart"
	for _, tt := range []struct {
		name, objects       string
		from, to            string // a reference, a principal or an address
		port                uint16
		allowed             bool
		how, policy, reason string
		rule                int
	}{
		{"nothing-governs", "", "deployment/web", cart, 8080, true, "mTLS", "", "no ALLOW policy governs", -1},
		{"second-rule", authzPolicy("p", fromWeb), "deployment/web", cart, 8080, true, "mTLS", "AuthorizationPolicy shop/p", "ALLOW", 1},
		{"first-rule", authzPolicy("p", fromWeb), "bank/pod/teller-0", cart, 9090, true, "mTLS", "AuthorizationPolicy shop/p", "ALLOW", 0},
		{"no-rule", authzPolicy("p", fromWeb), "bank/pod/teller-0", cart, 8080, false, "mTLS", "", "no rule matches of the ALLOW policies that govern the destination: shop/p", -1},
		{"service-port", authzPolicy("p", fromWeb), "deployment/web", "service/cart", 80, true, "mTLS", "AuthorizationPolicy shop/p", "", 1},
		{"principal", authzPolicy("p", fromWeb), "cluster.local/ns/bank/sa/other", cart, 9090, true, "mTLS", "AuthorizationPolicy shop/p", "", 0},
		{"address", authzPolicy("p", fromWeb), "10.1.1.1", cart, 8080, false, "plaintext", "", "no rule matches", -1},
		{"not-in-the-mesh", authzPolicy("p", fromWeb), "legacy/pod/old", cart, 8080, false, "plaintext", "", "no rule matches", -1},
		{"strict", strict, "legacy/pod/old", cart, 8080, false, "plaintext", "PeerAuthentication shop/default", "STRICT", -1},
		{"strict-with-identity", strict, "deployment/web", cart, 8080, true, "mTLS", "", "", -1},
		{"to-outside", "", "deployment/web", "legacy/pod/old", 80, true, "plaintext", "", "not in the mesh", -1},
		{"deny-first", authzPolicy("p", fromWeb) + authzPolicy("d", `{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}`),
			"deployment/web", cart, 8080, false, "mTLS", "AuthorizationPolicy shop/d", "DENY", 0},
		{"l7-rule-does-not-count", authzPolicy("p", `{rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [shop]}}]}]}`),
			"deployment/web", cart, 8080, true, "mTLS", "AuthorizationPolicy shop/p", "", 1},
		{"invalid", authzPolicy("p", `{rules: [{to: [{operation: {ports: ["http"]}}]}]}`), "deployment/web", cart, 8080, false, "mTLS", "AuthorizationPolicy shop/p", "cannot be understood", -1},
		{"disabled", "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: d}\nspec: {mtls: {mode: DISABLE}}\n" + authzPolicy("p", fromWeb),
			"deployment/web", cart, 8080, false, "plaintext", "", "no rule matches", -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := build(t, tt.objects)
			q := Question{To: mustRef(t, tt.to), Port: tt.port}
			if addr, err := netip.ParseAddr(tt.from); err == nil {
				q.Address = addr
			} else if id, err := identity.Parse("spiffe://" + tt.from); err == nil {
				q.Principal = id
			} else {
				r := mustRef(t, tt.from)
				q.From = &r
			}
			all, err := w.Decide(q)
			if err != nil || len(all) != 1 {
				t.Fatalf("%v, %v", all, err)
			}
			v := all[0]
			if v.Allowed != tt.allowed || v.How != tt.how || v.Policy != tt.policy || v.Rule != tt.rule || !strings.Contains(v.Reason, tt.reason) {
				t.Errorf("got %+v", v)
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	w := build(t, "")
	from := mustRef(t, "deployment/web")
	for _, tt := range []struct {
		name string
		q    Question
		want string
	}{
		{"no-port", Question{From: &from, To: mustRef(t, "deployment/cart")}, "port is missing"},
		{"no-service-port", Question{From: &from, To: mustRef(t, "service/cart"), Port: 8080}, "has no port 8080: it has 80"},
		{"no-destination", Question{From: &from, To: mustRef(t, "pod/x"), Port: 1}, "destination: no pods"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v, err := w.Decide(tt.q); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v", v, err)
			}
		})
	}
}

func TestDryRunAndAuditAreTold(t *testing.T) {
	w := build(t, "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: try, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}\n")
	from := mustRef(t, "deployment/web")
	all, err := w.Decide(Question{From: &from, To: mustRef(t, "deployment/cart"), Port: 8080})
	if err != nil || len(all) != 1 || !all[0].Allowed || fmt.Sprint(all[0].DryRun) != "[would be denied by: shop/try]" {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestReachSummary(t *testing.T) {
	for _, tt := range []struct {
		name, objects string
		who           Who
		allowed       int
		refused       int
		sources       string // FROM=PORTS of those that may reach something
	}{
		{"open", "", Everyone, 0, 0, "bank/teller=all shop/cart=all shop/web=all pods outside of the mesh=all any other identity=all anybody else in plaintext=all"},
		{"strict", strict, Identified, 0, 0, "bank/teller=all shop/cart=all shop/web=all any other identity=all"},
		{"only", authzPolicy("p", fromWeb), Only, 2, 0, "bank/teller=9090 shop/web=8080"},
		{"nothing-allowed", authzPolicy("p", "{}"), Nobody, 0, 0, ""},
		{"only-l7", authzPolicy("p", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`), Nobody, 0, 0, ""},
		{"only-contradictions", authzPolicy("p", `{rules: [{from: [{source: {namespaces: [bank]}}], to: [{operation: {ports: ["1"], notPorts: ["1"]}}]}]}`), Nobody, 0, 0, ""},
		{"all-denied", authzPolicy("p", `{action: DENY, rules: [{}]}`), Nobody, 0, 0, ""},
		{"invalid", authzPolicy("p", `{rules: [{to: [{operation: {ports: ["http"]}}]}]}`), Nobody, 0, 0, ""},
		{"denied-port", authzPolicy("p", `{action: DENY, rules: [{to: [{operation: {ports: ["9090"]}}]}]}`), Everyone, 0, 1,
			"bank/teller=all but 9090 shop/cart=all but 9090 shop/web=all but 9090 pods outside of the mesh=all but 9090 any other identity=all but 9090 anybody else in plaintext=all but 9090"},
		{"allow-denied", authzPolicy("p", fromWeb) + authzPolicy("d", `{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}`), Only, 1, 1, "shop/web=8080"},
		{"of-other-app", authzPolicy("p", `{selector: {matchLabels: {app: web}}}`), Everyone, 0, 0,
			"bank/teller=all shop/cart=all shop/web=all pods outside of the mesh=all any other identity=all anybody else in plaintext=all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := build(t, tt.objects).Reach(mustRef(t, "deployment/cart"))
			if err != nil || len(all) != 1 {
				t.Fatalf("%v, %v", all, err)
			}
			s := all[0].Summary
			if s.Who != tt.who || len(s.Allowed) != tt.allowed || len(s.Refused) != tt.refused {
				t.Errorf("summary %+v", s)
			}
			var sources []string
			for _, one := range all[0].Sources {
				if one.Ports != "none" {
					sources = append(sources, one.Source+"="+one.Ports)
				}
			}
			if got := strings.Join(sources, " "); got != tt.sources {
				t.Errorf("sources\n%s\nwant\n%s", got, tt.sources)
			}
		})
	}
}

// The sentence is true of every port.
func TestReachTellsOfPortModes(t *testing.T) {
	mode := func(all, port string) string {
		return "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: m}\n" +
			"spec: {selector: {matchLabels: {app: cart}}, mtls: {mode: " + all + "}, portLevelMtls: {8080: {mode: " + port + "}}}\n"
	}
	for _, tt := range []struct{ name, objects, want string }{
		{"strict", mode("STRICT", "STRICT"), "everybody with an identity (mTLS)"},
		{"strict-but", mode("STRICT", "PERMISSIVE"), "everybody with an identity (mTLS); to some ports everyone"},
		{"strict-but-named", mode("STRICT", "DISABLE") + authzPolicy("p", fromWeb), "only those that an ALLOW policy names, with mTLS; to some ports also without"},
		{"permissive-but", mode("PERMISSIVE", "STRICT"), "everyone, with mTLS and without; to some ports only with mTLS"},
		{"permissive-but-named", mode("PERMISSIVE", "STRICT") + authzPolicy("p", fromWeb), "only those that an ALLOW policy names; to some ports only with mTLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := build(t, tt.objects).Reach(mustRef(t, "deployment/cart"))
			if err != nil || len(all) != 1 || all[0].Summary.Text != tt.want {
				t.Errorf("%+v, %v\nwant %s", all, err, tt.want)
			}
		})
	}
}

func TestReachOutside(t *testing.T) {
	all, err := build(t, "").Reach(mustRef(t, "legacy/pod/old"))
	if err != nil || len(all) != 1 || all[0].InMesh || all[0].Summary.Who != Everyone || !strings.Contains(all[0].Summary.Text, "not in the mesh") {
		t.Errorf("got %+v, %v", all, err)
	}
}
