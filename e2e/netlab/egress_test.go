package netlab_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// external is the server of the egress tests: a pod that the mesh does not know, so that it stands for any address.
func external(m *mesh) netip.AddrPort {
	m.State.Workloads = slices.DeleteFunc(m.State.Workloads, func(w *netlab.Workload) bool { return w.Name == "plain" })
	return at(m.plain)
}

// entry registers a host as a ServiceEntry's: port 80 leads to 8080.
func (m *mesh) entry(host string, vips ...string) *netlab.Service {
	s := &netlab.Service{Name: host, Namespace: ns, Hostname: host, VIPs: vips, Ports: map[uint16]uint16{80: 8080}}
	m.State.Services = append(m.State.Services, s)
	return s
}

// endpoint is an endpoint of the entry, with an address or a host name.
func (m *mesh) endpoint(s *netlab.Service, where string) {
	w := &netlab.Workload{
		UID: "cluster1/networking.istio.io/ServiceEntry/" + ns + "/" + s.Name + "/" + where, Name: s.Name, Namespace: ns, ServiceAccount: "default",
		Protocol: "TCP", Services: map[string]map[uint16]uint16{ns + "/" + s.Hostname: nil},
	}
	if _, err := netip.ParseAddr(where); err == nil {
		w.WorkloadIPs = []string{where}
	} else {
		w.Hostname = where
	}
	m.State.Workloads = append(m.State.Workloads, w)
}

// forget takes the entry and its endpoints away.
func (m *mesh) forget(s *netlab.Service) {
	m.State.Services = slices.DeleteFunc(m.State.Services, func(o *netlab.Service) bool { return o == s })
	m.State.Workloads = slices.DeleteFunc(m.State.Workloads, func(w *netlab.Workload) bool {
		_, ok := w.Services[ns+"/"+s.Hostname]
		return ok
	})
}

// names is a name server on a pod, whose addresses tests change.
type names struct {
	mu    sync.Mutex
	addrs map[string]netip.Addr
	asked int
}

func (n *names) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	a := new(dns.Msg)
	a.SetReply(q)
	name := q.Question[0].Name
	addr, known := n.addrs[name]
	switch {
	case !known:
		a.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IP(addr.AsSlice())})
	}
	_ = w.WriteMsg(a)
}

// serveNames runs the name server and returns a resolv.conf that has it.
func (m *mesh) serveNames(p *netlab.Pod, n *names) (resolvConf string) {
	m.t.Helper()
	pc, err := p.ListenPacket(context.Background(), netip.AddrPortFrom(p.Addr(), 53).String())
	if err != nil {
		m.t.Fatal(err)
	}
	s := &dns.Server{PacketConn: pc, Handler: n}
	ended := make(chan struct{})
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	go func() { defer close(ended); _ = s.ActivateAndServe() }()
	<-started
	m.t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	file := filepath.Join(m.t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+p.Addr().String()+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// wantGone waits for the end of a connection by a reset.
func (s *session) wantGone(t *testing.T) {
	t.Helper()
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := s.lines.ReadString('\n'); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
}

const notRegistered = "outbound traffic policy REGISTRY_ONLY: destination is not in the registry: "

// Under REGISTRY_ONLY nobody gets out but to what is registered, on the ports that are; what is registered no more ends.
func TestRegistryOnly(t *testing.T) {
	m := build(t, withFlags("--outbound-traffic-policy=REGISTRY_ONLY"))
	out := external(m)
	resolver := &names{addrs: map[string]netip.Addr{"named.example.com.": m.plain.Addr()}}
	conf := m.serveNames(m.stranger, resolver)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.remote)
	m.start("--resolv-conf=" + conf)

	t.Run("unknown", func(t *testing.T) {
		begin := time.Now()
		m.refused(m.client, out)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the refusal took %v", took)
		}
		m.record(m.a, netlab.Record{"direction": "outbound", "level": "WARN", "src.workload": "client", "error": notRegistered + out.String()})
		m.wantMetric(m.a, "culvert_outbound_passthrough_total", 1, `result="refused"`)
	})
	t.Run("members", func(t *testing.T) {
		m.mustCall(m.client, at(m.remote), "remote")
		m.mustCall(m.client, at6(m.remote), "remote")
		m.mustCall(m.client, at(m.stranger), "stranger")
		m.mustCall(m.client, vipPort(80), "remote")
		m.mustCall(m.client, at(m.client), "client")
		m.mustCall(m.client, netip.MustParseAddrPort("127.0.0.1:8080"), "client")
	})
	allocated := netip.MustParseAddrPort("240.240.0.1:80")
	for _, tc := range []struct {
		name    string
		add     func() *netlab.Service
		dst     netip.AddrPort
		refused []netip.AddrPort
	}{
		{"static", func() *netlab.Service {
			s := m.entry("static.example.com", "/"+allocated.Addr().String())
			m.endpoint(s, out.Addr().String())
			return s
		}, allocated, []netip.AddrPort{netip.AddrPortFrom(allocated.Addr(), 8080), onPort(m.plain, 22)}},
		{"endpoint", func() *netlab.Service {
			s := m.entry("static.example.com", "/"+allocated.Addr().String())
			m.endpoint(s, out.Addr().String())
			return s
		}, out, []netip.AddrPort{onPort(m.plain, 80)}},
		{"dns", func() *netlab.Service {
			s := m.entry("named.example.com", "/"+allocated.Addr().String())
			m.endpoint(s, "named.example.com")
			return s
		}, allocated, []netip.AddrPort{out}},
		{"none", func() *netlab.Service {
			s := m.entry("range.example.com")
			s.CIDRVIPs = []string{"/" + netip.PrefixFrom(out.Addr(), 24).Masked().String()}
			s.LoadBalancer, s.Ports = &netlab.LoadBalancer{Mode: "Passthrough"}, map[uint16]uint16{8080: 8080}
			return s
		}, out, []netip.AddrPort{onPort(m.plain, 80)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.add()
			m.apply()
			m.eventually("registered", func() bool { words, err := m.call(m.client, tc.dst); return err == nil && words[0] == "plain" })
			for _, dst := range tc.refused {
				m.refused(m.client, dst)
			}
			m.mustCall(m.client, at(m.remote), "remote")
			live, err := m.dial(m.client, tc.dst)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := live.ask("hello"); err != nil {
				t.Fatal(err)
			}
			m.forget(s)
			m.apply()
			live.wantGone(t)
			m.refused(m.client, tc.dst)
		})
	}
	m.wantMetric(m.a, "culvert_outbound_passthrough_total", 4, `result="ended"`)
	resolver.mu.Lock()
	defer resolver.mu.Unlock()
	if resolver.asked == 0 || resolver.asked > 4 {
		t.Errorf("the name server was asked %d times for one name", resolver.asked)
	}
}

// Who may go anywhere is counted, and so is what is registered.
func TestPassthroughIsCounted(t *testing.T) {
	m := build(t)
	out := external(m)
	m.start()
	m.mustCall(m.client, out, "plain")
	m.wantMetric(m.a, "culvert_outbound_passthrough_total", 1, `result="unknown"`)
	s := m.entry("range.example.com", "/"+out.Addr().String())
	s.LoadBalancer, s.Ports = &netlab.LoadBalancer{Mode: "Passthrough"}, map[uint16]uint16{8080: 8080}
	m.apply()
	m.eventually("counted as registered", func() bool {
		m.mustCall(m.client, out, "plain")
		n, err := m.a.Metric("culvert_outbound_passthrough_total", `result="registered"`)
		return err == nil && n > 0
	})
}
