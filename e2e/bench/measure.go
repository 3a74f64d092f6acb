package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// bench is one system with its lab and what was made of it so far.
type bench struct {
	name     string
	system   system
	lab      *lab
	duration time.Duration
	made     int // connections that clients made through the system
}

// figures are the values of one measurement by row name.
type figures map[string]float64

// measurement takes one or more figures.
type measurement struct {
	name string
	rows []string
	// turns are how often the systems take turns at it in one round, each for a part of the duration.
	turns int
	take  func(ctx context.Context, b *bench) (figures, error)
}

func measurements() []measurement {
	return []measurement{
		{"idle", []string{"idle_rss", "idle_anonymous"}, 1, idle},
		{"1 stream", []string{"throughput_1"}, 1, func(ctx context.Context, b *bench) (figures, error) { return throughput(ctx, b, 1) }},
		{"8 streams", []string{"throughput_8"}, 1, func(ctx context.Context, b *bench) (figures, error) { return throughput(ctx, b, 8) }},
		{"latency", []string{"latency_1_p50", "latency_1_p99"}, shortTurns, latency},
		{"requests", []string{"requests_32", "cpu_per_100k_requests"}, shortTurns, requests},
		{"new connections", []string{"connections"}, shortTurns, connections},
		{"held connections", []string{"held_bytes"}, 1, held},
	}
}

// idle is the memory of agents that have carried nothing yet. It means something in the first round only.
func idle(_ context.Context, b *bench) (figures, error) {
	if b.made > 0 {
		return nil, nil
	}
	got := figures{}
	for _, p := range b.system.agents() {
		m, err := settled(p, 10*time.Second)
		if err != nil {
			return nil, err
		}
		got["idle_rss"] = max(got["idle_rss"], float64(m.rss)/(1<<20))
		got["idle_anonymous"] = max(got["idle_anonymous"], float64(m.anonymous)/(1<<20))
	}
	return got, nil
}

func throughput(ctx context.Context, b *bench, streams int) (figures, error) {
	target := b.system.target(appIperf)
	out, err := b.lab.output(ctx, "iperf3", "-c", target.Addr().String(), "-p", strconv.Itoa(int(target.Port())),
		"-t", seconds(b.duration), "-O", "1", "-P", strconv.Itoa(streams), "-J")
	rate, perr := parseIperf(out)
	if err := errors.Join(perr, err); err != nil {
		return nil, err
	}
	b.made += streams + 1 // and the control connection
	return figures{fmt.Sprintf("throughput_%d", streams): rate / 1e9}, nil
}

func parseIperf(out []byte) (bitsPerSecond float64, err error) {
	var result struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return 0, fmt.Errorf("parse output of iperf3: %w", err)
	}
	if result.Error != "" {
		return 0, fmt.Errorf("iperf3: %s", result.Error)
	}
	return result.End.Received.BitsPerSecond, nil
}

// wrkScript makes wrk print its results for a program.
const wrkScript = `done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"microseconds":%d,"p50":%.1f,"p99":%.1f,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
`

type wrkResult struct {
	Requests     int     `json:"requests"`
	Microseconds float64 `json:"microseconds"`
	P50          float64 `json:"p50"` // microseconds
	P99          float64 `json:"p99"`
	Errors       int     `json:"errors"`
}

func wrk(ctx context.Context, b *bench, d time.Duration, threads, conns int) (wrkResult, error) {
	result, err := wrkFrom(ctx, b.lab.client(), b.lab.dir, b.system.target(appHTTP), d, threads, conns)
	b.made += conns + 1 // wrk tries the address once before it begins
	return result, err
}

// wrkFrom sends requests from a namespace; dir is where its script goes.
func wrkFrom(ctx context.Context, from *topology.Pod, dir string, target netip.AddrPort, d time.Duration, threads, conns int) (wrkResult, error) {
	script := filepath.Join(dir, "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkScript), 0o644); err != nil {
		return wrkResult{}, err
	}
	out, err := from.Output(exec.CommandContext(ctx, "wrk", "-t", strconv.Itoa(threads), "-c", strconv.Itoa(conns), "-d", seconds(d)+"s",
		"-s", script, fmt.Sprintf("http://%s/", target)))
	if err != nil {
		return wrkResult{}, err
	}
	result, err := parseWrk(out)
	if err == nil && result.Errors > 0 {
		err = fmt.Errorf("wrk: %d errors in %d requests", result.Errors, result.Requests)
	}
	return result, err
}

func parseWrk(out []byte) (wrkResult, error) {
	var result wrkResult
	i := bytes.LastIndexByte(out, '{')
	if i < 0 {
		return result, fmt.Errorf("parse output of wrk: no result in %q", out)
	}
	if err := json.Unmarshal(out[i:], &result); err != nil {
		return result, fmt.Errorf("parse output of wrk: %w", err)
	}
	if result.Requests == 0 || result.Microseconds == 0 {
		return result, errors.New("wrk: no requests")
	}
	return result, nil
}

// shortTurns are the turns at what changes from second to second, with what the machine does and with the processors that the
// kernel happens to put the programs on: the p99 of the direct connection is 0.3 ms in one run and 1.4 ms in the next, and
// the same agents answer 32,000 requests a second in one and 39,000 in the next.
const shortTurns = 4

// shortTurn is the length of each of the shortTurns in a measurement of length d.
func shortTurn(d time.Duration) time.Duration { return max(time.Second, d/shortTurns) }

func latency(ctx context.Context, b *bench) (figures, error) {
	r, err := wrk(ctx, b, shortTurn(b.duration), 1, 1)
	if err != nil {
		return nil, err
	}
	return figures{"latency_1_p50": r.P50, "latency_1_p99": r.P99}, nil
}

func requests(ctx context.Context, b *bench) (figures, error) {
	before, err := cpuOf(b.system.agents())
	if err != nil {
		return nil, err
	}
	r, err := wrk(ctx, b, shortTurn(b.duration), 2, 32)
	if err != nil {
		return nil, err
	}
	after, err := cpuOf(b.system.agents())
	if err != nil {
		return nil, err
	}
	got := figures{"requests_32": float64(r.Requests) / r.Microseconds * 1e6}
	if len(b.system.agents()) > 0 {
		got["cpu_per_100k_requests"] = (after - before).Seconds() / float64(r.Requests) * 1e5
	}
	return got, nil
}

func connections(ctx context.Context, b *bench) (figures, error) {
	out, err := b.lab.output(ctx, b.lab.self, "tool", "rate-client", "-clients=16", "-duration="+shortTurn(b.duration).String(), b.system.target(appRate).String())
	if err != nil {
		return nil, err
	}
	var r rateResult
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("parse output of the rate client: %w", err)
	}
	b.made += r.Connections + r.Failed
	if r.Failed > 0 || r.Connections == 0 {
		return nil, fmt.Errorf("%d of %d new connections failed: %s", r.Failed, r.Failed+r.Connections, r.Error)
	}
	return figures{"connections": float64(r.Connections) / r.Seconds}, nil
}

// heldCounts are the numbers of connections that memory is compared at.
func heldCounts(s system) (low, high int) {
	low, high = 2000, 10000
	if n := s.descriptors(); n > 0 {
		// Some descriptors are listeners, logs and tunnels.
		high = min(high, descriptorLimit()/n-300)
	}
	return low, high
}

// held is the memory that each connection takes in the agent that needs more for it.
func held(ctx context.Context, b *bench) (figures, error) {
	if len(b.system.agents()) == 0 {
		return nil, nil
	}
	low, high := heldCounts(b.system)
	h, err := b.startHolding(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = h.end() }() // after an error; otherwise it has ended below
	var rss [2][]memory
	for i, n := range []int{low, high} {
		if err := h.hold(n); err != nil {
			return nil, err
		}
		for _, p := range b.system.agents() {
			m, err := settled(p, 10*time.Second)
			if err != nil {
				return nil, err
			}
			rss[i] = append(rss[i], m)
		}
	}
	b.made += high
	got := figures{"held_bytes": 0}
	for i := range rss[0] {
		got["held_bytes"] = max(got["held_bytes"], float64(rss[1][i].rss-rss[0][i].rss)/float64(high-low))
	}
	return got, h.end()
}

// holder is a running hold client.
type holder struct {
	in   interface{ Close() error }
	ask  func(line string) error
	out  *bufio.Scanner
	wait func() error
}

func (b *bench) startHolding(ctx context.Context) (*holder, error) {
	cmd := exec.CommandContext(ctx, b.lab.self, "tool", "hold-client", b.system.target(appHold).String())
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// A pipe of our own: exec.Cmd.StdoutPipe is closed by Wait, which runs beside us.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	p, err := b.lab.client().Start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	ended := false
	return &holder{
		in:  in,
		out: bufio.NewScanner(r),
		ask: func(line string) error { _, err := fmt.Fprintln(in, line); return err },
		wait: func() error {
			if ended {
				return nil
			}
			ended = true
			defer r.Close()
			return p.Wait()
		},
	}, nil
}

// hold brings the number of open connections to n.
func (h *holder) hold(n int) error {
	if err := h.ask(strconv.Itoa(n)); err != nil {
		return err
	}
	if !h.out.Scan() {
		return errors.Join(fmt.Errorf("hold %d connections: the client gave up", n), h.out.Err())
	}
	var r holdResult
	if err := json.Unmarshal(h.out.Bytes(), &r); err != nil {
		return fmt.Errorf("parse output of the hold client: %w", err)
	}
	if r.Held != n {
		return fmt.Errorf("hold %d connections: %d are open", n, r.Held)
	}
	return nil
}

// end closes the connections; the second time it does nothing.
func (h *holder) end() error {
	_ = h.in.Close() // it fails only when the client has ended, which wait reports
	return h.wait()
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
