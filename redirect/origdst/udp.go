package origdst

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// ErrNotTracked says that connection tracking has no entry for the query: it was
// not redirected, or the entry is gone already.
var ErrNotTracked = errors.New("no such entry in connection tracking")

// From linux/netfilter/nfnetlink_conntrack.h.
const (
	ipctnlMsgCTGet = 1

	ctaTupleOrig, ctaTupleReply = 1, 2
	ctaTupleIP, ctaTupleProto   = 1, 2
	ctaIPv4Src, ctaIPv4Dst      = 1, 2
	ctaIPv6Src, ctaIPv6Dst      = 3, 4
	ctaProtoNum                 = 1
	ctaProtoSrcPort             = 2
	ctaProtoDstPort             = 3
)

const (
	sizeofNlMsghdr  = 16
	sizeofNfgenmsg  = 4
	receiveCapacity = 4096 // one entry is a few hundred bytes
)

// UDP returns where the query of client, which arrived at the agent's address local,
// was going. local is the address that the query was redirected to (127.0.0.1 or
// ::1, and a port), not a wildcard. For many queries open a Conntrack instead.
func UDP(ns *netns.NS, client, local netip.AddrPort) (netip.AddrPort, error) {
	ct, err := Open(ns)
	if err != nil {
		return netip.AddrPort{}, err
	}
	dst, err := ct.UDP(client, local)
	return dst, errors.Join(err, ct.Close())
}

// Conntrack asks the connection tracking of one namespace.
type Conntrack struct {
	seq atomic.Uint32

	mu sync.Mutex // one question at a time
	fd int        // netlink socket, -1 after Close
}

// Open opens the connection tracking of ns. It keeps the namespace alive until
// Close. Needs CAP_NET_ADMIN.
func Open(ns *netns.NS) (*Conntrack, error) {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	return &Conntrack{fd: fd}, nil
}

// Close closes the netlink socket; closing twice is allowed.
func (c *Conntrack) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return os.NewSyscallError("close", err)
}

// UDP is like the function UDP, without opening anything. An entry that is not
// there is ErrNotTracked.
func (c *Conntrack) UDP(client, local netip.AddrPort) (netip.AddrPort, error) {
	return c.lookup(unix.IPPROTO_UDP, client, local)
}

func (c *Conntrack) lookup(proto byte, client, local netip.AddrPort) (netip.AddrPort, error) {
	client = netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	if !client.IsValid() || !local.IsValid() || client.Addr().Is4() != local.Addr().Is4() {
		return netip.AddrPort{}, fmt.Errorf("find original destination of %s at %s: addresses of different families", client, local)
	}
	answer, err := c.ask(request(c.seq.Add(1), proto, local, client))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find original destination of %s at %s: %w", client, local, err)
	}
	dst, ok := parseEntry(answer)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("find original destination of %s at %s: answer is malformed", client, local)
	}
	return dst, nil
}

// ask sends a request and returns the attributes of the entry in the answer. The
// kernel answers a GET before sendto returns, so nothing here waits.
func (c *Conntrack) ask(req []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil, os.ErrClosed
	}
	if err := unix.Sendto(c.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, receiveCapacity)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if attrs, done, err := parseMessage(buf[:n], req); done {
			return attrs, err
		}
	}
}

// parseMessage reads one netlink message. It is not done when the message answers
// another request.
func parseMessage(b, req []byte) (attrs []byte, done bool, err error) {
	if len(b) < sizeofNlMsghdr+sizeofNfgenmsg || int(binary.NativeEndian.Uint32(b)) > len(b) {
		return nil, true, errors.New("answer is cut short")
	}
	if binary.NativeEndian.Uint32(b[8:]) != binary.NativeEndian.Uint32(req[8:]) {
		return nil, false, nil
	}
	if binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return b[sizeofNlMsghdr+sizeofNfgenmsg:], true, nil
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[sizeofNlMsghdr:])))
	if errno == unix.ENOENT {
		return nil, true, ErrNotTracked
	}
	return nil, true, errno
}

// request asks for the entry whose answers go from src to dst.
func request(seq uint32, proto byte, src, dst netip.AddrPort) []byte {
	family, kindSrc, kindDst := byte(unix.AF_INET), uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if src.Addr().Is6() {
		family, kindSrc, kindDst = unix.AF_INET6, ctaIPv6Src, ctaIPv6Dst
	}
	ips := attr(attr(nil, kindSrc, src.Addr().AsSlice()), kindDst, dst.Addr().AsSlice())
	ports := attr(nil, ctaProtoNum, []byte{proto})
	ports = attr(ports, ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, src.Port()))
	ports = attr(ports, ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))
	tuple := attr(attr(nil, ctaTupleIP|unix.NLA_F_NESTED, ips), ctaTupleProto|unix.NLA_F_NESTED, ports)

	b := make([]byte, sizeofNlMsghdr, 128)
	b = append(b, family, 0, 0, 0) // nfgenmsg: family, version, resource
	b = attr(b, ctaTupleReply|unix.NLA_F_NESTED, tuple)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_CTNETLINK<<8|ipctnlMsgCTGet)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	return b
}

// attr appends a netlink attribute, padded.
func attr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// parseEntry finds the destination of the original direction in the attributes of a
// tracking entry.
func parseEntry(b []byte) (netip.AddrPort, bool) {
	var (
		addr netip.Addr
		port uint16
	)
	for kind, tuple := range attrs(b) {
		if kind != ctaTupleOrig {
			continue
		}
		for kind, data := range attrs(tuple) {
			for inner, value := range attrs(data) {
				switch {
				case kind == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
					addr, _ = netip.AddrFromSlice(value)
				case kind == ctaTupleProto && inner == ctaProtoDstPort && len(value) == 2:
					port = binary.BigEndian.Uint16(value)
				}
			}
		}
	}
	return netip.AddrPortFrom(addr, port), addr.IsValid() && port != 0
}

// attrs yields the netlink attributes of b, without flag bits, up to the first one
// that does not fit.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofNlAttr || size > len(b) || !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}
