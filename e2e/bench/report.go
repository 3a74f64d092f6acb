package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
)

// goal is one row: what it measures and what Culvert has to reach.
type goal struct {
	name, unit string
	direction  string  // "higher" or "lower" is better
	against    string  // "haproxy", "tunnel": limit is a ratio to it; "limit": an amount in the row's unit
	limit      float64 // 0: for information
}

func goals() []goal {
	return []goal{
		{"throughput_1", "Gb/s", "higher", "haproxy", 1.4},
		{"throughput_8", "Gb/s", "higher", "haproxy", 1.3},
		{"latency_1_p50", "µs", "lower", "haproxy", 0.95},
		{"latency_1_p99", "µs", "lower", "haproxy", 1.0},
		{"requests_32", "requests/s", "higher", "haproxy", 1.2},
		{"connections", "connections/s", "higher", "haproxy", 8},
		{"cpu_per_100k_requests", "CPU s", "lower", "haproxy", 0.75},
		{"same_node_throughput_1", "Gb/s", "higher", "tunnel", 2.5},
		{"same_node_requests_32", "requests/s", "higher", "tunnel", 1.5},
		{"held_bytes", "B/connection", "lower", "limit", 3 << 10},
		{"idle_rss", "MiB", "lower", "limit", 30},
		{"idle_anonymous", "MiB", "lower", "limit", 12},
	}
}

// row is a goal with the medians of a run. What was not measured is null.
type row struct {
	Name      string               `json:"name"`
	Unit      string               `json:"unit"`
	Direction string               `json:"direction"` // which is better
	Against   string               `json:"against"`   // what ratio is against: haproxy, tunnel, or limit (the goal itself)
	Direct    *float64             `json:"direct"`
	HAProxy   *float64             `json:"haproxy"`
	Tunnel    *float64             `json:"tunnel,omitempty"` // the tunnel between two pods of one node
	Culvert   *float64             `json:"culvert"`
	Ratio     *float64             `json:"ratio"`
	Goal      float64              `json:"goal"`
	Met       *bool                `json:"met"`
	Rounds    map[string][]float64 `json:"rounds"`
}

// report is what is printed and written.
type report struct {
	Machine           string            `json:"machine"`
	CongestionControl string            `json:"congestion_control"`
	Versions          map[string]string `json:"versions"`
	Rows              []row             `json:"rows"`
	Information       []extra           `json:"information,omitempty"`
	Unaccounted       []string          `json:"unaccounted,omitempty"`
}

func (r *results) report() *report {
	rep := &report{
		Machine: machine(), CongestionControl: r.congestion, Versions: r.versions,
		Information: r.information, Unaccounted: r.unaccounted,
	}
	for _, g := range goals() {
		values := r.values[g.name]
		if len(values) == 0 {
			continue
		}
		rep.Rows = append(rep.Rows, g.row(values))
	}
	return rep
}

func (g goal) row(values map[string][]float64) row {
	w := row{
		Name: g.name, Unit: g.unit, Direction: g.direction, Against: g.against, Goal: g.limit, Rounds: values,
		Direct: median(values["direct"]), HAProxy: median(values["haproxy"]), Culvert: median(values["culvert"]),
	}
	base := w.HAProxy
	switch g.against {
	case "limit":
		base = &g.limit
	case "tunnel":
		w.Tunnel, w.Culvert = median(values[nearTunnel]), median(values[nearShort])
		base = w.Tunnel
	}
	if w.Culvert == nil || base == nil || *base == 0 {
		return w
	}
	ratio := *w.Culvert / *base
	w.Ratio = &ratio
	limit := g.limit
	if g.against == "limit" {
		limit = 1
	}
	met := ratio >= limit
	if g.direction == "lower" {
		met = ratio <= limit
	}
	w.Met = &met
	return w
}

func median(values []float64) *float64 {
	if len(values) == 0 {
		return nil
	}
	s := slices.Sorted(slices.Values(values))
	m := (s[(len(s)-1)/2] + s[len(s)/2]) / 2
	return &m
}

func (rep *report) table(out io.Writer) {
	fmt.Fprintf(out, "\n%s, congestion control %s, medians\n\n", rep.Machine, rep.CongestionControl)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\tdirect\thaproxy\ttunnel\tculvert\tratio\tgoal\t\t")
	for _, r := range rep.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Unit, optional(r.Direct), optional(r.HAProxy), optional(r.Tunnel),
			optional(r.Culvert), optional(r.Ratio), r.goal(), r.verdict())
	}
	for _, e := range rep.Information {
		cell := func(name string) string {
			if v, ok := e.Values[name]; ok {
				return number(v)
			}
			return "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\t%s\t\t\t\t\n", e.Name, e.Unit, cell("direct"), cell("haproxy"), cell("culvert"))
	}
	w.Flush() //nolint:errcheck // the file with the results is what counts
	fmt.Fprintln(out)
}

func (r row) goal() string {
	sign := "≥"
	if r.Direction == "lower" {
		sign = "≤"
	}
	if r.Against == "limit" {
		return sign + " " + number(r.Goal) + " " + r.Unit
	}
	return sign + " " + number(r.Goal) + "×"
}

func (r row) verdict() string {
	switch {
	case r.Met == nil:
		return "-"
	case *r.Met:
		return "met"
	default:
		return "missed"
	}
}

func optional(v *float64) string {
	if v == nil {
		return "-"
	}
	return number(*v)
}

// number prints three significant digits, and all of those before the point.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return strconv.FormatFloat(v, 'f', max(0, min(digits, 6)), 64)
}

func (rep *report) write(file string) error {
	text, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// verdict is a missedError when a goal was missed or connections were not accounted for.
func (rep *report) verdict() error {
	var what []string
	for _, r := range rep.Rows {
		if r.Met != nil && !*r.Met {
			what = append(what, fmt.Sprintf("%s missed: %s, goal %s", r.Name, optional(r.Ratio), r.goal()))
		}
	}
	what = append(what, rep.Unaccounted...)
	if len(what) > 0 {
		return &missedError{what}
	}
	return nil
}
