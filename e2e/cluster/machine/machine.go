package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is a machine that runs, started by this process or an earlier one.
type Machine struct {
	spec Spec
	pid  int
	word *os.File  // the starter's end of the first process's pipe; nil once it was told to go on
	cmd  *exec.Cmd // nil in a process that has not started it
}

// Create starts the machine's first process, which waits: its namespaces are there, nothing runs in them, and the caller
// connects its network before Go. What a machine of that name and directory left behind is used again (its files are those
// of a computer that was switched off and on); one that still runs is an error.
func Create(spec Spec) (*Machine, error) {
	if err := spec.validate(); err != nil {
		return nil, fmt.Errorf("create machine: %w", err)
	}
	if m, err := Open(spec.Dir); err == nil {
		return nil, fmt.Errorf("create machine %s: it runs already as process %d", spec.Name, m.pid)
	}
	if err := clearCgroup(Cgroup(spec.Name)); err != nil {
		return nil, err
	}
	dirs := []string{"root", "upper", "work", "log"}
	for dir := range maps.Values(spec.Volumes) {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(spec.path(dir), 0o755); err != nil {
			return nil, fmt.Errorf("create machine: %w", err)
		}
	}
	if err := errors.Join(spec.write(), makeCgroup(Cgroup(spec.Name)+"/init")); err != nil {
		return nil, fmt.Errorf("create machine %s: %w", spec.Name, err)
	}
	m := &Machine{spec: spec}
	if err := m.fork(); err != nil {
		return nil, errors.Join(fmt.Errorf("create machine %s: %w", spec.Name, err), clearCgroup(Cgroup(spec.Name)))
	}
	return m, nil
}

func (m *Machine) fork() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	log, err := os.OpenFile(m.spec.path("log", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer func() { _ = log.Close() }()
	m.cmd = exec.Command("/proc/self/exe", argInit, m.spec.Dir)
	m.cmd.Args[0] = "culvert-cluster"
	m.cmd.Dir, m.cmd.Stdout, m.cmd.Stderr, m.cmd.ExtraFiles = "/", log, log, []*os.File{r}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := m.cmd.Start(); err != nil {
		return errors.Join(err, w.Close())
	}
	m.pid, m.word = m.cmd.Process.Pid, w
	born, err := birth(m.pid)
	if err == nil {
		err = joinCgroup(Cgroup(m.spec.Name)+"/init", m.pid)
	}
	if err == nil {
		err = os.WriteFile(m.spec.path("pid"), fmt.Appendf(nil, "%d %s\n", m.pid, born), 0o600)
	}
	if err != nil {
		return errors.Join(err, m.Kill())
	}
	return nil
}

// Go lets the machine go on: it builds its root and starts its units.
func (m *Machine) Go() error {
	if m.word == nil {
		return nil
	}
	_, err := m.word.Write([]byte{'g'})
	err = errors.Join(err, m.word.Close())
	m.word = nil
	return err
}

// Open finds the running machine of a directory. The error wraps fs.ErrNotExist when there is none.
func Open(dir string) (*Machine, error) {
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		return nil, fmt.Errorf("open machine: %w", err)
	}
	number, born, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("open machine %s: %w", dir, err)
	}
	if now, err := birth(pid); err != nil || now != born {
		return nil, fmt.Errorf("open machine %s: its first process is gone: %w", dir, fs.ErrNotExist)
	}
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	return &Machine{spec: spec, pid: pid}, nil
}

// Name is the machine's name.
func (m *Machine) Name() string { return m.spec.Name }

// Dir is the machine's directory.
func (m *Machine) Dir() string { return m.spec.Dir }

// Spec is what the machine was made of.
func (m *Machine) Spec() Spec { return m.spec }

// PID is the number of the machine's first process, which leads to its namespaces.
func (m *Machine) PID() int { return m.pid }

// NetNS is the path of the machine's network namespace.
func (m *Machine) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", m.pid) }

// Command is a command that runs inside the machine, with its root, network and processes.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	target := []string{"--target", strconv.Itoa(m.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"}
	return exec.CommandContext(ctx, "nsenter", append(target, args...)...)
}

// Kill ends the machine at once, as if its plug were pulled, and waits until nothing of it runs. Its files stay.
func (m *Machine) Kill() error {
	if m.word != nil {
		_ = m.word.Close()
		m.word = nil
	}
	// The number is not reused while the process is ours or its birth matches.
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill machine %s: %w", m.spec.Name, err)
	}
	if m.cmd != nil {
		_ = m.cmd.Wait() // its status is the signal's
	}
	if err := clearCgroup(Cgroup(m.spec.Name)); err != nil {
		return err
	}
	return waitGone(m.pid)
}

func waitGone(pid int) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := birth(pid); err != nil {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// Remove ends the machine of a directory, if one runs, and deletes the directory.
func Remove(dir string) error {
	if m, err := Open(dir); err == nil {
		if err := m.Kill(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove machine: %w", err)
	}
	return nil
}

// Sweep ends every machine that left cgroups, whoever started it, and removes those. Directories that it does not know of
// stay.
func Sweep() error {
	names, err := strays()
	if err != nil {
		return err
	}
	var failed error
	for _, name := range names {
		failed = errors.Join(failed, clearCgroup(Cgroup(name)))
	}
	return failed
}

// Elsewhere are the directories of machines that run and do not belong below dir, whose directory still exists.
func Elsewhere(dir string) ([]string, error) {
	names, err := strays()
	if err != nil {
		return nil, err
	}
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(roots[0], Cgroup(name), "init", "cgroup.procs"))
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(text)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			args := strings.Split(string(line), "\x00")
			if err != nil || len(args) < 3 || args[1] != argInit {
				continue
			}
			if _, err := os.Stat(args[2]); err == nil && !strings.HasPrefix(args[2], dir+"/") {
				dirs = append(dirs, args[2])
			}
		}
	}
	return dirs, nil
}

// birth is the time at which a process that still runs was started, in the kernel's unit: with it, a number names one process.
func birth(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the name in parentheses and may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return "", errors.New("parse process statistics")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }
