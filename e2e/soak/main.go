// Command soak lets a mesh of four agents work under everything that can happen to it, for as long as it is told, and
// keeps the books: every byte that an application sends has to reach the other one, whatever is done to cables,
// certificates, policies and endpoints beside it. Only connections whose own application was killed may fail. At the end
// the agents have to hold what they held at the start.
//
// It starts the program itself, the agents and the applications (this program again, as `soak app`) in network
// namespaces, all of which end with it. It prints what was done and `soak: ok`, or what went wrong and exits with 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type options struct {
	agent string
	time  time.Duration
	seed  uint64
	keep  string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "app" {
		if err := runApp(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "soak app:", err)
			os.Exit(1)
		}
		return
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, o, os.Stdout)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak: failed:", err)
		os.Exit(1)
	}
	fmt.Println("soak: ok")
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.StringVar(&o.agent, "agent", "bin/culvert-node", "the agent's program")
	f.DurationVar(&o.time, "time", 10*time.Minute, "how long the mesh is disturbed, at least 30s; settling comes on top")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all choices; a random one if 0")
	f.StringVar(&o.keep, "keep", "", "directory for the agents' logs when it fails")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.time < 30*time.Second:
		return nil, errors.New("--time: at least 30s")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	return o, nil
}

// settling is how long everything before and after the disturbances may take.
const settling = 5 * time.Minute

func run(ctx context.Context, o *options, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.time+settling, errors.New("it took too long"))
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "soak: seed %d, %d nodes, %v, load average %s\n", o.seed, nodes, o.time, loadAverage())
	m, err := build(o.agent)
	if err != nil {
		return err
	}
	s := &soak{options: o, out: out, mesh: m, ledger: newLedger(len(m.pods))}
	m.enter(s.ledger)
	s.fleet = newFleet(self, o.seed, m, s.ledger)
	s.chaos = &chaos{mesh: m, fleet: s.fleet, ledger: s.ledger}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.keepLogs())
		}
		err = errors.Join(err, m.lab.Close())
	}()
	return s.run(ctx)
}

// soak is one run.
type soak struct {
	*options
	out    io.Writer
	mesh   *mesh
	fleet  *fleet
	ledger *ledger
	chaos  *chaos
	start  []figures // of the agents
}

func (s *soak) run(ctx context.Context) error {
	if err := s.mesh.start(); err != nil {
		return err
	}
	for i, a := range s.mesh.agents {
		f, err := restingFigures(ctx, a)
		if err != nil {
			return fmt.Errorf("agent of %s: %w", nodeName(i), err)
		}
		s.start = append(s.start, f)
	}
	for pod := range s.mesh.pods {
		if err := s.fleet.start(ctx, pod); err != nil {
			return err
		}
	}
	for pod := range s.mesh.pods {
		if err := s.fleet.load(pod); err != nil {
			return err
		}
	}
	if err := s.disturb(ctx); err != nil {
		return errors.Join(err, s.verdict(nil))
	}
	fmt.Fprintln(s.out, "soak: letting connections end")
	err := s.fleet.finish(ctx)
	s.ledger.settle()
	if err != nil {
		return errors.Join(err, s.verdict(nil))
	}
	return s.verdict(s.compare(ctx))
}

// disturb is the time that the run is about. It ends early when the books show a loss.
func (s *soak) disturb(ctx context.Context) error {
	busy, cancel := context.WithTimeout(ctx, s.time)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.report(busy, cancel)
	}()
	err := s.chaos.run(busy, ctx, s.seed)
	cancel()
	<-done
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// report prints a line now and then, and stops the disturbances after a failure.
func (s *soak) report(ctx context.Context, cancel context.CancelFunc) {
	began := time.Now()
	for {
		sleep(ctx, 10*time.Second)
		t, failed, _ := s.ledger.sums()
		fmt.Fprintf(s.out, "soak: %4.0fs  %s, %d failures; %s\n", time.Since(began).Seconds(), t.line(), failed, s.chaos.counts.line())
		if failed > 0 {
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (t *totals) all() int {
	n := 0
	for _, k := range t.connections {
		n += k
	}
	return n
}

func (t *totals) line() string {
	return fmt.Sprintf("%d connections, %.1f GB, %d cut short and %d refused by a kill", t.all(), float64(t.bytes)/1e9, t.excused, t.refused)
}

func (c *counts) line() string {
	return fmt.Sprintf("%d kills, %d flaps, %d rotations, %d policy changes, %d endpoint changes", c.kills.Load(),
		c.podFlaps.Load()+c.wireFlaps.Load(), c.rotations.Load(), c.policies.Load(), c.endpoints.Load())
}

// compare wants every agent to hold what it held at the start.
func (s *soak) compare(ctx context.Context) error {
	fmt.Fprintln(s.out, "soak: waiting for the agents to let go")
	var errs []error
	for i, a := range s.mesh.agents {
		now, err := awaitReturn(ctx, a, s.start[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		was := s.start[i]
		fmt.Fprintf(s.out, "soak: %s  descriptors %d, then %d; goroutines %d, %d; heap %.1f MiB, %.1f; anonymous %.1f MiB, %.1f\n", nodeName(i),
			was.descriptors, now.descriptors, was.goroutines, now.goroutines, mebibytes(was.heap), mebibytes(now.heap),
			mebibytes(was.anonymous), mebibytes(now.anonymous))
		if err != nil {
			errs = append(errs, fmt.Errorf("agent of %s: %w", nodeName(i), err))
		}
		if err := s.books(i); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// books compares an agent's own counters and log.
func (s *soak) books(i int) error {
	a := s.mesh.agents[i]
	opened, err := a.Metric("istio_tcp_connections_opened_total")
	if err != nil {
		return err
	}
	closed, err := a.Metric("istio_tcp_connections_closed_total")
	if err != nil {
		return err
	}
	if opened != closed || opened == 0 {
		return fmt.Errorf("agent of %s opened %.0f connections and closed %.0f", nodeName(i), opened, closed)
	}
	for _, word := range []string{"panic:", "DATA RACE", "fatal error:"} {
		if strings.Contains(a.Log(), word) {
			return fmt.Errorf("the log of the agent of %s has %q", nodeName(i), word)
		}
	}
	return nil
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

// verdict prints what was done and joins what went wrong. Something that never happened has proven nothing.
func (s *soak) verdict(err error) error {
	t, failed, failures := s.ledger.sums()
	c := &s.chaos.counts
	rows := []struct {
		name  string
		value int64
		need  bool
	}{
		{"kills", c.kills.Load(), true},
		{"flaps of pods", c.podFlaps.Load(), true},
		{"flaps of nodes", c.wireFlaps.Load(), true},
		{"rotations", c.rotations.Load(), true},
		{"policy changes", c.policies.Load(), true},
		{"endpoint changes", c.endpoints.Load(), true},
		{"guests gone and back", c.guests.Load(), true},
		{"bytes", t.bytes, true},
		{"connections cut short by a kill", int64(t.excused), true},
		{"connections refused by a kill", int64(t.refused), false},
		{"reports lost by a kill", int64(t.unmatched), false},
		{"attempts given up", int64(t.orphans), false},
		{"failures", int64(failed), false},
	}
	errs := []error{err}
	for k, n := range t.connections {
		rows = append(rows, struct {
			name  string
			value int64
			need  bool
		}{"connections, " + kind(k).String(), int64(n), true})
	}
	for _, r := range rows {
		fmt.Fprintf(s.out, "  %-32s %d\n", r.name, r.value)
		if r.need && r.value == 0 {
			errs = append(errs, fmt.Errorf("there were no %s", r.name))
		}
	}
	for _, f := range failures {
		errs = append(errs, errors.New(f))
	}
	if failed > len(failures) {
		errs = append(errs, fmt.Errorf("and %d more failures", failed-len(failures)))
	}
	return errors.Join(errs...)
}

// keepLogs saves the agents' logs from the lab's end.
func (s *soak) keepLogs() error {
	if s.keep == "" {
		return nil
	}
	if err := os.MkdirAll(s.keep, 0o755); err != nil {
		return err
	}
	for i, a := range s.mesh.agents {
		if err := os.WriteFile(filepath.Join(s.keep, nodeName(i)+".log"), []byte(a.Log()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
