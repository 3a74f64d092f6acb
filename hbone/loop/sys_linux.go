package loop

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Iovec is one piece of a scattered read or gathered write.
type Iovec = unix.Iovec

// Piece returns the Iovec of b, which must not be empty and must stay alive until the call that uses it returns.
func Piece(b []byte) Iovec {
	v := Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return v
}

// The system calls of a loop are raw: they never block, so the scheduler need not hear of them.

func rawRead(fd int, b []byte) (int, error) {
	n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(n, e)
}

func rawWrite(fd int, b []byte) (int, error) {
	n, _, e := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(n, e)
}

func result(n uintptr, e syscall.Errno) (int, error) {
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// Again reports that a call would have blocked, or was interrupted and should be tried when the next event comes.
func Again(err error) bool { return err == unix.EAGAIN }

// Read reads into b. It returns 0 and nil at the end of the stream. On the loop.
func (f *FD) Read(b []byte) (int, error) {
	for {
		n, err := rawRead(int(f.fd), b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Readv reads into the pieces in order. It returns 0 and nil at the end of the stream. On the loop.
func (f *FD) Readv(pieces []Iovec) (int, error) {
	if len(pieces) == 1 {
		return f.Read(unsafe.Slice(pieces[0].Base, pieces[0].Len))
	}
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_READV, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(pieces))), uintptr(len(pieces)))
		if e != unix.EINTR {
			return result(n, e)
		}
	}
}

// Write sends b; a broken socket is an error, never a signal. On the loop.
func (f *FD) Write(b []byte) (int, error) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if e != unix.EINTR {
			return result(n, e)
		}
	}
}

// Writev sends the pieces in order. On the loop.
func (f *FD) Writev(pieces []Iovec) (int, error) {
	if len(pieces) == 1 {
		return f.Write(unsafe.Slice(pieces[0].Base, pieces[0].Len))
	}
	msg := unix.Msghdr{Iov: unsafe.SliceData(pieces)}
	msg.SetIovlen(len(pieces))
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return result(n, e)
		}
	}
}

// CloseWrite ends the sending direction (FIN). On the loop.
func (f *FD) CloseWrite() { _ = unix.Shutdown(int(f.fd), unix.SHUT_WR) }

// SocketError returns the pending error of the socket and clears it. On the loop.
func (f *FD) SocketError() error {
	n, err := unix.GetsockoptInt(int(f.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

func (l *Loop) epollWait(millis int, raw bool) int {
	var n uintptr
	var e syscall.Errno
	if raw {
		n, _, e = syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events)), maxEvents, uintptr(millis), 0, 0)
	} else {
		n, _, e = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&l.events)), maxEvents, uintptr(millis), 0, 0)
	}
	if e != 0 {
		return 0 // interrupted: the next round waits again
	}
	return int(n)
}

// Bytes returns the memory that a piece stands for.
func Bytes(p *Iovec) []byte { return unsafe.Slice(p.Base, p.Len) }
