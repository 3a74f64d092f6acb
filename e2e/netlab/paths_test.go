package netlab_test

import (
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Reference 10.4: local_captured_inpod, cross_node_captured_inpod.
func TestCapturedToCaptured(t *testing.T) {
	m := newMesh(t)
	for _, tt := range []struct {
		name string
		to   *netlab.Pod
		dst  *netlab.Agent
		six  bool
	}{{"same_node", m.local, m.a, false}, {"other_node", m.remote, m.b, false}, {"other_node_IPv6", m.remote, m.b, true}} {
		t.Run(tt.name, func(t *testing.T) {
			addr, own, hbone := at(tt.to), m.client.Addr(), netip.AddrPortFrom(tt.to.Addr(), 15008)
			if tt.six {
				addr, own, hbone = at6(tt.to), m.client.Addr6(), netip.AddrPortFrom(tt.to.Addr6(), 15008)
			}
			words := m.mustCall(m.client, addr, tt.to.Name())
			if words[1] != own.String() {
				t.Errorf("the server sees %s, want the client's own address %s", words[1], own)
			}
			name := tt.to.Name()
			out := m.record(m.a, netlab.Record{"direction": "outbound", "dst.workload": name, "dst.addr": hbone.String()})
			in := m.record(tt.dst, netlab.Record{"direction": "inbound", "dst.workload": name, "dst.hbone_addr": addr.String()})
			for _, r := range []netlab.Record{out, in} {
				for k, want := range map[string]string{
					"src.workload": "client", "src.namespace": ns, "src.identity": spiffe("client"), "dst.namespace": ns,
					"dst.identity": spiffe(name), "dst.hbone_addr": addr.String(), "level": "INFO", "msg": "connection complete",
				} {
					if r.Str(k) != want {
						t.Errorf("%s line: %s is %q, want %q", r.Str("direction"), k, r.Str(k), want)
					}
				}
			}
			if out.Str("bytes_sent") != "6" || in.Str("bytes_recv") != "6" || out.Str("bytes_recv") != in.Str("bytes_sent") {
				t.Errorf("bytes: outbound %s/%s, inbound %s/%s", out.Str("bytes_sent"), out.Str("bytes_recv"), in.Str("bytes_sent"), in.Str("bytes_recv"))
			}
			m.wantMetric(m.a, "culvert_tunnels", 1, `direction="outbound"`)
			m.wantMetric(tt.dst, "culvert_tunnels", 1, `direction="inbound"`)
			labels := []string{`connection_security_policy="mutual_tls"`, `source_principal="` + spiffe("client") + `"`, `destination_principal="` + spiffe(name) + `"`, `destination_workload="` + name + `"`, `response_flags="-"`}
			for agent, reporter := range map[*netlab.Agent]string{m.a: "source", tt.dst: "destination"} {
				m.wantMetric(agent, "istio_tcp_connections_opened_total", 1, append(labels, `reporter="`+reporter+`"`)...)
				m.wantMetric(agent, "istio_tcp_connections_closed_total", 1, append(labels, `reporter="`+reporter+`"`)...)
				m.wantMetric(agent, "istio_tcp_received_bytes_total", 6, append(labels, `reporter="`+reporter+`"`)...)
			}
		})
	}
}

// wantMetric checks that a sum of samples is at least want: other subtests count too.
func (m *mesh) wantMetric(a *netlab.Agent, name string, want float64, labels ...string) {
	m.t.Helper()
	got := -1.0
	m.eventually(name+" counted", func() bool {
		v, err := a.Metric(name, labels...)
		got = v
		return err == nil && v >= want
	})
	if got < want {
		m.t.Errorf("%s%v is %v, want %v", name, labels, got, want)
	}
}

// server_uncaptured_inpod.
func TestCapturedToPlain(t *testing.T) {
	m := newMesh(t)
	words := m.mustCall(m.client, at(m.plain), "plain")
	if words[1] != m.client.Addr().String() {
		t.Errorf("the server sees %s", words[1])
	}
	r := m.record(m.a, netlab.Record{"direction": "outbound", "dst.addr": at(m.plain).String()})
	if r.Str("src.identity") != "" || r.Str("dst.identity") != "" {
		t.Errorf("identities of a plain connection: %v", r)
	}
	m.wantMetric(m.a, "istio_tcp_connections_closed_total", 1, `connection_security_policy="unknown"`, `reporter="source"`, `destination_workload="plain"`)
}

// client_uncaptured_inpod as it should be: a client outside of the mesh, plaintext, the same policies without identity.
func TestPlainToCaptured(t *testing.T) {
	m := newMesh(t)
	words := m.mustCall(m.stranger, at(m.remote), "remote")
	if words[1] != m.stranger.Addr().String() {
		t.Errorf("the server sees %s", words[1])
	}
	r := m.record(m.b, netlab.Record{"direction": "inbound", "src.workload": "stranger"})
	if r.Str("src.identity") != "" {
		t.Errorf("a stranger has the identity %s", r.Str("src.identity"))
	}
	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "strict", Namespace: ns, Scope: "Namespace", Action: "Deny",
		Rules: [][][]map[string]any{{{{"notPrincipals": []any{map[string]any{"Presence": nil}}}}}},
	})
	m.apply()
	m.eventually("plaintext refused", func() bool { _, err := m.call(m.stranger, at(m.remote)); return err != nil })
	m.refused(m.stranger, at(m.remote))
	m.mustCall(m.client, at(m.remote), "remote")
	m.record(m.b, netlab.Record{
		"direction": "inbound", "src.workload": "stranger", "level": "ERROR",
		"error": "connection closed due to policy rejection: explicitly denied by: default/strict",
	})
}

// Connections to addresses that nobody knows pass through, unless that is refused.
func TestUnknownDestination(t *testing.T) {
	forget := func(m *mesh) {
		var kept []*netlab.Workload
		for _, w := range m.State.Workloads {
			if w.Name != "plain" {
				kept = append(kept, w)
			}
		}
		m.State.Workloads = kept
	}
	t.Run("passes", func(t *testing.T) {
		m := build(t)
		forget(m)
		m.start()
		m.mustCall(m.client, at(m.plain), "plain")
	})
	t.Run("is_refused_on_demand", func(t *testing.T) {
		m := build(t, withFlags("--outbound-traffic-policy=REGISTRY_ONLY"))
		forget(m)
		m.start()
		m.refused(m.client, at(m.plain))
		m.mustCall(m.client, at(m.remote), "remote")
	})
}

// A pod's own addresses and loopback are not captured.
func TestOwnAddressesAreNotCaptured(t *testing.T) {
	m := newMesh(t)
	m.mustCall(m.client, at(m.client), "client")
	m.mustCall(m.client, netip.MustParseAddrPort("127.0.0.1:8080"), "client")
	m.mustCall(m.client, netip.MustParseAddrPort("[::1]:8080"), "client")
	for _, r := range m.a.AccessLog() {
		t.Errorf("access-log line of a connection that should not be seen: %v", r)
	}
}

func TestOriginalSourceCanBeSwitchedOff(t *testing.T) {
	m := newMesh(t, withFlags("--original-source=false"))
	if words := m.mustCall(m.client, at(m.remote), "remote"); words[1] != m.remote.Addr().String() {
		t.Errorf("the server sees %s, want the agent's address in its own pod %s", words[1], m.remote.Addr())
	}
}
