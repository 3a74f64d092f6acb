package topology

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Process is a process inside a namespace of the topology.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// Pid is the process's number in the PID namespace of the caller.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output was read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait blocks until the process has ended and returns what exec.Cmd.Wait did. It may be called often.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal. One to a process that has ended is os.ErrProcessDone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Usage is the CPU time and peak memory that the process took; nil before it has ended.
func (p *Process) Usage() *syscall.Rusage {
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.cmd.ProcessState == nil {
		return nil
	}
	usage, _ := p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return usage
}

// Stop asks the process to end with SIGTERM, kills it after the grace time, and waits for it. The result is that of
// Wait, except that an end by the signal sent is no error.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return p.Wait()
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.kill()
		<-p.done
		return fmt.Errorf("stop process %d: killed after %v", p.Pid(), grace)
	}
	if exit := new(exec.ExitError); errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return p.err
}

func (p *Process) kill() {
	_ = p.Signal(syscall.SIGKILL) // the only failure is that it has ended already
}

func (t *Topology) start(s *space, cmd *exec.Cmd) (*Process, error) {
	if cmd.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		cmd.Dir = dir // the spawning thread's own directory is that of its mount namespace
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 2 * time.Second // grandchildren may keep a pipe open
	}
	if err := t.spawner.spawn(s, cmd); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.procs[p] = struct{}{}
	}
	t.mu.Unlock()
	go func() {
		p.err = cmd.Wait()
		t.mu.Lock()
		delete(t.procs, p)
		t.mu.Unlock()
		close(p.done)
	}()
	if closed {
		p.kill()
		<-p.done
		return nil, os.ErrClosed
	}
	return p, nil
}

// spawner starts processes from one thread that it keeps: children inherit the namespaces of the thread that forks
// them, and the kernel's parent-death signal watches that very thread.
type spawner struct {
	mu       sync.Mutex
	requests chan spawnRequest // nil until the first spawn and after close
	ended    chan struct{}
	closed   bool
}

type spawnRequest struct {
	ns     *netns.NS
	resolv string
	cmd    *exec.Cmd
	result chan error
}

func (sp *spawner) spawn(s *space, cmd *exec.Cmd) error {
	s.topology.mu.Lock()
	request := spawnRequest{ns: s.ns, resolv: s.resolv, cmd: cmd, result: make(chan error, 1)}
	s.topology.mu.Unlock()

	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.closed {
		return os.ErrClosed
	}
	if sp.requests == nil {
		sp.requests, sp.ended = make(chan spawnRequest), make(chan struct{})
		go sp.serve(sp.requests, sp.ended)
	}
	select {
	case sp.requests <- request:
		return <-request.result
	case <-sp.ended:
		return errors.New("the spawning thread was lost")
	}
}

func (sp *spawner) close() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.closed = true
	if sp.requests == nil {
		return
	}
	close(sp.requests)
	<-sp.ended
	sp.requests = nil
}

// serve is the spawning thread. It stays locked when it returns, so that the thread ends with it and no other goroutine
// ever runs in its namespaces.
func (sp *spawner) serve(requests <-chan spawnRequest, ended chan<- struct{}) {
	defer close(ended)
	runtime.LockOSThread()
	home, err := openHome()
	if err != nil {
		for request := range requests {
			request.result <- err
		}
		return
	}
	defer home.close()
	for request := range requests {
		started, homeErr := home.visit(request)
		request.result <- errors.Join(started, homeErr)
		if homeErr != nil {
			return
		}
	}
}

// home is where the spawning thread comes back to.
type home struct {
	net *netns.NS
	mnt int
}

func openHome() (*home, error) {
	net, err := netns.Current()
	if err != nil {
		return nil, err
	}
	mnt, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open own mount namespace: %w", err), net.Close())
	}
	return &home{net: net, mnt: mnt}, nil
}

func (h *home) close() {
	_ = h.net.Close()
	_ = unix.Close(h.mnt)
}

// visit starts the command from inside the namespaces and returns home.
func (h *home) visit(r spawnRequest) (started, homeErr error) {
	if r.resolv != "" {
		if err := privateResolvConf(r.resolv); err != nil {
			return err, h.back(true)
		}
	}
	if err := r.ns.Control(enterNet); err != nil {
		return fmt.Errorf("enter namespace: %w", err), h.back(r.resolv != "")
	}
	return r.cmd.Start(), h.back(r.resolv != "")
}

func (h *home) back(mounts bool) error {
	if err := h.net.Control(enterNet); err != nil {
		return fmt.Errorf("leave namespace: %w", err)
	}
	if !mounts {
		return nil
	}
	if err := unix.Setns(h.mnt, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leave mount namespace: %w", err)
	}
	return nil
}

func enterNet(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }

// privateResolvConf gives the thread a mount namespace of its own in which the file lies over /etc/resolv.conf.
func privateResolvConf(file string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	// Slave: mounts of the machine still arrive here, ours never get out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("seal mount namespace: %w", err)
	}
	if err := unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /etc/resolv.conf: %w", err)
	}
	return nil
}
