package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// pods is a Handler that remembers.
type pods struct {
	mu     sync.Mutex
	have   map[string]handoff.Status
	fail   error
	block  chan struct{} // Add waits for it when not nil
	called int
}

func (p *pods) Add(ctx context.Context, pod handoff.Pod, ns *netns.NS) error {
	defer ns.Close()
	if p.block != nil {
		select {
		case <-p.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.called++
	if p.fail != nil {
		return p.fail
	}
	p.have[pod.UID] = handoff.Status{Pod: pod, State: "enrolled", NetNS: ns.Inode()}
	return nil
}

func (p *pods) Remove(_ context.Context, uid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.called++
	delete(p.have, uid)
	return p.fail
}

func (p *pods) List() []handoff.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.called++
	var out []handoff.Status
	for _, s := range p.have {
		out = append(out, s)
	}
	return out
}

func (p *pods) calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.called
}

// serve runs a server until the end of the test and returns its path.
func serve(t *testing.T, cfg handoff.Config) string {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "run", "agent.sock")
	}
	_, _ = run(t, cfg)
	return cfg.Path
}

// run runs a server until the end of the test, or until stop is called.
func run(t *testing.T, cfg handoff.Config) (s *handoff.Server, stop func()) {
	t.Helper()
	s, err := handoff.Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func dial(t *testing.T, path string) *handoff.Client {
	t.Helper()
	c, err := handoff.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var alice = handoff.Pod{UID: "0b1c-Static_1", Name: "alice-0", Namespace: "default", ServiceAccount: "sa-a"}

func TestAddListRemove(t *testing.T) {
	ns := netnstest.New(t)
	h := &pods{have: map[string]handoff.Status{}}
	c := dial(t, serve(t, handoff.Config{Handler: h}))
	if err := c.Add(t.Context(), alice, ns); err != nil {
		t.Fatal(err)
	}
	got, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []handoff.Status{{Pod: alice, State: "enrolled", NetNS: ns.Inode()}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if err := c.Remove(t.Context(), alice.UID); err != nil {
		t.Fatal(err)
	}
	if got, err = c.List(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("after Remove: %v, %v", got, err)
	}
	if err := ns.Do(func() error { return nil }); err != nil {
		t.Errorf("Add took the caller's namespace away: %v", err)
	}
}

func TestHandlersError(t *testing.T) {
	ns := netnstest.New(t)
	h := &pods{have: map[string]handoff.Status{}, fail: errors.New("port 15001 is taken" + strings.Repeat("!", 5000))}
	c := dial(t, serve(t, handoff.Config{Handler: h}))
	err := c.Add(t.Context(), alice, ns)
	var remote *handoff.RemoteError
	if !errors.As(err, &remote) || !strings.HasPrefix(remote.Text, "port 15001 is taken") {
		t.Errorf("Add = %v, want the handler's error", err)
	}
	if _, err := c.List(t.Context()); err != nil { // the connection goes on
		t.Error(err)
	}
}

// TestLongList needs many packets.
func TestLongList(t *testing.T) {
	h := &pods{have: map[string]handoff.Status{}}
	for i := range 500 {
		p := handoff.Pod{UID: fmt.Sprint(i), Name: strings.Repeat("n", 253), Namespace: "default", ServiceAccount: "sa"}
		h.have[p.UID] = handoff.Status{Pod: p, State: "failed", Error: strings.Repeat("\x00", 4000)}
	}
	c := dial(t, serve(t, handoff.Config{Handler: h}))
	got, err := c.List(t.Context())
	if err != nil || len(got) != len(h.have) {
		t.Errorf("List returned %d pods of %d: %v", len(got), len(h.have), err)
	}
}

func TestContextEndsWaiting(t *testing.T) {
	ns := netnstest.New(t)
	h := &pods{have: map[string]handoff.Status{}, block: make(chan struct{})}
	c := dial(t, serve(t, handoff.Config{Handler: h}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Add(ctx, alice, ns); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Add = %v, want the deadline", err)
	}
	close(h.block)
}

func TestSocketIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "loose")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := serve(t, handoff.Config{Path: filepath.Join(dir, "s"), Handler: &pods{}})
	for name, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, path: 0o600 | os.ModeSocket} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("mode of %s is %v, want %v", filepath.Base(name), st.Mode(), want)
		}
	}
}

func TestForeignUserIsRefused(t *testing.T) {
	h := &pods{}
	c := dial(t, serve(t, handoff.Config{Handler: h, AllowUID: func(uint32) bool { return false }}))
	_, err := c.List(t.Context())
	if err == nil || !strings.Contains(err.Error(), "may not hand over pods") {
		t.Errorf("List = %v, want a refusal", err)
	}
	if n := h.calls(); n != 0 {
		t.Errorf("handler was called %d times", n)
	}
}

// TestForeignUserKeepsNothingOpen: what a user sends along who may not is closed.
func TestForeignUserKeepsNothingOpen(t *testing.T) {
	path := serve(t, handoff.Config{Handler: &pods{}, AllowUID: func(uint32) bool { return false }})
	ns := netnstest.New(t)
	before := openFiles(t)
	for range 4 {
		c := dial(t, path)
		if err := c.Add(t.Context(), alice, ns); err == nil || !strings.Contains(err.Error(), "may not hand over pods") {
			t.Errorf("Add = %v, want a refusal", err)
		}
		_ = c.Close()
	}
	wantOpen(t, before)
}

// TestOtherUsersMayNot: whoever gets as far as the socket has to be root or the agent's own user, unless told otherwise.
func TestOtherUsersMayNot(t *testing.T) {
	netnstest.Require(t)
	h := &pods{have: map[string]handoff.Status{}}
	path := serve(t, handoff.Config{Handler: h})
	for name, mode := range map[string]os.FileMode{filepath.Dir(path): 0o755, path: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	var text string
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its credentials
		var err error
		text, err = askAs(nobody, path)
		done <- err
	}()
	switch err := <-done; {
	case errors.Is(err, errNoSuchUser):
		netnstest.Unable(t, err.Error())
	case err != nil:
		t.Fatal(err)
	}
	if !strings.Contains(text, "user 65534 may not hand over pods") || h.calls() != 0 {
		t.Errorf("answer %q, handler was called %d times", text, h.calls())
	}
}

var errNoSuchUser = errors.New("cannot become another user (run as root)")

// askAs asks for the list as another user. The calling thread is that user's from then on.
func askAs(uid int, path string) (string, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the directory changes for this thread alone
		return "", err
	}
	if err := unix.Chdir(filepath.Dir(path)); err != nil { // those above are the test's alone
		return "", err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return "", fmt.Errorf("%w: %w", errNoSuchUser, errno)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Base(path)}); err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, []byte(`{"v":1,"op":"list"}`)); err != nil {
		return "", err
	}
	b := make([]byte, handoff.MaxResponse)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}

// TestSuccessor: a second server on the path takes over without a gap, and the end of
// the first does not take its socket away.
func TestSuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	first, err := handoff.Listen(handoff.Config{Path: path, Handler: &pods{}})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, handoff.Config{Path: path, Handler: &pods{}})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, path).List(t.Context()); err != nil {
		t.Errorf("successor does not serve: %v", err)
	}
}

// TestSuccessorGivesUp: a successor that ends while the first still serves (an upgrade that is rolled back) leaves the
// path to the first, as often as it happens.
func TestSuccessorGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	first, stop := run(t, handoff.Config{Path: path, Handler: &pods{}, Interval: 5 * time.Millisecond})
	early := dial(t, path)
	for _, tt := range []struct {
		name string
		come func(t *testing.T)
	}{
		{"orderly", func(t *testing.T) {
			_, stop := run(t, handoff.Config{Path: path, Handler: &pods{}})
			if !first.Superseded() {
				t.Error("the first does not see its successor")
			}
			stop()
		}},
		{"killed", func(t *testing.T) { _ = usurp(t, path).Close() }},
		{"with_the_directory", func(t *testing.T) {
			if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+".old"); err != nil { // at once
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.come(t)
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
				c, err := handoff.Dial(t.Context(), path)
				if err == nil {
					_ = c.Close()
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the first serves still, and nobody reaches it: %v", err)
				}
			}
			for what, c := range map[string]*handoff.Client{"new": dial(t, path), "early": early} {
				if _, err := c.List(t.Context()); err != nil {
					t.Errorf("%s client: %v", what, err)
				}
			}
			if first.Superseded() {
				t.Error("the first says that it has a successor")
			}
		})
	}
	stop()
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if first.Superseded() {
		t.Error("after its end the first says that it has a successor")
	}
}

// TestSuccessorLives: a successor that answers keeps the path, also when the first ends.
func TestSuccessorLives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	first, stop := run(t, handoff.Config{Path: path, Handler: &pods{}, Interval: time.Millisecond})
	l := usurp(t, path)
	defer func() { _ = l.Close() }()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 3 { // looks of the first
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	stop()
	if now, err := os.Stat(path); err != nil || !os.SameFile(before, now) || !first.Superseded() {
		t.Errorf("the successor's socket: %v, superseded: %v", err, first.Superseded())
	}
}

// TestPatient: a server that is not ready yet leaves the path to the one that serves it, and takes it when that one ends or it
// is told to.
func TestPatient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	first, stop := run(t, handoff.Config{Path: path, Handler: &pods{}, Patient: true, Interval: time.Millisecond})
	if first.Superseded() {
		t.Error("the first waits for nobody")
	}
	never, stopNever := run(t, handoff.Config{Path: path, Handler: &pods{}, Patient: true, Interval: time.Millisecond})
	if !never.Superseded() || first.Superseded() {
		t.Error("a server that is not ready has the path")
	}
	stopNever()
	unrun, err := handoff.Listen(handoff.Config{Path: path, Handler: &pods{}, Patient: true})
	if err == nil {
		err = unrun.Close()
	}
	if err != nil || first.Superseded() {
		t.Errorf("a server that ends before it is ready takes the path away: %v", err)
	}
	if err := unrun.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run after Close = %v", err)
	}
	ready, stopReady := run(t, handoff.Config{Path: path, Handler: &pods{}, Patient: true, Interval: time.Millisecond})
	for range 2 {
		if err := ready.Take(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dial(t, path).List(t.Context()); err != nil || ready.Superseded() || !first.Superseded() {
		t.Errorf("a server that is ready does not have the path: %v", err)
	}
	stopReady()
	takesPath(t, first, path)
	next, _ := run(t, handoff.Config{Path: path, Handler: &pods{}, Patient: true, Interval: time.Millisecond})
	stop()
	takesPath(t, next, path)
	if _, err := dial(t, path).List(t.Context()); err != nil {
		t.Error(err)
	}
}

// takesPath waits until the server has the path, which another one has left.
func takesPath(t *testing.T, s *handoff.Server, path string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil && !s.Superseded() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a path that was left is not taken")
		}
	}
}

// usurp makes the path lead to another socket, as a successor does.
func usurp(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path + ".7", Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Rename(path+".7", path); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLookedAtSilently: a connection that asks nothing, as another server makes to see who is there, is no failure.
func TestLookedAtSilently(t *testing.T) {
	var said strings.Builder
	path := filepath.Join(t.TempDir(), "agent.sock")
	_, stop := run(t, handoff.Config{Path: path, Handler: &pods{}, MaxClients: 1, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	for range 3 {
		if err := dial(t, path).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := dial(t, path).List(t.Context()); err != nil { // one at a time: those before are done with
		t.Fatal(err)
	}
	stop()
	if said.Len() > 0 {
		t.Errorf("said: %s", said.String())
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := handoff.Listen(handoff.Config{Path: "x"}); err == nil {
		t.Error("a config without handler was accepted")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := handoff.Listen(handoff.Config{Path: filepath.Join(file, "s"), Handler: &pods{}})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Listen below a file = %v, want an error that names it", err)
	}
}

// TestHostileMessages sends what no client sends; each is answered by an error or a
// closed connection, reaches no handler, and leaves no descriptor open.
func TestHostileMessages(t *testing.T) {
	ns := netnstest.New(t)
	var nsfd int
	if err := ns.Control(func(fd int) error { nsfd = fd; return nil }); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	add := `{"v":1,"op":"add","pod":{"uid":"u","name":"n","namespace":"ns","serviceAccount":"sa"}}`
	many := make([]int, 40)
	for i := range many {
		many[i] = nsfd
	}
	tests := []struct {
		name string
		body string
		fds  []int
		want string
	}{
		{"garbage", "\x00\xff\x00", nil, "parse request"},
		{"empty_object", "{}", nil, "version 0"},
		{"future_version", `{"v":7,"op":"list"}`, nil, "version 7, this agent speaks 1"},
		{"unknown_operation", `{"v":1,"op":"exec"}`, nil, `"exec" is unknown`},
		{"two_messages", `{"v":1,"op":"list"}{"v":1,"op":"list"}`, nil, "bytes after the message"},
		{"deep", strings.Repeat("[", 4000), nil, "parse request"},
		{"too_long", `{"v":1,"op":"list","x":"` + strings.Repeat("x", handoff.MaxRequest) + `"}`, nil, "longer than"},
		{"add_without_pod", `{"v":1,"op":"add"}`, []int{nsfd}, "names no pod"},
		{"add_without_descriptor", add, nil, "got 0"},
		{"add_with_two", add, []int{nsfd, nsfd}, "got 2"},
		{"add_with_forty", add, many, "more than"},
		{"add_with_file", add, []int{int(file.Fd())}, "not a network namespace"},
		{"list_with_descriptor", `{"v":1,"op":"list"}`, []int{nsfd}, "takes no descriptor"},
		{"garbage_with_descriptor", "?", []int{nsfd}, "parse request"},
		{"bad_uid", strings.Replace(add, `"u"`, `"../u"`, 1), []int{nsfd}, "is not allowed"},
		{"bad_name", strings.Replace(add, `"n"`, `"n\n"`, 1), []int{nsfd}, "is not allowed"},
		{"long_name", strings.Replace(add, `"n"`, `"`+strings.Repeat("n", 254)+`"`, 1), []int{nsfd}, "not between"},
		{"long_uid", strings.Replace(add, `"u"`, `"`+strings.Repeat("u", 129)+`"`, 1), []int{nsfd}, "not between"},
		{"no_service_account", strings.Replace(add, `"sa"`, `""`, 1), []int{nsfd}, "service account"},
		{"remove_nothing", `{"v":1,"op":"remove"}`, nil, "not between"},
		{"wrong_type", `{"v":1,"op":"remove","uid":7}`, nil, "parse request"},
		{"only_a_descriptor", "", []int{nsfd}, "parse request"}, // package net adds one byte
	}
	h := &pods{have: map[string]handoff.Status{}}
	path := serve(t, handoff.Config{Handler: h})
	before := openFiles(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("unixpacket", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var oob []byte
			if len(tt.fds) > 0 {
				oob = unix.UnixRights(tt.fds...)
			}
			if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(tt.body), oob, nil); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, handoff.MaxResponse)
			n, err := c.Read(buf)
			if err != nil || !strings.Contains(string(buf[:n]), strings.ReplaceAll(tt.want, `"`, `\"`)) {
				t.Errorf("answer %q, %v, want %q in it", buf[:n], err, tt.want)
			}
		})
	}
	if n := h.calls(); n != 0 {
		t.Errorf("handler was called %d times", n)
	}
	wantOpen(t, before)
}

// openFiles counts the open files of the process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// wantOpen waits until no more files than that are open.
func wantOpen(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); openFiles(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, %d before", openFiles(t), before)
		}
	}
}

func TestClientRefusesBadPod(t *testing.T) {
	c := dial(t, serve(t, handoff.Config{Handler: &pods{}}))
	err := c.Add(t.Context(), handoff.Pod{UID: "u", Name: "Upper"}, netnstest.New(t))
	for _, part := range []string{`pod name "Upper"`, "namespace", "service account"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("Add = %v, want %s named", err, part)
		}
	}
}

func TestManyClients(t *testing.T) {
	h := &pods{have: map[string]handoff.Status{}}
	path := serve(t, handoff.Config{Handler: h, MaxClients: 3})
	ns := netnstest.New(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c, err := handoff.Dial(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			p := alice
			p.UID = fmt.Sprint(i)
			if err := c.Add(t.Context(), p, ns); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(h.List()) != 20 {
		t.Errorf("%d pods, want 20", len(h.List()))
	}
}
