package redirect

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The sysctls of a captured namespace. Which namespace /proc/sys/net belongs to
// depends on the thread that opens the file, so all functions work on the current
// one.

const sysctlPorts = "net/ipv4/ip_local_reserved_ports"

// knob is a sysctl that is raised to want.
type knob struct {
	name     string
	want     uint64
	fallback uint64 // the kernel's default
}

// sysctlMigrate hands connections that a closed listener has not accepted to the
// other listeners of its port, of both families. Linux has it since 5.14.
const sysctlMigrate = "net/ipv4/tcp_migrate_req"

// knobs returns the sysctls to raise; the package comment has the reasons.
func knobs() []knob {
	const halfClose = uint64(HalfCloseTimeout / time.Second)
	all := []knob{
		{"net/netfilter/nf_conntrack_tcp_timeout_close_wait", halfClose, 60},
		{"net/netfilter/nf_conntrack_tcp_timeout_fin_wait", halfClose, 120},
		{"net/netfilter/nf_conntrack_tcp_be_liberal", 1, 0},
	}
	if unix.Access("/proc/sys/"+sysctlMigrate, unix.F_OK) == nil {
		all = append(all, knob{sysctlMigrate, 1, 0})
	}
	return all
}

// readSysctl reads a value in one read: for a list of ports the kernel cuts off what
// the buffer does not hold and calls that the end.
func readSysctl(name string) (string, error) {
	fd, err := unix.Open("/proc/sys/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for size := 16 << 10; ; size *= 8 {
		buf := make([]byte, size)
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return "", fmt.Errorf("read sysctl %s: %w", name, err)
		}
		if n < size {
			return strings.TrimSpace(string(buf[:n])), nil
		}
		if size > 1<<20 { // all ports one by one are 380 KiB
			return "", fmt.Errorf("read sysctl %s: longer than %d bytes", name, size)
		}
	}
}

// writeSysctl writes a value. Container runtimes mount /proc/sys read-only; what is
// forbidden there is only this mount, so a procfs of our own, attached nowhere, is
// the second try. That needs CAP_SYS_ADMIN and Linux 5.2.
func writeSysctl(name, value string) error {
	fd, err := unix.Open("/proc/sys/"+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EROFS) {
		fd, err = openDetached(name)
	}
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", name, err)
	}
	// The kernel takes a page at a time and adds what comes after it.
	for rest := []byte(value + "\n"); len(rest) > 0 && err == nil; {
		var n int
		if n, err = unix.Write(fd, rest); err == nil {
			rest = rest[n:]
		}
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("write sysctl %s: %w", name, err)
	}
	return nil
}

// openDetached opens a sysctl for writing on a new procfs mount.
func openDetached(name string) (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("/proc/sys is read-only, and open procfs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("/proc/sys is read-only, and create procfs: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("/proc/sys is read-only, and mount procfs: %w", err)
	}
	defer func() { _ = unix.Close(mount) }()
	return unix.Openat(mount, "sys/"+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
}

// rememberPorts puts into saved which of our ports were reserved before us, unless
// it is known already. When all are, that was us, and what remembered it is lost.
func rememberPorts(saved map[string]string) error {
	if _, known := saved[sysctlPorts]; known {
		return nil
	}
	have, err := readPorts()
	if err != nil {
		return err
	}
	have = have.intersect(ourPorts())
	if have == ourPorts() {
		have = portSet{}
	}
	ours := have.String()
	if len(ours) > 80 { // does not fit where it is kept: leave them all reserved then
		ours = ourPorts().String()
	}
	saved[sysctlPorts] = ours
	return nil
}

func readPorts() (portSet, error) {
	text, err := readSysctl(sysctlPorts)
	if err != nil {
		return portSet{}, err
	}
	return parsePorts(text)
}

// reservePorts adds our ports to the reserved ones.
func reservePorts() error {
	have, err := readPorts()
	if err != nil {
		return err
	}
	want := have.union(ourPorts())
	if want == have {
		return nil
	}
	return writeSysctl(sysctlPorts, want.String())
}

// rememberKnobs puts the values of before us into saved, unless they are known. A
// value that is ours already has been remembered once, and that is lost.
func rememberKnobs(saved map[string]string) error {
	for _, k := range knobs() {
		if _, known := saved[k.name]; known {
			continue
		}
		have, err := k.read()
		if err != nil {
			return err
		}
		if have == k.want {
			have = k.fallback
		}
		saved[k.name] = strconv.FormatUint(have, 10)
	}
	return nil
}

func raiseKnobs() error {
	var errs []error
	for _, k := range knobs() {
		have, err := k.read()
		if err == nil && have < k.want {
			err = writeSysctl(k.name, strconv.FormatUint(k.want, 10))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (k knob) read() (uint64, error) {
	text, err := readSysctl(k.name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", k.name, err)
	}
	return n, nil
}

func verifySysctls() []Finding {
	var found []Finding
	have, err := readPorts()
	switch {
	case err != nil:
		found = append(found, Finding{PartSysctl, err.Error()})
	case have.union(ourPorts()) != have:
		found = append(found, Finding{PartSysctl, fmt.Sprintf("%s is %q and lacks %s", sysctlPorts, have, ourPorts())})
	}
	for _, k := range knobs() {
		have, err := k.read()
		switch {
		case err != nil:
			found = append(found, Finding{PartSysctl, err.Error()})
		case have < k.want:
			found = append(found, Finding{PartSysctl, fmt.Sprintf("%s is %d instead of %d", k.name, have, k.want)})
		}
	}
	return found
}

// restoreSysctls undoes what saved remembers, except what somebody else has changed
// since.
func restoreSysctls(saved map[string]string) error {
	var errs []error
	if text, ok := saved[sysctlPorts]; ok {
		errs = append(errs, restorePorts(text))
	}
	for _, k := range knobs() {
		before, ok := saved[k.name]
		if !ok {
			continue
		}
		have, err := k.read()
		if err == nil && have == k.want {
			err = writeSysctl(k.name, before)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func restorePorts(text string) error {
	before, err := parsePorts(text)
	if err != nil {
		return err
	}
	have, err := readPorts()
	if err != nil {
		return err
	}
	want := have.minus(ourPorts()).union(before)
	if want == have {
		return nil
	}
	return writeSysctl(sysctlPorts, want.String())
}
