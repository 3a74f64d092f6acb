package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Socket is a socket with the agent's mark. The mark exempts from capture, and any
// process with CAP_NET_RAW can set it; so one that is not the agent's is a process
// that goes past the mesh.
type Socket struct {
	Protocol string // "tcp" or "udp"
	Local    netip.AddrPort
	Remote   netip.AddrPort // zero port when not connected
	UID      uint32         // owner
	Inode    uint64         // as in /proc/PID/fd: "socket:[INODE]"
	Cookie   uint64         // identity for the life of the socket
}

// String returns "tcp LOCAL → REMOTE uid UID".
func (s Socket) String() string {
	return fmt.Sprintf("%s %s → %s uid %d", s.Protocol, s.Local, s.Remote, s.UID)
}

// maxMarked bounds what MarkedSockets returns of one protocol and family: how many
// sockets a pod has is its own choice.
const maxMarked = 1 << 16

// MarkedSockets returns the TCP and UDP sockets in ns that carry AgentMark and belong
// to a process. It needs CAP_NET_ADMIN, time in proportion to all sockets there, and
// memory only for those with the mark.
func MarkedSockets(ns *netns.NS) ([]Socket, error) {
	var out []Socket
	err := ns.Do(func() error {
		for _, q := range []struct {
			name          string
			family, proto uint8
		}{
			{"tcp", unix.AF_INET, unix.IPPROTO_TCP}, {"tcp", unix.AF_INET6, unix.IPPROTO_TCP},
			{"udp", unix.AF_INET, unix.IPPROTO_UDP}, {"udp", unix.AF_INET6, unix.IPPROTO_UDP},
		} {
			found, err := retry(func() ([]Socket, error) { return dumpSockets(q.family, q.proto) })
			if err != nil {
				return err
			}
			for _, s := range found {
				s.Protocol = q.name
				out = append(out, s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list sockets of %s: %w", ns, err)
	}
	return out, nil
}

// sockDiagRequest is struct inet_diag_req_v2 (linux/inet_diag.h) without filters.
type sockDiagRequest struct {
	family, proto uint8
}

const (
	sizeofDiagRequest = 56
	sizeofDiagMessage = 72
	diagMarkAttr      = 15 // INET_DIAG_MARK
	diagBytecodeAttr  = 1  // INET_DIAG_REQ_BYTECODE
	diagMarkCond      = 10 // INET_DIAG_BC_MARK_COND
)

// Len and Serialize make it a part of a request of package nl.
func (sockDiagRequest) Len() int { return sizeofDiagRequest }

func (r sockDiagRequest) Serialize() []byte {
	b := make([]byte, sizeofDiagRequest)
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // all states
	return b
}

// markFilter is a program for the kernel that takes sockets with the mark: one struct
// inet_diag_bc_op with its struct inet_diag_markcond.
func markFilter(mark, mask uint32) []byte {
	const size = 12
	b := []byte{diagMarkCond, size}                 // code; yes: go on behind this, which is the end
	b = binary.NativeEndian.AppendUint16(b, size+4) // no: leave beyond the end
	b = binary.NativeEndian.AppendUint32(b, mark)
	return binary.NativeEndian.AppendUint32(b, mask)
}

func dumpSockets(family, proto uint8) ([]Socket, error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(sockDiagRequest{family, proto})
	req.AddData(nl.NewRtAttr(diagBytecodeAttr, markFilter(AgentMark, MarkMask)))
	var out []Socket
	err := req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, func(m []byte) bool {
		s, mark, ok := parseSocket(m)
		if ok && mark&MarkMask == AgentMark && s.Inode != 0 {
			out = append(out, s)
		}
		return len(out) < maxMarked
	})
	return out, err
}

// parseSocket reads struct inet_diag_msg and the mark among its attributes, which the
// kernel shows to those with CAP_NET_ADMIN.
func parseSocket(b []byte) (s Socket, mark uint32, ok bool) {
	if len(b) < sizeofDiagMessage {
		return Socket{}, 0, false
	}
	addr := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at:]))
		}
		return netip.AddrFrom16([16]byte(b[at:])).Unmap()
	}
	s.Local = netip.AddrPortFrom(addr(8), binary.BigEndian.Uint16(b[4:]))
	s.Remote = netip.AddrPortFrom(addr(24), binary.BigEndian.Uint16(b[6:]))
	s.Cookie = binary.NativeEndian.Uint64(b[44:])
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = uint64(binary.NativeEndian.Uint32(b[68:]))
	for b = b[sizeofDiagMessage:]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:]) == diagMarkAttr && size == unix.SizeofNlAttr+4 {
			mark = binary.NativeEndian.Uint32(b[unix.SizeofNlAttr:])
		}
		b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return s, mark, true
}
