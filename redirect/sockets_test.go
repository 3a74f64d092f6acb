package redirect_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

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
