package main

import (
	"context"
	"net"
	"os"
	"syscall"
)

// controlDial opens the agent's own connections, to discovery and to the certificate server.
func controlDial(s *settings) func(ctx context.Context, address string) (net.Conn, error) {
	d := controlDialer(s)
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}

// controlDialer makes the agent's own sockets. A dedicated agent lives in the namespace that is captured: without the
// mark its connections would come back to it and wait for the certificates that they are to bring, and its questions
// about names would be answered by itself.
func controlDialer(s *settings) *net.Dialer {
	d := new(net.Dialer)
	if s.mode == modeDedicated {
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			controlErr := c.Control(func(fd uintptr) {
				err = os.NewSyscallError("setsockopt SO_MARK", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, int(packetMark)))
			})
			if controlErr != nil {
				return controlErr
			}
			return err
		}
	}
	return d
}
