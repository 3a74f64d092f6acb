package proxy_test

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// TestLongShortageRefuses uses up all descriptors: who connects then is reset instead of left hanging, what is open goes
// on, and when there are descriptors again, connections are served again.
func TestLongShortageRefuses(t *testing.T) {
	r := newRig(t)
	one := r.node(nil)
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(netip.MustParseAddr("127.0.30.1"))
	before := client.dial(dst)
	exchange(t, before, "hello")

	connecting := make([]int, 3)
	for i := range connecting {
		fd, err := loop.TCPSocket(syscall.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		defer loop.CloseFD(fd)
		connecting[i] = fd
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	short := limit
	short.Cur = uint64(connecting[len(connecting)-1]) + 40
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &short); err != nil {
		t.Fatal(err)
	}
	var taken []int
	free := func() {
		for _, fd := range taken {
			loop.CloseFD(fd)
		}
		taken = nil
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	defer free()
	for {
		fd, err := loop.Placeholder()
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	for _, fd := range connecting {
		if err := loop.StartConnect(fd, client.outbound); err != nil {
			t.Fatal(err)
		}
	}
	for _, fd := range connecting {
		waitFor(t, "reset", func() bool {
			_, err := syscall.Read(fd, make([]byte, 1))
			return errors.Is(err, syscall.ECONNRESET)
		})
	}
	exchange(t, before, "still there")
	free()
	exchange(t, client.dial(dst), "again")
	for _, text := range []string{"accepting connections pauses", "connections are refused: no descriptors are left"} {
		if n := strings.Count(one.seen.text(), text); n != 1 {
			t.Errorf("%q was logged %d times", text, n)
		}
	}
}
