package loop

import (
	"errors"

	"golang.org/x/sys/unix"
)

// WriteFD sends b on a socket that the caller owns. It is for the few bytes that go ahead of a fresh connection: a short
// write is an error.
func WriteFD(fd int, b []byte) error {
	n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_NOSIGNAL)
	if err == nil && n < len(b) {
		err = errors.New("short write")
	}
	return err
}
