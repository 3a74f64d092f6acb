package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// fleet is the applications: one process in each pod, started again when it was killed.
type fleet struct {
	self   string // this program
	seed   uint64
	mesh   *mesh
	ledger *ledger

	readers sync.WaitGroup
	mu      sync.Mutex
	apps    []*process // by pod; nil while there is none
	next    []int      // generation of the next run
}

// process is one run of an application.
type process struct {
	instance
	proc      *topology.Process
	in        io.WriteCloser
	listening chan struct{}
	idle      chan struct{}
	open      chan int64
	read      chan struct{} // closed when its output has ended
}

func newFleet(self string, seed uint64, m *mesh, l *ledger) *fleet {
	return &fleet{self: self, seed: seed, mesh: m, ledger: l, apps: make([]*process, len(m.pods)), next: make([]int, len(m.pods))}
}

// start runs the application of a pod and waits until it serves.
func (f *fleet) start(ctx context.Context, pod int) error {
	f.mu.Lock()
	i := instance{pod, f.next[pod]}
	f.next[pod]++
	f.mu.Unlock()
	p, err := f.launch(i)
	if err != nil {
		return fmt.Errorf("start application of %s: %w", f.mesh.pods[pod].Name(), err)
	}
	select {
	case <-p.listening:
	case <-p.read:
		return fmt.Errorf("application of %s has ended: %w", f.mesh.pods[pod].Name(), errors.Join(p.proc.Wait()))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f.ledger.listening(pod)
	f.mu.Lock()
	f.apps[pod] = p
	f.mu.Unlock()
	return nil
}

// load has a pod's application make connections.
func (f *fleet) load(pod int) error { return f.app(pod).ask(command{Targets: f.mesh.targets()}) }

func (f *fleet) launch(i instance) (*process, error) {
	cmd := exec.Command(f.self, "app", fmt.Sprintf("-pod=%d", i.Pod), fmt.Sprintf("-generation=%d", i.Generation),
		fmt.Sprintf("-seed=%d", f.seed^uint64(i.Pod)<<40^uint64(i.Generation)<<8), fmt.Sprintf("-client=%t", i.Pod < f.mesh.loads))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // exec.Cmd.StdoutPipe is closed by Wait, which runs beside us
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	proc, err := f.mesh.pods[i.Pod].Start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	p := &process{
		instance: i, proc: proc, in: in, listening: make(chan struct{}), idle: make(chan struct{}), open: make(chan int64, 1),
		read: make(chan struct{}),
	}
	f.readers.Go(func() {
		defer close(p.read)
		defer r.Close()
		f.listen(p, r)
	})
	return p, nil
}

// listen reads what an application writes.
func (f *fleet) listen(p *process, r io.Reader) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the last line of one that was killed
		}
		switch {
		case e.Report != nil:
			f.ledger.add(e.Report)
		case e.Listening:
			close(p.listening)
		case e.Idle:
			close(p.idle)
		case e.Open != nil:
			select {
			case p.open <- *e.Open:
			default:
			}
		}
	}
}

func (p *process) ask(c command) error {
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = p.in.Write(append(line, '\n'))
	return err
}

func (f *fleet) app(pod int) *process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.apps[pod]
}

// kill ends a pod's application as a crash does, and starts another one after the pause.
func (f *fleet) kill(ctx context.Context, pod int, pause time.Duration) error {
	f.mu.Lock()
	p := f.apps[pod]
	f.apps[pod] = nil
	f.mu.Unlock()
	if p == nil {
		return nil
	}
	f.ledger.kill(p.instance)
	if err := p.proc.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("application of %s has ended by itself: %w", f.mesh.pods[pod].Name(), err)
	}
	<-p.proc.Done()
	f.ledger.gone(pod)
	sleep(ctx, pause)
	if err := f.start(ctx, pod); err != nil {
		return err
	}
	return f.load(pod)
}

// serving is how many connections a pod's server has; none when there is no server.
func (f *fleet) serving(ctx context.Context, pod int) (int64, error) {
	p := f.app(pod)
	if p == nil || p.ask(command{Count: true}) != nil {
		return 0, nil
	}
	select {
	case n := <-p.open:
		return n, nil
	case <-p.read:
		return 0, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// finish lets all connections end, waits for that, and ends the applications.
func (f *fleet) finish(ctx context.Context) error {
	for pod := range f.apps {
		if err := f.app(pod).ask(command{Finish: true}); err != nil {
			return fmt.Errorf("finish application of %s: %w", f.mesh.pods[pod].Name(), err)
		}
	}
	for pod := range f.apps {
		p := f.app(pod)
		select {
		case <-p.idle:
		case <-p.read:
			return fmt.Errorf("application of %s has ended by itself", f.mesh.pods[pod].Name())
		case <-ctx.Done():
			return fmt.Errorf("connections of %s do not end: %w", f.mesh.pods[pod].Name(), context.Cause(ctx))
		}
	}
	// The servers' reports come a moment after the clients'.
	if err := until(ctx, func() bool { return f.ledger.pending() == 0 }); err != nil {
		return nil //nolint:nilerr // the ledger says which are missing
	}
	for pod := range f.apps {
		_ = f.app(pod).in.Close() // fails only where the program has ended
	}
	f.readers.Wait()
	return nil
}

// sleep waits, until ctx ends at most.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// until polls a condition until it holds or ctx ends.
func until(ctx context.Context, done func() bool) error {
	for !done() {
		sleep(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
