package netlab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/nft"
	"github.com/culvert-mesh/culvert/redirect/wiretap"
)

// A connection that is older than the capture stays what it is, whatever comes and goes around it.
func TestOldConnectionSurvives(t *testing.T) {
	m := build(t)
	old, plain := m.hold(m.client, m.remote), m.hold(m.stranger, m.remote)
	oldest := func(when string) {
		t.Helper()
		m.alive(old, when)
		m.alive(plain, when)
	}
	m.start()
	oldest("after enrolment")
	m.mustCall(m.client, at(m.remote), "remote")
	m.record(m.b, netlab.Record{"direction": "inbound", "src.identity": spiffe("client")})
	m.a.Kill()
	oldest("without an agent")
	m.a = m.agent(nodeA)
	oldest("under another agent")
	for p, node := range map[*netlab.Pod]string{m.client: nodeA, m.remote: nodeB} {
		p.SetCaptured(false)
		m.applyPods(node)
	}
	m.eventually("pods have left", func() bool {
		return m.dump(m.a).WorkloadState[m.client.Workload.UID] == nil && m.dump(m.b).WorkloadState[m.remote.Workload.UID] == nil
	})
	oldest("after leaving")
	m.finish(old)
	m.finish(plain)
	for _, a := range []*netlab.Agent{m.a, m.b} {
		for _, r := range a.AccessLog() {
			if r.Str("dst.hbone_addr") == "" {
				t.Errorf("an agent has seen an older connection: %v", r)
			}
		}
	}
}

// An answer that takes longer than connection tracking would keep a half-closed connection gets there all the same.
func TestLongHalfClose(t *testing.T) {
	t.Parallel()
	const finWait = "net/netfilter/nf_conntrack_tcp_timeout_fin_wait"
	const low = 2 // seconds
	m := build(t)
	for _, p := range []*netlab.Pod{m.client, m.remote} {
		for _, name := range []string{closeWait, finWait} {
			if err := p.Sysctl(name, fmt.Sprint(low)); err != nil {
				t.Skip("connection tracking cannot be configured here:", err)
			}
		}
		m.serveFunc(p, 9090, func(c *net.TCPConn) {
			asked, _ := io.ReadAll(c)
			time.Sleep(2 * low * time.Second) // the silence is what is tested
			_, _ = c.Write(asked)
		})
	}
	m.start()
	for _, p := range []*netlab.Pod{m.client, m.remote} {
		for _, name := range []string{closeWait, finWait} {
			if got, want := m.sysctl(p, name), fmt.Sprint(int(redirect.HalfCloseTimeout.Seconds())); got != want {
				t.Errorf("%s in %s is %s, want %s", name, p.Name(), got, want)
			}
		}
	}
	for _, tt := range []struct {
		name     string
		from, to *netlab.Pod
	}{{"tunnel", m.client, m.remote}, {"passthrough_in", m.plain, m.remote}, {"passthrough_out", m.client, m.plain}} {
		if tt.to == m.plain {
			m.serveFunc(m.plain, 9090, func(c *net.TCPConn) {
				asked, _ := io.ReadAll(c)
				time.Sleep(2 * low * time.Second)
				_, _ = c.Write(asked)
			})
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := m.dial(tt.from, onPort(tt.to, 9090))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write([]byte("question"))
			_ = s.CloseWrite()
			_ = s.SetDeadline(time.Now().Add(2*low*time.Second + patience))
			if answer, err := io.ReadAll(s); err != nil || string(answer) != "question" {
				t.Errorf("answer %q, %v", answer, err)
			}
		})
	}
}

// What somebody takes away behind the agent's back is put back within seconds, and told.
func TestCaptureIsRepaired(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	held := m.hold(m.client, m.remote)
	for i, tt := range []struct {
		name, finding string
		damage        func() error
	}{
		{"table", "table inet culvert is missing", func() error { return nft.Delete(m.client.NS()) }},
		{"policy rule", "policy rule", func() error {
			return m.client.Do(func() error {
				rules, err := netlink.RuleList(netlink.FAMILY_ALL)
				for _, r := range rules {
					if err == nil && r.Priority == redirect.RulePriority {
						err = netlink.RuleDel(&r)
					}
				}
				return err
			})
		}},
		{"sysctl", closeWait, func() error { return m.client.Sysctl(closeWait, "10") }},
	} {
		if err := tt.damage(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		m.wantMetric(m.a, "culvert_capture_repaired_total", float64(i+1))
		line := ""
		for text := range strings.Lines(m.a.Log()) {
			if strings.Contains(text, "capture of pod repaired") {
				line = text
			}
		}
		if !strings.Contains(line, tt.finding) || !strings.Contains(line, `"pod":"default/client"`) {
			t.Errorf("%s: the log says %q", tt.name, line)
		}
		m.alive(held, "after the repair of the "+tt.name)
		m.mustCall(m.client, at(m.remote), "remote")
		m.mustCall(m.remote, at(m.client), "client")
	}
	for _, r := range append(m.a.AccessLog(), m.b.AccessLog()...) {
		if r.Str("src.identity") == "" {
			t.Errorf("a connection without identity: %v", r)
		}
	}
}

// An agent that is killed takes its pods' traffic with it: nothing leaves them in the clear. A new one has the same pods
// at once. Nobody touches the pods meanwhile.
func TestKilledAgent(t *testing.T) {
	const secret = "the-secret-of-the-client"
	m := build(t)
	resolver := m.resolverIn(m.client, m.startResolver(m.plain))
	atRemote, atStranger := m.listener(m.remote, 9090), m.listener(m.stranger, 9090)
	m.start()
	tap, err := wiretap.Start(wiretap.Config{NS: m.Topology().Node(nodeA).NS(), Interface: "wire0", Needles: [][]byte{[]byte(secret), []byte("example")}})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			_, _ = tap.Stop()
		}
	})
	tell := func() error {
		s, err := m.dial(m.client, at(m.remote))
		if err == nil {
			defer func() { _ = s.Close() }()
			_, err = s.ask(secret)
		}
		return err
	}
	if err := tell(); err != nil {
		t.Fatal(err)
	}
	held, plain, through := m.hold(m.client, m.remote), m.hold(m.client, m.stranger), m.hold(m.stranger, m.client)
	toServer, passed := m.pairTo(m.client, m.remote, 9090, atRemote), m.pairTo(m.client, m.stranger, 9090, atStranger)
	m.a.Kill()
	for _, s := range []*session{held, plain, through} {
		m.wantReset(s)
	}
	for _, c := range []*net.TCPConn{toServer, passed} {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an application behind the killed agent reads %d bytes, %v", n, err)
		}
	}
	for range 20 {
		if err := tell(); err == nil {
			t.Fatal("a connection without an agent works")
		}
	}
	m.refused(m.client, at(m.plain))
	m.refused(m.stranger, at(m.client))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	if addrs, err := resolver.LookupNetIP(ctx, "ip4", "outside.example.com."); err == nil {
		t.Errorf("DNS without an agent: %v", addrs)
	}
	cancel()
	report, err := tap.Stop()
	stopped = true
	if err != nil || !report.Complete() {
		t.Fatalf("the tap has not seen all: %v", err)
	}
	if report.Found[0] || report.Found[1] || len(report.Unencrypted(15008)) > 0 {
		t.Errorf("in the clear on the wire: %s", report)
	}
	for _, f := range report.Flows {
		if f.Server.Port() != 15008 {
			t.Errorf("on the wire: %s", f)
		}
	}
	m.a = m.agent(nodeA)
	if err := tell(); err != nil {
		t.Errorf("under the next agent: %v", err)
	}
	m.record(m.a, netlab.Record{"direction": "outbound", "src.identity": spiffe("client"), "dst.identity": spiffe("remote")})
	m.mustCall(m.stranger, at(m.client), "client")
	if _, err := resolver.LookupNetIP(context.Background(), "ip4", "outside.example.com."); err != nil {
		t.Errorf("DNS under the next agent: %v", err)
	}
}

// Pods that have no IPv4 address.
func TestIPv6Only(t *testing.T) {
	m := build(t)
	pods := []*netlab.Pod{m.client, m.local, m.remote, m.stranger, m.plain}
	for _, p := range pods {
		p.Workload.WorkloadIPs = []string{p.Addr6().String()}
		err := p.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			for _, a := range addrs {
				if err == nil {
					err = netlink.AddrDel(link, &a)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	vip6 := netip.MustParseAddr("fd00:10:96::10")
	m.AddService(ns, "echo", vip6, map[uint16]uint16{80: 8080}, m.remote)
	m.start()
	for _, tt := range []struct {
		from, to *netlab.Pod
		addr     netip.AddrPort
		mutual   bool
	}{
		{m.client, m.local, at6(m.local), true},
		{m.client, m.remote, at6(m.remote), true},
		{m.client, m.remote, netip.AddrPortFrom(vip6, 80), true},
		{m.client, m.plain, at6(m.plain), false},
		{m.stranger, m.client, at6(m.client), false},
		{m.client, m.client, at6(m.client), false},
	} {
		t.Run(tt.from.Name()+" to "+tt.addr.String(), func(t *testing.T) {
			words := m.mustCall(tt.from, tt.addr, tt.to.Name())
			if words[1] != tt.from.Addr6().String() {
				t.Errorf("the server sees %s, want %s", words[1], tt.from.Addr6())
			}
			if tt.mutual {
				m.record(m.a, netlab.Record{"direction": "outbound", "dst.hbone_addr": at6(tt.to), "src.identity": spiffe("client"), "dst.identity": spiffe(tt.to.Name())})
			}
		})
	}
}

// An orderly end is complete however late it is read: the agent is through with both connections long before.
func TestLateReaderGetsEverything(t *testing.T) {
	m := build(t)
	answer := bytes.Repeat([]byte("0123456789abcdef"), 16<<10) // fits into the sockets' buffers
	for _, p := range []*netlab.Pod{m.remote, m.plain} {
		m.serveFunc(p, 9090, func(c *net.TCPConn) {
			_, _ = io.Copy(io.Discard, c)
			_, _ = c.Write(answer)
		})
	}
	m.start()
	for _, tt := range []struct {
		name     string
		from, to *netlab.Pod
		agent    *netlab.Agent
	}{{"tunnel", m.client, m.remote, m.a}, {"passthrough_out", m.client, m.plain, m.a}, {"passthrough_in", m.plain, m.remote, m.b}} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := m.dial(tt.from, onPort(tt.to, 9090))
			if err != nil {
				t.Fatal(err)
			}
			_ = s.CloseWrite()
			m.record(tt.agent, netlab.Record{"src.addr": s.LocalAddr(), "msg": "connection complete", "level": "INFO"})
			_ = s.SetDeadline(time.Now().Add(patience))
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, answer) {
				t.Errorf("read %d bytes of %d, %v", len(got), len(answer), err)
			}
		})
	}
}
