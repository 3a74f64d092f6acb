package main

import (
	"context"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	firstPatience = time.Second            // how long a first attempt to connect may take
	firstPause    = 100 * time.Millisecond // after one that is refused
)

// controlDial opens the agent's own connections, to discovery and to the certificate server.
func controlDial(s *settings) func(ctx context.Context, address string) (net.Conn, error) {
	d := controlDialer(s)
	return func(ctx context.Context, address string) (net.Conn, error) {
		return redial(ctx, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) })
	}
}

// redial dials until there is a connection or ctx ends, which it must. While a Service's pods are replaced, a node may send an
// attempt to one that is gone, which refuses it or says nothing to any of its packets; the next attempt has another port and
// goes elsewhere. To fail at once would have pods without a certificate refuse connections until the next time that one is
// asked for. Patience and pauses double.
func redial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	patience, pause := firstPatience, firstPause
	for {
		attempt, cancel := context.WithTimeout(ctx, patience)
		conn, err := dial(attempt)
		silent := attempt.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		if silent {
			patience *= 2
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause *= 2
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
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
