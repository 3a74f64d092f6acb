package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Names by which the program starts itself.
const (
	argInit = "machine-init"
	argUnit = "machine-unit"
)

// Reexec must be the first call of a program that starts machines: when the process is to be a machine's first process
// or one of its units it does that and never returns.
func Reexec() {
	if len(os.Args) < 3 {
		return
	}
	var err error
	switch os.Args[1] {
	case argInit:
		err = initMain(os.Args[2])
	case argUnit:
		err = unitMain(os.Args[2], os.Args[3:])
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
	os.Exit(1)
}

// initMain is the first process. It waits for the starter's word on descriptor 3: until then the machine has no network.
func initMain(dir string) error {
	word, err := bufio.NewReader(os.NewFile(3, "starter")).ReadByte()
	if errors.Is(err, io.EOF) || word != 'g' {
		return errors.New("the starter is gone")
	}
	spec, err := readSpec(dir)
	if err != nil {
		return err
	}
	if err := enterRoot(spec); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	if err := syscall.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return supervise(spec)
}

// unitMain moves itself into the unit's cgroup and becomes the unit.
func unitMain(cgroup string, args []string) error {
	if len(args) == 0 {
		return errors.New("no command")
	}
	if err := joinCgroup(cgroup, os.Getpid()); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", args[0], syscall.Exec(args[0], args, os.Environ()))
}

// supervise starts the units and reaps every child, its own and adopted ones, until it is told to end.
func supervise(spec Spec) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-end
		os.Exit(0) // the kernel kills the rest of the machine
	}()
	started := make(chan map[int]Unit, 1)
	started <- make(map[int]Unit)
	start := func(u Unit) error {
		running := <-started // held while starting, so that the reaper knows the number before it sees the end
		defer func() { started <- running }()
		pid, err := startUnit(spec, u)
		if err == nil {
			running[pid] = u
		}
		return err
	}
	for _, u := range spec.Units {
		if err := start(u); err != nil {
			return err
		}
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil {
			time.Sleep(100 * time.Millisecond) // no children at the moment
			continue
		}
		running := <-started
		u, ours := running[pid]
		delete(running, pid)
		started <- running
		if !ours {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s unit %s (%d) ended: exit %d, signal %d\n", time.Now().Format(time.RFC3339), u.Name, pid, status.ExitStatus(), status.Signal())
		time.AfterFunc(time.Second, func() {
			if err := start(u); err != nil {
				fmt.Fprintf(os.Stderr, "start unit %s again: %v\n", u.Name, err)
			}
		})
	}
}

func startUnit(spec Spec, u Unit) (int, error) {
	cgroup := filepath.Join(Cgroup(spec.Name), u.Name)
	if err := makeCgroup(cgroup); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(spec.path("log", u.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	defer func() { _ = out.Close() }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	p, err := os.StartProcess("/proc/self/exe", append([]string{"culvert-cluster", argUnit, cgroup}, u.Args...), &os.ProcAttr{
		Dir: "/", Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, u.Env...),
		Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start unit %s: %w", u.Name, err)
	}
	pid := p.Pid
	return pid, p.Release() // the reaper waits for it
}
