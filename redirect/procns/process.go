package procns

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// maxFile is how much of a process's file is read: a control group's path has at most
// 4,096 bytes, and version 1 has a dozen hierarchies.
const maxFile = 64 << 10

// process is the open directory of one process. What is read through it is of that
// process or fails, also after its number has been given to another.
type process struct {
	fd int
}

func openProcess(root string, pid int) (process, error) {
	fd, err := unix.Open(root+"/"+strconv.Itoa(pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return process{fd: fd}, err
}

func (p process) close() { _ = unix.Close(p.fd) }

// read returns the text of one of its files.
func (p process) read(name string) (string, error) {
	fd, err := unix.Openat(p.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("read %s: longer than %d bytes", name, maxFile)
	}
	return string(text), nil
}

// namespace opens the network namespace and tells when the process started, in clock
// ticks after boot.
func (p process) namespace() (*netns.NS, uint64, error) {
	stat, err := p.read("stat")
	if err != nil {
		return nil, 0, err
	}
	started, err := startTime(stat)
	if err != nil {
		return nil, 0, err
	}
	fd, err := unix.Openat(p.fd, "ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open network namespace: %w", err)
	}
	ns, err := netns.FromFD(fd)
	return ns, started, err
}

// startTime reads field 22 of /proc/PID/stat (proc_pid_stat(5)).
func startTime(stat string) (uint64, error) {
	t, err := statField(stat, 22)
	if err != nil {
		return 0, fmt.Errorf("read start time of process: %w", err)
	}
	return t, nil
}

// isKernelThread reads field 9, the flags: a process cannot set this one.
func isKernelThread(stat string) bool {
	const pfKthread = 0x00200000 // PF_KTHREAD of include/linux/sched.h
	flags, err := statField(stat, 9)
	return err == nil && flags&pfKthread != 0
}

// statField returns a number of /proc/PID/stat, counted from 1, and at least 4. The
// second field is the name of the program in parentheses, and may have any byte in it.
func statField(stat string, n int) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= n-3 {
		return 0, fmt.Errorf("%.80q has too few fields", stat)
	}
	return strconv.ParseUint(fields[n-3], 10, 64)
}
