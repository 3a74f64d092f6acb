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
