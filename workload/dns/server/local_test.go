package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/workload"
	meshdns "github.com/culvert-mesh/culvert/workload/dns"
	"github.com/culvert-mesh/culvert/workload/dns/server"
)

// TestLocalAnswers asks a server over a real store, by both protocols.
func TestLocalAnswers(t *testing.T) {
	store := workload.New()
	vip := func(ip string) []workload.NetworkAddress {
		return []workload.NetworkAddress{{Network: "nw1", Addr: netip.MustParseAddr(ip)}}
	}
	store.Replace(nil, []*workload.Service{
		{Namespace: "ns1", Hostname: "productpage.ns1.svc.cluster.local", VIPs: vip("9.9.9.9")},
		{Namespace: "ns1", Hostname: "six.ns1.svc.cluster.local", VIPs: vip("2001:db8::9")},
		{Namespace: "ns1", Hostname: "www.google.com", VIPs: vip("1.1.1.1")},
	})
	r, err := meshdns.New(meshdns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	client := func(context.Context) (*workload.Workload, error) {
		return &workload.Workload{Namespace: "ns1", Network: "nw1"}, nil
	}
	s := start(t, server.Config{Resolver: r.For(store, client, nil)})

	tests := []struct {
		name  string
		host  string
		qtype uint16
		want  []string
	}{
		{"a", "productpage.", dns.TypeA, []string{"productpage.\t30\tIN\tA\t9.9.9.9"}},
		{"spelling-kept", "ProductPage.ns1.", dns.TypeA, []string{"ProductPage.ns1.\t30\tIN\tA\t9.9.9.9"}},
		{"aaaa", "six.ns1.svc.cluster.local.", dns.TypeAAAA, []string{"six.ns1.svc.cluster.local.\t30\tIN\tAAAA\t2001:db8::9"}},
		{"aaaa-of-ipv4-only", "productpage.", dns.TypeAAAA, nil},
		{"search-domain", "www.google.com.ns1.svc.cluster.local.", dns.TypeA, []string{
			"www.google.com.ns1.svc.cluster.local.\t30\tIN\tCNAME\twww.google.com.",
			"www.google.com.\t30\tIN\tA\t1.1.1.1",
		}},
	}
	for _, tt := range tests {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(tt.name+"/"+proto, func(t *testing.T) {
				q := question(tt.host, tt.qtype)
				m := s.ask(t, proto, q)
				var got []string
				for _, rr := range m.Answer {
					got = append(got, rr.String())
				}
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("answer (-want +got):\n%s", d)
				}
				if m.Rcode != dns.RcodeSuccess || !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.Truncated {
					t.Errorf("header is %+v", m.MsgHdr)
				}
				if len(m.Question) != 1 || m.Question[0] != q.Question[0] || len(m.Extra) != 0 {
					t.Errorf("question %v, extra %v", m.Question, m.Extra)
				}
			})
		}
	}
	if got := s.counts.queries.Load(); got != int64(2*len(tests)) || s.counts.forwarded.Load() != 0 {
		t.Errorf("%d queries observed (%d forwarded), want %d (0)", got, s.counts.forwarded.Load(), 2*len(tests))
	}
}

// manyAddresses is the reference's large answer.
func manyAddresses() resolver {
	a := meshdns.Answer{Outcome: meshdns.Addresses, Reason: "success"}
	for i := range 256 {
		a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte{240, 0, 0, byte(i)}))
	}
	return resolver{"large.com.": a}
}

func TestTruncation(t *testing.T) {
	s := start(t, server.Config{Resolver: manyAddresses()})
	tests := []struct {
		name      string
		proto     string
		edns      uint16
		answers   int
		truncated bool
	}{
		{"tcp", "tcp", 0, 256, false},
		{"tcp-with-edns", "tcp", 1232, 256, false},
		{"udp-with-edns", "udp", 1232, 74, true},
		{"udp-without-edns", "udp", 0, 30, true},
		{"udp-with-tiny-edns", "udp", 100, 29, true},
		{"udp-with-large-edns", "udp", 8192, 256, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := question("large.com.", dns.TypeA)
			if tt.edns != 0 {
				q.SetEdns0(tt.edns, true)
			}
			m := s.ask(t, tt.proto, q)
			if len(m.Answer) != tt.answers || m.Truncated != tt.truncated {
				t.Errorf("%d answers, truncated %v; want %d, %v", len(m.Answer), m.Truncated, tt.answers, tt.truncated)
			}
			opt := m.IsEdns0()
			if (opt != nil) != (tt.edns != 0) {
				t.Fatalf("OPT in the answer is %v", opt)
			}
			if opt != nil && (opt.UDPSize() != max(tt.edns, 512) || !opt.Do() || opt.Version() != 0) {
				t.Errorf("OPT is %v", opt)
			}
		})
	}
}

type failing struct{}

func (failing) Resolve(context.Context, string, uint16) (meshdns.Answer, error) {
	return meshdns.Answer{}, errors.New("who are you")
}

func TestUnknownClient(t *testing.T) {
	s := start(t, server.Config{Resolver: failing{}})
	if m := s.ask(t, "udp", question("a.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer is %s, want SERVFAIL", dns.RcodeToString[m.Rcode])
	}
}

func TestTCPPipelining(t *testing.T) {
	local := resolver{}
	for i := range 100 {
		local[fmt.Sprintf("n%d.", i)] = meshdns.Answer{
			Outcome: meshdns.Addresses, Reason: "success", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})},
		}
	}
	s := start(t, server.Config{Resolver: local})
	c, err := net.Dial("tcp", s.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dc := &dns.Conn{Conn: c}
	for i := range 100 {
		q := question(fmt.Sprintf("n%d.", i), dns.TypeA)
		q.Id = uint16(i)
		if err := dc.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	// Every answer comes although the client has closed its sending side.
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	seen := make(map[uint16]bool)
	for range 100 {
		m, err := dc.ReadMsg()
		if err != nil {
			t.Fatalf("after %d answers: %v", len(seen), err)
		}
		if got, want := m.Answer[0].(*dns.A).A.String(), fmt.Sprintf("10.0.0.%d", m.Id); got != want {
			t.Errorf("answer %d is %s", m.Id, got)
		}
		seen[m.Id] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d different answers, want 100", len(seen))
	}
}

func TestTCPIdleTimeout(t *testing.T) {
	s := start(t, server.Config{IdleTimeout: 50 * time.Millisecond})
	for name, send := range map[string][]byte{"silent": nil, "half-a-message": {0, 40, 1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.tcp.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(send); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read %d octets, %v; want a closed connection", n, err)
			}
		})
	}
}

func TestTCPConnectionLimit(t *testing.T) {
	local := resolver{"a.": {Outcome: meshdns.NoData, Reason: "no records"}}
	s := start(t, server.Config{MaxConnections: 1, Resolver: local})
	first, err := dns.Dial("tcp", s.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	exchange := func(c *dns.Conn) error {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := c.WriteMsg(question("a.", dns.TypeA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	if err := exchange(first); err != nil {
		t.Fatal(err)
	}
	second, err := dns.Dial("tcp", s.tcp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := exchange(second); err == nil {
		t.Error("a connection over the limit was served")
	}
	_ = first.Close()
	eventually(t, "place of the closed connection is free", func() bool {
		c, err := dns.Dial("tcp", s.tcp.String())
		if err != nil {
			return false
		}
		defer c.Close()
		return exchange(c) == nil
	})
}

func TestNewRefusesIncompleteConfig(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.New(server.Config{TCP: []net.Listener{l}})
	const want = "configure dns server: no resolver given\nno dial function given"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v, want %q", err, want)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("socket after refusal: %v, want closed", err)
	}
}
