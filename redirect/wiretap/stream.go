package wiretap

import (
	"bytes"
	"encoding/binary"
)

// Kind is what the bytes of a stream are.
type Kind int

// What the bytes of one direction can be.
const (
	// Silent: there were none.
	Silent Kind = iota
	// TLS: well-formed TLS records from the first byte on.
	TLS
	// Plain: something else.
	Plain
	// Unclear: the beginning or a part was not seen.
	Unclear
)

func (k Kind) String() string {
	switch k {
	case Silent:
		return "silent"
	case TLS:
		return "TLS"
	case Plain:
		return "plain"
	default:
		return "unclear"
	}
}

// sampleSize is how many first bytes of a stream are kept to be shown.
const sampleSize = 64

// stream follows the bytes of one direction of a TCP connection in their order.
type stream struct {
	packets, bytes uint64
	records        [4]uint64 // by content type, from 20 on
	gaps           uint64
	sample         []byte
	found          uint64 // bit i: needle i

	known   bool   // next is valid
	next    uint32 // sequence number of the byte that comes next
	kind    Kind
	header  [5]byte // record header in progress
	partial int     // bytes of it that are there
	left    int     // bytes of the current record still to come
	tail    []byte  // last bytes, for needles that span packets
}

// begin notes the SYN of the direction. When the same ports are used for another connection, that one has to begin with
// a record of its own, and what was seen before stays counted.
func (s *stream) begin(seq uint32) {
	s.known, s.next = true, seq+1
	s.partial, s.left, s.tail = 0, 0, nil
}

// segment takes a packet's payload.
func (s *stream) segment(seq uint32, payload []byte, needles [][]byte) {
	if len(payload) == 0 {
		return
	}
	if !s.known {
		s.known, s.next, s.kind = true, seq, Unclear
	}
	switch ahead := int32(seq - s.next); {
	case ahead < 0: // seen before, at least its beginning
		behind := s.next - seq // not -ahead: half the sequence space has no negative
		if uint64(behind) >= uint64(len(payload)) {
			return
		}
		payload = payload[behind:]
	case ahead > 0:
		s.gaps++
		s.kind, s.tail = Unclear, nil
		s.next = seq
	}
	s.next += uint32(len(payload))
	s.take(payload, needles)
}

func (s *stream) take(payload []byte, needles [][]byte) {
	s.bytes += uint64(len(payload))
	if room := sampleSize - len(s.sample); room > 0 {
		s.sample = append(s.sample, payload[:min(room, len(payload))]...)
	}
	s.search(payload, needles)
	if s.kind == Silent {
		s.kind = TLS
	}
	if s.kind == TLS && !s.walk(payload) {
		s.kind = Plain
	}
}

// search looks for needles in the payload and where it joins what came before.
func (s *stream) search(payload []byte, needles [][]byte) {
	longest := 0
	for i, needle := range needles {
		longest = max(longest, len(needle))
		if s.found&(1<<i) != 0 {
			continue
		}
		seam := append(bytes.Clone(s.tail), payload[:min(len(payload), len(needle))]...)
		if bytes.Contains(payload, needle) || bytes.Contains(seam, needle) {
			s.found |= 1 << i
		}
	}
	if longest == 0 {
		return
	}
	s.tail = append(s.tail, payload[max(0, len(payload)-longest):]...)
	s.tail = bytes.Clone(s.tail[max(0, len(s.tail)-longest):])
}

// walk goes through record headers (RFC 8446 section 5.1). It reports false at the first that is none.
func (s *stream) walk(b []byte) bool {
	for len(b) > 0 {
		if s.left > 0 {
			n := min(s.left, len(b))
			s.left -= n
			b = b[n:]
			continue
		}
		n := copy(s.header[s.partial:], b)
		s.partial += n
		b = b[n:]
		if s.partial < len(s.header) {
			// Even a beginning can be no header.
			return s.header[0] >= 20 && s.header[0] <= 23
		}
		s.partial = 0
		length := int(binary.BigEndian.Uint16(s.header[3:]))
		const largest = 1<<14 + 256
		if s.header[0] < 20 || s.header[0] > 23 || s.header[1] != 3 || s.header[2] > 4 || length == 0 || length > largest {
			return false
		}
		s.records[s.header[0]-20]++
		s.left = length
	}
	return true
}
