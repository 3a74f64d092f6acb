package handoff_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/handoff"
)

// TestOutOfDescriptors: the process that serves has used up its descriptors for a while, as an agent does whose pods open
// too many connections. Those that hand over wait then, and the server goes on.
func TestOutOfDescriptors(t *testing.T) {
	h := &pods{have: map[string]handoff.Status{}}
	var said lineCount
	path := serve(t, handoff.Config{Handler: h, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(c) }()
	free := exhaust(t)
	if err := unix.Connect(c, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); said.cannot.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is said of descriptors that have run out")
		}
	}
	free()
	if _, err := unix.Write(c, []byte(`{"v":1,"op":"list"}`)); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := unix.Read(c, buf)
	if got := string(buf[:max(n, 0)]); err != nil || got != `{"v":1}` {
		t.Errorf("the client that waited got %q, %v", got, err)
	}
	if n := said.cannot.Load(); n != 1 {
		t.Errorf("said %d times that connections cannot be accepted", n)
	}
}

// exhaust leaves the process no descriptor until free is called.
func exhaust(t *testing.T) (free func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	var held []int
	free = func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
		held = nil
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(free)
	few := was
	few.Cur = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			return free
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, fd)
	}
}

// lineCount counts the lines that say that accepting fails.
type lineCount struct{ cannot atomic.Int32 }

func (l *lineCount) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "cannot be accepted") {
		l.cannot.Add(1)
	}
	return len(p), nil
}
