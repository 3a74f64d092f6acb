package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotNetNS says that a path or descriptor is something else than a network
// namespace.
var ErrNotNetNS = errors.New("not a network namespace")

// selfPath names the namespace of the thread that opens it. (/proc/self would be
// the thread group's leader, which is an ordinary worker thread for Go and may be
// inside another namespace at that moment.)
const selfPath = "/proc/thread-self/ns/net"

// ID identifies a network namespace for as long as anything holds it: the inode
// and device of its nsfs file. It is comparable; the zero ID is no namespace.
type ID struct {
	inode, device uint64
}

// Inode returns the inode number, as `readlink /proc/PID/ns/net` shows it.
func (id ID) Inode() uint64 { return id.inode }

// Device returns the device number of the nsfs that the inode belongs to.
func (id ID) Device() uint64 { return id.device }

// IsZero reports whether id names no namespace.
func (id ID) IsZero() bool { return id == ID{} }

// String returns "net:[INODE]", the form that /proc and lsns use.
func (id ID) String() string { return fmt.Sprintf("net:[%d]", id.inode) }

// NS is an open network namespace. It owns one descriptor, which keeps the
// namespace alive until Close, even when every process has left it.
type NS struct {
	file *os.File // descriptor with a reference count, so that Close never pulls it away from a setns
	id   ID
}

// home is the namespace that the process's threads belong to, opened at the first
// use of the package and kept for the life of the process: opening it for each
// socket would cost more than the two setns calls together.
var home = sync.OnceValues(func() (*NS, error) { return openPath(selfPath) })

// Open opens the namespace at path: a bind mount (/var/run/netns/x) or a process's
// /proc/PID/ns/net. The caller owns the result.
func Open(path string) (*NS, error) {
	if _, err := home(); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return openPath(path)
}

// FromFD makes an NS of a descriptor, which it owns from then on: it is closed by
// Close, or at once when an error is returned. Anything but a network namespace is
// refused with ErrNotNetNS, so a descriptor from outside may be given directly.
func FromFD(fd int) (*NS, error) {
	if _, err := home(); err != nil {
		return nil, errors.Join(fmt.Errorf("open own network namespace: %w", err), unix.Close(fd))
	}
	return fromFD(fd, fmt.Sprintf("netns fd %d", fd))
}

// Current opens the namespace of the calling thread. Outside Do that is the
// process's own one; inside Do it is the one that was entered.
func Current() (*NS, error) { return Open(selfPath) }

// New makes a new, empty namespace that lives only as long as it is held by a
// descriptor or a process. Its loopback interface is up. Needs CAP_SYS_ADMIN.
func New() (*NS, error) {
	h, err := home()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	var n *NS
	err = apart(func() error {
		return h.enter(func() error {
			var err error
			n, err = unshare()
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// unshare moves the current thread into a new namespace.
func unshare() (*NS, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare network namespace: %w", err)
	}
	n, err := openPath(selfPath)
	if err != nil {
		return nil, err
	}
	if err := setUp("lo"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func openPath(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open network namespace", Path: path, Err: err}
	}
	return fromFD(fd, path)
}

func fromFD(fd int, name string) (*NS, error) {
	id, err := identify(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return &NS{file: os.NewFile(uintptr(fd), name), id: id}, nil
}

// identify returns the identity of the network namespace behind fd.
func identify(fd int) (ID, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ID{}, ErrNotNetNS
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return ID{}, err
	}
	return ID{inode: st.Ino, device: st.Dev}, nil
}

// ID returns the namespace's identity; it stays valid after Close.
func (n *NS) ID() ID { return n.id }

// Inode returns the inode number of the namespace.
func (n *NS) Inode() uint64 { return n.id.inode }

// Device returns the device number of the namespace's inode.
func (n *NS) Device() uint64 { return n.id.device }

// String returns the identity in the form "net:[INODE]".
func (n *NS) String() string { return n.id.String() }

// Close gives up the namespace. Calls in progress finish first; later ones return
// an error that wraps os.ErrClosed. Closing twice is an error of the same kind.
func (n *NS) Close() error { return n.file.Close() }

// Dup returns an independent holder of the same namespace, owned by the caller.
func (n *NS) Dup() (*NS, error) {
	var fd int
	err := n.control(func(raw int) error {
		var err error
		fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace %s: %w", n, err)
	}
	return &NS{file: os.NewFile(uintptr(fd), n.file.Name()), id: n.id}, nil
}

// Control calls f with the descriptor, which stays open during the call and must
// not be closed or kept. It is for passing the namespace on (SCM_RIGHTS,
// IFLA_NET_NS_FD).
func (n *NS) Control(f func(fd int) error) error { return n.control(f) }

// Do calls f on a thread that is inside the namespace and returns f's error. See
// the package comment for what f must not do. A thread that f moved elsewhere, or
// that cannot be brought home, is given up and reported.
func (n *NS) Do(f func() error) error {
	return n.run(func() error {
		err := f()
		now, nowErr := Current()
		if nowErr != nil {
			return errors.Join(err, nowErr)
		}
		if now.id != n.id {
			err = errors.Join(err, fmt.Errorf("function left namespace %s for %s", n, now))
		}
		return errors.Join(err, now.Close())
	})
}

// run calls f inside the namespace, on a fresh goroutine, and waits for it. Where the
// namespace is the process's own there is nothing to enter, so a dedicated agent
// needs no CAP_SYS_ADMIN.
func (n *NS) run(f func() error) error {
	h, err := home()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	if h.id == n.id {
		return apart(func() error { return n.control(func(int) error { return f() }) })
	}
	return apart(func() error { return n.enter(f) })
}

// apart calls f on a fresh goroutine, which no caller has locked to a thread inside
// some namespace.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("function for a network namespace did not return")
		defer func() { done <- err }() // also after runtime.Goexit, which a test's FailNow is
		err = f()
	}()
	return <-done
}

// enter moves the calling goroutine's thread into the namespace, calls f and moves
// it back.
func (n *NS) enter(f func() error) (err error) {
	runtime.LockOSThread()
	if err := n.control(setns); err != nil {
		runtime.UnlockOSThread() // setns either works or changes nothing
		return fmt.Errorf("enter network namespace %s: %w", n, err)
	}
	defer func() {
		if homeErr := goHome(); homeErr != nil {
			// Stay locked: with the goroutine the runtime ends its thread.
			err = errors.Join(err, homeErr)
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

func goHome() error {
	h, err := home()
	if err != nil {
		return fmt.Errorf("return to own network namespace: %w", err)
	}
	if err := h.control(setns); err != nil {
		return fmt.Errorf("return to own network namespace: %w", err)
	}
	return nil
}

func setns(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }

// control calls f while the descriptor cannot be closed.
func (n *NS) control(f func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return os.ErrClosed // the only way it fails; internal/poll's own error does not say so
	}
	return inner
}
