package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/workload/dns/server"
)

// TestForwardKeepsAnswer: whatever the upstream server says goes back as it is.
func TestForwardKeepsAnswer(t *testing.T) {
	tests := []struct {
		name   string
		qtype  uint16
		change func(string, *dns.Msg)
	}{
		{"answer-with-cname-and-additional", dns.TypeA, func(_ string, m *dns.Msg) {
			m.Answer = []dns.RR{rr(t, "www.bing.com. 77 IN CNAME other.example."), rr(t, "other.example. 1 IN A 1.1.1.1")}
			m.Extra = []dns.RR{rr(t, "www.bing.com. 5 IN AAAA ::1")}
		}},
		{"authoritative", dns.TypeA, func(_ string, m *dns.Msg) { m.Authoritative = true }},
		{"nxdomain-with-soa", dns.TypeA, func(_ string, m *dns.Msg) {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "com. 900 IN SOA a.gtld. nstld.example. 1 1800 900 604800 86400")}
		}},
		{"no-data-with-soa", dns.TypeAAAA, func(_ string, m *dns.Msg) {
			m.Ns = []dns.RR{rr(t, "com. 900 IN SOA a.gtld. nstld.example. 1 1800 900 604800 86400")}
		}},
		{"refused", dns.TypeA, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeRefused }},
		{"servfail", dns.TypeA, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }},
		{"unknown-type", 65280, func(_ string, m *dns.Msg) {
			m.Answer = []dns.RR{rr(t, `www.bing.com. 3 IN TYPE65280 \# 3 010203`)}
		}},
		{"txt", dns.TypeTXT, func(_ string, m *dns.Msg) {
			m.Answer = []dns.RR{rr(t, `www.bing.com. 3 IN TXT "x y"`)}
		}},
		{"edns", dns.TypeA, func(_ string, m *dns.Msg) { m.SetEdns0(1400, false) }},
	}
	for _, tt := range tests {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(tt.name+"/"+proto, func(t *testing.T) {
				u := startUpstream(t, answering(t, tt.change))
				s := start(t, server.Config{OriginalDst: u.asked})
				q := question("www.BING.com.", tt.qtype)
				want := new(dns.Msg).SetReply(q)
				tt.change(proto, want)

				got := s.ask(t, proto, q)
				want.Compress, got.Compress = false, false
				if d := cmp.Diff(want.String(), got.String()); d != "" {
					t.Errorf("answer (-want +got):\n%s", d)
				}
				if s.counts.forwarded.Load() != 1 || s.counts.failed.Load() != 0 {
					t.Errorf("observed %d forwarded, %d failed; want 1, 0", s.counts.forwarded.Load(), s.counts.failed.Load())
				}
			})
		}
	}
}

func TestForwardSendsOtherID(t *testing.T) {
	ids := make(chan uint16, 64)
	u := startUpstream(t, func(proto string, q []byte) [][]byte {
		ids <- id(q)
		return answering(t, func(string, *dns.Msg) {})(proto, q)
	})
	s := start(t, server.Config{OriginalDst: u.asked})
	seen := make(map[uint16]bool)
	for range 8 {
		q := question("a.example.", dns.TypeA)
		q.Id = 4711
		if got := s.ask(t, "udp", q); got.Id != 4711 {
			t.Errorf("answer has id %d", got.Id)
		}
		seen[<-ids] = true
	}
	if len(seen) < 6 {
		t.Errorf("8 questions used %d ids upstream", len(seen))
	}
}

func TestForwardTruncated(t *testing.T) {
	change := func(proto string, m *dns.Msg) {
		if proto == "udp" {
			m.Truncated = true
			return
		}
		for i := range 200 {
			m.Answer = append(m.Answer, rr(t, fmt.Sprintf("big.example. 1 IN A 10.0.0.%d", i)))
		}
	}
	t.Run("udp-client-decides", func(t *testing.T) {
		u := startUpstream(t, answering(t, change))
		s := start(t, server.Config{OriginalDst: u.asked})
		if m := s.ask(t, "udp", question("big.example.", dns.TypeA)); !m.Truncated || len(m.Answer) != 0 {
			t.Errorf("truncated %v with %d answers, want the upstream's truncated answer", m.Truncated, len(m.Answer))
		}
		if u.tcp.Load() != 0 {
			t.Error("upstream was asked over tcp for a client of udp")
		}
	})
	t.Run("tcp-client-gets-all", func(t *testing.T) {
		u := startUpstream(t, answering(t, change))
		s := start(t, server.Config{OriginalDst: u.asked})
		if m := s.ask(t, "tcp", question("big.example.", dns.TypeA)); m.Truncated || len(m.Answer) != 200 {
			t.Errorf("truncated %v with %d answers, want 200", m.Truncated, len(m.Answer))
		}
	})
}

// TestForwardOneProtocol: a client of TCP gets its answer from a server that can be reached over one protocol only.
func TestForwardOneProtocol(t *testing.T) {
	fine := answering(t, func(_ string, m *dns.Msg) { m.Answer = []dns.RR{rr(t, "a.example. 1 IN A 10.0.0.1")} })
	truncated := answering(t, func(_ string, m *dns.Msg) { m.Truncated = true })
	refuse := func(context.Context) error { return errors.New("connection refused") }
	lose := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for _, tt := range []struct {
		name   string
		closed string // the protocol
		dial   func(context.Context) error
		handle func(proto string, q []byte) [][]byte
		want   int
	}{
		{"tcp_only", "udp", refuse, fine, dns.RcodeSuccess},
		{"udp_only", "tcp", refuse, fine, dns.RcodeSuccess},
		{"udp_only_and_tcp_is_lost", "tcp", lose, fine, dns.RcodeSuccess},
		{"udp_only_and_too_long", "tcp", refuse, truncated, dns.RcodeServerFailure},
		{"udp_is_lost", "", nil, func(proto string, q []byte) [][]byte {
			if proto == "udp" {
				return nil
			}
			return fine(proto, q)
		}, dns.RcodeSuccess},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := startUpstream(t, tt.handle)
			s := start(t, server.Config{OriginalDst: u.asked, Timeout: 3 * time.Second, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if network == tt.closed {
					return nil, tt.dial(ctx)
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}})
			m := s.ask(t, "tcp", question("a.example.", dns.TypeA))
			if m.Rcode != tt.want || tt.want == dns.RcodeSuccess && len(m.Answer) != 1 || m.Truncated {
				t.Errorf("answer is %v", m)
			}
		})
	}
}

// TestForwardTooLong: an upstream that ignores the client's limit.
func TestForwardTooLong(t *testing.T) {
	long := func(proto string, wire []byte) [][]byte {
		return answering(t, func(_ string, m *dns.Msg) {
			for i := range 100 {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("big.example. 1 IN A 10.0.0.%d", i)))
			}
		})(proto, wire)
	}
	t.Run("well-formed", func(t *testing.T) {
		u := startUpstream(t, long)
		s := start(t, server.Config{OriginalDst: u.asked})
		m := s.ask(t, "udp", question("big.example.", dns.TypeA))
		m.Compress = true
		if !m.Truncated || len(m.Answer) == 0 || m.Len() > 512 {
			t.Errorf("truncated %v, %d answers, %d octets", m.Truncated, len(m.Answer), m.Len())
		}
	})
	t.Run("malformed", func(t *testing.T) {
		u := startUpstream(t, func(proto string, wire []byte) [][]byte {
			msg := long(proto, wire)[0]
			return [][]byte{msg[:len(msg)-7]}
		})
		s := start(t, server.Config{OriginalDst: u.asked})
		m := s.ask(t, "udp", question("big.example.", dns.TypeA))
		if !m.Truncated || len(m.Answer) != 0 || len(m.Question) != 1 {
			t.Errorf("answer is %v, want an empty truncated one", m)
		}
	})
}

// TestForwardUpstreamDown: each way of being down gives SERVFAIL in time.
func TestForwardUpstreamDown(t *testing.T) {
	silent := startUpstream(t, func(string, []byte) [][]byte { return nil })
	closed, l := listenBoth(t)
	gone := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	_, _ = closed.Close(), l.Close()

	tests := []struct {
		name string
		cfg  server.Config
	}{
		{"silent", server.Config{OriginalDst: silent.asked}},
		{"port-closed", server.Config{OriginalDst: (&upstream{addr: gone}).asked}},
		{"all-nameservers-silent", server.Config{Nameservers: func() []netip.AddrPort {
			return []netip.AddrPort{silent.addr, silent.addr, silent.addr}
		}}},
		{"cannot-dial", server.Config{OriginalDst: silent.asked, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no route")
		}}},
		{"dial-hangs", server.Config{OriginalDst: silent.asked, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}},
		{"none-known", server.Config{}},
	}
	for _, tt := range tests {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(tt.name+"/"+proto, func(t *testing.T) {
				tt.cfg.Timeout = 200 * time.Millisecond
				s := start(t, tt.cfg)
				begin := time.Now()
				q := question("www.example.", dns.TypeA)
				q.SetEdns0(1232, false)
				m := s.ask(t, proto, q)
				if m.Rcode != dns.RcodeServerFailure || m.Authoritative || !m.RecursionAvailable || m.IsEdns0() == nil {
					t.Errorf("answer is %v, want SERVFAIL", m)
				}
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("SERVFAIL took %v", took)
				}
				if s.counts.failed.Load() != 1 {
					t.Errorf("%d failures observed, want 1", s.counts.failed.Load())
				}
			})
		}
	}
}

// TestForwardResends: one lost datagram does not cost the answer.
func TestForwardResends(t *testing.T) {
	var n int
	u := startUpstream(t, func(proto string, q []byte) [][]byte {
		if n++; n == 1 {
			return nil
		}
		return answering(t, func(string, *dns.Msg) {})(proto, q)
	})
	s := start(t, server.Config{OriginalDst: u.asked, Timeout: 600 * time.Millisecond})
	if m := s.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeSuccess {
		t.Errorf("answer is %s", dns.RcodeToString[m.Rcode])
	}
}

func TestForwardNextNameserver(t *testing.T) {
	good := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNameError }))
	silent := startUpstream(t, func(string, []byte) [][]byte { return nil })
	refusing := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeRefused }))
	tests := []struct {
		name    string
		servers []netip.AddrPort
		want    int
	}{
		{"after-a-silent-one", []netip.AddrPort{silent.addr, good.addr}, dns.RcodeNameError},
		{"after-a-refusing-one", []netip.AddrPort{refusing.addr, good.addr}, dns.RcodeNameError},
		{"refusing-one-last", []netip.AddrPort{silent.addr, refusing.addr}, dns.RcodeRefused},
		{"unusable-ones-skipped", []netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:53"), good.addr}, dns.RcodeNameError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, server.Config{
				Timeout:     3 * time.Second, // a loaded machine's servers take their time, too
				Nameservers: func() []netip.AddrPort { return tt.servers },
			})
			if m := s.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != tt.want {
				t.Errorf("answer is %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.want])
			}
		})
	}
}

// TestForwardOriginalFirst: the server that the application asked goes before
// resolv.conf, unless it is this server itself.
func TestForwardOriginalFirst(t *testing.T) {
	asked := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeYXDomain }))
	other := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNXRrset }))
	nameservers := func() []netip.AddrPort { return []netip.AddrPort{other.addr} }

	var seen []string
	s := start(t, server.Config{Nameservers: nameservers, OriginalDst: func(client netip.AddrPort, proto string) (netip.AddrPort, bool) {
		seen = append(seen, fmt.Sprintf("%s %s", client.Addr(), proto))
		return asked.addr, true
	}})
	for _, proto := range []string{"udp", "tcp"} {
		if m := s.ask(t, proto, question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeYXDomain {
			t.Errorf("answer over %s is %s", proto, dns.RcodeToString[m.Rcode])
		}
	}
	s.stop()
	if d := cmp.Diff([]string{"127.0.0.1 udp", "127.0.0.1 tcp"}, seen); d != "" {
		t.Errorf("original destination asked for (-want +got):\n%s", d)
	}

	var own atomic.Pointer[netip.AddrPort]
	self := start(t, server.Config{Nameservers: nameservers, OriginalDst: func(netip.AddrPort, string) (netip.AddrPort, bool) {
		return *own.Load(), true
	}})
	own.Store(&self.udp)
	if m := self.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeNXRrset {
		t.Errorf("answer is %s, want that of resolv.conf's server", dns.RcodeToString[m.Rcode])
	}
}

// TestForwardIgnoresOthers: what does not answer this question from this server is
// not taken for the answer.
func TestForwardIgnoresOthers(t *testing.T) {
	wrong := map[string]func(good []byte) []byte{
		"id":           func(m []byte) []byte { m[0] ^= 0x55; return m },
		"not-response": func(m []byte) []byte { m[2] &^= 0x80; return m },
		"opcode":       func(m []byte) []byte { m[2] |= 0x10; return m },
		"name":         func(m []byte) []byte { m[13] = 'x'; return m },
		"type":         func(m []byte) []byte { m[bytes.IndexByte(m[12:], 0)+12+2] = 28; return m },
		"no-question":  func(m []byte) []byte { clear(m[4:12]); return m[:12] },
		"two-questions": func(m []byte) []byte {
			m[5] = 2
			return m
		},
		"short": func(m []byte) []byte { return m[:11] },
		"empty": func([]byte) []byte { return nil },
	}
	for name, spoil := range wrong {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(name+"/"+proto, func(t *testing.T) {
				u := startUpstream(t, func(p string, q []byte) [][]byte {
					if p == "udp" && proto == "tcp" {
						return answering(t, func(_ string, m *dns.Msg) { m.Truncated = true })(p, q)
					}
					good := answering(t, func(_ string, m *dns.Msg) {
						m.Answer = []dns.RR{rr(t, "abc.example. 1 IN A 1.1.1.1")}
					})(p, q)[0]
					bad := bytes.Clone(good)
					bad[3] |= dns.RcodeNameError // so that it is seen when it is taken
					return [][]byte{spoil(bad), good}
				})
				s := start(t, server.Config{OriginalDst: u.asked})
				m := s.ask(t, proto, question("abc.example.", dns.TypeA))
				if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
					t.Errorf("answer is %v", m)
				}
			})
		}
	}
}

// TestForwardOtherSource: a datagram from elsewhere is not the server's answer.
func TestForwardOtherSource(t *testing.T) {
	stranger, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		forged := answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeRefused })("udp", buf[:n])[0]
		_, _ = stranger.WriteTo(forged, from)
		real := answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNameError })("udp", buf[:n])[0]
		_, _ = p.WriteTo(real, from)
	}()
	u := &upstream{addr: p.LocalAddr().(*net.UDPAddr).AddrPort()}
	s := start(t, server.Config{OriginalDst: u.asked})
	if m := s.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeNameError {
		t.Errorf("answer is %s, want that of the server asked", dns.RcodeToString[m.Rcode])
	}
	_ = p.Close()
	<-done
}

// TestForwardGuessing: many wrong answers end the exchange.
func TestForwardGuessing(t *testing.T) {
	u := startUpstream(t, func(_ string, q []byte) [][]byte {
		var guesses [][]byte
		for i := range 32 {
			g := bytes.Clone(q)
			g[1] ^= byte(i + 1)
			g[2] |= 0x80
			guesses = append(guesses, g)
		}
		return guesses
	})
	s := start(t, server.Config{OriginalDst: u.asked})
	if m := s.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer is %s, want SERVFAIL", dns.RcodeToString[m.Rcode])
	}
}

// TestForwardLimit: known names are answered while every place for forwarding is
// taken, and further unknown ones fail at once.
func TestForwardLimit(t *testing.T) {
	u := startUpstream(t, func(string, []byte) [][]byte { return nil })
	s := start(t, server.Config{OriginalDst: u.asked, MaxForwards: 2, Resolver: manyAddresses(), Timeout: 30 * time.Second, Grace: time.Millisecond})
	for range 2 {
		c, err := dns.Dial("udp", s.udp.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.WriteMsg(question("unknown.example.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two questions are forwarded", func() bool { return u.udp.Load() >= 2 })
	if m := s.ask(t, "udp", question("other.example.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("question over the limit: %s, want SERVFAIL", dns.RcodeToString[m.Rcode])
	}
	if m := s.ask(t, "tcp", question("large.com.", dns.TypeA)); len(m.Answer) != 256 {
		t.Errorf("known name gets %d answers", len(m.Answer))
	}
}

// TestPlacesAreGivenBack: the limits are of questions at a time.
func TestPlacesAreGivenBack(t *testing.T) {
	u := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNameError }))
	s := start(t, server.Config{OriginalDst: u.asked, MaxForwards: 1})
	for _, proto := range []string{"udp", "tcp"} {
		for i := range 5 {
			eventually(t, fmt.Sprintf("question %d over %s is forwarded", i, proto), func() bool {
				return s.ask(t, proto, question("a.example.", dns.TypeA)).Rcode == dns.RcodeNameError
			})
		}
	}
}

// TestStopAnswersInFlight: questions in work when the server stops are answered.
func TestStopAnswersInFlight(t *testing.T) {
	release := make(chan struct{})
	u := startUpstream(t, func(proto string, q []byte) [][]byte {
		<-release
		return answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNameError })(proto, q)
	})
	s := start(t, server.Config{OriginalDst: u.asked, Grace: 10 * time.Second})
	answers := make(chan *dns.Msg, 2)
	for _, proto := range []string{"udp", "tcp"} {
		go func() {
			c := dns.Client{Net: proto, Timeout: 10 * time.Second}
			addr := map[string]netip.AddrPort{"udp": s.udp, "tcp": s.tcp}[proto]
			m, _, _ := c.Exchange(question("a.example.", dns.TypeA), addr.String())
			answers <- m
		}()
	}
	eventually(t, "both questions are forwarded", func() bool { return u.udp.Load() >= 1 })
	stopped := make(chan struct{})
	go func() { defer close(stopped); s.stop() }()
	time.AfterFunc(20*time.Millisecond, func() { close(release) })
	for range 2 {
		// The TCP question may not have been read yet when the server stopped.
		if m := <-answers; m != nil && m.Rcode != dns.RcodeNameError {
			t.Errorf("answer is %v", m)
		}
	}
	<-stopped
}

func TestLogLine(t *testing.T) {
	var buf strings.Builder
	u := startUpstream(t, answering(t, func(_ string, m *dns.Msg) { m.Rcode = dns.RcodeNameError }))
	s := start(t, server.Config{OriginalDst: u.asked, Logger: debugLogger(&buf)})
	s.ask(t, "udp", question("a.example.", dns.TypeA))
	s.stop()
	const want = "level=DEBUG msg=dns proto=udp query=A domain=a.example. result=forwarded endpoints=0\n"
	if buf.String() != want {
		t.Errorf("log is %q, want %q", buf.String(), want)
	}
}
