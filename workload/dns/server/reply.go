package server

import (
	"encoding/binary"

	"github.com/miekg/dns"

	meshdns "github.com/culvert-mesh/culvert/workload/dns"
)

// refusal builds the reply to a message that is answered with a bare code; the
// part of the message up to end (header, perhaps question) is echoed.
func refusal(wire []byte, end, rcode int) []byte {
	reply := make([]byte, end)
	copy(reply, wire)
	reply[2] = flagQR | wire[2]&(opcodeMask|flagRD)
	reply[3] = flagRA | byte(rcode)
	clear(reply[4:headerLen])
	if end > headerLen {
		reply[5] = 1
	}
	return reply
}

// refuse is refusal for a question that was understood, with its EDNS.
func (q *query) refuse(p proto, rcode int) []byte {
	m := q.reply()
	m.Rcode = rcode
	return q.pack(m, p)
}

// local builds the reply from an answer out of the store.
func (q *query) local(a meshdns.Answer, p proto) []byte {
	m := q.reply()
	m.Authoritative = true
	owner := q.name
	if a.Canonical != "" {
		owner = a.Canonical
		m.Answer = append(m.Answer, &dns.CNAME{
			Hdr:    dns.RR_Header{Name: q.name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: meshdns.TTL},
			Target: a.Canonical,
		})
	}
	for _, addr := range a.Addrs {
		hdr := dns.RR_Header{Name: owner, Rrtype: q.qtype, Class: dns.ClassINET, Ttl: meshdns.TTL}
		if q.qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: hdr, A: addr.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr, AAAA: addr.AsSlice()})
		}
	}
	return q.pack(m, p)
}

// reply returns an empty reply to the query: same id and question, recursion
// available (unknown names are forwarded), EDNS echoed if the client has it.
func (q *query) reply() *dns.Msg {
	m := new(dns.Msg)
	m.Id = q.id
	m.Response = true
	m.RecursionDesired = q.wire[2]&flagRD != 0
	m.RecursionAvailable = true
	m.CheckingDisabled = q.wire[3]&0x10 != 0
	m.Question = []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.qclass}}
	if q.edns != nil {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(max(q.edns.payload, dns.MinMsgSize))
		opt.SetVersion(q.edns.version)
		opt.SetDo(q.edns.do)
		m.Extra = append(m.Extra, opt)
	}
	return m
}

// pack encodes a reply within the client's limit, with TC set when records had to
// be left out. A reply that cannot be encoded becomes SERVFAIL.
func (q *query) pack(m *dns.Msg, p proto) []byte {
	limit := q.limit(p)
	m.Truncate(limit)
	m.Compress = true
	wire, err := m.Pack()
	if err != nil || len(wire) > limit {
		return refusal(q.wire, q.end, dns.RcodeServerFailure)
	}
	return wire
}

// relay turns an upstream server's response into the reply: the client's id and
// the client's spelling of the name, everything else as it came. One that is too
// long for the client (a server that ignored the limit it was told) is truncated.
func (q *query) relay(response []byte, p proto) []byte {
	binary.BigEndian.PutUint16(response, q.id)
	if binary.BigEndian.Uint16(response[4:]) == 1 {
		copy(response[headerLen:q.end], q.wire[headerLen:q.end])
	}
	limit := q.limit(p)
	if len(response) <= limit {
		return response
	}
	m := new(dns.Msg)
	if err := m.Unpack(response); err == nil {
		m.Truncate(limit)
		m.Compress = true
		if wire, err := m.Pack(); err == nil && len(wire) <= limit {
			return wire
		}
	}
	// Nothing of it can be kept; the client is told to ask over TCP.
	reply := refusal(q.wire, q.end, int(response[3]&rcodeMask))
	reply[2] |= flagTC
	return reply
}
