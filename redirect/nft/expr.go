package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The parts of rules, as nft(8) itself would encode them.

const reg = unix.NFT_REG_1

const (
	tcpFlagSYN = 0x02
	tcpFlagACK = 0x10

	ctStatusDNAT = 0x20 // IPS_DST_NAT: the destination of the connection was rewritten
)

func hostUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func hostUint16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func netUint16(v uint16) []byte  { return binary.BigEndian.AppendUint16(nil, v) }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func and(mask []byte, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func nfproto(p byte) match {
	return match{meta(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, []byte{p})}
}

func l4proto(p byte) match {
	return match{meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, []byte{p})}
}

func l4protoNot(p byte) match {
	return match{meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpNeq, []byte{p})}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(name string) match {
	return match{meta(expr.MetaKeyIIFNAME), compare(expr.CmpOpEq, ifname(name))}
}

func oif(name string) match {
	return match{meta(expr.MetaKeyOIFNAME), compare(expr.CmpOpEq, ifname(name))}
}

func oifNot(name string) match {
	return match{meta(expr.MetaKeyOIFNAME), compare(expr.CmpOpNeq, ifname(name))}
}

func mark(m uint32) match {
	return match{meta(expr.MetaKeyMARK), and(hostUint32(MarkMask), hostUint32(0)), compare(expr.CmpOpEq, hostUint32(m))}
}

func markNot(m uint32) match {
	return match{meta(expr.MetaKeyMARK), and(hostUint32(MarkMask), hostUint32(0)), compare(expr.CmpOpNeq, hostUint32(m))}
}

func ctMark(m uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		and(hostUint32(MarkMask), hostUint32(0)), compare(expr.CmpOpEq, hostUint32(m)),
	}
}

// setCTMark writes our bits of the connection's mark and keeps the others.
func setCTMark(m uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		and(hostUint32(^uint32(MarkMask)), hostUint32(m)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}
}

func markFromCT() match {
	return match{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}
}

// original matches packets of who opened the connection, and reply those of the other.
func original() match { return ctDirection(0) }
func reply() match    { return ctDirection(1) }

func ctDirection(dir byte) match {
	return match{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, compare(expr.CmpOpEq, []byte{dir})}
}

// redirected matches packets of connections whose destination a redirect rule has
// changed.
func redirected() match {
	return match{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		and(hostUint32(ctStatusDNAT), hostUint32(0)), compare(expr.CmpOpEq, hostUint32(ctStatusDNAT)),
	}
}

func setZone(zone uint16) match {
	return match{
		&expr.Immediate{Register: reg, Data: hostUint16(zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true},
	}
}

func transport(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func network(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func sport(p uint16) match    { return match{transport(0, 2), compare(expr.CmpOpEq, netUint16(p))} }
func dport(p uint16) match    { return match{transport(2, 2), compare(expr.CmpOpEq, netUint16(p))} }
func dportNot(p uint16) match { return match{transport(2, 2), compare(expr.CmpOpNeq, netUint16(p))} }

// syn matches the first segment of a connection and notSyn all others.
func syn() match    { return synFlags(expr.CmpOpEq) }
func notSyn() match { return synFlags(expr.CmpOpNeq) }

func synFlags(op expr.CmpOp) match {
	return match{transport(13, 1), and([]byte{tcpFlagSYN | tcpFlagACK}, []byte{0}), compare(op, []byte{tcpFlagSYN})}
}

func saddr(a netip.Addr) match {
	if a.Is4() {
		return append(nfproto(unix.NFPROTO_IPV4), network(12, 4), compare(expr.CmpOpEq, a.AsSlice()))
	}
	return append(nfproto(unix.NFPROTO_IPV6), network(8, 16), compare(expr.CmpOpEq, a.AsSlice()))
}

func daddr(a netip.Addr) match {
	if a.Is4() {
		return append(nfproto(unix.NFPROTO_IPV4), network(16, 4), compare(expr.CmpOpEq, a.AsSlice()))
	}
	return append(nfproto(unix.NFPROTO_IPV6), network(24, 16), compare(expr.CmpOpEq, a.AsSlice()))
}

// daddrIn matches destinations in a range, encoded as nft does: what whole bytes say
// is loaded without the rest.
func daddrIn(p netip.Prefix) match {
	family, offset, length := byte(unix.NFPROTO_IPV6), uint32(24), 16
	if p.Addr().Is4() {
		family, offset, length = unix.NFPROTO_IPV4, 16, 4
	}
	m, addr := nfproto(family), p.Addr().AsSlice()
	switch whole := p.Bits() / 8; {
	case p.Bits() == 0:
		return m
	case p.Bits()%8 == 0:
		return append(m, network(offset, uint32(whole)), compare(expr.CmpOpEq, addr[:whole]))
	}
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(m, network(offset, uint32(length)), and(mask, make([]byte, length)), compare(expr.CmpOpEq, addr))
}

// saddrInSet and daddrInSet match addresses of a set of that family.
func saddrInSet(family byte, set string) match {
	return append(nfproto(family), inSet(family, set, 12, 8)...)
}

func daddrInSet(family byte, set string) match {
	return append(nfproto(family), inSet(family, set, 16, 24)...)
}

func inSet(family byte, set string, at4, at6 uint32) match {
	load := network(at6, 16)
	if family == unix.NFPROTO_IPV4 {
		load = network(at4, 4)
	}
	return match{load, &expr.Lookup{SourceRegister: reg, SetName: set}}
}

// bridgedInSet is daddrInSet for family bridge.
func bridgedInSet(family byte, set string) match {
	kind := uint16(unix.ETH_P_IPV6)
	if family == unix.NFPROTO_IPV4 {
		kind = unix.ETH_P_IP
	}
	return append(etherType(kind), inSet(family, set, 16, 24)...)
}

// etherType matches frames by what is behind their first VLAN tag, which is no part of the
// packet any more in family bridge.
func etherType(kind uint16) match {
	return match{meta(expr.MetaKeyPROTOCOL), compare(expr.CmpOpEq, netUint16(kind))}
}

// untaggedTag matches a second VLAN tag of number 0, which means none: a receiver takes
// off any number of these.
func untaggedTag() match {
	return match{network(0, 2), and([]byte{0x0f, 0xff}, []byte{0, 0}), compare(expr.CmpOpEq, []byte{0, 0})}
}

// dscp matches packets by their DSCP: in IPv4 the upper six bits of the second byte, in
// IPv6 those after the first four.
func dscp(family byte, value byte) match {
	if family == unix.NFPROTO_IPV4 {
		return match{network(1, 1), and([]byte{0xfc}, []byte{0}), compare(expr.CmpOpEq, []byte{value << 2})}
	}
	return match{network(0, 2), and([]byte{0x0f, 0xc0}, []byte{0, 0}), compare(expr.CmpOpEq, netUint16(uint16(value)<<6))}
}

// setDSCP writes the DSCP and leaves ECN alone. Of an IPv4 header two bytes are written,
// because its checksum goes by two.
func setDSCP(family byte, value byte) match {
	write := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Len: 2,
	}
	if family == unix.NFPROTO_IPV4 {
		write.CsumType, write.CsumOffset = expr.CsumTypeInet, 10
		return match{network(0, 2), and([]byte{0xff, 0x03}, []byte{0, value << 2}), write}
	}
	return match{network(0, 2), and([]byte{0xf0, 0x3f}, netUint16(uint16(value)<<6)), write}
}

// skuid matches packets of sockets that a user has made.
func skuid(uid uint32) match {
	return match{meta(expr.MetaKeySKUID), compare(expr.CmpOpEq, hostUint32(uid))}
}

// socketCgroup matches packets of sockets whose cgroup's ancestor at level is id, or,
// when id is zero, that have an ancestor at that level at all. It is possible in
// prerouting, input and output only, since Linux 5.13.
func socketCgroup(level uint32, id uint64) match {
	op := expr.CmpOpEq
	if id == 0 {
		op = expr.CmpOpNeq
	}
	return match{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: reg},
		compare(op, binary.NativeEndian.AppendUint64(nil, id)),
	}
}

// daddrNot takes prefixes of whole bytes only, of which just these are loaded.
func daddrNot(p netip.Prefix) match {
	data := p.Addr().AsSlice()[:p.Bits()/8]
	family, offset := byte(unix.NFPROTO_IPV6), uint32(24)
	if p.Addr().Is4() {
		family, offset = unix.NFPROTO_IPV4, 16
	}
	return append(nfproto(family), network(offset, uint32(len(data))), compare(expr.CmpOpNeq, data))
}

func counter() match { return match{&expr.Counter{}} }

func redirect(port uint16) match {
	return match{
		&expr.Immediate{Register: reg, Data: netUint16(port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

func accept() match { return match{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() match   { return match{&expr.Verdict{Kind: expr.VerdictDrop}} }
func leave() match  { return match{&expr.Verdict{Kind: expr.VerdictReturn}} }

func jump(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
