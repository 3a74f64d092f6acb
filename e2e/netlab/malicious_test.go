package netlab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/hbone"
)

// What becomes of a plain HTTP request to one of the agent's ports.
const (
	refused  = "connect is refused"
	dropped  = "connects, then fails"
	answered = "is answered"
	ignored  = "connect gets no answer"
)

// knock makes the request and says what became of it. It waits for a connection no longer than that.
func (m *mesh) knock(from *netlab.Pod, to netip.AddrPort, timeout time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ECONNRESET): // established, and reset before anybody looked
		return dropped
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return ignored
	case err != nil:
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	path := "/"
	switch to.Port() {
	case 15020:
		path = "/metrics"
	case 15021:
		path = "/healthz/ready"
	}
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.0\r\nHost: x\r\n\r\n", path)
	answer, readErr := io.ReadAll(c)
	switch {
	case errors.Is(readErr, os.ErrDeadlineExceeded):
		return "hangs"
	case err == nil && readErr == nil && strings.HasPrefix(string(answer), "HTTP/1.0 200 "):
		return answered
	case strings.Contains(string(answer), "200"):
		return fmt.Sprintf("%q, %v", answer, readErr)
	}
	return dropped
}

// Reference 10.4 malicious_calls_inpod, as our layout gives it: the agent of node-a serves its own pod on 15008 too, that
// of node-b does not; DNS listens on the pods' loopback addresses. Whatever port of the agent is called from wherever,
// by name of a service too, it is no way in and no loop.
func TestCallsToTheAgentItself(t *testing.T) {
	m := build(t)
	m.AddService(ns, "loop", vip, map[uint16]uint16{1: 15001, 2: 15006, 3: 15008, 4: 8080}, m.client)
	m.AddService(ns, "other", vip.Next(), map[uint16]uint16{1: 15001, 2: 15006, 3: 15008}, m.remote)
	m.withOwnPod()
	m.b = m.agent(nodeB)
	idle := m.sockets(m.a)
	agentA, agentB := m.Topology().Node(nodeA).Addr(), m.Topology().Node(nodeB).Addr()
	loop4, loop6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	all := []uint16{15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080}
	inbound := []uint16{15000, 15001, 15008, 15020, 15021, 15053, 15080}
	rows := []struct {
		name  string
		from  *netlab.Pod
		to    netip.Addr
		want  string
		ports []uint16
	}{
		{"captured/agent", m.client, agentA, dropped, []uint16{15000, 15001, 15006, 15008, 15053, 15080}},
		{"captured/agent", m.client, agentA, answered, []uint16{15020, 15021}},
		{"captured/other agent", m.client, agentB, dropped, []uint16{15000, 15001, 15006, 15008, 15053, 15080}},
		{"captured/other agent", m.client, agentB, answered, []uint16{15020, 15021}},
		{"captured/itself", m.client, m.client.Addr(), dropped, []uint16{15001, 15006, 15008}},
		{"captured/itself", m.client, m.client.Addr(), refused, []uint16{15000, 15020, 15021, 15053, 15080}},
		{"captured/itself IPv6", m.client, m.client.Addr6(), dropped, []uint16{15001, 15006, 15008}},
		{"captured/loopback", m.client, loop4, dropped, []uint16{15001, 15006, 15008, 15053}},
		{"captured/loopback", m.client, loop4, refused, []uint16{15000, 15020, 15021, 15080}},
		{"captured/loopback IPv6", m.client, loop6, dropped, []uint16{15001, 15006, 15008, 15053}},
		{"captured/captured", m.client, m.local.Addr(), dropped, all},
		{"captured/captured on other node", m.client, m.remote.Addr(), dropped, all},
		{"captured/captured IPv6", m.client, m.remote.Addr6(), dropped, all},
		{"captured/plain", m.client, m.plain.Addr(), dropped, all},
		{"captured/service that leads back", m.client, vip, dropped, []uint16{1, 2, 3}},
		{"captured/service that leads to an agent", m.client, vip.Next(), dropped, []uint16{1, 2, 3}},
		{"plain/agent", m.stranger, agentA, refused, []uint16{15000, 15001, 15006, 15053, 15080}},
		{"plain/agent", m.stranger, agentA, dropped, []uint16{15008}},
		{"plain/agent", m.stranger, agentA, answered, []uint16{15020, 15021}},
		{"plain/other agent", m.stranger, agentB, refused, []uint16{15000, 15001, 15006, 15008, 15053, 15080}},
		{"plain/other agent", m.stranger, agentB, answered, []uint16{15020, 15021}},
		{"plain/captured", m.stranger, m.client.Addr(), dropped, inbound},
		{"plain/captured IPv6", m.stranger, m.client.Addr6(), dropped, inbound},
		// What is on its way to the passthrough port already needs no redirection, so the guard takes it for a leak.
		{"plain/captured", m.stranger, m.client.Addr(), ignored, []uint16{15006}},
		{"plain/captured IPv6", m.stranger, m.client.Addr6(), ignored, []uint16{15006}},
	}
	calls := 0
	for _, row := range rows {
		for _, port := range row.ports {
			calls++
			t.Run(fmt.Sprintf("%s:%d", row.name, port), func(t *testing.T) {
				t.Parallel()
				timeout := patience
				if row.want == ignored {
					timeout = time.Second
				}
				if got := m.knock(row.from, netip.AddrPortFrom(row.to, port), timeout); got != row.want {
					t.Errorf("%s → %s: %s, want: %s", row.from.Name(), netip.AddrPortFrom(row.to, port), got, row.want)
				}
			})
		}
	}
	t.Cleanup(func() { m.unharmed(idle, calls) }) // the parallel subtests come first
}

// unharmed checks that the agents serve as before and have nothing left of all the calls, of which none has multiplied.
func (m *mesh) unharmed(idle float64, calls int) {
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.remote, at(m.client), "client")
	m.mustCall(m.client, vipPort(4), "client") // a pod may call itself through a service
	raw := m.raw(m.stranger, spiffe("stranger"), m.remote)
	for _, port := range []uint16{15001, 15006, 15008} {
		raw.wantStatus(m.remote, onPort(m.remote, port).String(), hbone.StatusUnavailable)
	}
	for _, a := range []*netlab.Agent{m.a, m.b} {
		m.eventually("no connection is left", func() bool {
			for _, pod := range m.dump(a).WorkloadState {
				if len(pod.Connections.Inbound)+len(pod.Connections.Outbound) > 0 {
					return false
				}
			}
			return true
		})
		if n := len(a.AccessLog()); n > 2*calls {
			m.t.Errorf("%d calls made %d connections", calls, n)
		}
	}
	// Tunnels may stay: one for each pair of pods that talked.
	m.eventually("sockets are closed", func() bool { return m.sockets(m.a) <= idle+12 })
}

func (m *mesh) sockets(a *netlab.Agent) float64 {
	m.t.Helper()
	n, err := a.Metric("culvert_loop_sockets")
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}
