package redirect_test

import (
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestMarkedSockets(t *testing.T) {
	l := newLab(t)
	marked := netnstest.Options{Mark: 0xab000 | redirect.AgentMark}
	l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{Mark: 0x111})
	l.dial(l.pod, "10.0.0.1:9000", netnstest.Options{})
	tcp4 := l.dial(l.pod, "10.0.0.1:9000", marked)
	tcp6 := l.dial(l.pod, "[fd00::1]:9000", marked)
	netnstest.Listen(t, l.pod, "127.0.0.1:15053", marked)
	netnstest.ListenPacket(t, l.pod, "127.0.0.1:15053", marked)
	got, err := redirect.MarkedSockets(l.pod)
	l.must(err)
	var text []string
	for _, s := range got {
		if s.Inode == 0 || s.Cookie == 0 {
			t.Errorf("socket without inode or cookie: %+v", s)
		}
		text = append(text, s.String())
	}
	want := []string{
		"tcp " + tcp4.LocalAddr().String() + " → 10.0.0.1:9000 uid 0",
		"tcp " + tcp6.LocalAddr().String() + " → [fd00::1]:9000 uid 0",
		"tcp 127.0.0.1:15053 → 0.0.0.0:0 uid 0",
		"udp 127.0.0.1:15053 → 0.0.0.0:0 uid 0",
	}
	slices.Sort(text)
	slices.Sort(want)
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMarkedSocketsOfABusyPod: an application's own sockets cost the agent no memory, however many there are.
func TestMarkedSocketsOfABusyPod(t *testing.T) {
	ns := netnstest.New(t)
	const many = 10000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < many+1000 {
		t.Skipf("limit of descriptors is %d: %v", limit.Cur, err)
	}
	fds := make([]int, many)
	if err := ns.Sockets(fds, unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, fd := range fds {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	netnstest.ListenPacket(t, ns, "127.0.0.1:53", netnstest.Options{Mark: redirect.AgentMark})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := redirect.MarkedSockets(ns)
	runtime.ReadMemStats(&after)
	if err != nil || len(got) != 1 {
		t.Errorf("%d sockets with the mark, %v", len(got), err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("allocated %d KiB to look at %d sockets without the mark", took>>10, many)
	}
}
