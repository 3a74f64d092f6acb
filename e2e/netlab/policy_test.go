package netlab_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// match is one match of a rule in the workload file.
type match = map[string]any

func exactly(values ...string) []any {
	var out []any
	for _, v := range values {
		out = append(out, map[string]any{"Exact": v})
	}
	return out
}

// policyOf is a policy of one rule with one match.
func policyOf(name, action string, m match) *netlab.Policy {
	return &netlab.Policy{Name: name, Namespace: ns, Scope: "Namespace", Action: action, Rules: [][][]map[string]any{{{m}}}}
}

func principal(name string) string { return "cluster.local/ns/" + ns + "/sa/" + name }

// held are long connections, by name. Those of a change that are not named have to live on.
type held struct {
	*mesh
	ends  map[string][2]*netlab.Pod
	ports map[string]uint16
	live  map[string]*session
}

// holdAll keeps connections in all ways to a pod: in a tunnel between nodes and inside one, without one inside one where
// that was chosen, and in plaintext from outside the mesh.
func (m *mesh) holdAll() *held {
	m.serve(m.remote, 8081)
	m.serve(m.local, 8081)
	h := &held{mesh: m, ends: map[string][2]*netlab.Pod{
		"client-remote": {m.client, m.remote}, "client-remote-8081": {m.client, m.remote}, "local-remote": {m.local, m.remote},
		"client-local": {m.client, m.local}, "client-local-8081": {m.client, m.local},
		"stranger-remote": {m.stranger, m.remote}, "stranger-local-8081": {m.stranger, m.local},
	}, ports: map[string]uint16{}, live: map[string]*session{}}
	for name := range h.ends {
		h.ports[name] = 8080
		if strings.HasSuffix(name, "-8081") {
			h.ports[name] = 8081
		}
	}
	return h
}

func (h *held) to(name string) netip.AddrPort { return onPort(h.ends[name][1], h.ports[name]) }

// restore makes the connections that there are not, as soon as policy allows them.
func (h *held) restore() {
	h.t.Helper()
	for name, ends := range h.ends {
		if h.live[name] != nil {
			continue
		}
		h.eventually(name+" is allowed", func() bool {
			s, err := h.dial(ends[0], h.to(name))
			if err != nil {
				return false
			}
			if _, err := s.ask("held"); err != nil {
				return false
			}
			h.live[name] = s
			return true
		})
	}
}

// change applies the state and wants the named connections cut, the others alive, and new ones refused or not likewise.
func (h *held) change(ends []string) (took time.Duration) {
	h.t.Helper()
	begin := time.Now()
	h.apply()
	for _, name := range ends {
		h.wantReset(h.live[name])
		delete(h.live, name)
	}
	took = time.Since(begin)
	for _, name := range ends {
		h.refused(h.ends[name][0], h.to(name))
	}
	for name, s := range h.live {
		h.alive(s, name)
		h.mustCall(h.ends[name][0], h.to(name), h.ends[name][1].Name())
	}
	return took
}

// A change of policy ends exactly the connections that it concerns, whichever way they take, and within a second of the
// agent's reading it.
func TestPolicyEndsLiveConnections(t *testing.T) {
	for _, way := range []string{"encrypt", "short"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			testPolicyEndsLiveConnections(t, newMesh(t, withFlags("--same-node="+way)))
		})
	}
}

func testPolicyEndsLiveConnections(t *testing.T, m *mesh) {
	h := m.holdAll()
	var all, plain, on8081 []string
	for name := range h.ends {
		all = append(all, name)
		if h.ports[name] == 8081 {
			on8081 = append(on8081, name)
		}
		if h.ends[name][0] == m.stranger {
			plain = append(plain, name)
		}
	}
	except := func(names []string, not ...string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(not, n) })
	}
	ofClient := []string{"client-remote", "client-remote-8081", "client-local", "client-local-8081"}
	address := m.client.Addr().String()
	mapped := netip.AddrFrom16(m.client.Addr().As16()).String()
	for _, tt := range []struct {
		name string
		p    *netlab.Policy
		ends []string
	}{
		{"deny-principal", policyOf("p", "Deny", match{"principals": exactly(principal("client"))}), ofClient},
		{"deny-not-principal", policyOf("p", "Deny", match{"notPrincipals": exactly(principal("client"))}), except(all, ofClient...)},
		{"deny-namespace-and-port", policyOf("p", "Deny", match{"namespaces": exactly(ns), "destinationPorts": []any{8081}}), except(on8081, plain...)},
		{"deny-not-namespace", policyOf("p", "Deny", match{"notNamespaces": exactly(ns)}), plain},
		{"deny-not-port", policyOf("p", "Deny", match{"notDestinationPorts": []any{8080}}), on8081},
		{"deny-block", policyOf("p", "Deny", match{"sourceIps": []any{address + "/32"}, "notDestinationPorts": []any{8081}}), except(ofClient, on8081...)},
		{"deny-mapped-block", policyOf("p", "Deny", match{"sourceIps": []any{mapped + "/128"}}), ofClient},
		{"allow-principal-not-port", policyOf("p", "Allow", match{"principals": exactly(principal("client")), "notDestinationPorts": []any{8081}}), except(all, "client-remote", "client-local")},
		{"allow-not-block", policyOf("p", "Allow", match{"notSourceIps": []any{address + "/32"}}), ofClient},
		{"allow-proven", policyOf("p", "Allow", match{"principals": []any{match{"Presence": []any{}}}}), plain},
		{"allow-nothing", &netlab.Policy{Name: "p", Namespace: ns, Scope: "Global", Action: "Allow", Rules: [][][]map[string]any{}}, all},
	} {
		h.restore()
		m.State.Policies = []*netlab.Policy{tt.p}
		if took := h.change(tt.ends); took > 2*time.Second {
			t.Errorf("%s: the connections ended after %s", tt.name, took)
		}
		m.State.Policies = nil
		m.apply()
	}
	m.record(m.b, netlab.Record{
		"direction": "inbound", "src.workload": "client", "error": "connection closed due to policy change", "level": "ERROR",
	})
	m.record(m.b, netlab.Record{
		"direction": "inbound", "src.workload": "client", "error": "connection closed due to policy rejection: explicitly denied by: " + ns + "/p",
	})

	// Dry runs and audits decide nothing; they are counted and written down.
	h.restore()
	dry := policyOf("would", "Deny", match{"principals": exactly(principal("client"))})
	dry.DryRun = true
	m.State.Policies = []*netlab.Policy{dry, policyOf("noted", "Audit", match{"destinationPorts": []any{8081}})}
	h.change(nil)
	m.eventually("dry run is counted", func() bool {
		m.mustCall(m.client, onPort(m.remote, 8081), "remote")
		n, err := m.b.Metric("culvert_policy_matches_total", `policy="`+ns+`/would"`, `effect="dry_run_deny"`)
		return err == nil && n > 0
	})
	m.wantMetric(m.b, "culvert_policy_matches_total", 1, `policy="`+ns+`/noted"`, `effect="audit"`)
	m.record(m.b, netlab.Record{
		"direction": "inbound", "src.workload": "client", "policy.dry_run": "deny " + ns + "/would", "policy.audit": ns + "/noted", "level": "INFO",
	})
}

// STRICT ends plaintext that is established, and only where it was asked for: the policy that stands for it governs the
// workloads that name it.
func TestStrictEndsPlaintext(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	h := m.holdAll()
	h.restore()
	strict := policyOf("strict", "Deny", match{"notPrincipals": []any{match{"Presence": []any{}}}})
	strict.Scope = "WorkloadSelector"
	m.State.Policies = []*netlab.Policy{strict}
	h.change(nil) // nobody names it
	for _, w := range m.State.Workloads {
		if w.Name == "remote" {
			w.AuthorizationPolicies = []string{ns + "/strict"}
		}
	}
	h.change([]string{"stranger-remote"})
	m.record(m.b, netlab.Record{"direction": "inbound", "src.identity": "", "error": "connection closed due to policy change"})
	// Back, and with an exempt port as PERMISSIVE of a port becomes it.
	strict.Rules[0] = append(strict.Rules[0], []map[string]any{{"notDestinationPorts": []any{8080}}})
	m.apply()
	h.restore()
}
