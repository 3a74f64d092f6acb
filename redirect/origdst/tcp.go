package origdst

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST (linux/netfilter_ipv4.h) and, with the same value,
// IP6T_SO_ORIGINAL_DST.
const soOriginalDst = 80

// TCP returns the destination that the client of an accepted connection has dialled.
// When the connection was not redirected, or not tracked, that is the socket's own
// address. IPv4 in IPv6 form is returned as IPv4; a link-local address has the
// number of its interface as zone. fd stays the caller's. It works from any
// namespace, and not on MPTCP sockets.
func TCP(fd int) (netip.AddrPort, error) {
	local, err := localAddr(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find original destination: %w", err)
	}
	var dst netip.AddrPort
	if local.Addr().Is4() {
		dst, err = original4(fd)
	} else {
		dst, err = original6(fd)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOPROTOOPT):
		return local, nil // not tracked, or nothing here tracks at all
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("find original destination: %w", os.NewSyscallError("getsockopt", err))
	}
	return dst, nil
}

// localAddr uses syscall's call: that of x/sys asks for the socket's protocol each time.
func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(zoned(sa.Addr, sa.ZoneId), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, errors.New("not an IP socket")
}

func original4(fd int) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet4
	if err := getsockopt(fd, unix.SOL_IP, unsafe.Pointer(&sa), unix.SizeofSockaddrInet4); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), bigEndian(sa.Port)), nil
}

func original6(fd int) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet6
	if err := getsockopt(fd, unix.SOL_IPV6, unsafe.Pointer(&sa), unix.SizeofSockaddrInet6); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(zoned(sa.Addr, sa.Scope_id), bigEndian(sa.Port)), nil
}

// getsockopt reads soOriginalDst; x/sys has no call for an option of this shape.
func getsockopt(fd, level int, p unsafe.Pointer, size uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), soOriginalDst,
		uintptr(p), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// bigEndian reads a port that the kernel wrote in network order.
func bigEndian(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

func zoned(b [16]byte, scope uint32) netip.Addr {
	a := netip.AddrFrom16(b).Unmap()
	if scope != 0 && a.Is6() {
		return a.WithZone(strconv.FormatUint(uint64(scope), 10))
	}
	return a
}
