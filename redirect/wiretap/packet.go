package wiretap

import (
	"encoding/binary"
	"net/netip"
)

const (
	protoTCP = 6
	protoUDP = 17
)

// segment is what matters of one packet.
type segment struct {
	proto    uint8
	src, dst netip.AddrPort
	seq      uint32 // TCP only, as syn, ack and fin
	syn, ack bool
	payload  []byte
}

// parse reads a packet that begins with its IP header. It reports false for everything that is not a whole TCP or UDP
// packet: other protocols, fragments, nonsense.
func parse(b []byte) (segment, bool) {
	if len(b) == 0 {
		return segment{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return segment{}, false
}

func parse4(b []byte) (segment, bool) {
	if len(b) < 20 {
		return segment{}, false
	}
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 { // a packet above 64 KiB, never segmented
		total = len(b)
	}
	const moreOrOffset = 0x3fff
	if header < 20 || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&moreOrOffset != 0 {
		return segment{}, false
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return parseTransport(b[9], src, dst, b[header:total])
}

func parse6(b []byte) (segment, bool) {
	if len(b) < 40 {
		return segment{}, false
	}
	total := int(binary.BigEndian.Uint16(b[4:])) + 40
	if total == 40 {
		total = len(b)
	}
	if total > len(b) {
		return segment{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:total]
	for range 8 { // extension headers; more than a few are nonsense
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 {
				return segment{}, false
			}
			length := int(rest[1])*8 + 8
			if length > len(rest) {
				return segment{}, false
			}
			next, rest = rest[0], rest[length:]
		default:
			return parseTransport(next, src, dst, rest)
		}
	}
	return segment{}, false
}

func parseTransport(proto uint8, src, dst netip.Addr, b []byte) (segment, bool) {
	if len(b) < 8 {
		return segment{}, false
	}
	s := segment{
		proto: proto,
		src:   netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		dst:   netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
	}
	switch proto {
	case protoUDP:
		s.payload = b[8:]
		return s, true
	case protoTCP:
		if len(b) < 20 {
			return segment{}, false
		}
		offset := int(b[12]>>4) * 4
		if offset < 20 || offset > len(b) {
			return segment{}, false
		}
		s.seq = binary.BigEndian.Uint32(b[4:])
		s.syn, s.ack = b[13]&0x02 != 0, b[13]&0x10 != 0
		s.payload = b[offset:]
		return s, true
	}
	return segment{}, false
}
