package loop

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CloseFD closes a raw descriptor that no loop owns.
func CloseFD(fd int) { _ = unix.Close(fd) }

// AbortFD closes a raw TCP socket that no loop owns so that its peer sees a reset.
func AbortFD(fd int) {
	ResetOnClose(fd)
	_ = unix.Close(fd)
}

// ResetOnClose makes the end of a TCP socket a reset unless FD.Finish is what ends it: if the process dies, the kernel
// closes its sockets, and a stream that was cut must not look complete to its reader. What a listener accepts inherits
// it.
func ResetOnClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// Sockaddr converts an address for system calls.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if ip := a.Addr(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort converts an address from a system call; IPv4-mapped addresses become IPv4. Where addresses come back, the
// calls of syscall are used: those of x/sys ask for the socket's protocol each time.
func addrPort(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Family is the address family for sockets that talk to a.
func Family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// LocalAddr returns the socket's own address.
func LocalAddr(fd int) netip.AddrPort {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// TCPSocket makes a non-blocking TCP socket in the network namespace of the calling thread.
func TCPSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("create socket: %w", err)
	}
	return fd, nil
}

// Listen binds a fresh TCP socket to addr and listens on it. reusePort lets a successor bind the same port.
func Listen(fd int, addr netip.AddrPort, reusePort bool) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if reusePort {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
	}
	if addr.Addr().Is6() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err := unix.Bind(fd, Sockaddr(addr)); err != nil {
		return fmt.Errorf("bind %s: %w", addr, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	return nil
}

// BindTransparent gives a fresh socket a source address that need not be the machine's own (IP_TRANSPARENT), so that the
// destination sees the client's address. Port 0 leaves the port to the kernel, which chooses it when the socket connects.
// Another one may be that of several sockets with different destinations, and may not be one that somebody listens on
// (EADDRINUSE). A socket that could not be bound may be bound again.
func BindTransparent(fd int, source netip.AddrPort) error {
	var err error
	if source.Addr().Is4() {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	if err != nil {
		return fmt.Errorf("set IP_TRANSPARENT: %w", err)
	}
	if source.Port() == 0 {
		// Without this the port is taken from the range of (address, any peer) and 28,000 connections use it up.
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	} else {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err := unix.Bind(fd, Sockaddr(source)); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	return nil
}

// StartConnect begins to connect a non-blocking socket; that it is still under way is no error.
func StartConnect(fd int, addr netip.AddrPort) error {
	err := unix.Connect(fd, Sockaddr(addr))
	if err == nil || errors.Is(err, unix.EINPROGRESS) {
		return nil
	}
	return err
}

// HungUp reports whether a connection's peer has closed it, or its half of it.
func HungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// NoDelay switches Nagle's algorithm off.
func NoDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// KeepAlive has the kernel probe an idle peer.
func KeepAlive(fd int, idle, interval time.Duration, probes int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(idle/time.Second))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(interval/time.Second))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, probes)
}

// SetCongestion chooses the congestion control of one socket.
func SetCongestion(fd int, name string) error {
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err != nil {
		return fmt.Errorf("set congestion control %s: %w", name, err)
	}
	return nil
}

// Congestion returns the congestion control of a socket.
func Congestion(fd int) string {
	b, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return ""
	}
	return b
}

// Temporary reports an Accept error that goes away, such as running out of descriptors.
func Temporary(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// Placeholder opens a descriptor of nothing, to be closed when one is needed and there are no more.
func Placeholder() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("create eventfd: %w", err)
	}
	return fd, nil
}

// DescriptorLimit returns how many descriptors the process may have.
func DescriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 30
	}
	return int(limit.Cur)
}

// RemoteAddr returns the address of the socket's peer.
func RemoteAddr(fd int) netip.AddrPort {
	sa, err := syscall.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// Duplicate takes the socket out of f, which the runtime's poller watches, as a descriptor that nothing watches. f is
// still to be closed.
func Duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("take socket from poller: %w", err)
	}
	dup := -1
	var derr error
	if err := raw.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, fmt.Errorf("take socket from poller: %w", err)
	}
	if derr != nil {
		return -1, fmt.Errorf("duplicate socket: %w", derr)
	}
	return dup, nil
}

// Connect connects a fresh socket on the calling goroutine, which waits in the runtime's poller until ctx ends. The
// socket is consumed; the returned one, connected and non-blocking, is the caller's.
func Connect(ctx context.Context, fd int, addr netip.AddrPort) (int, error) {
	if err := StartConnect(fd, addr); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer func() { _ = file.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cerr error
	err = raw.Write(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = unix.Errno(n)
		}
		if cerr = err; err != nil {
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return -1, context.Cause(ctx)
	case err != nil:
		return -1, err
	case cerr != nil:
		return -1, cerr
	}
	return Duplicate(file)
}
