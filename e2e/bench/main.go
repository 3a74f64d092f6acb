// Command bench measures the same work over a direct connection, over a pair of HAProxies with mutual TLS, and over a
// pair of Culvert agents, in one run on one machine, and prints what Culvert is against the others.
//
// Every system has its own pair of network namespaces with the same servers behind it; the systems take turns with each
// figure, over several rounds, and medians count. All traffic stays in those namespaces. The program starts and stops
// everything that it measures, keeps no state, and exits with 1 when a goal is missed or connections were not accounted
// for, with 2 when it could not measure.
//
// `bench scale` measures a pair of agents where it is full or unequally used: see scale.go.
//
// The load on new and on held connections comes from the program itself, started again as `bench tool NAME`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	rounds     int
	duration   time.Duration
	systems    []string
	rows       []string
	agent      string
	agentArgs  []string
	unpooled   []string
	congestion string
	json       string
	keep       string
	defaultCC  bool
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "tool" {
		if err := runTool(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench tool %s: %v\n", os.Args[2], err)
			os.Exit(1)
		}
		return
	}
	err := start(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	var missed *missedError
	switch {
	case errors.As(err, &missed):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
}

// start runs what the command line asks for.
func start(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == "scale" {
		return runScale(ctx, args[1:], os.Stdout)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return run(ctx, o, os.Stdout)
}

func parse(args []string) (*options, error) {
	o := &options{}
	var systems, rows, agentArgs, unpooled string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 3, "rounds; medians are reported")
	f.DurationVar(&o.duration, "duration", 4*time.Second, "length of each measurement, whole seconds")
	f.StringVar(&systems, "systems", "direct,haproxy,culvert", "what to measure")
	f.StringVar(&rows, "rows", "", "which figures to take, by name; all if empty")
	f.StringVar(&o.agent, "agent", "bin/culvert-node", "the agent's program; without it Culvert is left out")
	f.StringVar(&agentArgs, "agent-args", "", "more arguments for the agent, separated by blanks")
	f.StringVar(&unpooled, "unpooled-args", "--pool-max-streams=1 --pool-idle-timeout=0", "arguments that make the agent open a tunnel for each connection: takes new connections so too, for information")
	f.StringVar(&o.congestion, "congestion-control", "reno", "TCP congestion control of the namespaces; one that paces hides differences")
	f.BoolVar(&o.defaultCC, "default-cc", true, "also take the throughput under the machine's default congestion control")
	f.StringVar(&o.json, "json", "bench.json", "file for the results; none if empty")
	f.StringVar(&o.keep, "keep", "", "directory that keeps configuration files and logs of the run")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.agentArgs = strings.Fields(agentArgs)
	o.unpooled = strings.Fields(unpooled)
	o.systems = strings.Split(systems, ",")
	if rows != "" {
		o.rows = strings.Split(rows, ",")
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.rounds < 1:
		return nil, errors.New("--rounds: at least 1")
	case o.duration < time.Second || o.duration%time.Second != 0:
		return nil, errors.New("--duration: whole seconds, at least 1s")
	}
	for _, name := range o.systems {
		if !slices.Contains([]string{"direct", "haproxy", "culvert"}, name) {
			return nil, fmt.Errorf("--systems: %q is not one of direct, haproxy, culvert", name)
		}
	}
	for _, name := range o.rows {
		if !slices.ContainsFunc(goals(), func(g goal) bool { return g.name == name }) {
			return nil, fmt.Errorf("--rows: there is no row %q", name)
		}
	}
	return o, nil
}

func run(ctx context.Context, o *options, out io.Writer) error {
	if err := checkPrograms(o, out); err != nil {
		return err
	}
	results, err := measureAll(ctx, o, out)
	if err != nil {
		return err
	}
	report := results.report()
	report.table(out)
	if o.json != "" {
		if err := report.write(o.json); err != nil {
			return err
		}
		fmt.Fprintf(out, "wrote %s\n", o.json)
	}
	return report.verdict()
}

// checkPrograms leaves out what cannot be measured and refuses when the programs for the load are missing.
func checkPrograms(o *options, out io.Writer) error {
	var missing []string
	need := []string{"iperf3", "wrk", "nginx"}
	if slices.Contains(o.systems, "haproxy") {
		need = append(need, "haproxy")
	}
	for _, name := range need {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing programs: %s (make deps installs them)", strings.Join(missing, ", "))
	}
	if slices.Contains(o.systems, "culvert") {
		if _, err := os.Stat(o.agent); err != nil {
			fmt.Fprintf(out, "culvert is left out: %v\n", err)
			o.systems = slices.DeleteFunc(o.systems, func(s string) bool { return s == "culvert" })
		}
	}
	return nil
}

// missedError says that the figures were taken but are not good enough.
type missedError struct{ what []string }

func (e *missedError) Error() string { return strings.Join(e.what, "; ") }
