package redirect_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestStraySegment: a segment arrives on a captured connection, outside of the window
// that connection tracking believes in. Called invalid, it would not be translated,
// reach the application's port, and be answered by a reset that ends the connection
// at its client (kubernetes/kubernetes#74839). The control run shows that.
func TestStraySegment(t *testing.T) {
	for _, tt := range []struct {
		name    string
		liberal bool
	}{{"liberal", true}, {"control", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.startAgent()
			l.capture(redirect.Options{})
			if !tt.liberal {
				netnstest.Sysctl(t, l.pod, "net/netfilter/nf_conntrack_tcp_be_liberal", "0")
			}
			c := l.dial(l.peer, "10.0.0.2:8080", netnstest.Options{Local: addrPort("10.0.0.1:4444")})
			for range 10 {
				c.works("before the stray segment")
			}
			send, receive := sequence(t, c.Conn.(*net.TCPConn))
			netnstest.Do(t, l.peer, func() error {
				// Far beyond the window, and acknowledging all that was sent.
				return sendSegment(addrPort("10.0.0.1:4444"), addrPort("10.0.0.2:8080"), send+1<<24, receive)
			})
			// A reset comes while the connection is idle, or not at all.
			patience := 5 * time.Second
			if tt.liberal {
				patience = 300 * time.Millisecond
			}
			l.must(c.SetReadDeadline(time.Now().Add(patience)))
			_, err := c.r.ReadByte()
			if reset := errors.Is(err, unix.ECONNRESET); reset == tt.liberal {
				t.Errorf("after the stray segment: %v; liberal: %v", err, tt.liberal)
			}
			if tt.liberal {
				l.must(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
				c.works("after the stray segment")
			}
		})
	}
}

// sequence asks the kernel for the numbers that c sends and expects next.
func sequence(t *testing.T, c *net.TCPConn) (send, receive uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var seq [2]int
	ctlErr := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1); err != nil {
			return
		}
		for i, queue := range []int{2, 1} { // TCP_SEND_QUEUE, TCP_RECV_QUEUE
			if err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
				break
			}
			if seq[i], err = unix.GetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_QUEUE_SEQ); err != nil {
				break
			}
		}
		_ = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, -1) // TCP_REPAIR_OFF_NO_WP
	})
	if ctlErr != nil || err != nil {
		t.Fatal(ctlErr, err)
	}
	return uint32(seq[0]), uint32(seq[1])
}

// sendSegment sends one acknowledgement with one byte, in the current namespace.
func sendSegment(src, dst netip.AddrPort, seq, ack uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	seg := make([]byte, 20, 22)
	binary.BigEndian.PutUint16(seg, src.Port())
	binary.BigEndian.PutUint16(seg[2:], dst.Port())
	binary.BigEndian.PutUint32(seg[4:], seq)
	binary.BigEndian.PutUint32(seg[8:], ack)
	seg[12], seg[13] = 5<<4, 0x10 // header of five words; ACK
	binary.BigEndian.PutUint16(seg[14:], 1024)
	seg = append(seg, 'x', 0)
	binary.BigEndian.PutUint16(seg[16:], checksum(src.Addr(), dst.Addr(), seg))
	return unix.Sendto(fd, seg, 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
}

func checksum(src, dst netip.Addr, seg []byte) uint16 {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(seg)))
	var sum uint32
	for _, b := range [][]byte{pseudo, seg} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
