package netlab_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Agents tell who came to which port of their pods and was let in, in a tunnel, inside of the node without one, and in
// plaintext; `culvert authz suggest` makes policies of it. Who was refused, and what pods dialled themselves, is not in it.
func TestFlows(t *testing.T) {
	m := build(t, withFlags("--same-node=short"))
	m.State.Policies = []*netlab.Policy{policyOf("not-8081", "Deny", match{"destinationPorts": []any{8081}})}
	m.start()
	m.serve(m.remote, 8081)
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.client, at(m.local), "local")
	m.mustCall(m.stranger, at(m.remote), "remote")
	m.refused(m.client, onPort(m.remote, 8081))
	want := map[*netlab.Agent][]string{
		m.a: {principal("client") + " local 8080 x1"},
		m.b: {principal("client") + " remote 8080 x2", "plaintext remote 8080 x1"},
	}
	for agent, flows := range want {
		m.eventually(fmt.Sprintf("flows are %q", flows), func() bool { return slices.Equal(flowsOf(t, agent), flows) })
	}
}

// flowsOf are those that an agent tells of, sorted.
func flowsOf(t *testing.T, a *netlab.Agent) []string {
	t.Helper()
	_, body, err := a.Get("15000", "/flows")
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Flows []struct {
			Source      struct{ Principal, Workload, Address string }
			Destination struct{ Namespace, Workload string }
			Port, Count int
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	out := map[string]bool{}
	for _, f := range answer.Flows {
		source := f.Source.Principal
		if source == "" {
			source = "plaintext"
		}
		out[fmt.Sprintf("%s %s %d x%d", source, f.Destination.Workload, f.Port, f.Count)] = true
	}
	return slices.Sorted(maps.Keys(out))
}
