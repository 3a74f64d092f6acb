package run_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/cmd/internal/run"
)

// journal records what happened in which order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) want(t *testing.T, want ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if diff := cmp.Diff(want, j.lines); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func (j *journal) component(name string) run.Component {
	return run.Component{Name: name, Run: func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name + " ended")
		return ctx.Err()
	}}
}

func newGroup(t *testing.T, cfg run.Config, components ...run.Component) *run.Group {
	t.Helper()
	g, err := run.New(cfg, components...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestStopsInReverseAfterDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		proxy := j.component("proxy")
		proxy.Drain = func(context.Context) error {
			time.Sleep(3 * time.Second)
			j.add("proxy drained")
			return nil
		}
		signals := make(chan os.Signal, 1)
		g := newGroup(t, run.Config{Signals: signals}, j.component("identity"), proxy, j.component("admin"))
		signals <- syscall.SIGTERM
		began := time.Now()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v, want the 3 s of the drain", took)
		}
		j.want(t, "proxy drained", "admin ended", "proxy ended", "identity ended")
	})
}

func TestDrainIsCutAtDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		proxy := j.component("proxy")
		proxy.Drain = func(ctx context.Context) error {
			<-ctx.Done()
			j.add("cut: " + context.Cause(ctx).Error())
			return ctx.Err()
		}
		g := newGroup(t, run.Config{DrainTimeout: 7 * time.Second}, proxy)
		g.Stop()
		began := time.Now()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("took %v, want the 7 s of the timeout", took)
		}
		j.want(t, "cut: drain timeout", "proxy ended")
	})
}

func TestNegativeDrainTimeoutCutsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		proxy := j.component("proxy")
		proxy.Drain = func(context.Context) error { j.add("drained"); return nil }
		g := newGroup(t, run.Config{DrainTimeout: -1}, proxy)
		g.Stop()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		j.want(t, "proxy ended")
	})
}

func TestFailureStopsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		cause := errors.New("port taken")
		failing := run.Component{Name: "dns", Run: func(context.Context) error {
			time.Sleep(time.Second)
			return cause
		}}
		g := newGroup(t, run.Config{}, j.component("proxy"), failing)
		err := g.Run(t.Context())
		if !errors.Is(err, cause) || err.Error() != "dns: port taken" {
			t.Errorf("got %v, want dns: port taken", err)
		}
		j.want(t, "proxy ended")
	})
}

func TestEarlyNilIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		once := run.Component{Name: "once", Run: func(context.Context) error { j.add("once done"); return nil }}
		g := newGroup(t, run.Config{}, once, j.component("proxy"))
		go func() {
			time.Sleep(time.Minute)
			g.Stop()
		}()
		began := time.Now()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("ended after %v, want to run until it is stopped", took)
		}
		j.want(t, "once done", "proxy ended")
	})
}

func TestReturnsWhenAllHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := run.Component{Name: "once", Run: func(context.Context) error { return nil }}
		if err := newGroup(t, run.Config{}, once).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestContextEndDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		proxy := j.component("proxy")
		proxy.Drain = func(ctx context.Context) error {
			if ctx.Err() != nil {
				j.add("drain began with a dead context")
			}
			j.add("drained")
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		g := newGroup(t, run.Config{}, proxy)
		cancel()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		j.want(t, "drained", "proxy ended")
	})
}

func TestSecondSignalForces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		release := make(chan struct{})
		proxy := j.component("proxy")
		proxy.Drain = func(context.Context) error { <-release; return nil }
		signals := make(chan os.Signal, 2)
		g := newGroup(t, run.Config{DrainTimeout: time.Hour, Signals: signals}, proxy)
		signals <- syscall.SIGTERM
		signals <- syscall.SIGINT
		if err := g.Run(t.Context()); !errors.Is(err, run.ErrForced) {
			t.Errorf("got %v, want ErrForced", err)
		}
		close(release) // let the bubble end
	})
}

func TestNamesAComponentThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hanging := run.Component{Name: "relay", Run: func(context.Context) error { <-release; return nil }}
		g := newGroup(t, run.Config{StopTimeout: 2 * time.Second}, hanging)
		g.Stop()
		err := g.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "relay: still running 2s") {
			t.Errorf("got %v, want the name of the hanging component", err)
		}
		close(release)
	})
}

func TestDrainedIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		proxy := j.component("proxy")
		proxy.Drain = func(context.Context) error { time.Sleep(time.Second); return nil }
		g := newGroup(t, run.Config{}, proxy)
		var drained time.Duration
		began := time.Now()
		go func() {
			<-g.Drained()
			drained = time.Since(began)
		}()
		go func() { time.Sleep(time.Minute); g.Stop() }()
		if err := g.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if drained != time.Minute+time.Second {
			t.Errorf("drained after %v", drained)
		}
	})
}

func TestNewRefusesIncompleteComponent(t *testing.T) {
	if _, err := run.New(run.Config{}, run.Component{Name: "proxy"}); err == nil {
		t.Error("a component without Run was taken")
	}
}
