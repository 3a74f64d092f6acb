// Package run is a program's task group: it starts long-lived components, stops them in two stages, and returns when
// all have ended.
//
// It leaves to the components what draining means, and to main what exit code an outcome deserves. A Group is run once;
// Stop and Drained may be used from any goroutine.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// ErrForced is returned by Run when a second signal asked to give up waiting. Components may still be running then; the
// program should exit.
var ErrForced = errors.New("stopped by a second signal")

// Component is one long-lived part of a program.
type Component struct {
	// Name appears in errors and logs. Required.
	Name string
	// Run blocks until ctx ends or the component fails, and returns only after everything it started has ended. A nil
	// return before ctx ends means that its work is done; an error stops the group. An error that wraps the context's
	// own, after ctx ended, is no failure. Required.
	Run func(ctx context.Context) error
	// Drain is the first stage of stopping: take no new work, finish the old, return when there is none left. It runs
	// beside Run; when its ctx ends the time is up, and Run's ctx ends next. Optional.
	Drain func(ctx context.Context) error
}

// Config says how a Group stops. The zero value is usable.
type Config struct {
	// Logger gets what happens while stopping; nil discards.
	Logger *slog.Logger
	// DrainTimeout bounds the first stage. Zero means 5 s, negative cuts at once.
	DrainTimeout time.Duration
	// StopTimeout bounds how long a component may take to return after its ctx ended. Zero means 5 s.
	StopTimeout time.Duration
	// Signals delivers what asks the program to stop: the first starts the drain, the second ends Run with ErrForced.
	// Nil means that only ctx, Stop and a failing component stop the group. The caller registers it with signal.Notify.
	Signals <-chan os.Signal
}

// Group runs components from the floor up, in the order they are given, and stops them in the opposite order.
//
//	running ──signal, Stop, ctx, failure──► draining (all Drain at once) ──done or timeout──► stopping (one by one,
//	last started first) ──► Run returns
type Group struct {
	cfg        Config
	components []Component

	stop     chan struct{}
	stopOnce sync.Once
	drained  chan struct{}
}

// New returns a group of the components. It refuses one without name or Run.
func New(cfg Config, components ...Component) (*Group, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 5 * time.Second
	}
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = 5 * time.Second
	}
	for i, c := range components {
		if c.Name == "" || c.Run == nil {
			return nil, fmt.Errorf("add component %d %q: name and Run are required", i, c.Name)
		}
	}
	return &Group{cfg: cfg, components: components, stop: make(chan struct{}), drained: make(chan struct{})}, nil
}

// Stop begins the first stage of stopping. It does not wait, and may be called at any time and often.
func (g *Group) Stop() { g.stopOnce.Do(func() { close(g.stop) }) }

// Drained is closed when the first stage of stopping is over.
func (g *Group) Drained() <-chan struct{} { return g.drained }

// Run starts the components and blocks until all have ended. It returns nil after an orderly stop, otherwise all that
// failed, joined, each with its component's name. The end of ctx is an orderly stop.
func (g *Group) Run(ctx context.Context) error {
	tasks := make([]*task, len(g.components))
	for i, c := range g.components {
		// The components' contexts outlive ctx: its end only begins the drain.
		tasks[i] = start(context.WithoutCancel(ctx), c, g.Stop)
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for _, t := range tasks {
			<-t.done
		}
	}()

	g.wait(ctx, finished)
	over := make(chan error, 1)
	go func() { over <- g.shutdown(context.WithoutCancel(ctx), tasks) }()
	select {
	case err := <-over:
		return err
	case sig := <-g.cfg.Signals:
		g.cfg.Logger.Warn("second signal, not waiting any longer", "signal", sig.String())
		return fmt.Errorf("%w: %s", ErrForced, sig)
	}
}

// wait returns when the group has to stop, or when nothing runs any more.
func (g *Group) wait(ctx context.Context, finished <-chan struct{}) {
	select {
	case sig := <-g.cfg.Signals:
		g.cfg.Logger.Info("stopping", "signal", sig.String(), "drain_timeout", g.cfg.DrainTimeout)
	case <-ctx.Done():
		g.cfg.Logger.Info("stopping", "cause", context.Cause(ctx))
	case <-g.stop:
		g.cfg.Logger.Info("stopping", "drain_timeout", g.cfg.DrainTimeout)
	case <-finished:
	}
	g.Stop()
}

// shutdown takes both stages and collects what failed.
func (g *Group) shutdown(ctx context.Context, tasks []*task) error {
	g.drain(ctx, tasks)
	close(g.drained)
	var failed []error
	for i := len(tasks) - 1; i >= 0; i-- {
		failed = append(failed, tasks[i].end(g.cfg.StopTimeout))
	}
	slices.Reverse(failed) // report in starting order: the floor first
	return errors.Join(failed...)
}

func (g *Group) drain(ctx context.Context, tasks []*task) {
	if g.cfg.DrainTimeout < 0 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, g.cfg.DrainTimeout, errors.New("drain timeout"))
	defer cancel()
	var wg sync.WaitGroup
	for _, t := range tasks {
		if t.Drain == nil || t.ended() {
			continue
		}
		wg.Go(func() {
			if err := t.Drain(ctx); err != nil {
				g.cfg.Logger.Warn("drain incomplete", "component", t.Name, "error", err)
			}
		})
	}
	wg.Wait()
}

// task is a running component.
type task struct {
	Component
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

func start(ctx context.Context, c Component, stop func()) *task {
	ctx, cancel := context.WithCancel(ctx)
	t := &task{Component: c, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		err := c.Run(ctx)
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
		if err != nil {
			t.err = fmt.Errorf("%s: %w", c.Name, err)
			stop()
		}
	}()
	return t
}

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// end cancels the task and waits for it.
func (t *task) end(timeout time.Duration) error {
	t.cancel()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-t.done:
		return t.err
	case <-timer.C:
		return fmt.Errorf("%s: still running %v after it was told to stop", t.Name, timeout)
	}
}
