package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results are all figures of a run.
type results struct {
	congestion  string
	versions    map[string]string
	values      map[string]map[string][]float64 // by row, then system, in the order of the rounds
	information []extra
	unaccounted []string // what a system did not count as it was
}

// extra is a figure for information: no goal, one value.
type extra struct {
	Name   string             `json:"name"`
	Unit   string             `json:"unit"`
	Values map[string]float64 `json:"values"`
}

func (r *results) add(system string, f figures) {
	for row, v := range f {
		if r.values[row] == nil {
			r.values[row] = make(map[string][]float64)
		}
		r.values[row][system] = append(r.values[row][system], v)
	}
}

// open starts every system in a lab of its own.
func open(ctx context.Context, o *options, systems, agentArgs []string, congestion, keep string) (benches []*bench, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(benches))
		}
	}()
	for _, name := range systems {
		l, err := newLab(name, congestion, keep)
		if err != nil {
			return benches, err
		}
		b := &bench{name: name, lab: l, duration: o.duration}
		benches = append(benches, b)
		switch name {
		case "haproxy":
			b.system = &haproxy{}
		case "culvert":
			b.system = &culvert{program: o.agent, args: agentArgs}
		case nearTunnel, nearShort:
			b.system = &culvert{program: o.agent, args: slices.Concat(agentArgs, nearArgs(name)), near: true}
		default:
			b.system = &direct{}
		}
		if err := b.system.start(ctx, l); err != nil {
			return benches, fmt.Errorf("start %s: %w", name, err)
		}
	}
	return benches, nil
}

func closeAll(benches []*bench) error {
	var failed []error
	for _, b := range benches {
		if b.system != nil {
			failed = append(failed, b.system.stop())
		}
		failed = append(failed, b.lab.close())
	}
	return errors.Join(failed...)
}

func measureAll(ctx context.Context, o *options, out io.Writer) (*results, error) {
	r := &results{congestion: o.congestion, versions: map[string]string{}, values: map[string]map[string][]float64{}}
	benches, err := open(ctx, o, o.systems, o.agentArgs, o.congestion, o.keep)
	if err != nil {
		return nil, err
	}
	for _, b := range benches {
		if v := b.system.version(); v != "" {
			r.versions[b.name] = v
			fmt.Fprintf(out, "%s: %s\n", b.name, v)
		}
	}
	fmt.Fprintf(out, "%s, congestion control %s, %d rounds of %v a figure\n", machine(), o.congestion, o.rounds, o.duration)
	err = r.rounds(ctx, o, measurements(), benches, out)
	if err := errors.Join(err, closeAll(benches)); err != nil {
		return nil, err
	}
	if err := r.sameNode(ctx, o, out); err != nil {
		return nil, err
	}
	return r, r.forInformation(ctx, o, out)
}

// forInformation takes what has no goal: throughput under the machine's own congestion control, and new connections
// without shared tunnels.
func (r *results) forInformation(ctx context.Context, o *options, out io.Writer) error {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return err
	}
	if cc := strings.TrimSpace(string(text)); o.defaultCC && cc != o.congestion && wants(o, []string{"throughput_1", "throughput_8"}) {
		fmt.Fprintf(out, "for information: under %s\n", cc)
		for _, row := range []string{"throughput_1", "throughput_8"} {
			if err := r.once(ctx, o, o.systems, o.agentArgs, cc, row, " under "+cc); err != nil {
				return err
			}
		}
	}
	if len(o.unpooled) > 0 && slices.Contains(o.systems, "culvert") && wants(o, []string{"connections"}) {
		fmt.Fprintln(out, "for information: without shared tunnels")
		return r.once(ctx, o, []string{"culvert"}, slices.Concat(o.agentArgs, o.unpooled), o.congestion, "connections", " without pooling")
	}
	return nil
}

// once takes one row over the systems, started afresh, and keeps it under its name with the suffix.
func (r *results) once(ctx context.Context, o *options, systems, agentArgs []string, congestion, name, suffix string) error {
	benches, err := open(ctx, o, systems, agentArgs, congestion, "")
	if err != nil {
		return err
	}
	g := goals()[slices.IndexFunc(goals(), func(g goal) bool { return g.name == name })]
	e := extra{Name: name + suffix, Unit: g.unit, Values: map[string]float64{}}
	for _, m := range measurements() {
		if !slices.Contains(m.rows, name) {
			continue
		}
		for _, b := range benches {
			got, takeErr := m.take(ctx, b)
			if takeErr != nil {
				return errors.Join(fmt.Errorf("%s over %s: %w", e.Name, b.name, takeErr), closeAll(benches))
			}
			e.Values[b.name] = got[name]
		}
	}
	r.information = append(r.information, e)
	return closeAll(benches)
}

// rounds takes the measurements over all systems in turn, and compares the systems' own books with the connections made.
func (r *results) rounds(ctx context.Context, o *options, ms []measurement, benches []*bench, out io.Writer) error {
	for round := range o.rounds {
		for _, m := range ms {
			if !wants(o, m.rows) {
				continue
			}
			for turn := range m.turns {
				// Another system begins each time, so that what warms up or wears off hits all alike.
				line, err := r.turn(ctx, m, benches, round+turn)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "round %d/%d  %-16s%s\n", round+1, o.rounds, m.name, line)
			}
		}
	}
	for _, b := range benches {
		if err := b.system.check(ctx, b.made); err != nil {
			r.unaccounted = append(r.unaccounted, b.name+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	return nil
}

// turn takes a measurement over one system after the other, and returns a line about it.
func (r *results) turn(ctx context.Context, m measurement, benches []*bench, first int) (string, error) {
	line := ""
	for i := range benches {
		b := benches[(i+first)%len(benches)]
		got, err := m.take(ctx, b)
		if err := errors.Join(ctx.Err(), err); err != nil {
			return "", fmt.Errorf("%s over %s: %w", m.name, b.name, err)
		}
		r.add(b.name, got)
		if len(got) > 0 {
			line += fmt.Sprintf("  %s %s", b.name, brief(got))
		}
	}
	return line, nil
}

func wants(o *options, rows []string) bool {
	return len(o.rows) == 0 || slices.ContainsFunc(rows, func(r string) bool { return slices.Contains(o.rows, r) })
}

func brief(f figures) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		parts = append(parts, number(f[name]))
	}
	return strings.Join(parts, "/")
}

// machine describes where the figures come from.
func machine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	return fmt.Sprintf("%d cores %s, Linux %s, %s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), time.Now().UTC().Format(time.DateOnly))
}
