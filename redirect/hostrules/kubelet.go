package hostrules

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Kubelet is how the kubelet's sockets are told from those of others.
type Kubelet struct {
	PID  int
	Comm string // the process's name: kubelet, kubelite, k3s-server, …
	UID  uint32 // as which it opens sockets
	// Cgroup is the path in cgroup v2, from its root or that of the node which is a
	// container. "/" is the root. Empty when the system has no cgroup v2 or it cannot be used.
	Cgroup string
	// CgroupID is what the kernel calls that cgroup; zero when Cgroup is empty.
	CgroupID uint64
	// Levels are where the cgroup may be in the kernel's tree (nft.SocketOwner).
	Levels []uint32
	// NoCgroup says why Cgroup is empty, in words.
	NoCgroup string

	procRoot string
	view     string // whose cgroup namespace the path and the levels are of
	start    string // when the process was started, as in its stat file
}

// String returns how the kubelet is known, for people.
func (k Kubelet) String() string {
	text := fmt.Sprintf("%s (pid %d, uid %d", k.Comm, k.PID, k.UID)
	if k.Cgroup != "" {
		text += ", cgroup " + k.Cgroup
	}
	return text + ")"
}

// same reports whether the rules for both are the same.
func (k Kubelet) same(o Kubelet) bool {
	return k.UID == o.UID && k.CgroupID == o.CgroupID && slices.Equal(k.Levels, o.Levels)
}

// shared reports whether the process does other work than a kubelet's.
func (k Kubelet) shared() bool { return k.Comm != "kubelet" }

// ErrNoKubelet says that no process looks like the kubelet.
var ErrNoKubelet = errors.New("no process of the host's network is a kubelet")

// FindKubelet finds the kubelet whose network namespace is host among the processes of
// procRoot ("/proc", or where the host's is mounted): a process called kubelet, or
// kubelite (MicroK8s) or k3s, whose kubelets are part of them. It needs CAP_SYS_PTRACE
// when the kubelet may do more than the caller, and CAP_SYS_ADMIN for the cgroup.
//
// A process may call itself what it likes, so those of other network namespaces and
// those in a pod's cgroup are no candidates, and none that is not root's: an ordinary
// user could else take the kubelet's place while it restarts. Several that cannot be told
// apart are an error. It wraps ErrNoKubelet when there is none.
func FindKubelet(procRoot string, host *netns.NS) (Kubelet, error) {
	var (
		found []Kubelet
		tree  cgroups
	)
	view, blind, err := viewpoint(procRoot)
	if err != nil {
		return Kubelet{}, fmt.Errorf("find kubelet in %s: %w", procRoot, err)
	}
	err = host.Do(func() error { // a goroutine whose thread may be moved
		return inCgroupNS(cgroupNS(view), func() error {
			var err error
			if found, err = candidates(procRoot, host.ID()); err == nil {
				tree, err = openCgroups(view)
			}
			return err
		})
	})
	if err != nil {
		return Kubelet{}, fmt.Errorf("find kubelet in %s: %w", procRoot, err)
	}
	k, err := choose(found)
	if err != nil {
		return Kubelet{}, fmt.Errorf("find kubelet in %s, %s: %w", procRoot, host, err)
	}
	tree.blind = blind
	if err := tree.locate(&k); err != nil {
		return Kubelet{}, fmt.Errorf("find kubelet in %s: %w", procRoot, err)
	}
	k.view = view
	return k, nil
}

// choose picks the kubelet among processes that are called so.
func choose(found []Kubelet) (Kubelet, error) {
	found = slices.DeleteFunc(slices.Clone(found), func(k Kubelet) bool { return k.UID != 0 })
	if len(found) == 0 {
		return Kubelet{}, ErrNoKubelet
	}
	first := slices.MinFunc(found, func(a, b Kubelet) int { return cmp.Compare(a.PID, b.PID) })
	for _, k := range found {
		if k.Cgroup != first.Cgroup {
			return Kubelet{}, fmt.Errorf("both %s and %s could be it", first, k)
		}
	}
	return first, nil
}

// candidates returns the processes that may be the kubelet of a network namespace.
func candidates(procRoot string, host netns.ID) ([]Kubelet, error) {
	entries, err := os.ReadDir(procRoot)
	if err != nil {
		return nil, err
	}
	var found []Kubelet
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 0 {
			continue
		}
		k, ok, err := candidate(procRoot, pid, host)
		if ok {
			found = append(found, k)
		}
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("look at process %d: %w", pid, err))
		}
	}
	if len(found) > 0 {
		return found, nil // what could not be looked at is somebody else's, most likely
	}
	return nil, errors.Join(errs...)
}

// candidate looks at one process. Most are ruled out by their name.
func candidate(procRoot string, pid int, host netns.ID) (k Kubelet, ok bool, err error) {
	dir := filepath.Join(procRoot, strconv.Itoa(pid))
	k = Kubelet{PID: pid, procRoot: procRoot}
	comm, err := readSome(filepath.Join(dir, "comm"))
	if err != nil {
		return k, false, err
	}
	if k.Comm = strings.TrimSpace(comm); !kubeletName(k.Comm) {
		return k, false, nil
	}
	args, err := readSome(filepath.Join(dir, "cmdline"))
	if err != nil || !kubeletArgs(k.Comm, args) {
		return k, false, err
	}
	ns, err := netns.Open(filepath.Join(dir, "ns", "net"))
	if err != nil {
		return k, false, err
	}
	id := ns.ID()
	if err := ns.Close(); err != nil || id != host {
		return k, false, err
	}
	ok, err = k.read()
	return k, ok, err
}

// read fills in what the process's files say, and reports whether it may be a kubelet.
func (k *Kubelet) read() (bool, error) {
	dir := filepath.Join(k.procRoot, strconv.Itoa(k.PID))
	status, err := readSome(filepath.Join(dir, "status"))
	if err == nil {
		k.UID, err = socketUID(status)
	}
	var stat, groups string
	if err == nil {
		stat, err = readSome(filepath.Join(dir, "stat"))
	}
	if err == nil {
		k.start, err = startTime(stat)
	}
	if err == nil {
		groups, err = readSome(filepath.Join(dir, "cgroup"))
	}
	if err != nil {
		return false, err
	}
	var pod bool
	k.Cgroup, pod = parseCgroup(groups)
	return !pod, nil
}

// still reports whether the process goes on as it was found.
func (k Kubelet) still() bool {
	now := Kubelet{PID: k.PID, procRoot: k.procRoot}
	var ok bool
	err := inCgroupNSApart(cgroupNS(k.view), func() error {
		var err error
		ok, err = now.read()
		return err
	})
	return err == nil && ok && now.UID == k.UID && now.start == k.start && (now.Cgroup == k.Cgroup || k.Cgroup == "")
}

func kubeletName(comm string) bool {
	switch comm {
	case "kubelet", "kubelite", "microk8s", "k3s", "k3s-server", "k3s-agent":
		return true
	}
	return false
}

// kubeletArgs tells the kubelet in a process of many parts from its other uses.
func kubeletArgs(comm, args string) bool {
	switch comm {
	case "kubelite", "microk8s":
		return strings.Contains(args, "kubelet")
	case "k3s":
		words := strings.FieldsFunc(args, func(c rune) bool { return c == 0 || c == ' ' })
		return len(words) > 1 && (words[1] == "server" || words[1] == "agent")
	}
	return true
}

// socketUID reads the uid that new files, so sockets, get: the last of four.
func socketUID(status string) (uint32, error) {
	for line := range strings.Lines(status) {
		rest, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != 4 {
			break
		}
		uid, err := strconv.ParseUint(fields[3], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("read uid: %w", err)
		}
		return uint32(uid), nil
	}
	return 0, errors.New("read uid: no line of four in the status")
}

// startTime reads field 22 of a stat file. The second, a name in parentheses, may hold
// anything.
func startTime(stat string) (string, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", errors.New("read start time: not a stat file")
	}
	return fields[19], nil
}

// maxFile is more than any of the files holds that are of use.
const maxFile = 64 << 10

// readSome reads a file of proc, up to a size that a process cannot make large.
func readSome(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}
