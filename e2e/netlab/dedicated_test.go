package netlab_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect"
)

// captureByHand makes the rules of a pod as somebody other than its agent would.
func (m *mesh) captureByHand(p *netlab.Pod) *redirect.Capture {
	m.t.Helper()
	c, err := redirect.New(p.NS(), redirect.Options{DNS: true})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := c.Apply(); err != nil {
		m.t.Fatal(err)
	}
	return c
}

// Reference 10.4: server_uncaptured_dedicated, client_uncaptured_dedicated, cross_node_captured_dedicated, and dedicated
// agents together with one of a node. The client's agent makes its own rules, the remote pod's finds them made.
func TestDedicated(t *testing.T) {
	m := build(t)
	m.client.SetCaptured(false)
	m.remote.SetCaptured(false)
	m.captureByHand(m.remote)
	own, other := m.dedicated(m.client, "--capture"), m.dedicated(m.remote)
	m.a = m.agent(nodeA) // serves the pod "local" alone
	for _, tt := range []struct {
		name     string
		from, to *netlab.Pod
		src, dst *netlab.Agent // nil for one that is not in the mesh
		six      bool
	}{
		{"server_uncaptured", m.client, m.plain, own, nil, false},
		{"client_uncaptured", m.stranger, m.remote, nil, other, false},
		{"cross_node_captured", m.client, m.remote, own, other, false},
		{"cross_node_captured_IPv6", m.client, m.remote, own, other, true},
		{"to_agent_of_a_node", m.client, m.local, own, m.a, false},
		{"from_agent_of_a_node", m.local, m.remote, m.a, other, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to, source := at(tt.to), tt.from.Addr()
			if tt.six {
				to, source = at6(tt.to), tt.from.Addr6()
			}
			if words := m.mustCall(tt.from, to, tt.to.Name()); words[1] != source.String() {
				t.Errorf("the server sees %s, want %s", words[1], source)
			}
			fields := netlab.Record{"src.workload": tt.from.Name(), "dst.workload": tt.to.Name()}
			if tt.src != nil && tt.dst != nil {
				fields["src.identity"], fields["dst.identity"], fields["dst.hbone_addr"] = spiffe(tt.from.Name()), spiffe(tt.to.Name()), to
			} else {
				fields["src.identity"], fields["dst.identity"] = "", ""
			}
			for direction, a := range map[string]*netlab.Agent{"outbound": tt.src, "inbound": tt.dst} {
				if a == nil {
					continue
				}
				fields["direction"] = direction
				m.record(a, fields)
				reporter := map[string]string{"outbound": "source", "inbound": "destination"}[direction]
				m.wantMetric(a, "istio_tcp_connections_closed_total", 1, `reporter="`+reporter+`"`, `source_workload="`+tt.from.Name()+`"`, `destination_workload="`+tt.to.Name()+`"`)
			}
		})
	}
}

// Without its agent a pod is refused when the rules stay, and plain when they go.
func TestDedicatedEnds(t *testing.T) {
	m := build(t)
	first := m.dedicated(m.client, "--capture")
	other := m.dedicated(m.remote, "--capture")
	m.mustCall(m.client, at(m.remote), "remote")
	for _, a := range []*netlab.Agent{first, other} {
		if err := a.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	m.refused(m.client, at(m.plain))
	second := m.dedicated(m.client, "--capture", "--remove-rules-on-exit")
	m.mustCall(m.client, at(m.plain), "plain")
	if err := second.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	m.mustCall(m.client, at(m.plain), "plain")
	m.wantNoRules(m.client)
	m.refused(m.client, at(m.remote)) // still guarded by its own rules
}

// A dedicated agent that cannot serve its one workload ends with the reason and captures nothing.
func TestDedicatedPortTaken(t *testing.T) {
	m := build(t)
	m.apply()
	m.serve(m.client, 15006)
	cmd := exec.Command(agentBinary, "--mode=dedicated", "--capture", "--workload=default/client/client", "--workloads="+m.StatePath(), "--ca-cert="+m.CACert(), "--ca-key="+m.CAKey())
	_, err := m.client.Output(cmd)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "port 15006 is taken in the pod") {
		t.Errorf("the agent ended with %v", err)
	}
	m.mustCall(m.client, at(m.plain), "plain")
	m.mustCall(m.plain, at(m.client), "client")
}
