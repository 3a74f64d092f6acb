package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The expressions of the host's tables as text: sets, DSCP, sockets.

func (r *renderer) lookup(e element) {
	op := r.regs[e.data.uint32(unix.NFTA_LOOKUP_SREG)]
	name := e.data.text(unix.NFTA_LOOKUP_SET)
	if op.text == "" || op.masked || op.bits != 0 || op.prefix != 0 || name == "" ||
		e.data.uint32(unix.NFTA_LOOKUP_FLAGS) != 0 || e.data.has(unix.NFTA_LOOKUP_DREG) {
		r.unknown(e)
		return
	}
	r.say("%s @%s", op.text, name)
}

// Attributes and key of expression socket (linux/netfilter/nf_tables.h).
const (
	socketKey, socketDreg, socketLevel = 1, 2, 3
	socketCgroupv2                     = 3
)

func (r *renderer) socket(e element) {
	if e.data.uint32(socketKey) != socketCgroupv2 {
		r.unknown(e)
		return
	}
	r.regs[e.data.uint32(socketDreg)] = operand{
		text: fmt.Sprintf("socket cgroupv2 level %d", e.data.uint32(socketLevel)), kind: kindNumber,
	}
}

// Where the DSCP is: in the second byte of IPv4, and in the first two of IPv6. An IPv4
// header is written by two bytes, because its checksum goes by two.
const (
	secondByte    = "@nh,8,8"
	firstTwoBytes = "@nh,0,16"
)

// maskedOperand knows masks that have a name: that of the DSCP and the prefix of an
// address.
func maskedOperand(src operand, mask, xor []byte) (operand, bool) {
	if src.masked || src.bits != 0 || slices.ContainsFunc(xor, func(b byte) bool { return b != 0 }) {
		return operand{}, false
	}
	switch {
	case src.text == secondByte && bytes.Equal(mask, []byte{0xfc}):
		return operand{text: "ip dscp", kind: kindDSCP4}, true
	case src.text == firstTwoBytes && bytes.Equal(mask, []byte{0x0f, 0xc0}):
		return operand{text: "ip6 dscp", kind: kindDSCP6}, true
	case src.kind == kindAddr && src.prefix == 0:
		if bits, ok := prefixLen(mask); ok {
			return operand{text: src.text, kind: kindAddr, bits: bits}, true
		}
	}
	return operand{}, false
}

// writesDSCP says what writing back the masked first two bytes does, or nothing.
func writesDSCP(src operand, mask, xor []byte) string {
	if src.text != firstTwoBytes || src.masked || !disjoint(mask, xor) {
		return ""
	}
	switch {
	case bytes.Equal(mask, []byte{0xff, 0x03}):
		return fmt.Sprintf("ip dscp set %#x", xor[1]>>2)
	case bytes.Equal(mask, []byte{0xf0, 0x3f}):
		return fmt.Sprintf("ip6 dscp set %#x", binary.BigEndian.Uint16(xor)>>6)
	}
	return ""
}

// prefixLen returns how many leading bits a mask has, when these are all it has, and
// some but not all of its length.
func prefixLen(mask []byte) (int, bool) {
	n := 0
	for n < len(mask)*8 && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	for i := n; i < len(mask)*8; i++ {
		if mask[i/8]&(0x80>>(i%8)) != 0 {
			return 0, false
		}
	}
	return n, n > 0 && n < len(mask)*8
}

// write is a payload expression that changes the packet: the DSCP only, and with the
// right checksum.
func (r *renderer) write(e element) {
	op := r.regs[e.data.uint32(unix.NFTA_PAYLOAD_SREG)]
	checksum, at := e.data.uint32(unix.NFTA_PAYLOAD_CSUM_TYPE), e.data.uint32(unix.NFTA_PAYLOAD_CSUM_OFFSET)
	known := strings.HasPrefix(op.write, "ip dscp ") && checksum == unix.NFT_PAYLOAD_CSUM_INET && at == 10 ||
		strings.HasPrefix(op.write, "ip6 dscp ") && checksum == unix.NFT_PAYLOAD_CSUM_NONE
	if !known || e.data.uint32(unix.NFTA_PAYLOAD_BASE) != unix.NFT_PAYLOAD_NETWORK_HEADER ||
		e.data.uint32(unix.NFTA_PAYLOAD_OFFSET) != 0 || e.data.uint32(unix.NFTA_PAYLOAD_LEN) != 2 ||
		e.data.uint32(unix.NFTA_PAYLOAD_CSUM_FLAGS) != 0 {
		r.unknown(e)
		return
	}
	r.say("%s", op.write)
}

// formatDSCP writes what the DSCP is compared with, unless there are other bits in it:
// that shows in full length.
func formatDSCP(kind valueKind, b []byte) (string, bool) {
	switch {
	case kind == kindDSCP4 && len(b) == 1 && b[0]&0x03 == 0:
		return fmt.Sprintf("%#x", b[0]>>2), true
	case kind == kindDSCP6 && len(b) == 2 && binary.BigEndian.Uint16(b)&0xf03f == 0:
		return fmt.Sprintf("%#x", binary.BigEndian.Uint16(b)>>6), true
	}
	return "", false
}

// formatEther names the protocols of frames that the rules are about.
func formatEther(kind valueKind, b []byte) (string, bool) {
	if kind != kindEther || len(b) != 2 {
		return "", false
	}
	switch binary.BigEndian.Uint16(b) {
	case unix.ETH_P_IP:
		return "ip", true
	case unix.ETH_P_IPV6:
		return "ip6", true
	case unix.ETH_P_8021Q:
		return "8021q", true
	case unix.ETH_P_8021AD:
		return "8021ad", true
	}
	return "", false
}
