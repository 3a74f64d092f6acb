package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// The scale command measures one pair of agents where it is full: held connections up to the limit of descriptors, many
// tunnels, no descriptors left, and unequal connections beside each other.

// scaleOptions are the command line of `bench scale`.
type scaleOptions struct {
	rounds     int
	duration   time.Duration
	parts      []string
	agent      string
	agentArgs  []string
	congestion string
	json       string
	keep       string
	held       int
	tunnels    int
	attacks    []string
}

// scalePart is one question and takes the rows that answer it.
type scalePart struct {
	name string
	take func(ctx context.Context, s *scale) error
}

func scaleParts() []scalePart {
	return []scalePart{
		{"held", heldPart},
		{"tunnels", tunnelsPart},
		{"exhaust", exhaustPart},
		{"fair", fairPart},
		{"flood", floodPart},
		{"hostile", hostilePart},
	}
}

func parseScale(args []string) (*scaleOptions, error) {
	o := &scaleOptions{}
	var names []string
	for _, p := range scaleParts() {
		names = append(names, p.name)
	}
	all := strings.Join(names, ",")
	var parts, agentArgs, ways string
	f := flag.NewFlagSet("bench scale", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 3, "rounds of each comparison; medians count")
	f.DurationVar(&o.duration, "duration", 4*time.Second, "length of each measurement, whole seconds")
	f.StringVar(&parts, "parts", all, "what to measure")
	f.StringVar(&o.agent, "agent", "bin/culvert-node", "the agent's program")
	f.StringVar(&agentArgs, "agent-args", "", "more arguments for the agent, separated by blanks")
	f.StringVar(&o.congestion, "congestion-control", "reno", "TCP congestion control of the namespaces")
	f.StringVar(&o.json, "json", "bench-scale.json", "file for the results; none if empty")
	f.StringVar(&o.keep, "keep", "", "directory that keeps configuration files and logs of the run")
	f.IntVar(&o.held, "held", 0, "connections to hold; as many as the limit of descriptors allows if 0")
	f.IntVar(&o.tunnels, "tunnels", 2000, "tunnels to open, a multiple of 100")
	f.StringVar(&ways, "attacks", "", "ways to attack in the part hostile, separated by commas; all if empty")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if ways != "" {
		o.attacks = strings.Split(ways, ",")
	}
	o.parts, o.agentArgs = strings.Split(parts, ","), strings.Fields(agentArgs)
	for _, p := range o.parts {
		if !slices.Contains(names, p) {
			return nil, fmt.Errorf("--parts: %q is not one of %s", p, all)
		}
	}
	for _, name := range o.attacks {
		if !slices.ContainsFunc(attacks(netip.AddrPort{}), func(a attack) bool { return a.name == name }) {
			return nil, fmt.Errorf("--attacks: there is no %q", name)
		}
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.rounds < 1:
		return nil, errors.New("--rounds: at least 1")
	case o.duration < time.Second || o.duration%time.Second != 0:
		return nil, errors.New("--duration: whole seconds, at least 1s")
	case o.tunnels < 100 || o.tunnels%100 != 0:
		return nil, errors.New("--tunnels: a multiple of 100")
	}
	return o, nil
}

// scaleRow is one figure. Goal is absent where the figure is for information.
type scaleRow struct {
	Name  string   `json:"name"`
	Unit  string   `json:"unit"`
	Value float64  `json:"value"`
	Sign  string   `json:"sign,omitempty"` // "≤" or "≥"
	Goal  *float64 `json:"goal,omitempty"`
	Met   *bool    `json:"met,omitempty"`
}

// scale is one run.
type scale struct {
	*scaleOptions `json:"-"`
	out           io.Writer

	Machine           string     `json:"machine"`
	CongestionControl string     `json:"congestion_control"`
	Descriptors       int        `json:"descriptor_limit"`
	Load              string     `json:"load_average"` // at the start
	Version           string     `json:"version"`
	Rows              []scaleRow `json:"rows"`
	Broken            []string   `json:"broken,omitempty"` // what should never happen
}

func runScale(ctx context.Context, args []string, out io.Writer) error {
	o, err := parseScale(args)
	if err != nil {
		return err
	}
	if _, err := os.Stat(o.agent); err != nil {
		return err
	}
	s := &scale{scaleOptions: o, out: out, Machine: machine(), CongestionControl: o.congestion, Descriptors: descriptorLimit(), Load: loadAverage()}
	s.Version = (&culvert{program: o.agent}).version()
	fmt.Fprintf(out, "%s, congestion control %s, at most %d descriptors a process, load average %s\n%s\n", s.Machine, o.congestion, s.Descriptors, s.Load, s.Version)
	for _, p := range scaleParts() {
		if !slices.Contains(o.parts, p.name) {
			continue
		}
		rows, began := len(s.Rows), time.Now()
		if err := p.take(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		s.say("%-8s %d figures in %v, load average %s", p.name, len(s.Rows)-rows, time.Since(began).Round(time.Second), loadAverage())
	}
	s.table()
	if o.json != "" {
		text, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(out, "wrote %s\n", o.json)
	}
	return s.verdict()
}

func (s *scale) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// tell adds a figure without a goal.
func (s *scale) tell(name, unit string, value float64) {
	s.Rows = append(s.Rows, scaleRow{Name: name, Unit: unit, Value: value})
}

// atMost adds a figure that must not be larger than the goal, atLeast one that must not be smaller.
func (s *scale) atMost(name, unit string, value, goal float64) {
	met := value <= goal
	s.Rows = append(s.Rows, scaleRow{Name: name, Unit: unit, Value: value, Sign: "≤", Goal: &goal, Met: &met})
}

func (s *scale) atLeast(name, unit string, value, goal float64) {
	met := value >= goal
	s.Rows = append(s.Rows, scaleRow{Name: name, Unit: unit, Value: value, Sign: "≥", Goal: &goal, Met: &met})
}

// broken notes something that is wrong at any speed.
func (s *scale) broken(format string, args ...any) {
	s.Broken = append(s.Broken, fmt.Sprintf(format, args...))
}

func (s *scale) table() {
	fmt.Fprintln(s.out)
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\tvalue\tgoal\t\t")
	for _, r := range s.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Unit, number(r.Value), r.limit(), r.verdict())
	}
	w.Flush() //nolint:errcheck // the file with the results is what counts
	for _, b := range s.Broken {
		fmt.Fprintln(s.out, "broken:", b)
	}
	fmt.Fprintln(s.out)
}

func (r scaleRow) limit() string {
	if r.Goal == nil {
		return ""
	}
	return r.Sign + " " + number(*r.Goal)
}

func (r scaleRow) verdict() string {
	return row{Met: r.Met}.verdict()
}

func (s *scale) verdict() error {
	what := slices.Clone(s.Broken)
	for _, r := range s.Rows {
		if r.Met != nil && !*r.Met {
			what = append(what, fmt.Sprintf("%s missed: %s, goal %s", r.Name, number(r.Value), r.limit()))
		}
	}
	if len(what) > 0 {
		return &missedError{what}
	}
	return nil
}

// start opens a lab with a pair of agents, the client's and the server's.
func (s *scale) start(ctx context.Context, name string, program ...string) (*bench, *culvert, error) {
	l, err := newLab(name, s.congestion, s.keep)
	if err != nil {
		return nil, nil, err
	}
	c := &culvert{program: s.agent, args: s.agentArgs}
	b := &bench{name: name, system: c, lab: l, duration: s.duration}
	if err := c.start(ctx, l); err != nil {
		return nil, nil, errors.Join(err, closeAll([]*bench{b}))
	}
	return b, c, nil
}

// busy is the p99 of one busy connection, in microseconds: the median of the rounds.
func (s *scale) busy(ctx context.Context, b *bench) (float64, error) {
	var p99 []float64
	for range s.rounds {
		r, err := wrk(ctx, b, b.duration, 1, 1)
		if err != nil {
			return 0, err
		}
		p99 = append(p99, r.P99)
	}
	return *median(p99), nil
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
