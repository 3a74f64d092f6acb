package proxy_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// TestHostileDescriptorsExhausted: the process has none left. What is open goes on, what would need one is refused with
// that reason, and when there are some again everything is as before.
func TestHostileDescriptorsExhausted(t *testing.T) {
	s := newSiege(t, nil)
	a := s.attack()
	knocking := make([]int, 3)
	for i := range knocking {
		fd, err := loop.TCPSocket(syscall.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		knocking[i] = fd
	}
	free := exhaust(t)
	defer free()
	refused := uint32(0)
	for id := uint32(1); refused == 0 && id < 200; id += 2 { // some sockets were made ahead
		a.Connect(id, s.sink.String())
		if a.WaitStatus(t, id) == 503 {
			refused = id
		}
	}
	if refused == 0 {
		t.Error("no request was refused")
	}
	s.seen.reason(t, a.addr, proxy.FlagConnect, "too many open files")
	for _, fd := range knocking {
		if err := loop.StartConnect(fd, s.server.inbound); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "pause of accepting", func() bool { return strings.Contains(s.two.seen.text(), "too many open files") })
	for _, c := range s.calm {
		c.wait(t, 20)
	}
	free()
	a.alive(401, s.dst)
	s.probe()
	for _, fd := range knocking {
		loop.CloseFD(fd)
	}
	a.leave()
	s.survived()
}

// exhaust takes all descriptors that the process may have, until free is called. It may be called twice.
func exhaust(t *testing.T) (free func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	next, err := loop.Placeholder()
	if err != nil {
		t.Fatal(err)
	}
	taken := []int{next}
	short := limit
	short.Cur = uint64(next) + 20
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &short); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := loop.Placeholder()
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	return func() {
		for _, fd := range taken {
			loop.CloseFD(fd)
		}
		taken = nil
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

// TestHostileDescriptorsHogged: one peer, or one pod, takes as many as it gets. The last are kept for the others.
func TestHostileDescriptorsHogged(t *testing.T) {
	few := func(c *proxy.Config) { c.Descriptors = descriptors() + 700 }
	t.Run("by-a-peer", func(t *testing.T) {
		s := newSiege(t, few)
		var all []*attacker
		served, refused := 0, 0
		for range 4 {
			a, err := s.tryAttack()
			if err != nil {
				refused++
				continue
			}
			all = append(all, a)
			for i := range uint32(190) {
				a.Connect(2*i+1, s.sink.String())
			}
			for i := range uint32(190) {
				switch a.WaitStatus(t, 2*i+1) {
				case 200:
					served++
				case 503:
					refused++
				}
			}
		}
		if served < 200 || served > 500 || refused == 0 {
			t.Errorf("%d were served and %d refused", served, refused)
		}
		s.seen.reason(t, netip.AddrPort{}, proxy.FlagConnect, "no descriptors are left for who has many connections")
		if n := strings.Count(s.two.seen.text(), "no descriptors are left"); n != 1 {
			t.Errorf("it was logged %d times", n)
		}
		// Another peer, and the second pod. The address that has many is the one that tests dial from.
		late := s.one.pod("late", "127.0.10.4")
		for range 5 {
			c := late.dial(s.dst)
			exchange(t, c, "served")
			c.Close()
		}
		for _, a := range all {
			a.leave()
		}
		waitFor(t, "end of the hog's streams", func() bool { return len(s.server.Flows()) < 20 })
		s.probe()
		now, cancel := context.WithCancel(t.Context())
		cancel()
		late.Stop(now)
		s.survived()
	})
	t.Run("by-a-pod", func(t *testing.T) {
		s := besiege(t, few, nil)
		hog := s.one.pod("hog", "127.0.10.5")
		late := s.one.pod("late", "127.0.10.6")
		var crowd []net.Conn
		for range 500 {
			crowd = append(crowd, hog.dial(s.sink))
		}
		s.seen.reason(t, netip.AddrPort{}, proxy.FlagConnect, "no descriptors are left for who has many connections")
		if n := strings.Count(s.one.seen.text(), "no descriptors are left"); n != 1 {
			t.Errorf("it was logged %d times", n)
		}
		for range 5 {
			for _, p := range []*pod{s.client, late} {
				c := p.dial(s.dst)
				exchange(t, c, "served")
				c.Close()
			}
		}
		for _, c := range crowd {
			c.Close()
		}
		now, cancel := context.WithCancel(t.Context())
		cancel()
		hog.Stop(now)
		late.Stop(now)
		s.survived()
	})
}
