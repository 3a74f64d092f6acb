package loop

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Acceptor accepts raw sockets from a listening one: on a goroutine with Accept, which waits in the runtime's poller, or on
// a loop with Serve. The accepted sockets see neither poller. Accept may be called by one goroutine, the other methods by
// any.
type Acceptor struct {
	addr netip.AddrPort

	mu     sync.Mutex
	fd     int      // until the file has it; -1 when it is closed
	file   *os.File // the runtime's poller watches it
	raw    syscall.RawConn
	served *served // a loop watches it
}

// NewAcceptor takes over a listening, non-blocking socket.
func NewAcceptor(fd int) (*Acceptor, error) { return &Acceptor{addr: LocalAddr(fd), fd: fd}, nil }

// Addr returns the address that the socket is bound to.
func (a *Acceptor) Addr() netip.AddrPort { return a.addr }

// Accept waits for a connection and returns its non-blocking socket, which the caller owns, and the peer's address.
// After Close it fails with an error that is os.ErrClosed.
func (a *Acceptor) Accept() (fd int, peer netip.AddrPort, err error) {
	raw, err := a.poll()
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	for {
		var sa syscall.Sockaddr
		var aerr error
		err := raw.Read(func(l uintptr) bool {
			fd, sa, aerr = accept(int(l))
			return !errors.Is(aerr, unix.EAGAIN)
		})
		switch {
		case err != nil: // the poller's own error for a closed file is no os.ErrClosed
			return -1, netip.AddrPort{}, a.closedError()
		case aerr == nil:
			return fd, addrPort(sa), nil
		default:
			return -1, netip.AddrPort{}, a.acceptError(aerr)
		}
	}
}

// accept passes over what concerns one connection alone.
func accept(l int) (int, syscall.Sockaddr, error) {
	for {
		fd, sa, err := syscall.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNABORTED) {
			return fd, sa, err
		}
	}
}

func (a *Acceptor) closedError() error { return a.acceptError(os.ErrClosed) }

func (a *Acceptor) acceptError(err error) error { return fmt.Errorf("accept on %s: %w", a.addr, err) }

// poll gives the socket to the runtime's poller when Accept is called first.
func (a *Acceptor) poll() (syscall.RawConn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.raw != nil:
		return a.raw, nil
	case a.fd < 0:
		return nil, a.closedError()
	}
	file := os.NewFile(uintptr(a.fd), "listener")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, a.acceptError(err)
	}
	a.file, a.raw, a.fd = file, raw, -1
	return raw, nil
}

// Control calls f with the listening socket. What is set on it, most sockets accepted later inherit (no delay, keepalive,
// congestion control).
func (a *Acceptor) Control(f func(fd int)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.raw != nil:
		return a.raw.Control(func(fd uintptr) { f(int(fd)) })
	case a.fd < 0:
		return a.closedError()
	}
	f(a.fd)
	return nil
}

// Refuse resets one connection that waits to be accepted and returns its peer's address. It reports false when none waits
// or there is no descriptor for it. It does not wait, and may be called beside Accept and Serve.
func (a *Acceptor) Refuse() (peer netip.AddrPort, ok bool) {
	err := a.Control(func(l int) {
		if fd, sa, err := syscall.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
			AbortFD(fd)
			peer, ok = addrPort(sa), true
		}
	})
	return peer, ok && err == nil
}

// Close stops listening and ends Accept and Serve.
func (a *Acceptor) Close() error {
	a.mu.Lock()
	if s := a.served; s != nil {
		a.mu.Unlock()
		s.close()
		return nil
	}
	defer a.mu.Unlock()
	switch {
	case a.raw != nil:
		return a.file.Close()
	case a.fd < 0:
		return a.closedError()
	}
	fd := a.fd
	a.fd = -1
	return unix.Close(fd)
}

// AcceptHandler is told of the connections of an Acceptor, on its loop; it must not block.
type AcceptHandler interface {
	// Accepted gets a connection's non-blocking socket, which it owns, and the peer's address.
	Accepted(fd int, peer netip.AddrPort)
	// AcceptFailed says how long to accept nothing after an error; zero tries again at once. It may call Refuse.
	AcceptFailed(err error) time.Duration
	// AcceptEnded is the last call, after Close or when the loop has stopped.
	AcceptEnded()
}

// mostAccepts is how many connections one listener may have accepted in a round of its loop.
const mostAccepts = 32

// served is an Acceptor on a loop. What is waiting is reported in each round (level-triggered), so that nothing has to be
// asked for in vain: how much is taken at once follows how much there was.
type served struct {
	FD
	a     *Acceptor
	l     *Loop
	h     AcceptHandler
	burst int
	rest  Timer
	begun bool // the socket is the loop's
	ended bool
}

// Serve has connections accepted on the loop until Close. It does not wait, and rules out Accept.
func (a *Acceptor) Serve(l *Loop, h AcceptHandler) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 || a.served != nil {
		return a.closedError()
	}
	s := &served{a: a, l: l, h: h, burst: 1}
	if !l.Post(s.begin) {
		return a.acceptError(ErrClosed)
	}
	a.served = s
	return nil
}

func (s *served) begin() {
	s.a.mu.Lock()
	fd := s.a.fd
	s.a.mu.Unlock()
	if err := s.attach(s.l, fd, s, unix.EPOLLIN); err != nil {
		s.pause(s.h.AcceptFailed(s.a.acceptError(err)), s.begin)
		return
	}
	s.begun = true
}

// close has the loop end it.
func (s *served) close() {
	if !s.l.Post(s.end) {
		<-s.l.done // what was attached is closed
		s.end()
	}
}

func (s *served) end() {
	if s.ended {
		return
	}
	s.ended = true
	s.l.Stop(&s.rest)
	s.a.mu.Lock()
	if !s.begun {
		_ = unix.Close(s.a.fd)
	}
	s.FD.Close()
	s.a.fd = -1
	s.a.mu.Unlock()
	s.h.AcceptEnded()
}

// Event implements Handler.
func (s *served) Event(Events) {
	for n := range s.burst {
		fd, sa, err := accept(s.Int())
		switch {
		case err == nil:
			s.h.Accepted(fd, addrPort(sa))
		case errors.Is(err, unix.EAGAIN):
			s.burst = max(1, n)
			return
		default:
			if d := s.h.AcceptFailed(s.a.acceptError(err)); d > 0 {
				s.watch(0)
				s.pause(d, func() { s.watch(unix.EPOLLIN) })
			}
			return
		}
		if s.ended {
			return
		}
	}
	s.burst = min(2*s.burst, mostAccepts)
}

func (s *served) pause(d time.Duration, then func()) { s.l.After(&s.rest, d, then) }

func (s *served) watch(events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: s.fd, Pad: int32(s.l.slots[s.fd].gen)}
	_ = unix.EpollCtl(s.l.epoll, unix.EPOLL_CTL_MOD, int(s.fd), &ev)
}
