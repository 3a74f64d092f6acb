package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ListenPacket opens a UDP socket inside the namespace, marked with mark unless that is 0. The caller closes it.
func (n *NS) ListenPacket(addr netip.AddrPort, mark Mark) (net.PacketConn, error) {
	file, err := n.bound(unix.SOCK_DGRAM, addr, mark)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // net works on a duplicate
	return net.FilePacketConn(file)
}

// Listen opens a TCP listener inside the namespace, marked with mark unless that is 0. The caller closes it.
func (n *NS) Listen(addr netip.AddrPort, mark Mark) (net.Listener, error) {
	file, err := n.bound(unix.SOCK_STREAM, addr, mark)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return net.FileListener(file)
}

func (n *NS) bound(typ int, addr netip.AddrPort, mark Mark) (*os.File, error) {
	fd, err := n.Socket(family(addr), typ, 0, mark)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), addr.String())
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) // a successor binds while this one still serves
	if err == nil {
		err = unix.Bind(fd, sockaddr(addr))
	}
	if err == nil && typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("listen on %s in %s: %w", addr, n, err)
	}
	return file, nil
}

// Dial connects a TCP ("tcp") or UDP ("udp") socket from inside the namespace, marked with mark unless that is 0. Only
// the socket is made inside; connecting waits in the runtime's poller, until ctx ends.
func (n *NS) Dial(ctx context.Context, network string, addr netip.AddrPort, mark Mark) (net.Conn, error) {
	typ := unix.SOCK_STREAM
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := n.Socket(family(addr), typ, 0, mark)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), addr.String())
	defer func() { _ = file.Close() }()
	if err := unix.Connect(fd, sockaddr(addr)); err != nil {
		if !errors.Is(err, unix.EINPROGRESS) {
			return nil, fmt.Errorf("connect to %s from %s: %w", addr, n, err)
		}
		if err := connected(ctx, file); err != nil {
			return nil, fmt.Errorf("connect to %s from %s: %w", addr, n, err)
		}
	}
	return net.FileConn(file)
}

// connected waits until the connect of the socket is over and returns how it ended.
func connected(ctx context.Context, file *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if outcome = err; err != nil {
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, outcome)
}

func family(addr netip.AddrPort) int {
	if addr.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}
