package loop

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	epollET = 1 << 31
	// reading is what all connections listen for. Urgent data is never read as such, but a read ends short at its mark.
	reading = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | epollET
)

// Events is what epoll said about a descriptor.
type Events uint32

// Readable reports that reading may yield data, an end or an error.
func (e Events) Readable() bool {
	return e&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
}

// Writable reports that writing may go on, or fail.
func (e Events) Writable() bool { return e&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 }

// Ended reports that the peer has closed its direction, the socket is broken or there is urgent data: a short read does not
// mean that all has been read then.
func (e Events) Ended() bool {
	return e&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
}

// Failed reports a socket error; see FD.SocketError.
func (e Events) Failed() bool { return e&unix.EPOLLERR != 0 }

// Handler is told about events of its descriptor, on the loop. Events are edge-triggered: what has been said is not
// repeated until the state changes, so a handler that stops early has to remember that there is more.
type Handler interface{ Event(Events) }

// FD is a descriptor that a loop owns. The zero FD is ready for Attach; embed it by value. All methods are called on
// the loop.
type FD struct {
	loop    *Loop
	handler Handler
	fd      int32
	armed   bool
}

// Attach gives a non-blocking socket to the loop, which closes it from now on. Events begin with the current state.
func (f *FD) Attach(l *Loop, fd int, h Handler) error {
	return f.attach(l, fd, h, reading)
}

// AttachConnecting is Attach for a socket whose connect is under way: the first Writable event says that it is over,
// and SocketError how.
func (f *FD) AttachConnecting(l *Loop, fd int, h Handler) error {
	return f.attach(l, fd, h, reading|unix.EPOLLOUT)
}

func (f *FD) attach(l *Loop, fd int, h Handler, events uint32) error {
	for fd >= len(l.slots) {
		l.slots = append(l.slots, make([]slot, max(64, len(l.slots)))...)
	}
	s := &l.slots[fd]
	s.gen++
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: int32(s.gen)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch socket: %w", err)
	}
	s.fd = f
	f.loop, f.handler, f.fd, f.armed = l, h, int32(fd), events&unix.EPOLLOUT != 0
	l.sockets.Add(1)
	return nil
}

// Attached reports that a loop owns a descriptor here.
func (f *FD) Attached() bool { return f.loop != nil }

// Int returns the descriptor, -1 when there is none.
func (f *FD) Int() int {
	if f.loop == nil {
		return -1
	}
	return int(f.fd)
}

// ArmWrite asks for an event when the socket becomes writable. It is called at the first short write; most sockets
// never need it and are spared the system call.
func (f *FD) ArmWrite() {
	if f.armed || f.loop == nil {
		return
	}
	f.armed = true
	s := &f.loop.slots[f.fd]
	ev := unix.EpollEvent{Events: reading | unix.EPOLLOUT, Fd: f.fd, Pad: int32(s.gen)}
	_ = unix.EpollCtl(f.loop.epoll, unix.EPOLL_CTL_MOD, int(f.fd), &ev)
}

// Unacknowledged returns how many bytes of what was written have not arrived at the peer's host.
func (f *FD) Unacknowledged() int {
	n, err := unix.IoctlGetInt(f.Int(), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// Close closes the socket. It may be called more than once.
func (f *FD) Close() {
	if fd := f.Int(); fd >= 0 {
		f.forget()
		_ = unix.Close(fd)
	}
}

// Abort closes the socket so that a TCP peer sees a reset, whatever was still to be sent.
func (f *FD) Abort() {
	if fd := f.Int(); fd >= 0 {
		ResetOnClose(fd)
	}
	f.Close()
}

// Finish closes a socket whose both directions have ended in order, also one with ResetOnClose: what is still to be sent
// is sent.
func (f *FD) Finish() {
	if fd := f.Int(); fd >= 0 {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	}
	f.Close()
}

// Detach takes the socket from the loop without closing it and returns it, -1 when there was none.
func (f *FD) Detach() int {
	fd := f.Int()
	if fd >= 0 {
		_ = unix.EpollCtl(f.loop.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		f.forget()
	}
	return fd
}

func (f *FD) forget() {
	f.loop.slots[f.fd].fd = nil
	f.loop.slots[f.fd].gen++
	f.loop.sockets.Add(-1)
	f.loop, f.handler = nil, nil
}
