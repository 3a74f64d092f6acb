package server

import (
	"bytes"
	"encoding/binary"

	"github.com/miekg/dns"
)

// Header layout (RFC 1035 section 4.1.1).
const (
	headerLen = 12

	flagQR     = 0x80 // octet 2
	flagTC     = 0x02 // octet 2
	flagRD     = 0x01 // octet 2
	flagRA     = 0x80 // octet 3
	opcodeMask = 0x78 // octet 2
	rcodeMask  = 0x0f // octet 3
)

// query is one question as received.
type query struct {
	// wire is the client's message, sent upstream with another id.
	wire []byte
	id   uint16 // the client's
	end  int    // of the question section

	name   string // presentation form, fully qualified, the client's case
	qtype  uint16
	qclass uint16
	edns   *edns
}

// edns is what the client's OPT record says (RFC 6891).
type edns struct {
	payload uint16
	version uint8
	do      bool
}

// parse reads the client's message. When it cannot be answered as a question, q is
// nil and rcode says what to reply; end is how much of the message may be echoed.
func parse(wire []byte) (q *query, rcode, end int) {
	switch {
	case wire[2]&flagQR != 0:
		return nil, dns.RcodeFormatError, headerLen
	case wire[2]&opcodeMask != 0:
		return nil, dns.RcodeNotImplemented, headerLen
	case binary.BigEndian.Uint16(wire[4:]) != 1:
		return nil, dns.RcodeFormatError, headerLen
	}
	name, off, err := dns.UnpackDomainName(wire, headerLen)
	if err != nil || off+4 > len(wire) || !plainName(wire[headerLen:off]) {
		return nil, dns.RcodeFormatError, headerLen
	}
	q = &query{
		wire:   wire,
		id:     binary.BigEndian.Uint16(wire),
		end:    off + 4,
		name:   name,
		qtype:  binary.BigEndian.Uint16(wire[off:]),
		qclass: binary.BigEndian.Uint16(wire[off+2:]),
	}
	if !q.readRecords() {
		return nil, dns.RcodeFormatError, q.end
	}
	if q.qtype == dns.TypeAXFR {
		// Its answer is a stream of messages, which one question does not get here.
		return nil, dns.RcodeNotImplemented, q.end
	}
	return q, dns.RcodeSuccess, q.end
}

// plainName reports whether the encoded name is a sequence of labels without
// compression, so that questions can be compared octet by octet.
func plainName(b []byte) bool {
	for i := 0; i < len(b); i += 1 + int(b[i]) {
		if b[i] > 63 {
			return false
		}
		if b[i] == 0 {
			return i == len(b)-1
		}
	}
	return false
}

// readRecords walks the records behind the question for the OPT record; false
// when they do not add up, or when there are two of it (RFC 6891 section 6.1.1).
func (q *query) readRecords() bool {
	msg, off := q.wire, q.end
	records := 0
	for i := 6; i < headerLen; i += 2 {
		records += int(binary.BigEndian.Uint16(msg[i:]))
	}
	for range records {
		start := off
		var ok bool
		if off, ok = skipName(msg, off); !ok || off+10 > len(msg) {
			return false
		}
		if binary.BigEndian.Uint16(msg[off:]) == dns.TypeOPT {
			if q.edns != nil || msg[start] != 0 {
				return false
			}
			q.edns = &edns{
				payload: binary.BigEndian.Uint16(msg[off+2:]),
				version: msg[off+5],
				do:      msg[off+6]&0x80 != 0,
			}
		}
		off += 10 + int(binary.BigEndian.Uint16(msg[off+8:]))
		if off > len(msg) {
			return false
		}
	}
	return true
}

// skipName returns the offset behind the name at off.
func skipName(msg []byte, off int) (int, bool) {
	for off < len(msg) {
		switch n := int(msg[off]); {
		case n == 0:
			return off + 1, true
		case n >= 0xc0: // a pointer ends the name
			return off + 2, off+2 <= len(msg)
		case n > 63:
			return 0, false
		default:
			off += 1 + n
		}
	}
	return 0, false
}

// limit is how many octets an answer to the client may have.
func (q *query) limit(p proto) int {
	switch {
	case p == protoTCP:
		return dns.MaxMsgSize
	case q.edns != nil:
		return max(int(q.edns.payload), dns.MinMsgSize)
	default:
		return dns.MinMsgSize
	}
}

// withID returns a copy of the query under another id, to be sent upstream,
// so that neither the client nor anyone who watches it knows the id in use.
func (q *query) withID(id uint16) *query {
	c := *q
	c.wire = bytes.Clone(q.wire)
	binary.BigEndian.PutUint16(c.wire, id)
	return &c
}

// answeredBy reports whether msg is a response to the query as sent upstream: same
// id and opcode, and the same question (names differ in case at most). Servers
// which refuse a message may leave the question out.
func (q *query) answeredBy(msg []byte) bool {
	if len(msg) < headerLen || !bytes.Equal(msg[:2], q.wire[:2]) {
		return false
	}
	if msg[2]&flagQR == 0 || msg[2]&opcodeMask != q.wire[2]&opcodeMask {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 1:
		return len(msg) >= q.end && equalFold(msg[headerLen:q.end], q.wire[headerLen:q.end])
	case 0:
		code := int(msg[3] & rcodeMask)
		return code != dns.RcodeSuccess && code != dns.RcodeNameError &&
			binary.BigEndian.Uint16(msg[6:]) == 0
	default:
		return false
	}
}

// equalFold compares encoded questions without regard to the case of ASCII
// letters. Length octets are below the letters, so they compare as they are; type
// and class do too.
func equalFold(a, b []byte) bool {
	names := len(a) - 4
	for i := range names {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return bytes.Equal(a[names:], b[names:])
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
