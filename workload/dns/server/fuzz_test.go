package server

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	meshdns "github.com/culvert-mesh/culvert/workload/dns"
)

func seedQuestions(f *testing.F) [][]byte {
	var seeds [][]byte
	for _, name := range []string{".", "a.example.", "A.B.c.d.e.f.", `\000\.x.example.`} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		plain, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		m.SetEdns0(1232, true)
		edns, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, plain, edns, append(bytes.Clone(plain), 0xc0, 12))
	}
	return seeds
}

// FuzzParse: whatever a client sends is refused or gets an answer that an
// independent decoder accepts.
func FuzzParse(f *testing.F) {
	for _, s := range seedQuestions(f) {
		f.Add(s)
	}
	answer := meshdns.Answer{Outcome: meshdns.Addresses, Canonical: "b.example."}
	for i := range 64 {
		answer.Addrs = append(answer.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) < headerLen {
			return
		}
		q, rcode, end := parse(wire)
		if q == nil {
			if rcode == dns.RcodeSuccess {
				t.Fatal("refused without a code")
			}
			decode(t, refusal(wire, end, rcode))
			return
		}
		for _, p := range []proto{protoUDP, protoTCP} {
			reply := q.refuse(p, dns.RcodeServerFailure)
			if len(reply) > q.limit(p) {
				t.Errorf("reply of %d octets, limit %d", len(reply), q.limit(p))
			}
			decode(t, reply)
		}
		if q.qtype == dns.TypeA && q.qclass == dns.ClassINET {
			m := decode(t, q.local(answer, protoUDP))
			if len(m.Question) != 1 || m.Question[0].Name != q.name {
				t.Errorf("question is %v, want %q", m.Question, q.name)
			}
		}
	})
}

func decode(t *testing.T, wire []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("own reply %x: %v", wire, err)
	}
	return m
}

// FuzzRelay: whatever an upstream server sends is ignored or fits the client.
func FuzzRelay(f *testing.F) {
	for _, s := range seedQuestions(f) {
		response := bytes.Clone(s)
		response[2] |= flagQR
		f.Add(s, response)
		f.Add(s, append(response, make([]byte, 700)...))
	}
	f.Fuzz(func(t *testing.T, question, response []byte) {
		if len(question) < headerLen {
			return
		}
		q, _, _ := parse(question)
		if q == nil {
			return
		}
		if len(response) >= 2 {
			copy(response, question[:2])
		}
		if !q.answeredBy(response) {
			return
		}
		for _, p := range []proto{protoUDP, protoTCP} {
			if reply := q.relay(bytes.Clone(response), p); len(reply) > q.limit(p) && len(reply) > len(question) {
				t.Errorf("reply of %d octets, limit %d", len(reply), q.limit(p))
			}
		}
	})
}

func BenchmarkLocalAnswer(b *testing.B) {
	wire, err := new(dns.Msg).SetQuestion("productpage.ns1.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	answer := meshdns.Answer{Outcome: meshdns.Addresses, Addrs: []netip.Addr{netip.MustParseAddr("9.9.9.9")}}
	b.ReportAllocs()
	for b.Loop() {
		q, _, _ := parse(wire)
		q.local(answer, protoUDP)
	}
}
