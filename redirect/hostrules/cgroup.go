package hostrules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// viewpoint is the process whose cgroup namespace and mounts are looked through: the
// system's first, which is nobody's whom a pod's container could forge. Where this process
// may not see what that one sees (CAP_SYS_PTRACE, when the first may do more), it is this
// process itself; why says so then.
func viewpoint(procRoot string) (dir string, why, err error) {
	dir = filepath.Join(procRoot, "1")
	f, err := os.Open(cgroupNS(dir))
	switch {
	case err == nil:
		return dir, nil, f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return dir, nil, nil
	case errors.Is(err, fs.ErrPermission):
		return "/proc/self", err, nil
	}
	return "", nil, err
}

// cgroupNS is the file of the cgroup namespace of a process.
func cgroupNS(dir string) string { return filepath.Join(dir, "ns", "cgroup") }

// initCgroupNS is the inode of the system's first cgroup namespace (PROC_CGROUP_INIT_INO
// of linux/proc_ns.h). Its root is the root of all.
const initCgroupNS = 0xEFFFFFFB

// deepest is how far below the kernel's root the root of another cgroup namespace, that
// of a node which is a container, is looked for.
const deepest = 8

// inCgroupNS calls f on this thread inside the cgroup namespace at file. It must be
// called from a goroutine that ends after it. Where there is no such file, as in a copy
// of proc, or the namespace is the thread's own, f is just called.
func inCgroupNS(file string, f func() error) (err error) {
	target, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return f()
	}
	if err != nil {
		return fmt.Errorf("open cgroup namespace: %w", err)
	}
	defer func() { _ = target.Close() }()
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/cgroup")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own cgroup namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	if there, err1 := inode(target); err1 == nil {
		if here, err2 := inode(own); err2 == nil && here == there {
			defer runtime.UnlockOSThread()
			return f()
		}
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter cgroup namespace: %w", err)
	}
	defer func() {
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWCGROUP); back != nil {
			// Stay locked: with the goroutine the runtime ends its thread.
			err = errors.Join(err, fmt.Errorf("return to own cgroup namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// inCgroupNSApart is inCgroupNS on a goroutine of its own.
func inCgroupNSApart(file string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- inCgroupNS(file, f) }()
	return <-done
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Ino, err
}

// parseCgroup reads the cgroup file of a process: its path in cgroup v2, and whether it
// is a process of a pod, by the names that kubelets give to pods' cgroups.
func parseCgroup(text string) (v2 string, pod bool) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			v2 = strings.TrimSuffix(parts[2], " (deleted)")
		}
		for _, name := range strings.Split(parts[2], "/") {
			if strings.HasPrefix(name, "kubepods") || strings.HasPrefix(name, "kubelet-kubepods") {
				pod = true
			}
		}
	}
	return v2, pod
}

// cgroups is the tree of cgroup v2.
type cgroups struct {
	root  string // where it can be looked at, empty when nowhere
	why   string // why not
	first bool   // the root is the root of all
	blind error  // why it is not seen as the system's first process does
}

// openCgroups finds the tree among the mounts of a process. It makes no mount of its own:
// one from the first cgroup namespace would reset the options of all.
func openCgroups(dir string) (cgroups, error) {
	mounts, err := readSome(filepath.Join(dir, "mountinfo"))
	if err != nil && !gone(err) {
		return cgroups{}, err
	}
	var tree cgroups
	if point := cgroupMount(mounts); point == "" {
		tree.why = "cgroup v2 is not mounted"
	} else {
		tree.root = filepath.Join(dir, "root") + point
	}
	ns, err := os.Open(cgroupNS(dir))
	if err != nil {
		return tree, passing(err)
	}
	defer func() { _ = ns.Close() }()
	ino, err := inode(ns)
	tree.first = err == nil && ino == initCgroupNS
	return tree, err
}

// cgroupMount finds in a mountinfo file where the whole of cgroup v2 is mounted.
func cgroupMount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) >= 5 && fields[3] == "/" && !strings.Contains(fields[4], `\`) {
			return fields[4]
		}
	}
	return ""
}

// locate finds out what the kernel calls the cgroup of k, or clears it and says why it
// is of no use. An error says that this is not known at the moment.
func (t cgroups) locate(k *Kubelet) error {
	id, err := t.id(k.Cgroup)
	if err := passing(err); err != nil {
		return err
	}
	if err != nil {
		if k.NoCgroup = err.Error(); t.blind != nil {
			k.NoCgroup += fmt.Sprintf(" (seen from here, because of: %v)", t.blind)
		}
		k.Cgroup = ""
		return nil
	}
	k.CgroupID = id
	depth := uint32(0)
	if k.Cgroup != "/" {
		depth = uint32(strings.Count(k.Cgroup, "/"))
	}
	k.Levels = []uint32{depth}
	for i := uint32(1); !t.first && i <= deepest; i++ {
		k.Levels = append(k.Levels, depth+i)
	}
	return nil
}

// passing returns err when it says nothing of what was looked at, only that this process
// or the system has no descriptors or memory left. Nothing must be concluded from it.
func passing(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return err
	}
	return nil
}

func (t cgroups) id(cgroup string) (uint64, error) {
	switch {
	case t.root == "":
		return 0, errors.New(t.why)
	case cgroup == "":
		return 0, errors.New("the process is in no cgroup v2")
	case cgroup != path.Clean(cgroup) || strings.HasPrefix(cgroup, "/.."):
		return 0, fmt.Errorf("cgroup %s is outside of the node's", cgroup)
	case strings.Count(cgroup, "/") > 64:
		return 0, fmt.Errorf("cgroup %s is too deep", cgroup)
	}
	dir, err := os.Open(t.root + cgroup)
	if err != nil {
		return 0, fmt.Errorf("open cgroup: %w", err)
	}
	defer func() { _ = dir.Close() }()
	var kind unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &kind); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", cgroup, err)
	}
	if kind.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%s is not in cgroup v2", dir.Name())
	}
	return inode(dir)
}

// gone reports whether a file of proc could not be read because its process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
