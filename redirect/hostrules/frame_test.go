package hostrules_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestHiddenMark: a neighbour on the bridge writes frames itself, with a mark and VLAN tags
// of number 0 before it, which its victim takes off, however many they are. Without the
// host's rules all of them arrive: the control.
func TestHiddenMark(t *testing.T) {
	l := newLab(t)
	netnstest.Do(l, l.bridged, func() error {
		return exec.Command("nft", `table inet seen { chain in { type filter hook prerouting priority -400; ip dscp 43 tcp dport 8080 counter; ip dscp 0 udp dport 9 counter; }; }`).Run()
	})
	tags := [][]byte{nil, {0x81, 0, 0, 0}, {0x81, 0, 0, 0, 0x81, 0, 0, 0}, {0x88, 0xa8, 0, 0, 0x81, 0, 0, 0},
		{0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x81, 0, 0, 0}, {0x81, 0, 0, 0, 0x88, 0xa8, 0xe0, 0}}
	sent := 0
	arrived := func(when string, want int) {
		t.Helper()
		for _, tag := range tags {
			l.frame(tag, synPacket())
		}
		// Frames of one link arrive in order: after the last, an unmarked one.
		l.frame(nil, udpPacket())
		sent++
		deadline := time.Now().Add(20 * time.Second)
		for l.seen(1) < sent {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the last frame did not arrive", when)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if got := l.seen(0); got != want {
			t.Errorf("%s: %d marked packets have arrived, want %d", when, got, want)
		}
	}
	arrived("control", len(tags))
	l.rules(hostrules.Kubelet{Comm: "kubelet", UID: kubeletUID})
	arrived("with the rules", len(tags)) // no more than before
}

// seen returns what a counter of the victim says.
func (l *lab) seen(n int) int {
	l.Helper()
	var out []byte
	netnstest.Do(l, l.bridged, func() error {
		var err error
		out, err = exec.Command("nft", "list", "table", "inet", "seen").Output()
		return err
	})
	all := regexp.MustCompile(`counter packets (\d+)`).FindAllSubmatch(out, -1)
	if len(all) != 2 {
		l.Fatalf("counters: %s", out)
	}
	count, err := strconv.Atoi(string(all[n][1]))
	l.must(err)
	return count
}

// frame sends a packet behind tags from the neighbour to the bridged pod.
func (l *lab) frame(tags, packet []byte) {
	l.Helper()
	to, _ := link(l, l.bridged)
	from, index := link(l, l.neighbour)
	b := append(append(append([]byte{}, to...), from...), tags...)
	b = append(append(b, 0x08, 0), packet...)
	fd, err := l.neighbour.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	l.must(err)
	defer func() { _ = unix.Close(fd) }()
	l.must(unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: index, Protocol: 0x0008}))
}

func link(l *lab, ns *netns.NS) (mac []byte, index int) {
	l.Helper()
	netnstest.Do(l, ns, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("find eth0: %w", err)
		}
		mac, index = eth0.Attrs().HardwareAddr, eth0.Attrs().Index
		return nil
	})
	return mac, index
}

// synPacket is a marked first segment from the node's address on the bridge, and
// udpPacket a datagram without mark.
func synPacket() []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, 40000)
	binary.BigEndian.PutUint16(tcp[2:], 8080)
	tcp[12], tcp[13] = 5<<4, 0x02
	return ipPacket(unix.IPPROTO_TCP, hostrules.Mark<<2, tcp)
}

func udpPacket() []byte { return ipPacket(unix.IPPROTO_UDP, 0, []byte{0, 9, 0, 9, 0, 8, 0, 0}) }

func ipPacket(proto, tos byte, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[1], b[8], b[9] = 0x45, tos, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	copy(b[12:], netip.MustParseAddr("10.3.0.1").AsSlice())
	copy(b[16:], netip.MustParseAddr("10.3.0.2").AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, payload...)
}
