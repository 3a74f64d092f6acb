package netlab_test

import (
	"bufio"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Two pods of one node need no tunnel where that was chosen, and are told apart and judged as with one.
func TestSameNodeShort(t *testing.T) {
	m := newMesh(t, withFlags("--same-node=short"))
	for _, six := range []bool{false, true} {
		addr, own := at(m.local), m.client.Addr()
		if six {
			addr, own = at6(m.local), m.client.Addr6()
		}
		words := m.mustCall(m.client, addr, "local")
		if words[1] != own.String() {
			t.Errorf("the server sees %s, want the client's own address %s", words[1], own)
		}
		for _, direction := range []string{"outbound", "inbound"} {
			r := m.record(m.a, netlab.Record{"direction": direction, "dst.addr": addr.String()})
			for k, want := range map[string]string{
				"src.workload": "client", "dst.workload": "local", "src.identity": spiffe("client"), "dst.identity": spiffe("local"),
				"dst.hbone_addr": "", "level": "INFO", "msg": "connection complete",
			} {
				if r.Str(k) != want {
					t.Errorf("%s line: %s is %q, want %q", direction, k, r.Str(k), want)
				}
			}
		}
	}
	for _, reporter := range []string{"source", "destination"} {
		m.wantMetric(m.a, "istio_tcp_connections_closed_total", 2, `connection_security_policy="same_node"`, `reporter="`+reporter+`"`,
			`source_principal="`+spiffe("client")+`"`, `destination_principal="`+spiffe("local")+`"`)
	}
	if n, err := m.a.Metric("culvert_tunnels"); err == nil && n != 0 {
		t.Errorf("%v tunnels inside of the node", n)
	}
	// Between nodes nothing changes.
	m.mustCall(m.client, at(m.remote), "remote")
	m.record(m.a, netlab.Record{"direction": "outbound", "dst.hbone_addr": at(m.remote).String()})
	m.wantMetric(m.a, "istio_tcp_connections_closed_total", 1, `connection_security_policy="mutual_tls"`, `reporter="source"`)

	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "no-client", Namespace: ns, Scope: "Namespace", Action: "Deny",
		Rules: [][][]map[string]any{{{{"principals": []any{map[string]any{"Exact": "cluster.local/ns/" + ns + "/sa/client"}}}}}},
	})
	m.apply()
	for _, addr := range []netip.AddrPort{at(m.local), at6(m.local)} {
		m.eventually("client refused", func() bool { _, err := m.call(m.client, addr); return err != nil })
		m.refused(m.client, addr)
		m.record(m.a, netlab.Record{
			"direction": "inbound", "dst.addr": addr.String(), "level": "ERROR",
			"error": "connection closed due to policy rejection: explicitly denied by: " + ns + "/no-client",
		})
	}
}

// TestSameNodeShortFromChosenAddress: IPv6 lets an application connect to another pod from the loopback address. It is its own
// pod all the same: who is told ::1 takes a neighbour for itself.
func TestSameNodeShortFromChosenAddress(t *testing.T) {
	m := newMesh(t, withFlags("--same-node=short"))
	var c net.Conn
	err := m.client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv6loopback}, Timeout: patience}
		c, err = d.Dial("tcp6", at6(m.local).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := &session{c.(*net.TCPConn), bufio.NewReader(c)}
	words, err := s.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	if words[1] != m.client.Addr6().String() {
		t.Errorf("the server sees %s, want the client's own address %s", words[1], m.client.Addr6())
	}
}
