package kube

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// reading decides by AuthorizationPolicies as they are written, slowly and
// without any of the code under test: the words of the specification, and for
// what agents cannot judge those of DESIGN.md.
type reading struct {
	t       testing.TB
	root    string
	bundle  []string // the trust domain and its aliases
	lenient bool
}

// facts are those of one connection.
type connectionFacts struct {
	principal, trustDomain, namespace, account string // empty for plaintext
	source, destination                        netip.Addr
	port                                       string
}

func (f *connectionFacts) plain() bool { return f.principal == "" }

// meaning of a field of a source, operation or condition.
type meaning int

const (
	absent  meaning = iota
	no              // nothing that is listed holds, or the list is empty
	yes             //
	unknown         // nobody at layer 4 can say
)

func (r *reading) allowed(policies []*unstructured.Unstructured, namespace string, labels map[string]string, f *connectionFacts) bool {
	anyAllow, allow, deny := false, false, false
	for _, u := range policies {
		spec, _ := u.Object["spec"].(map[string]any)
		if !r.governs(u, spec, namespace, labels) || u.GetAnnotations()["istio.io/dry-run"] == "true" {
			continue
		}
		action, _ := spec["action"].(string)
		switch {
		case action == "AUDIT":
		case r.nonsense(spec):
			deny = true
		case action == "DENY" || action == "CUSTOM":
			deny = deny || r.matches(u, spec, action, f)
		default:
			anyAllow = true
			allow = allow || r.matches(u, spec, "ALLOW", f)
		}
	}
	return !deny && (allow || !anyAllow)
}

func (r *reading) governs(u *unstructured.Unstructured, spec map[string]any, namespace string, labels map[string]string) bool {
	if u.GetNamespace() != namespace && u.GetNamespace() != r.root {
		return false
	}
	want, _, _ := unstructured.NestedStringMap(spec, "selector", "matchLabels")
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// nonsense: the generator marks what it made unreadable.
func (r *reading) nonsense(spec map[string]any) bool {
	b, err := json.Marshal(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Contains(string(b), "nonsense")
}

func (r *reading) matches(u *unstructured.Unstructured, spec map[string]any, action string, f *connectionFacts) bool {
	rules, _ := spec["rules"].([]any)
	return slices.ContainsFunc(rules, func(rule any) bool { return r.rule(rule.(map[string]any), u.GetNamespace(), action, f) })
}

func (r *reading) rule(rule map[string]any, own, action string, f *connectionFacts) bool {
	sawUnknown := false
	judge := func(list, part string, look func(item map[string]any) []meaning) []bool {
		items, _ := rule[list].([]any)
		var out []bool
		for _, item := range items {
			m := item.(map[string]any)
			if part != "" {
				m, _ = m[part].(map[string]any)
			}
			result, known, present := true, false, false
			for _, meaning := range look(m) {
				switch meaning {
				case absent:
				case unknown:
					present, sawUnknown = true, true
				default:
					present, known = true, true
					result = result && meaning == yes
				}
			}
			switch {
			case !present:
				result = action != "ALLOW"
			case !known:
				result = true
			}
			if !known && action == "DENY" && r.lenient {
				result = false
			}
			out = append(out, result)
		}
		return out
	}
	from := judge("from", "source", func(m map[string]any) []meaning { return r.source(m, own, action, f) })
	to := judge("to", "operation", func(m map[string]any) []meaning { return r.operation(m, action, f) })
	when := judge("when", "", func(m map[string]any) []meaning { return r.condition(m, own, action, f) })
	for _, list := range []string{"from", "to"} {
		if items, there := rule[list].([]any); there && len(items) == 0 && action == "ALLOW" {
			return false
		}
	}
	if sawUnknown && action == "ALLOW" {
		return false
	}
	return (len(from) == 0 || slices.Contains(from, true)) && (len(to) == 0 || slices.Contains(to, true)) && !slices.Contains(when, false)
}

// field says what a list means; of a negated one none may hold.
func field(m map[string]any, name, action string, not bool, holds func(string) bool) meaning {
	list, there := m[name].([]any)
	switch {
	case !there, len(list) == 0 && (not || action != "ALLOW"):
		return absent
	}
	for _, v := range list {
		if holds(v.(string)) {
			if not {
				return no
			}
			return yes
		}
	}
	if not {
		return yes
	}
	return no
}

func layer7(m map[string]any, action string, names ...string) (out []meaning) {
	for _, name := range names {
		list, there := m[name].([]any)
		switch {
		case !there:
		case len(list) > 0:
			out = append(out, unknown)
		case !strings.HasPrefix(name, "not") && action == "ALLOW":
			out = append(out, no)
		}
	}
	return out
}

func (r *reading) source(m map[string]any, own, action string, f *connectionFacts) []meaning {
	out := layer7(m, action, "requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
	for _, not := range []bool{false, true} {
		get := func(name string, holds func(string) bool) {
			if not {
				name = "not" + strings.ToUpper(name[:1]) + name[1:]
			}
			out = append(out, field(m, name, action, not, holds))
		}
		get("principals", func(v string) bool { return r.isPrincipal(v, f) })
		get("trustDomains", func(v string) bool { return r.isTrustDomain(v, f) })
		get("namespaces", func(v string) bool { return pattern(v, f.namespace) })
		get("serviceAccounts", func(v string) bool { return isAccount(v, own, f) })
		get("ipBlocks", func(v string) bool { return inBlock(v, f.source) })
	}
	return out
}

func (r *reading) operation(m map[string]any, action string, f *connectionFacts) []meaning {
	out := layer7(m, action, "hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
	isPort := func(v string) bool { return v == f.port }
	return append(out, field(m, "ports", action, false, isPort), field(m, "notPorts", action, true, isPort))
}

func (r *reading) condition(m map[string]any, own, action string, f *connectionFacts) []meaning {
	holds := map[string]func(string) bool{
		"source.ip":             func(v string) bool { return inBlock(v, f.source) },
		"source.namespace":      func(v string) bool { return pattern(v, f.namespace) },
		"source.serviceAccount": func(v string) bool { return isAccount(v, own, f) },
		"source.trustDomain":    func(v string) bool { return r.isTrustDomain(v, f) },
		"source.principal":      func(v string) bool { return r.isPrincipal(v, f) },
		"destination.ip":        func(v string) bool { return inBlock(v, f.destination) },
		"destination.port":      func(v string) bool { return v == f.port },
	}[m["key"].(string)]
	if holds == nil {
		return []meaning{unknown}
	}
	return []meaning{field(m, "values", action, false, holds), field(m, "notValues", action, true, holds)}
}

// pattern compares as the specification of StringMatch does.
func pattern(p, text string) bool {
	switch {
	case p == "*":
		return text != ""
	case strings.HasPrefix(p, "*"):
		return strings.HasSuffix(text, p[1:])
	case strings.HasSuffix(p, "*"):
		return strings.HasPrefix(text, strings.TrimSuffix(p, "*"))
	}
	return p == text
}

// isPrincipal: with the trust domain in any of its names, a principal is the
// same.
func (r *reading) isPrincipal(p string, f *connectionFacts) bool {
	if f.plain() {
		return false
	}
	p = strings.TrimPrefix(p, "spiffe://")
	domain, rest, ok := strings.Cut(p, "/")
	switch {
	case !ok || domain == "*":
	case slices.Contains(r.bundle, domain), domain == "cluster.local":
		return slices.ContainsFunc(r.bundle, func(d string) bool { return pattern(d+"/"+rest, f.principal) })
	case strings.HasPrefix(domain, "*") && slices.ContainsFunc(r.bundle, func(d string) bool { return pattern(domain, d) }):
		return pattern(p, f.principal) || slices.ContainsFunc(r.bundle, func(d string) bool { return d+"/"+rest == f.principal })
	}
	return pattern(p, f.principal)
}

func (r *reading) isTrustDomain(p string, f *connectionFacts) bool {
	if f.plain() {
		return false
	}
	if slices.Contains(r.bundle, p) {
		return slices.Contains(r.bundle, f.trustDomain)
	}
	return pattern(p, f.trustDomain)
}

func isAccount(v, own string, f *connectionFacts) bool {
	if !strings.Contains(v, "/") {
		v = own + "/" + v
	}
	return !f.plain() && v == f.namespace+"/"+f.account
}

func inBlock(v string, a netip.Addr) bool {
	v4 := func(a netip.Addr) bool { return a.Unmap().Is4() }
	if !strings.Contains(v, "/") {
		return netip.MustParseAddr(v).Unmap() == a
	}
	p := netip.MustParsePrefix(v)
	if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return v4(p.Addr()) == v4(a) && p.Masked().Contains(a)
}

// generator makes random policies of few words, so that they meet.
type generator struct{ *rand.Rand }

func (g generator) of(words ...string) string { return words[g.IntN(len(words))] }

// some are a few of the words, seldom none.
func (g generator) some(words ...string) []any {
	out := []any{}
	for range []int{1, 1, 1, 2, 2, 3, 0}[g.IntN(7)] {
		out = append(out, g.of(words...))
	}
	return out
}

// values are some that are understood, very seldom not.
func (g generator) values(words ...string) []any {
	out := g.some(words...)
	if g.IntN(200) == 0 {
		out = append(out, "*nonsense*")
	}
	return out
}

func (g generator) principals() []any {
	return g.values("*", "td/ns/a/sa/x", "alias/ns/a/sa/x", "old-td/ns/b/sa/y", "cluster.local/ns/a/sa/x", "other/ns/a/sa/x", "*/ns/a/sa/x", "*/sa/y",
		"td/*", "alias/ns/b/*", "other/*", "*-td/ns/a/sa/x", "t*", "spiffe://td/ns/b/sa/y", "td/ns/zzz/sa/x", "*td/ns/b/sa/y")
}

func (g generator) blocks() []any {
	return g.values("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::ffff:10.1.0.0/112", "fd00::/8", "::/0", "0.0.0.0/0", "10.1.2.99/24", "192.0.2.0/24")
}

func (g generator) source() map[string]any {
	m := map[string]any{}
	maybe := func(one int, name string, make func() []any) {
		if g.IntN(one) == 0 {
			m[name] = make()
		}
	}
	not := []string{"", "not"}[g.IntN(4)/3]
	name := func(n string) string {
		if not == "" {
			return n
		}
		return not + strings.ToUpper(n[:1]) + n[1:]
	}
	maybe(5, name("trustDomains"), func() []any { return g.values("td", "alias", "other", "t*", "*") })
	if m["trustDomains"] != nil { // not every pattern of principals can be combined with them
		maybe(2, "principals", func() []any { return g.values("*", "td/ns/a/sa/x", "old-td/*", "other/ns/a/sa/x", "other/ns/*") })
	} else {
		maybe(2, name("principals"), g.principals)
	}
	maybe(3, name("namespaces"), func() []any { return g.values("a", "b", "*", "a*", "*b", "zzz") })
	maybe(6, name("serviceAccounts"), func() []any { return g.values("x", "a/x", "b/y", "ns/x") })
	maybe(3, "ipBlocks", g.blocks)
	maybe(5, "notIpBlocks", g.blocks)
	maybe(5, "notPrincipals", g.principals)
	maybe(12, g.of("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"), func() []any { return g.some("10.0.0.0/8") })
	return m
}

func (g generator) rule() map[string]any {
	m := map[string]any{}
	list := func(one int, name string, item func() any) {
		if g.IntN(one) != 0 {
			return
		}
		items := []any{}
		for range []int{1, 1, 2, 3, 1, 1, 0}[g.IntN(7)] {
			items = append(items, item())
		}
		m[name] = items
	}
	ports := func() []any { return g.values("80", "81", "443", "65535") }
	list(2, "from", func() any { return map[string]any{"source": g.source()} })
	list(2, "to", func() any {
		op := map[string]any{}
		if g.IntN(8) > 0 {
			op[g.of("ports", "ports", "notPorts")] = ports()
		}
		if g.IntN(8) == 0 {
			op[g.of("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")] = g.some("x")
		}
		return map[string]any{"operation": op}
	})
	list(4, "when", func() any {
		words := map[string]func() []any{
			"source.ip": g.blocks, "destination.ip": g.blocks, "source.principal": g.principals, "destination.port": ports,
			"source.namespace":      func() []any { return g.values("a", "b*") },
			"source.serviceAccount": func() []any { return g.values("x", "b/y") },
			"source.trustDomain":    func() []any { return g.values("td", "other") },
			"request.headers[x]":    func() []any { return g.some("1") },
			"connection.sni":        func() []any { return g.some("1") },
		}
		keys := make([]string, 0, len(words))
		for k := range words {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		key := g.of(keys...)
		w := map[string]any{"key": key}
		if g.IntN(3) > 0 {
			w["values"] = words[key]()
		}
		if g.IntN(3) == 0 {
			w["notValues"] = words[key]()
		}
		return w
	})
	return m
}

func (g generator) policy(i int) *unstructured.Unstructured {
	spec := map[string]any{}
	if action := g.of("", "", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM"); action != "" {
		spec["action"] = action
	}
	if g.IntN(2) == 0 {
		spec["selector"] = map[string]any{"matchLabels": map[string]any{"app": g.of("web", "web", "db")}}
	}
	rules := []any{}
	for range []int{1, 1, 2, 3, 0, 1}[g.IntN(6)] {
		rules = append(rules, g.rule())
	}
	spec["rules"] = rules
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "spec": spec}}
	u.SetName(fmt.Sprint("p", i))
	u.SetNamespace(g.of("ns", "ns", "ns", "root", "other"))
	if g.IntN(10) == 0 {
		u.SetAnnotations(map[string]string{"istio.io/dry-run": "true"})
	}
	return u
}

func (g generator) connection(t testing.TB) (policy.Connection, connectionFacts) {
	f := connectionFacts{
		source:      netip.MustParseAddr(g.of("10.1.2.3", "10.1.9.9", "10.200.0.1", "192.0.2.7", "fd00::5", "2001:db8::1")),
		destination: netip.MustParseAddr("10.1.2.3"), port: g.of("80", "81", "443", "8080"),
	}
	c := policy.Connection{SourceIP: f.source, Destination: netip.MustParseAddrPort("10.1.2.3:" + f.port)}
	if g.IntN(6) > 0 {
		f.trustDomain, f.namespace, f.account = g.of("td", "td", "alias", "old-td", "other", "cluster.local"), g.of("a", "b", "ns"), g.of("x", "y")
		f.principal = f.trustDomain + "/ns/" + f.namespace + "/sa/" + f.account
		id, err := identity.Parse("spiffe://" + f.principal)
		if err != nil {
			t.Fatal(err)
		}
		c.Source = id
	}
	return c, f
}

// TestPoliciesMeanWhatIsWritten: what agents decide by translated policies is
// what a direct reading of the resources says.
func TestPoliciesMeanWhatIsWritten(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	seen := map[bool]int{}
	for round := range rounds {
		g := generator{rand.New(rand.NewPCG(7, uint64(round)))}
		r := &reading{t: t, root: "root", bundle: []string{"td", "alias", "old-td"}, lenient: g.IntN(4) == 0}
		w := newWorld(t, func(s *settings) {
			s.trustDomain, s.aliases, s.lenientL7 = "td", []string{"alias", "old-td"}, r.lenient
		})
		w.set(pod("one", []string{"10.1.2.3"}))
		var policies []*unstructured.Unstructured
		for i := range 1 + g.IntN(3) {
			policies = append(policies, g.policy(i))
			w.set(policies[i])
		}
		snap, dst := w.policies.Snapshot(), w.pod("one")
		for range 25 {
			c, f := g.connection(t)
			want := r.allowed(policies, "ns", map[string]string{"app": "web"}, &f)
			got := snap.Evaluate(dst, c)
			seen[want]++
			if got.Allowed != want || len(got.Missing) > 0 {
				b, err := json.MarshalIndent(policies, "", " ")
				if err != nil {
					t.Fatal(err)
				}
				t.Fatalf("round %d, lenient %v: %+v of %+v, want %v\n%s", round, r.lenient, got, c, want, b)
			}
		}
	}
	t.Logf("allowed %d, refused %d", seen[true], seen[false])
	if seen[true] < rounds || seen[false] < rounds {
		t.Error("the policies are too much alike")
	}
}
