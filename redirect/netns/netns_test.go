package netns_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func TestNewIsEmptyAndOther(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if a.ID() == b.ID() || a.ID() == own.ID() || a.ID().IsZero() {
		t.Fatalf("namespaces %v, %v and own %v are not three", a, b, own)
	}
	var names []string
	netnstest.Do(t, a, func() error {
		entries, err := os.ReadDir("/proc/thread-self/net/dev_snmp6")
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	if len(names) != 1 || names[0] != "lo" {
		t.Errorf("interfaces of a new namespace: %v, want lo alone", names)
	}
}

func TestSocketIsInside(t *testing.T) {
	ns := netnstest.New(t)
	fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0, netns.Mark(0x539))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got := namespaceOfSocket(t, fd); got != ns.ID() {
		t.Errorf("socket is in %v, want %v", got, ns.ID())
	}
	if mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != 0x539 {
		t.Errorf("mark = %#x, %v, want 0x539", mark, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("socket is blocking (flags %#x, %v)", flags, err)
	}
	fdFlags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || fdFlags&unix.FD_CLOEXEC == 0 {
		t.Errorf("socket is not close-on-exec (flags %#x, %v)", fdFlags, err)
	}
}

func namespaceOfSocket(t *testing.T, fd int) netns.ID {
	t.Helper()
	const siocgskns = 0x894c // SIOCGSKNS: the namespace of a socket
	nsfd, err := unix.IoctlRetInt(fd, siocgskns)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.FromFD(nsfd)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.ID()
}

func TestManyThreadsComeHome(t *testing.T) {
	spaces := []*netns.NS{netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				ns := spaces[(i+j)%len(spaces)]
				fd, err := ns.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if got := namespaceOfSocket(t, fd); got != ns.ID() {
					t.Errorf("socket is in %v, want %v", got, ns.ID())
				}
				_ = unix.Close(fd)
			}
		})
	}
	wg.Wait() // that every thread is home again is checked by Main
}

func TestDo(t *testing.T) {
	ns := netnstest.New(t)
	netnstest.Do(t, ns, func() error {
		now, err := netns.Current()
		if err != nil {
			return err
		}
		if now.ID() != ns.ID() {
			t.Errorf("Do ran in %v, want %v", now, ns)
		}
		return now.Close()
	})
	boom := errors.New("boom")
	if err := ns.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Do = %v, want the function's error", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do returned nil for a function that ended its goroutine")
	}
	other := netnstest.New(t)
	err := ns.Do(func() error { return other.Do(func() error { return nil }) })
	if err != nil {
		t.Errorf("Do inside Do: %v", err) // the inner one runs on its own thread, so the outer thread stays
	}
	err = ns.Do(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err == nil {
		t.Error("Do did not notice that its function went to another namespace")
	}
}

// TestOwnNamespace: an agent that serves the namespace it runs in may lack
// CAP_SYS_ADMIN, so nothing is entered there.
func TestOwnNamespace(t *testing.T) {
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := own.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got := namespaceOfSocket(t, fd); got != own.ID() {
		t.Errorf("socket is in %v, want %v", got, own)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := own.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Socket after Close = %v, want ErrClosed", err)
	}
}

func TestOpen(t *testing.T) {
	ns := netnstest.New(t)
	var path string
	if err := ns.Control(func(fd int) error {
		path = filepath.Join("/proc/self/fd", strconv.Itoa(fd))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != ns.ID() {
		t.Errorf("opened %v, want %v", again, ns)
	}
	dup, err := again.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want ErrClosed", err)
	}
	if err := again.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close = %v, want ErrClosed", err)
	}
	if err := dup.Do(func() error { return nil }); err != nil {
		t.Errorf("Do of a duplicate: %v", err)
	}
	if err := dup.Close(); err != nil {
		t.Error(err)
	}
}

func TestNotANetworkNamespace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/proc/self/ns/mnt", "/dev/null"} {
		if _, err := netns.Open(path); !errors.Is(err, netns.ErrNotNetNS) {
			t.Errorf("Open(%s) = %v, want ErrNotNetNS", path, err)
		}
	}
	if _, err := netns.Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open(absent) = %v, want ErrNotExist", err)
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netns.FromFD(fd); !errors.Is(err, netns.ErrNotNetNS) {
		t.Errorf("FromFD(file) = %v, want ErrNotNetNS", err)
	}
	if err := unix.Close(fd); !errors.Is(err, unix.EBADF) {
		t.Errorf("refused descriptor was left open (close = %v)", err)
	}
}

func BenchmarkSocket(b *testing.B) {
	ns := netnstest.New(b)
	b.ReportAllocs()
	for b.Loop() {
		fd, err := ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0, netns.Mark(0x539))
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(fd)
	}
}

func TestSocketsAreMadeAllOrNone(t *testing.T) {
	ns := netnstest.New(t)
	var fds [5]int
	if err := ns.Sockets(fds[:], unix.AF_INET, unix.SOCK_STREAM, 0, netns.Mark(0x539)); err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if got := namespaceOfSocket(t, fd); got != ns.ID() {
			t.Errorf("socket is in %v, want %v", got, ns.ID())
		}
		if mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != 0x539 {
			t.Errorf("mark = %#x, %v, want 0x539", mark, err)
		}
		_ = unix.Close(fd)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	t.Cleanup(restore)
	few := unix.Rlimit{Cur: uint64(fds[2]) + 1, Max: limit.Max} // the lowest free descriptors are those of before
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err := ns.Sockets(fds[:], unix.AF_INET, unix.SOCK_STREAM, 0)
	restore()
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("with too few descriptors: %v", err)
	}
	for _, fd := range fds[:3] {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("socket %d was left behind: %v", fd, err)
		}
	}
}
