package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors are looked at; the kernel closes what goes beyond.
const maxFDs = 4

// receive reads one packet of at most limit bytes and the descriptors with it, which
// the caller owns; there are none when an error is returned. An empty packet cannot
// be told from the end, which is io.EOF.
func receive(c *net.UnixConn, limit int) ([]byte, []int, error) {
	buf := make([]byte, limit+1)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	fds, fdErr := rights(oob[:oobn])
	switch {
	case err != nil:
	case n == 0:
		err = io.EOF
	case fdErr != nil:
		err = fdErr
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("more than %d descriptors, or no room for them", maxFDs)
	case flags&unix.MSG_TRUNC != 0 || n > limit:
		err = fmt.Errorf("message is longer than %d bytes", limit)
	default:
		return buf[:n], fds, nil
	}
	closeAll(fds)
	return nil, nil, err
}

// rights takes the descriptors out of control data.
func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control data: %w", err)
	}
	var (
		fds  []int
		errs []error
	)
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		if n := len(messages[i].Data); n%4 != 0 { // ParseUnixRights reads behind the end then
			errs = append(errs, fmt.Errorf("parse control data: descriptors of %d bytes", n))
			continue
		}
		more, err := unix.ParseUnixRights(&messages[i])
		fds, errs = append(fds, more...), append(errs, err)
	}
	return fds, errors.Join(errs...)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
