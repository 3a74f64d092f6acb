package hostrules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// selfTestUID stands beside the addresses of the self-test.
const selfTestUID = "self-test"

// selfTestAddrs are addresses of the loopback interface that stand for a pod during the
// self-test. Marks mean nothing there.
func selfTestAddrs() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 15, 8, Mark}), netip.IPv6Loopback()}
}

// SelfTest tries from this process, which is not the kubelet, to get through as the
// kubelet does, plainly and with a forged mark. It does so over the host's loopback
// interface, at an address that stands for a pod for that time. It returns what it found
// to be open, and what is known to be.
func (r *Rules) SelfTest(ctx context.Context) ([]Finding, error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.lookLocked()
	pods := r.pods
	r.pods = maps.Clone(pods)
	for _, addr := range selfTestAddrs() {
		r.pods[addr] = selfTestUID
	}
	err := r.applyLocked()
	var plain, forged bool
	if err == nil {
		plain, forged, err = r.tryAll(ctx)
	}
	r.pods = pods
	if err = errors.Join(err, r.applyLocked()); err != nil {
		return nil, fmt.Errorf("test host rules: %w", err)
	}
	return r.openLocked(plain, forged), nil
}

// tryAll reports whether a plain connection of this process, and one with a forged mark,
// carry the mark at their destination.
func (r *Rules) tryAll(ctx context.Context) (plain, forged bool, err error) {
	for _, addr := range selfTestAddrs() {
		for _, forge := range []bool{false, true} {
			marked, err := r.try(ctx, addr, forge)
			if addr.Is6() && errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				break // the node has no IPv6
			}
			if err != nil {
				return false, false, err
			}
			if forge {
				forged = forged || marked
			} else {
				plain = plain || marked
			}
		}
	}
	return plain, forged, nil
}

// try connects to addr in the host's namespace and reports whether the first segment
// arrived with the mark.
func (r *Rules) try(ctx context.Context, addr netip.Addr, forge bool) (bool, error) {
	l, err := r.cfg.NS.Listen(netip.AddrPortFrom(addr, 0), 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = l.Close() }()
	listener, ok := l.(*net.TCPListener)
	if !ok {
		return false, errors.New("listen: not TCP")
	}
	if err := saveSYN(listener); err != nil {
		return false, err
	}
	deadline := time.Now().Add(5 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := listener.SetDeadline(deadline); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	client, err := r.connect(listener.Addr(), forge)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close() }()
	c, err := listener.AcceptTCP()
	if err != nil {
		return false, fmt.Errorf("accept own connection: %w", err)
	}
	defer func() { _ = c.Close() }()
	dscp, err := savedDSCP(c)
	return dscp == Mark, err
}

func saveSYN(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_SAVE_SYN, 1) })
	return errors.Join(err, inner)
}

// connect starts a connection; on loopback that is as good as done.
func (r *Rules) connect(to net.Addr, forge bool) (*os.File, error) {
	target, err := netip.ParseAddrPort(to.String())
	if err != nil {
		return nil, err
	}
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TOS
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(target.Port()), Addr: [4]byte(target.Addr().AsSlice())}
	if target.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TCLASS
		sa = &unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()}
	}
	fd, err := r.cfg.NS.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "self-test")
	if forge {
		err = unix.SetsockoptInt(fd, level, option, Mark<<2)
	}
	if err == nil {
		if err = unix.Connect(fd, sa); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return file, nil
}

// savedDSCP returns the DSCP of the segment that opened c.
func savedDSCP(c *net.TCPConn) (byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		header string // up to its first zero byte
		inner  error
	)
	err = raw.Control(func(fd uintptr) { header, inner = unix.GetsockoptString(int(fd), unix.SOL_TCP, unix.TCP_SAVED_SYN) })
	if err = errors.Join(err, inner); err != nil {
		return 0, fmt.Errorf("read first segment: %w", err)
	}
	return headerDSCP(header)
}

// headerDSCP reads the DSCP from the first two bytes of an IP header; the second is taken
// for zero when it is missing.
func headerDSCP(header string) (byte, error) {
	if header == "" {
		return 0, errors.New("read first segment: it was not kept")
	}
	second := byte(0)
	if len(header) > 1 {
		second = header[1]
	}
	switch header[0] >> 4 {
	case 4:
		return second >> 2, nil
	case 6:
		return (header[0]&0x0f)<<2 | second>>6, nil
	}
	return 0, errors.New("read first segment: not IP")
}

// openLocked returns what is open, after what the tries have shown.
func (r *Rules) openLocked(plain, forged bool) []Finding {
	var out []Finding
	add := func(kind Kind, format string, args ...any) {
		out = append(out, Finding{kind, fmt.Sprintf(format, args...)})
	}
	k := r.kubelet
	switch {
	case !r.found:
		add(KindMissing, "probes of the kubelet meet the policy like everybody's: %s", r.trouble)
	case r.noCgroup != nil:
		add(KindUID, "every process of uid %d on this node passes as the kubelet: %v", k.UID, r.noCgroup)
	case k.CgroupID == 0:
		add(KindUID, "every process of uid %d on this node passes as the kubelet: %s", k.UID, k.NoCgroup)
	case k.Cgroup == "/":
		add(KindUID, "every process of uid %d in the root cgroup passes as the kubelet, which is there too", k.UID)
	default:
		if others := k.companions(); len(others) > 0 {
			add(KindUID, "processes of uid %d in the kubelet's cgroup %s pass as well: %s", k.UID, k.Cgroup, strings.Join(others, ", "))
		}
	}
	if r.found && k.shared() {
		add(KindShared, "the kubelet is a part of %s, whose other parts (an API server, for instance) pass as well", k)
	}
	if plain {
		add(KindUID, "this process (uid %d) passes as the kubelet", os.Getuid())
	}
	if forged && !plain {
		add(KindForged, "a mark that this process has forged got through to a pod")
	}
	if r.noBridge != nil {
		add(KindBridge, "pods joined by one bridge can forge the mark to each other: %v", r.noBridge)
	}
	return out
}

// companions names the other processes in the kubelet's cgroup, at most a few.
func (k Kubelet) companions() []string {
	var mounts, text string
	err := inCgroupNSApart(cgroupNS(k.view), func() error {
		var err error
		mounts, err = readSome(filepath.Join(k.view, "mountinfo"))
		return err
	})
	point := cgroupMount(mounts)
	if err == nil && point != "" {
		text, err = readSome(filepath.Join(k.view, "root") + point + k.Cgroup + "/cgroup.procs")
	}
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(text) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || pid == k.PID || pid == 0 {
			continue
		}
		if len(out) == 5 {
			return append(out, "…")
		}
		comm, err := readSome(filepath.Join(k.procRoot, strconv.Itoa(pid), "comm"))
		if err == nil {
			out = append(out, fmt.Sprintf("%s (pid %d)", strings.TrimSpace(comm), pid))
		}
	}
	return out
}
