package server_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	meshdns "github.com/culvert-mesh/culvert/workload/dns"
	"github.com/culvert-mesh/culvert/workload/dns/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// resolver answers from a table by name; other names are forwarded.
type resolver map[string]meshdns.Answer

func (r resolver) Resolve(_ context.Context, name string, qtype uint16) (meshdns.Answer, error) {
	if a, ok := r[name]; ok && (qtype == meshdns.TypeA || qtype == meshdns.TypeAAAA) {
		return a, nil
	}
	return meshdns.Answer{Reason: "unknown host"}, nil
}

// counts is an Observer.
type counts struct{ queries, forwarded, failed atomic.Int64 }

func (c *counts) Query(_, _ string, forwarded, failed bool, _ time.Duration) {
	c.queries.Add(1)
	if forwarded {
		c.forwarded.Add(1)
	}
	if failed {
		c.failed.Add(1)
	}
}

// running is a server on loopback sockets.
type running struct {
	udp, tcp netip.AddrPort
	counts   *counts
	stop     func()
}

// start runs a server until the test ends. The Config's sockets, dial function and
// observer are set here unless given.
func start(t *testing.T, cfg server.Config) *running {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{
		udp:    p.LocalAddr().(*net.UDPAddr).AddrPort(),
		tcp:    l.Addr().(*net.TCPAddr).AddrPort(),
		counts: new(counts),
	}
	cfg.UDP, cfg.TCP = []net.PacketConn{p}, []net.Listener{l}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Resolver == nil {
		cfg.Resolver = resolver{}
	}
	cfg.Observer = r.counts
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(r.stop)
	return r
}

// ask sends one message by the protocol and returns the answer.
func (r *running) ask(t *testing.T, proto string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: proto, Timeout: 10 * time.Second, UDPSize: dns.MaxMsgSize}
	addr := r.udp
	if proto == "tcp" {
		addr = r.tcp
	}
	answer, _, err := c.Exchange(m, addr.String())
	if err != nil {
		t.Fatalf("ask over %s: %v", proto, err)
	}
	return answer
}

// raw sends octets over UDP and returns what comes back within the patience; nil
// for nothing.
func (r *running) raw(t *testing.T, msg []byte, patience time.Duration) []byte {
	t.Helper()
	c, err := net.Dial("udp", r.udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, dns.MaxMsgSize)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// question makes a query with RD set.
func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// upstream is a DNS server on loopback whose answers a test decides. handle gets
// the octets and returns the messages to send (UDP: datagrams).
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // questions seen
}

func startUpstream(t *testing.T, handle func(proto string, q []byte) [][]byte) *upstream {
	t.Helper()
	p, l := listenBoth(t)
	u := &upstream{addr: p.LocalAddr().(*net.UDPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, dns.MaxMsgSize)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			u.udp.Add(1)
			for _, answer := range handle("udp", append([]byte(nil), buf[:n]...)) {
				_, _ = p.WriteTo(answer, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				dc := &dns.Conn{Conn: c}
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				for {
					q, err := dc.ReadMsgHeader(nil)
					if err != nil {
						return
					}
					u.tcp.Add(1)
					for _, answer := range handle("tcp", q) {
						if _, err := dc.Write(answer); err != nil {
							return
						}
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = p.Close()
		_ = l.Close()
		wg.Wait()
	})
	return u
}

// listenBoth finds a port that is free for both protocols.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		p, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", p.LocalAddr().String())
		if err == nil {
			return p, l
		}
		_ = p.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

// asked returns an OriginalDst function for the upstream.
func (u *upstream) asked(netip.AddrPort, string) (netip.AddrPort, bool) { return u.addr, true }

// answering makes a handler that answers with what change makes of a plain reply.
func answering(t *testing.T, change func(proto string, m *dns.Msg)) func(string, []byte) [][]byte {
	return func(proto string, wire []byte) [][]byte {
		q := new(dns.Msg)
		if err := q.Unpack(wire); err != nil {
			t.Errorf("upstream got a malformed question: %v", err)
			return nil
		}
		m := new(dns.Msg).SetReply(q)
		change(proto, m)
		m.Compress = true
		out, err := m.Pack()
		if err != nil {
			t.Errorf("upstream cannot pack: %v", err)
			return nil
		}
		return [][]byte{out}
	}
}

func rr(t *testing.T, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func id(msg []byte) uint16 { return binary.BigEndian.Uint16(msg) }

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("%s: not within 10 s", what)
}
