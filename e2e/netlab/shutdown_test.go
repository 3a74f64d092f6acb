package netlab_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// hold opens a connection to a pod's server and asks once, so that it is established from end to end.
func (m *mesh) hold(from, to *netlab.Pod) *session {
	m.t.Helper()
	s, err := m.dial(from, at(to))
	if err == nil {
		_, err = s.ask("held")
	}
	if err != nil {
		m.t.Fatalf("%s connects to %s: %v", from.Name(), to.Name(), err)
	}
	return s
}

// alive checks that a connection still answers.
func (m *mesh) alive(s *session, when string) {
	m.t.Helper()
	if _, err := s.ask("alive"); err != nil {
		m.t.Fatalf("connection %s: %v", when, err)
	}
}

// wantReset waits until a connection is cut, which must not look like an orderly end.
func (m *mesh) wantReset(s *session) {
	m.t.Helper()
	_ = s.SetDeadline(time.Now().Add(2 * patience))
	switch _, err := s.lines.ReadString('\n'); {
	case errors.Is(err, os.ErrDeadlineExceeded) || err == nil:
		m.t.Errorf("connection is not cut: %v", err)
	case errors.Is(err, io.EOF):
		m.t.Error("a connection that was cut looks like one that ended in order")
	}
}

// finish ends a connection in order and waits for the other side's end.
func (m *mesh) finish(s *session) {
	m.t.Helper()
	_ = s.CloseWrite()
	_ = s.SetDeadline(time.Now().Add(patience))
	if rest, err := io.ReadAll(s.lines); err != nil || len(rest) > 0 {
		m.t.Errorf("connection ends with %q, %v", rest, err)
	}
	_ = s.Close()
}

// wantExit waits for the end of an agent that was told to stop, and wants success.
func (m *mesh) wantExit(a *netlab.Agent) {
	m.t.Helper()
	select {
	case <-a.Process().Done():
		if err := a.Process().Wait(); err != nil {
			m.t.Errorf("agent ended with %v", err)
		}
	case <-time.After(2 * patience):
		m.t.Fatal("agent has not ended")
	}
}

func (m *mesh) signal(a *netlab.Agent, s os.Signal) {
	m.t.Helper()
	if err := a.Process().Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

func running(a *netlab.Agent) bool {
	select {
	case <-a.Process().Done():
		return false
	default:
		return true
	}
}

// Reference 10.4 test_ztunnel_shutdown, 10.5 test_shutdown_drain: at either end, what is there goes on and nothing new
// is taken; the agent ends with its last connection.
func TestAgentDrains(t *testing.T) {
	m := newMesh(t, withFlags("--drain-timeout=60s"))
	for _, tt := range []struct {
		name string
		node string
	}{{"client's", nodeA}, {"server's", nodeB}} {
		t.Run(tt.name, func(t *testing.T) {
			a := m.a
			if tt.node == nodeB {
				a = m.b
			}
			held := m.hold(m.client, m.remote)
			m.signal(a, syscall.SIGTERM)
			m.eventually("new connections are refused", func() bool { _, err := m.call(m.client, at(m.remote)); return err != nil })
			m.refused(m.client, at(m.remote))
			m.refused(m.remote, at(m.client))
			m.alive(held, "during the drain")
			if !running(a) {
				t.Fatal("agent has ended before its connection")
			}
			m.finish(held)
			m.wantExit(a)
			m.refused(m.client, at(m.remote))
			m.a, m.b = m.again(m.a, nodeA), m.again(m.b, nodeB)
			m.mustCall(m.client, at(m.remote), "remote")
		})
	}
}

// again starts the agent of a node if the last one has ended.
func (m *mesh) again(a *netlab.Agent, node string, flags ...string) *netlab.Agent {
	m.t.Helper()
	if running(a) {
		return a
	}
	return m.agent(node, flags...)
}

// test_shutdown_forced_drain: the deadline cuts, both applications see it, and it is no failure of the agent.
func TestAgentCutsAtTheDeadline(t *testing.T) {
	m := build(t)
	server := m.listener(m.remote, 9090)
	m.b = m.agent(nodeB)
	for _, drain := range []time.Duration{time.Second, 0} {
		t.Run(drain.String(), func(t *testing.T) {
			m.a = m.agent(nodeA, "--drain-timeout="+drain.String())
			held, plain, through := m.hold(m.client, m.remote), m.hold(m.client, m.plain), m.pairTo(m.client, m.remote, 9090, server)
			began := time.Now()
			m.signal(m.a, syscall.SIGTERM)
			m.wantReset(held)
			m.wantReset(plain)
			if took := time.Since(began); took < drain {
				t.Errorf("cut after %v", took)
			}
			_ = through.SetDeadline(time.Now().Add(patience))
			if n, err := through.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server's application reads %d bytes, %v", n, err)
			}
			m.wantExit(m.a)
			m.record(m.a, netlab.Record{"direction": "outbound", "dst.workload": "plain", "error": "connection closed due to connection drain"})
			m.record(m.a, netlab.Record{"direction": "outbound", "dst.workload": "remote", "error": "connection closed due to connection drain"})
		})
	}
}

// A second signal does not wait, and says so.
func TestSecondSignal(t *testing.T) {
	m := newMesh(t, withFlags("--drain-timeout=60s"))
	held := m.hold(m.client, m.remote)
	m.signal(m.a, syscall.SIGTERM)
	m.eventually("draining", func() bool { _, err := m.call(m.client, at(m.remote)); return err != nil })
	m.signal(m.a, os.Interrupt)
	m.wantReset(held)
	select {
	case <-m.a.Process().Done():
	case <-time.After(patience):
		t.Fatal("agent has not ended")
	}
	if err := m.a.Process().Wait(); err == nil {
		t.Error("a drain that was given up counts as success")
	}
	m.a.Kill() // it has ended; its failure is expected
}

// test_quit_lifecycle.
func TestQuit(t *testing.T) {
	m := newMesh(t, withFlags("--drain-timeout=60s"))
	if status, _, err := m.a.Get("15000", "/quitquitquit"); err != nil || status != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d, %v", status, err)
	}
	held := m.hold(m.client, m.remote)
	var wg sync.WaitGroup
	wg.Go(func() {
		if status, body, err := m.a.Post("15000", "/quitquitquit"); err != nil || status != http.StatusOK || body != "shutdown now\n" {
			t.Errorf("POST: %d %q, %v", status, body, err)
		}
	})
	m.eventually("draining", func() bool { _, err := m.call(m.client, at(m.remote)); return err != nil })
	m.alive(held, "during the drain")
	m.finish(held)
	wg.Wait()
	m.wantExit(m.a)
}

// listener gives the connections that arrive at a port of a pod.
func (m *mesh) listener(p *netlab.Pod, port uint16) <-chan *net.TCPConn {
	m.t.Helper()
	conns := make(chan *net.TCPConn)
	over := make(chan struct{})
	m.serveFunc(p, port, func(c *net.TCPConn) {
		select {
		case conns <- c:
			<-over
		case <-over:
		}
	})
	m.t.Cleanup(func() { close(over) }) // before the server waits for its connections
	return conns
}

// pairTo connects to a port that listener serves and returns the server's end; the client's stays open.
func (m *mesh) pairTo(from, to *netlab.Pod, port uint16, conns <-chan *net.TCPConn) *net.TCPConn {
	m.t.Helper()
	_, server := m.pair(from, to, port, conns)
	return server
}

// pair connects to a port that listener serves and returns both ends.
func (m *mesh) pair(from, to *netlab.Pod, port uint16, conns <-chan *net.TCPConn) (client *session, server *net.TCPConn) {
	m.t.Helper()
	client, err := m.dial(from, onPort(to, port))
	if err != nil {
		m.t.Fatalf("%s connects to %s: %v", from.Name(), to.Name(), err)
	}
	select {
	case server = <-conns:
		return client, server
	case <-time.After(patience):
		m.t.Fatalf("%s connects to %s: nothing arrives", from.Name(), to.Name())
		return nil, nil
	}
}
