package loop

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Control calls f with the listening socket. What is set on it, most sockets accepted later inherit (no delay, keepalive,
// congestion control).
func (a *Acceptor) Control(f func(fd int)) error {
	return a.raw.Control(func(fd uintptr) { f(int(fd)) })
}

// WriteFD sends b on a socket that the caller owns. It is for the few bytes that go ahead of a fresh connection: a short
// write is an error.
func WriteFD(fd int, b []byte) error {
	n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
	if err == nil && n < len(b) {
		err = errors.New("short write")
	}
	return err
}
