package nft

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// render writes the expressions of a rule as nft(8) text. Rules of other people
// may hold anything: an expression that this package never writes becomes
// "unknown(name)" with its attributes in hexadecimal, so two rules with the same
// text are the same rule.
func render(elems []element) string {
	r := renderer{regs: map[uint32]operand{}}
	for _, e := range elems {
		r.element(e)
	}
	return strings.Join(r.words, " ")
}

// renderer follows what each register holds, because nf_tables rules are programs:
// load into a register, mask it, compare it.
type renderer struct {
	regs  map[uint32]operand
	words []string
	proto byte // l4proto that the rule has established, which names the transport header
}

// operand is the content of a register: something loaded from the packet, or a
// constant.
type operand struct {
	text   string
	kind   valueKind
	masked bool   // text already holds "& mask"
	prefix int    // bytes of an address that were loaded, when not all
	bits   int    // length of the prefix that a mask has left of an address, when not all
	write  string // what writing the register back to the packet says, when it has a name
	data   []byte // constant, when text is empty
}

// valueKind says how constants beside an operand are written.
type valueKind int

const (
	kindHex       valueKind = iota // raw bytes in hexadecimal
	kindMark                       // number in host order, hexadecimal
	kindPort                       // number in network order
	kindAddr                       // IPv4 or IPv6 address
	kindName                       // interface name
	kindProto                      // tcp, udp or a number
	kindFamily                     // ipv4, ipv6
	kindTCPFlag                    // names joined by |
	kindStatus                     // conntrack status bits
	kindNumber                     // number in host order
	kindDirection                  // original, reply
	kindEther                      // protocol of a frame
	kindDSCP4                      // the byte of an IPv4 header that holds the DSCP
	kindDSCP6                      // the two bytes of an IPv6 header that hold it
)

func (r *renderer) say(format string, args ...any) {
	r.words = append(r.words, fmt.Sprintf(format, args...))
}

func (r *renderer) element(e element) {
	switch e.name {
	case "meta":
		r.load(e, unix.NFTA_META_DREG, unix.NFTA_META_SREG, metaOperand(e.data.uint32(unix.NFTA_META_KEY)))
	case "ct":
		op, ok := ctOperand(e)
		if !ok {
			r.unknown(e)
			return
		}
		r.load(e, unix.NFTA_CT_DREG, unix.NFTA_CT_SREG, op)
	case "payload":
		if e.data.has(unix.NFTA_PAYLOAD_SREG) {
			r.write(e)
			return
		}
		r.regs[e.data.uint32(unix.NFTA_PAYLOAD_DREG)] = r.payloadOperand(e)
	case "bitwise":
		r.bitwise(e)
	case "cmp":
		r.compare(e)
	case "immediate":
		r.immediate(e)
	case "redir":
		r.redirect(e)
	case "lookup":
		r.lookup(e)
	case "socket":
		r.socket(e)
	case "counter":
		r.say("counter")
	default:
		r.unknown(e)
	}
}

func (r *renderer) unknown(e element) {
	parts := []string{e.name}
	for _, a := range slices.SortedStableFunc(slices.Values(e.data), func(a, b field) int { return cmp.Compare(a.kind, b.kind) }) {
		parts = append(parts, fmt.Sprintf("%d=%s", a.kind, hex.EncodeToString(a.data)))
	}
	r.say("unknown(%s)", strings.Join(parts, " "))
}

// load is an expression that either fills a register from op or sets op from one.
func (r *renderer) load(e element, dreg, sreg uint16, op operand) {
	if e.data.has(dreg) {
		r.regs[e.data.uint32(dreg)] = op
		return
	}
	from := r.regs[e.data.uint32(sreg)]
	r.say("%s set %s", op.text, from.value(op.kind))
}

func (o operand) value(as valueKind) string {
	if o.text != "" {
		return o.text
	}
	return formatValue(as, o.data, 0)
}

func metaOperand(key uint32) operand {
	switch key {
	case unix.NFT_META_MARK:
		return operand{text: "meta mark", kind: kindMark}
	case unix.NFT_META_L4PROTO:
		return operand{text: "meta l4proto", kind: kindProto}
	case unix.NFT_META_NFPROTO:
		return operand{text: "meta nfproto", kind: kindFamily}
	case unix.NFT_META_IIFNAME:
		return operand{text: "iifname", kind: kindName}
	case unix.NFT_META_OIFNAME:
		return operand{text: "oifname", kind: kindName}
	case unix.NFT_META_SKUID:
		return operand{text: "meta skuid", kind: kindNumber}
	case unix.NFT_META_PROTOCOL:
		return operand{text: "meta protocol", kind: kindEther}
	}
	return operand{text: fmt.Sprintf("meta %d", key)}
}

func ctOperand(e element) (operand, bool) {
	if e.data.has(unix.NFTA_CT_DIRECTION) {
		return operand{}, false
	}
	switch e.data.uint32(unix.NFTA_CT_KEY) {
	case unix.NFT_CT_MARK:
		return operand{text: "ct mark", kind: kindMark}, true
	case unix.NFT_CT_STATUS:
		return operand{text: "ct status", kind: kindStatus}, true
	case unix.NFT_CT_DIRECTION:
		return operand{text: "ct direction", kind: kindDirection}, true
	case unix.NFT_CT_ZONE:
		return operand{text: "ct zone", kind: kindNumber}, true
	}
	return operand{}, false
}

func (r *renderer) payloadOperand(e element) operand {
	base := e.data.uint32(unix.NFTA_PAYLOAD_BASE)
	offset, length := e.data.uint32(unix.NFTA_PAYLOAD_OFFSET), e.data.uint32(unix.NFTA_PAYLOAD_LEN)
	if base == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
		header := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[r.proto]
		switch {
		case header != "" && offset == 0 && length == 2:
			return operand{text: header + " sport", kind: kindPort}
		case header != "" && offset == 2 && length == 2:
			return operand{text: header + " dport", kind: kindPort}
		case header == "tcp" && offset == 13 && length == 1:
			return operand{text: "tcp flags", kind: kindTCPFlag}
		}
	}
	if base == unix.NFT_PAYLOAD_NETWORK_HEADER {
		if op, ok := addressOperand(offset, length); ok {
			return op
		}
	}
	name := map[uint32]string{
		unix.NFT_PAYLOAD_LL_HEADER: "ll", unix.NFT_PAYLOAD_NETWORK_HEADER: "nh", unix.NFT_PAYLOAD_TRANSPORT_HEADER: "th",
	}[base]
	return operand{text: fmt.Sprintf("@%s,%d,%d", name, offset*8, length*8)}
}

// addressOperand knows the addresses by their places: offset 12 and 16 in IPv4, 8
// and 24 in IPv6. The places do not overlap in the lengths that are looked at, and
// the rule names its family besides.
func addressOperand(offset, length uint32) (operand, bool) {
	switch {
	case offset == 12 && length == 4:
		return operand{text: "ip saddr", kind: kindAddr}, true
	case offset == 16 && length == 4:
		return operand{text: "ip daddr", kind: kindAddr}, true
	case offset == 16 && length < 4:
		return operand{text: "ip daddr", kind: kindAddr, prefix: 4}, true
	case offset == 24 && length < 16:
		return operand{text: "ip6 daddr", kind: kindAddr, prefix: 16}, true
	case offset == 8 && length == 16:
		return operand{text: "ip6 saddr", kind: kindAddr}, true
	case offset == 24 && length == 16:
		return operand{text: "ip6 daddr", kind: kindAddr}, true
	}
	return operand{}, false
}

func (r *renderer) bitwise(e element) {
	src := r.regs[e.data.uint32(unix.NFTA_BITWISE_SREG)]
	mask, xor := e.value(unix.NFTA_BITWISE_MASK), e.value(unix.NFTA_BITWISE_XOR)
	const opAttr = 6 // NFTA_BITWISE_OP: 0 is mask and xor, the only one before Linux 5.6
	if e.data.uint32(opAttr) != 0 || len(mask) == 0 || len(mask) != len(xor) || src.text == "" {
		r.unknown(e)
		return
	}
	if op, ok := maskedOperand(src, mask, xor); ok {
		r.regs[e.data.uint32(unix.NFTA_BITWISE_DREG)] = op
		return
	}
	out := operand{text: src.text, kind: src.kind, masked: true}
	out.text += " & " + formatValue(src.kind, mask, 0)
	if slices.ContainsFunc(xor, func(b byte) bool { return b != 0 }) {
		sign := "^"
		if disjoint(mask, xor) {
			sign = "|"
		}
		out.text += " " + sign + " " + formatValue(src.kind, xor, 0)
	}
	out.write = writesDSCP(src, mask, xor)
	r.regs[e.data.uint32(unix.NFTA_BITWISE_DREG)] = out
}

func disjoint(a, b []byte) bool {
	for i := range a {
		if a[i]&b[i] != 0 {
			return false
		}
	}
	return true
}

func (r *renderer) compare(e element) {
	op := r.regs[e.data.uint32(unix.NFTA_CMP_SREG)]
	data := e.value(unix.NFTA_CMP_DATA)
	sign := map[uint32]string{
		unix.NFT_CMP_EQ: "==", unix.NFT_CMP_NEQ: "!=", unix.NFT_CMP_LT: "<",
		unix.NFT_CMP_LTE: "<=", unix.NFT_CMP_GT: ">", unix.NFT_CMP_GTE: ">=",
	}[e.data.uint32(unix.NFTA_CMP_OP)]
	if op.text == "" || sign == "" || len(data) == 0 {
		r.unknown(e)
		return
	}
	if op.kind == kindProto && sign == "==" {
		r.proto = data[0]
	}
	value := formatValue(op.kind, data, op.prefix)
	if op.bits != 0 {
		value += fmt.Sprintf("/%d", op.bits)
	}
	if sign == "==" && !op.masked {
		r.say("%s %s", op.text, value)
		return
	}
	r.say("%s %s %s", op.text, sign, value)
}

func (r *renderer) immediate(e element) {
	dreg := e.data.uint32(unix.NFTA_IMMEDIATE_DREG)
	data := parseFields(e.data.bytes(unix.NFTA_IMMEDIATE_DATA))
	if dreg != unix.NFT_REG_VERDICT {
		r.regs[dreg] = operand{data: data.bytes(unix.NFTA_DATA_VALUE)}
		return
	}
	v := parseFields(data.bytes(unix.NFTA_DATA_VERDICT))
	code := int32(v.uint32(unix.NFTA_VERDICT_CODE))
	name := map[int32]string{
		0: "drop", 1: "accept", unix.NFT_CONTINUE: "continue", unix.NFT_BREAK: "break",
		unix.NFT_RETURN: "return", unix.NFT_JUMP: "jump", unix.NFT_GOTO: "goto",
	}[code]
	if name == "" {
		r.unknown(e)
		return
	}
	if chain := v.text(unix.NFTA_VERDICT_CHAIN); chain != "" {
		name += " " + chain
	}
	r.say("%s", name)
}

func (r *renderer) redirect(e element) {
	const specified = 2 // NF_NAT_RANGE_PROTO_SPECIFIED, which the kernel adds for a port
	lo, hi := e.data.uint32(unix.NFTA_REDIR_REG_PROTO_MIN), e.data.uint32(unix.NFTA_REDIR_REG_PROTO_MAX)
	port := r.regs[lo].data
	if hi != 0 && hi != lo || e.data.uint32(unix.NFTA_REDIR_FLAGS)&^specified != 0 || len(port) < 2 {
		r.unknown(e)
		return
	}
	r.say("redirect to :%s", formatValue(kindPort, port[:2], 0))
}

func formatValue(kind valueKind, b []byte, whole int) string {
	if text, ok := formatDSCP(kind, b); ok {
		return text
	}
	if text, ok := formatEther(kind, b); ok {
		return text
	}
	switch {
	case kind == kindMark && len(b) == 4:
		return fmt.Sprintf("%#x", binary.NativeEndian.Uint32(b))
	case kind == kindNumber && len(b) == 2:
		return fmt.Sprint(binary.NativeEndian.Uint16(b))
	case kind == kindNumber && len(b) == 4:
		return fmt.Sprint(binary.NativeEndian.Uint32(b))
	case kind == kindNumber && len(b) == 8:
		return fmt.Sprint(binary.NativeEndian.Uint64(b))
	case kind == kindPort && len(b) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case kind == kindName:
		return fmt.Sprintf("%q", cString(b))
	case kind == kindAddr && whole > len(b):
		full, _ := netip.AddrFromSlice(append(slices.Clone(b), make([]byte, whole-len(b))...))
		return netip.PrefixFrom(full, len(b)*8).String()
	case kind == kindAddr:
		if a, ok := netip.AddrFromSlice(b); ok {
			return a.String()
		}
	case kind == kindProto && len(b) == 1:
		return nameOf(map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}, b[0])
	case kind == kindFamily && len(b) == 1:
		return nameOf(map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}, b[0])
	case kind == kindDirection && len(b) == 1:
		return nameOf(map[byte]string{0: "original", 1: "reply"}, b[0])
	case kind == kindTCPFlag && len(b) == 1:
		return flags(uint32(b[0]), []string{"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"})
	case kind == kindStatus && len(b) == 4:
		return flags(binary.NativeEndian.Uint32(b),
			[]string{"expected", "seen-reply", "assured", "confirmed", "snat", "dnat"})
	}
	return "0x" + hex.EncodeToString(b)
}

func nameOf(names map[byte]string, b byte) string {
	if name, ok := names[b]; ok {
		return name
	}
	return fmt.Sprint(b)
}

// flags writes bits by their names, in parentheses when there are several, and as
// one number when one of them has none.
func flags(bits uint32, names []string) string {
	var set []string
	for i, name := range names {
		if bits&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	switch {
	case bits>>len(names) != 0 || len(set) == 0:
		return fmt.Sprintf("%#x", bits)
	case len(set) == 1:
		return set[0]
	}
	return "(" + strings.Join(set, "|") + ")"
}
