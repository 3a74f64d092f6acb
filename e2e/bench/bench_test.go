package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestMain lets the test binary be the tool that the lab starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "tool" {
		if err := runTool(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestParseOptions(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // part of the error; empty for none
	}{
		{"defaults", nil, ""},
		{"some", []string{"--systems=direct,haproxy", "--rows=connections", "--rounds=1", "--duration=2s"}, ""},
		{"no_rounds", []string{"--rounds=0"}, "--rounds"},
		{"odd_duration", []string{"--duration=1500ms"}, "--duration"},
		{"unknown_system", []string{"--systems=envoy"}, `"envoy"`},
		{"unknown_row", []string{"--rows=speed"}, `"speed"`},
		{"argument", []string{"now"}, `"now"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.args)
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParsers(t *testing.T) {
	if got, err := parseIperf([]byte(`{"end":{"sum_received":{"bits_per_second":6.5e10}}}`)); err != nil || got != 6.5e10 {
		t.Errorf("iperf3: %v, %v", got, err)
	}
	if _, err := parseIperf([]byte(`{"error":"unable to connect"}`)); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("iperf3's own error: %v", err)
	}
	wrkOut := []byte("Running 1s test\n  1 threads\n{\"requests\":200,\"microseconds\":1000000,\"p50\":75.0,\"p99\":120.5,\"errors\":0}\n")
	if got, err := parseWrk(wrkOut); err != nil || got != (wrkResult{Requests: 200, Microseconds: 1e6, P50: 75, P99: 120.5}) {
		t.Errorf("wrk: %+v, %v", got, err)
	}
	if _, err := parseWrk([]byte("unable to connect\n")); err == nil {
		t.Error("wrk without result was taken")
	}
	if got, err := parseStatus("Name:\tx\nVmRSS:\t    8192 kB\nRssAnon:\t    4096 kB\n"); err != nil || got != (memory{8 << 20, 4 << 20}) {
		t.Errorf("status: %+v, %v", got, err)
	}
	if _, err := parseStatus("Name:\tx\n"); err == nil {
		t.Error("status without figures was taken")
	}
	stat := "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 1 1 1"
	if got, err := parseStat(stat); err != nil || got != 2*time.Second {
		t.Errorf("stat: %v, %v", got, err)
	}
	metrics := `# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total{reporter="source",destination_service="a"} 40
istio_tcp_connections_opened_total{reporter="source",destination_service="b"} 2
istio_tcp_connections_opened_total{reporter="destination"} 7
istio_tcp_connections_opened_total_created{reporter="source"} 1e9
`
	if got := sumMetric(metrics, "istio_tcp_connections_opened_total", `reporter="source"`); got != 42 {
		t.Errorf("metric: %d, want 42", got)
	}
	log := filepath.Join(t.TempDir(), "log")
	text := "msg=\"connection complete\" direction=outbound\nmsg=\"connection complete\" direction=inbound\nmsg=ready\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := countLines(log, "connection complete", "direction=outbound"); err != nil || got != 1 {
		t.Errorf("log lines: %d, %v", got, err)
	}
}

func TestReport(t *testing.T) {
	r := &results{congestion: "reno", versions: map[string]string{"haproxy": "2.6"}, values: map[string]map[string][]float64{}}
	for range 3 {
		r.add("direct", figures{"throughput_1": 60})
	}
	for _, v := range []float64{10, 12, 11} {
		r.add("haproxy", figures{"throughput_1": v, "latency_1_p50": 100, "held_bytes": 30000})
	}
	for _, v := range []float64{22, 15, 16} {
		r.add("culvert", figures{"throughput_1": v, "latency_1_p50": 96, "held_bytes": 2500})
	}
	rep := r.report()
	got := map[string]string{}
	for _, w := range rep.Rows {
		got[w.Name] = fmt.Sprintf("%s %s %s %s %s", optional(w.Direct), optional(w.HAProxy), optional(w.Culvert), optional(w.Ratio), w.verdict())
	}
	want := map[string]string{
		"throughput_1":  "60.0 11.0 16.0 1.45 met",
		"latency_1_p50": "- 100 96.0 0.960 missed",
		"held_bytes":    "- 30000 2500 0.814 met",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	var missed *missedError
	if err := rep.verdict(); !errors.As(err, &missed) || len(missed.what) != 1 || !strings.HasPrefix(missed.what[0], "latency_1_p50 missed") {
		t.Errorf("verdict: %v", err)
	}
	rep.Unaccounted = []string{"culvert: 3 connections were made, the client's agent counted 2"}
	if err := rep.verdict(); !errors.As(err, &missed) || len(missed.what) != 2 {
		t.Errorf("verdict with lost connections: %v", err)
	}
	var table bytes.Buffer
	rep.table(&table)
	if !strings.Contains(table.String(), "missed") || !strings.Contains(table.String(), "≥ 1.40×") {
		t.Errorf("table:\n%s", table.String())
	}

	file := filepath.Join(t.TempDir(), "bench.json")
	if err := rep.write(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Machine           string
		CongestionControl string `json:"congestion_control"`
		Rows              []map[string]any
	}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Machine == "" || back.CongestionControl != "reno" || len(back.Rows) != 3 {
		t.Errorf("file: %s", text)
	}
	for _, key := range []string{"name", "unit", "direction", "against", "direct", "haproxy", "culvert", "ratio", "goal", "met"} {
		if _, ok := back.Rows[0][key]; !ok {
			t.Errorf("rows lack %q", key)
		}
	}
}

func TestGoalsNameEveryRow(t *testing.T) {
	names := map[string]bool{}
	for _, g := range goals() {
		names[g.name] = true
	}
	for _, want := range []string{
		"throughput_1", "throughput_8", "latency_1_p50", "latency_1_p99", "requests_32", "connections",
		"held_bytes", "idle_rss", "cpu_per_100k_requests",
	} {
		if !names[want] {
			t.Errorf("row %s is missing", want)
		}
	}
	for _, m := range measurements() {
		for _, row := range m.rows {
			if !names[row] {
				t.Errorf("measurement %s takes %s, which is no row", m.name, row)
			}
		}
	}
}

// freeAddr is an address on loopback that nobody listens on.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// startTool runs a server of the program until the end of the test.
func startTool(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	addr := freeAddr(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "tool", name, addr.String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestRateTool(t *testing.T) {
	addr := startTool(t, "rate-server")
	var out bytes.Buffer
	if err := rateClient([]string{"-clients=4", "-duration=100ms", addr.String()}, &out); err != nil {
		t.Fatal(err)
	}
	var r rateResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Connections == 0 || r.Failed != 0 || r.Seconds < 0.1 {
		t.Errorf("%+v, %v", r, err)
	}
	out.Reset()
	if err := rateClient([]string{"-clients=1", "-duration=20ms", freeAddr(t).String()}, &out); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Connections != 0 || r.Failed == 0 || !strings.Contains(r.Error, "connection refused") {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
}

func TestHoldTool(t *testing.T) {
	addr := startTool(t, "hold-server")
	var out bytes.Buffer
	if err := holdClient([]string{addr.String()}, strings.NewReader("10\n25\n"), &out); err != nil {
		t.Fatal(err)
	}
	var held []int
	for dec := json.NewDecoder(&out); ; {
		var r holdResult
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		held = append(held, r.Held)
	}
	if diff := cmp.Diff([]int{10, 25}, held); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	if err := holdClient([]string{freeAddr(t).String()}, strings.NewReader("1\n"), io.Discard); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestLoadIsCounted takes real figures and compares the connections that the program believes to have made with those
// that the kernel counted: the check of Culvert's counters and log rests on that number.
func TestLoadIsCounted(t *testing.T) {
	netnstest.Require(t)
	for _, program := range []string{"iperf3", "wrk", "nginx", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			netnstest.Unable(t, "needs "+program+" (make deps)")
		}
	}
	tests := []struct {
		name   string
		system system
		rows   []string
	}{
		{"direct", &direct{}, []string{"throughput_1", "throughput_8", "latency_1_p50", "requests_32", "connections"}},
		{"haproxy", &haproxy{}, []string{"idle_rss", "latency_1_p50", "requests_32", "connections"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			l, err := newLab(tt.name, "reno", "")
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(tt.system.stop(), l.close()); err != nil {
					t.Error(err)
				}
			}()
			if err := tt.system.start(ctx, l); err != nil {
				t.Fatal(err)
			}
			b := &bench{name: tt.name, system: tt.system, lab: l, duration: time.Second}
			o := &options{rows: tt.rows}
			for _, m := range measurements() {
				if !wants(o, m.rows) {
					continue
				}
				before, made := activeOpens(t, l), b.made
				got, err := m.take(ctx, b)
				if err != nil {
					t.Fatalf("%s: %v", m.name, err)
				}
				for row, v := range got {
					if v <= 0 && row != "cpu_per_100k_requests" {
						t.Errorf("%s is %v", row, v)
					}
				}
				if opened := activeOpens(t, l) - before; tt.name == "direct" && opened != b.made-made {
					t.Errorf("%s: %d connections counted, the kernel made %d", m.name, b.made-made, opened)
				}
			}
		})
	}
}

// activeOpens is how often a connect in the client's namespace was answered or tried so far.
func activeOpens(t *testing.T, l *lab) int {
	t.Helper()
	var text []byte
	err := l.client().Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "ActiveOpens" {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatal("the kernel does not say how many connections it made")
	return 0
}
