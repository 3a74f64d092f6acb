package netlab_test

import (
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Parts of network policies, as the workload file has them.
type object = map[string]any

func selecting(name string) object {
	if name == "" {
		return object{}
	}
	return object{"requirements": []any{object{"key": "app", "op": "IN", "values": []any{name}}}}
}

func fromPod(name string) object { return object{"pods": object{"pods": selecting(name)}} }

func fromBlock(cidr string, except ...any) object {
	return object{"block": object{"cidr": cidr, "except": except}}
}

func tcp(port, end int) object { return object{"protocol": "TCP", "port": port, "end": end} }

func rule(peers, ports []any) object {
	r := object{"action": "ALLOW", "anyPeer": peers == nil, "anyPort": ports == nil}
	if peers != nil {
		r["peers"] = peers
	}
	if ports != nil {
		r["ports"] = ports
	}
	return r
}

func ingress(name, pod string, rules ...any) object {
	return object{"policy": object{"tier": "NAMESPACED", "namespace": ns, "name": name, "pods": selecting(pod), "ingress": true, "ingressRules": rules}}
}

func egress(name, pod string, rules ...any) object {
	return object{"policy": object{"tier": "NAMESPACED", "namespace": ns, "name": name, "pods": selecting(pod), "egress": true, "egressRules": rules}}
}

// enforce sets the network policies, and what they select by.
func (m *mesh) enforce(policies ...object) {
	m.t.Helper()
	m.State.NetworkPolicies = append(policies, object{"namespace": object{"name": ns}})
	for _, p := range []*netlab.Pod{m.client, m.local, m.remote, m.stranger, m.plain} {
		m.State.NetworkPolicies = append(m.State.NetworkPolicies, object{"pod": object{
			"uid": p.Workload.UID, "namespace": ns, "labels": object{"app": p.Name()},
			"ports": []any{object{"name": "web", "protocol": "TCP", "port": 8080}},
		}})
	}
	m.apply()
}

// Network policies see the real peer and the port inside: in tunnels, in plaintext and on the short way inside of a node.
func TestNetworkPolicy(t *testing.T) {
	for _, way := range []string{"encrypt", "short"} {
		t.Run(way, func(t *testing.T) { testNetworkPolicy(t, newMesh(t, withFlags("--same-node="+way))) })
	}
}

func testNetworkPolicy(t *testing.T, m *mesh) {
	for _, p := range []*netlab.Pod{m.local, m.remote} {
		m.serve(p, 9090)
	}
	reached := func(from, to *netlab.Pod, port uint16) {
		t.Helper()
		m.eventually(from.Name()+" reaches "+to.Name(), func() bool { _, err := m.call(from, onPort(to, port)); return err == nil })
	}
	refused := func(from, to *netlab.Pod, port uint16) {
		t.Helper()
		m.eventually(from.Name()+" is refused by "+to.Name(), func() bool { _, err := m.call(from, onPort(to, port)); return err != nil })
		m.refused(from, onPort(to, port))
	}
	web := []any{object{"protocol": "TCP", "name": "web"}}

	// By pod and port name. Both ports come to 15008 in the tunnel.
	m.enforce(ingress("web", "", rule([]any{fromPod("client")}, web)))
	for _, server := range []*netlab.Pod{m.remote, m.local} {
		refused(m.client, server, 9090)
		reached(m.client, server, 8080)
		refused(m.stranger, server, 8080)
	}
	for agent, server := range map[*netlab.Agent]*netlab.Pod{m.a: m.local, m.b: m.remote} {
		m.record(agent, netlab.Record{
			"direction": "inbound", "src.workload": "client", "dst.workload": server.Name(), "level": "ERROR",
			"error": "connection closed due to policy rejection: ingress denied by netpol " + ns + "/web: selected by a network policy, and no rule allows it",
		})
	}

	// By address, with an exception, and a range of ports: plaintext is nobody's but its address's.
	m.enforce(
		ingress("range", "remote", rule([]any{fromBlock(m.stranger.Addr().String() + "/32")}, []any{tcp(9000, 9100)})),
		ingress("except", "local", rule([]any{fromBlock("0.0.0.0/0", m.client.Addr().String()+"/32")}, nil)),
	)
	reached(m.stranger, m.remote, 9090)
	refused(m.stranger, m.remote, 8080)
	refused(m.client, m.remote, 9090)
	reached(m.stranger, m.local, 8080)
	refused(m.client, m.local, 8080)

	// What goes out is refused where it comes from.
	m.enforce(egress("out", "client", rule([]any{fromPod("remote")}, []any{tcp(8080, 0)})))
	refused(m.client, m.remote, 9090)
	refused(m.client, m.local, 8080)
	refused(m.client, m.plain, 8080)
	m.record(m.a, netlab.Record{
		"direction": "outbound", "dst.addr": onPort(m.plain, 8080).String(), "level": "ERROR",
		"error": "connection closed due to policy rejection: egress denied by netpol " + ns + "/out: selected by a network policy, and no rule allows it",
	})
	reached(m.client, m.remote, 8080)

	// Live: what a change forbids ends, at either end, the rest goes on.
	m.enforce()
	reached(m.client, m.local, 9090)
	held := map[string]*session{}
	for name, to := range map[string]*netlab.Pod{"local": m.local, "remote": m.remote, "plain": m.plain} {
		s, err := m.dial(m.client, at(to))
		if err != nil {
			t.Fatal(err)
		}
		held[name] = s
	}
	ended := func(name string) {
		t.Helper()
		begin := time.Now()
		m.eventually("end of the session with "+name, func() bool { _, err := held[name].ask("still"); return err != nil })
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("the session with %s ended after %s", name, d)
		}
		delete(held, name)
	}
	goOn := func() {
		t.Helper()
		for name, s := range held {
			if _, err := s.ask("still"); err != nil {
				t.Errorf("session with %s: %v", name, err)
			}
		}
	}
	m.enforce(ingress("none", "remote"))
	ended("remote")
	goOn()
	m.enforce(egress("some", "client", rule([]any{fromPod("local")}, nil)))
	ended("plain")
	goOn()
}
