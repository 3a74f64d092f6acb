package lookup_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/workload/dns/lookup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servers are name servers in memory. Their records are lines of a zone file;
// for a name without any they say NXDOMAIN. They are made in a bubble of
// synctest.
type servers struct {
	t  *testing.T
	mu sync.Mutex

	zone   []string
	rcode  map[string]int           // of a server, instead of an answer
	delay  map[string]time.Duration // of a server
	mangle func(*dns.Msg)
	asked  map[string]int // questions by server, network and type
}

func newServers(t *testing.T, zone ...string) *servers {
	return &servers{t: t, zone: zone, rcode: map[string]int{}, delay: map[string]time.Duration{}, asked: map[string]int{}}
}

func (s *servers) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// took returns how often servers were asked since the last call.
func (s *servers) took() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, k := range s.asked {
		n += k
	}
	s.asked = map[string]int{}
	return n
}

// dial connects to a server. Without packets, messages have a length in front.
func (s *servers) dial(_ context.Context, network, address string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer func() { _ = server.Close() }()
		c := &dns.Conn{Conn: server}
		q, err := c.ReadMsg()
		if err != nil {
			return
		}
		a, wait := s.answer(network, address, q)
		_ = server.SetReadDeadline(time.Now().Add(wait))
		if _, err := server.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) { // and the client is there still
			_ = server.SetDeadline(time.Time{})
			_ = c.WriteMsg(a)
		}
	}()
	return client, nil
}

func (s *servers) answer(network, address string, q *dns.Msg) (*dns.Msg, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[fmt.Sprintf("%s %s %s", address, network, dns.TypeToString[q.Question[0].Qtype])]++
	a := new(dns.Msg)
	a.SetReply(q)
	if code, ok := s.rcode[address]; ok {
		a.Rcode = code
		return a, s.delay[address]
	}
	a.Rcode = dns.RcodeNameError
	for _, line := range s.zone {
		rr, err := dns.NewRR(line)
		if err != nil {
			s.t.Error(err)
			continue
		}
		if strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
			a.Rcode = dns.RcodeSuccess
		}
		if t := rr.Header().Rrtype; t == q.Question[0].Qtype || t == dns.TypeCNAME {
			a.Answer = append(a.Answer, rr)
		}
	}
	if s.mangle != nil {
		s.mangle(a)
	}
	if a.Truncated && network == "tcp" {
		a.Truncated = false
	}
	return a, s.delay[address]
}

const (
	first  = "192.0.2.53:53"
	second = "192.0.2.54:53"
)

// test runs in a bubble, with a resolver that asks the servers.
func test(t *testing.T, zone []string, f func(*testing.T, *servers, *lookup.Resolver)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServers(t, zone...)
		r, err := lookup.New(lookup.Config{
			Nameservers: func() []netip.AddrPort {
				return []netip.AddrPort{netip.MustParseAddrPort(first), netip.MustParseAddrPort(second)}
			},
			Dial: s.dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		f(t, s, r)
	})
}

func look(t *testing.T, r *lookup.Resolver, name string) string {
	t.Helper()
	addrs, err := r.Lookup(t.Context(), name)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(addrs)
}

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, host string
		zone       []string
		mangle     func(*dns.Msg)
		want       string
	}{
		{"both-families", "a.example.com", []string{"a.example.com. 60 A 192.0.2.1", "a.example.com. 60 AAAA 2001:db8::1"}, nil, "[192.0.2.1 2001:db8::1]"},
		{"one-family", "a.example.com", []string{"a.example.com. 60 A 192.0.2.1", "a.example.com. 60 A 192.0.2.2"}, nil, "[192.0.2.1 192.0.2.2]"},
		{"case-and-dot", "A.Example.com.", []string{"a.example.com. 60 A 192.0.2.1"}, nil, "[192.0.2.1]"},
		{"alias", "a.example.com", []string{"a.example.com. 60 CNAME b.example.net.", "b.example.net. 60 CNAME c.example.net.", "c.example.net. 60 A 192.0.2.1"}, nil, "[192.0.2.1]"},
		{"alias-loop", "a.example.com", []string{"a.example.com. 60 CNAME b.example.net.", "b.example.net. 60 CNAME a.example.com."}, nil, "no such host"},
		{"others-names", "a.example.com", []string{"a.example.com. 60 A 192.0.2.1", "evil.example.com. 60 A 192.0.2.66"}, nil, "[192.0.2.1]"},
		{"unreachable", "a.example.com", []string{"a.example.com. 60 A 0.0.0.0", "a.example.com. 60 A 224.0.0.1"}, nil, "no such host"},
		{"not-there", "a.example.com", nil, nil, "no such host"},
		{"truncated", "a.example.com", []string{"a.example.com. 60 A 192.0.2.1"}, func(m *dns.Msg) { m.Truncated = true }, "[192.0.2.1]"},
		{"another-question", "a.example.com", []string{"a.example.com. 60 A 192.0.2.1"}, func(m *dns.Msg) { m.Question[0].Name = "b.example.com." }, "ask 192.0.2.54:53: answer is for another question"},
		{"no-name", "", nil, nil, "no such host: it is no host name"},
		{"wildcard", "*.example.com", nil, nil, "no such host: it is no host name"},
		{"long", strings.Repeat("a", 64) + ".example.com", nil, nil, "no such host: it is no host name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			test(t, tc.zone, func(t *testing.T, s *servers, r *lookup.Resolver) {
				s.mangle = tc.mangle
				if got := look(t, r, tc.host); got != tc.want {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			})
		})
	}
}

func TestRemembers(t *testing.T) {
	test(t, []string{"a.example.com. 60 A 192.0.2.1"}, func(t *testing.T, s *servers, r *lookup.Resolver) {
		want := func(answer string, questions int) {
			t.Helper()
			if got := look(t, r, "a.example.com"); got != answer {
				t.Errorf("got %q, want %q", got, answer)
			}
			if n := s.took(); n != questions {
				t.Errorf("%d questions, want %d", n, questions)
			}
		}
		want("[192.0.2.1]", 2)
		s.set(func() { s.zone = []string{"a.example.com. 0 A 192.0.2.2"} })
		time.Sleep(59 * time.Second)
		want("[192.0.2.1]", 0)
		time.Sleep(time.Second)
		want("[192.0.2.2]", 2)
		// A life of nothing is a second.
		time.Sleep(999 * time.Millisecond)
		want("[192.0.2.2]", 0)
		// Servers that fail leave the old answer in force, and are not asked at every turn.
		s.set(func() { s.rcode[first], s.rcode[second] = dns.RcodeServerFailure, dns.RcodeRefused })
		time.Sleep(time.Second)
		want("[192.0.2.2]", 8)
		want("[192.0.2.2]", 0)
		time.Sleep(30 * time.Minute)
		want("[192.0.2.2]", 8)
		time.Sleep(31 * time.Minute)
		want("ask 192.0.2.54:53: refused", 8)
		want("ask 192.0.2.54:53: refused", 0)
		// A name that is gone is gone at once, and may come back soon.
		s.set(func() { clear(s.rcode) })
		time.Sleep(time.Second)
		want("[192.0.2.2]", 2)
		s.set(func() { s.zone = nil })
		time.Sleep(time.Second)
		want("no such host", 2)
		s.set(func() { s.zone = []string{"a.example.com. 60 A 192.0.2.3"} })
		time.Sleep(4 * time.Second)
		want("no such host", 0)
		time.Sleep(time.Second)
		want("[192.0.2.3]", 2)
	})
}

func TestServers(t *testing.T) {
	zone := []string{"a.example.com. 60 A 192.0.2.1"}
	t.Run("first-fails", func(t *testing.T) {
		test(t, zone, func(t *testing.T, s *servers, r *lookup.Resolver) {
			s.rcode[first] = dns.RcodeServerFailure
			if got := look(t, r, "a.example.com"); got != "[192.0.2.1]" {
				t.Error(got)
			}
		})
	})
	t.Run("first-is-silent", func(t *testing.T) {
		test(t, zone, func(t *testing.T, s *servers, r *lookup.Resolver) {
			s.delay[first] = time.Hour
			start := time.Now()
			if got := look(t, r, "a.example.com"); got != "[192.0.2.1]" || time.Since(start) > 2*time.Second {
				t.Errorf("%s after %v", got, time.Since(start))
			}
		})
	})
	t.Run("all-silent", func(t *testing.T) {
		test(t, zone, func(t *testing.T, s *servers, r *lookup.Resolver) {
			s.delay[first], s.delay[second] = time.Hour, time.Hour
			start := time.Now()
			if got := look(t, r, "a.example.com"); !strings.Contains(got, "deadline exceeded") || time.Since(start) > 6*time.Second {
				t.Errorf("%s after %v", got, time.Since(start))
			}
		})
	})
	t.Run("silent-with-an-old-answer", func(t *testing.T) {
		test(t, zone, func(t *testing.T, s *servers, r *lookup.Resolver) {
			look(t, r, "a.example.com")
			s.set(func() { s.delay[first], s.delay[second] = time.Hour, time.Hour })
			time.Sleep(time.Minute)
			start := time.Now()
			if got := look(t, r, "a.example.com"); got != "[192.0.2.1]" || time.Since(start) > time.Second {
				t.Errorf("%s after %v", got, time.Since(start))
			}
		})
	})
	t.Run("none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, err := lookup.New(lookup.Config{Nameservers: func() []netip.AddrPort { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got := look(t, r, "a.example.com"); got != "no name server is known" {
				t.Error(got)
			}
		})
	})
}

// Many callers of one name ask once, and none waits for another one's patience.
func TestOneQuestion(t *testing.T) {
	test(t, []string{"a.example.com. 60 A 192.0.2.1"}, func(t *testing.T, s *servers, r *lookup.Resolver) {
		s.delay[first] = 100 * time.Millisecond
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := look(t, r, "a.example.com"); got != "[192.0.2.1]" {
					t.Error(got)
				}
			})
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			if _, err := r.Lookup(ctx, "a.example.com"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
		})
		wg.Wait()
		if n := s.took(); n != 2 {
			t.Errorf("%d questions, want 2", n)
		}
	})
}

func TestForgetsAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServers(t)
		r, err := lookup.New(lookup.Config{
			Nameservers: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(first)} }, Dial: s.dial, MaxHosts: 10,
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 11 {
			look(t, r, fmt.Sprintf("h%d.example.com", i))
			time.Sleep(time.Millisecond)
		}
		s.took()
		look(t, r, "h10.example.com")
		look(t, r, "h1.example.com")
		if n := s.took(); n != 0 {
			t.Errorf("%d questions for what is remembered", n)
		}
		look(t, r, "h0.example.com")
		if n := s.took(); n != 2 {
			t.Errorf("%d questions for what was forgotten", n)
		}
		s.set(func() { s.delay[first] = time.Hour })
		ended := make(chan error)
		go func() {
			_, err := r.Lookup(t.Context(), "late.example.com")
			ended <- err
		}()
		synctest.Wait()
		r.Close()
		if err := <-ended; err == nil {
			t.Error("a lookup under way has an answer")
		}
		if _, err := r.Lookup(t.Context(), "h1.example.com"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v after the end", err)
		}
	})
	if _, err := lookup.New(lookup.Config{}); err == nil {
		t.Error("a resolver without servers is made")
	}
}

// FuzzAnswer: whatever a server says, a lookup ends and gives addresses only
// with records for the name.
func FuzzAnswer(f *testing.F) {
	for _, zone := range []string{"a.example.com. 60 A 192.0.2.1", "a.example.com. 60 CNAME b.", "b. 1 AAAA ::1", ""} {
		m := new(dns.Msg)
		m.SetQuestion("a.example.com.", dns.TypeA)
		m.Response = true
		if rr, err := dns.NewRR(zone); err == nil && rr != nil {
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[2:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer func() { _ = server.Close() }()
				c := &dns.Conn{Conn: server}
				q, err := c.ReadMsg()
				if err != nil {
					return
				}
				b, err := q.Pack()
				if err != nil {
					return
				}
				_, _ = c.Write(append(b[:2:2], body...)) // with the right id
			}()
			return client, nil
		}
		r, err := lookup.New(lookup.Config{
			Nameservers: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(first)} }, Dial: dial, Timeout: time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		addrs, err := r.Lookup(t.Context(), "a.example.com")
		if (err == nil) != (len(addrs) > 0) {
			t.Errorf("%v, %v", addrs, err)
		}
	})
}
