package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

func TestParseScale(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // part of the error; empty for none
	}{
		{"defaults", nil, ""},
		{"some", []string{"--parts=held,fair", "--rounds=1", "--duration=1s"}, ""},
		{"unknown_part", []string{"--parts=speed"}, `"speed"`},
		{"attacks", []string{"--attacks=nothing,rapid_reset"}, ""},
		{"unknown_attack", []string{"--attacks=rapid_reset,words"}, `"words"`},
		{"no_rounds", []string{"--rounds=0"}, "--rounds"},
		{"odd_duration", []string{"--duration=1500ms"}, "--duration"},
		{"odd_tunnels", []string{"--tunnels=30"}, "--tunnels"},
		{"argument", []string{"now"}, `"now"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseScale(tt.args)
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestScaleVerdict(t *testing.T) {
	s := &scale{out: io.Discard}
	s.tell("seconds", "s", 1)
	s.atMost("ratio", "×", 1.2, 1.3)
	s.atLeast("held", "connections", 15000, 15000)
	s.table()
	if err := s.verdict(); err != nil {
		t.Error(err)
	}
	s.atMost("other_ratio", "×", 1.31, 1.3)
	s.atLeast("tunnels", "tunnels", 1999, 2000)
	s.broken("3 connections were lost")
	var missed *missedError
	if err := s.verdict(); !errors.As(err, &missed) || len(missed.what) != 3 {
		t.Errorf("got %v", err)
	}
}

func TestParseShares(t *testing.T) {
	m, err := parseShares([]byte(`{"bytes":[100000000,150000000],"seconds":2}`))
	if err != nil || m.bulk != 1 || math.Abs(m.worst-0.2) > 1e-9 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, text := range []string{"", "{}", `{"bytes":[1]}`} {
		if _, err := parseShares([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestPour pours into a sink on loopback.
func TestPour(t *testing.T) {
	addr := startTool(t, "sink")
	var out bytes.Buffer
	if err := pour([]string{"-streams=2", "-duration=100ms", addr.String()}, &out); err != nil {
		t.Fatal(err)
	}
	if m, err := parseShares(out.Bytes()); err != nil || m.bulk == 0 {
		t.Errorf("%s: %+v, %v", out.Bytes(), m, err)
	}
	if err := pour([]string{"-duration=10ms", freeAddr(t).String()}, &out); err == nil {
		t.Error("there was nobody, and no error")
	}
}

func TestComplaints(t *testing.T) {
	c := &culvert{lab: &lab{pair: &topology.Pair{}, dir: t.TempDir()}}
	text := `time=1 level=WARN msg="accepting connections pauses" scope=proxy error="too many open files"
time=2 level=WARN msg="connections are refused: no descriptors are left" scope=proxy
time=3 level=WARN msg="accepting connections pauses" scope=proxy error="too many open files"
time=4 level=WARN msg="connection failed" scope=access error="too many open files"
time=5 level=INFO msg="something else" scope=proxy
`
	if err := os.WriteFile(filepath.Join(c.lab.dir, "culvert-client.log"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, repeated, err := c.complaints(0); err != nil || lines != 3 || repeated != 1 {
		t.Errorf("%d lines, %d repeated, %v", lines, repeated, err)
	}
}

// TestLimited runs a program that may have few descriptors.
func TestLimited(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	out, err := exec.Command(exe, "tool", "limited", "321", shell, "-c", "ulimit -n").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "321" {
		t.Errorf("%q, %v", out, err)
	}
	for _, args := range [][]string{{"321"}, {"many", shell}} {
		if err := limited(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}

// TestTypical: what happens in one stretch is left out, what happens in each of them at the same time counts, also where
// nothing was answered meanwhile.
func TestTypical(t *testing.T) {
	began := time.Now()
	r := &raid{length: time.Second}
	ask := func(n int, slow func(stretch int, at time.Duration) time.Duration) {
		for i := range n {
			from := began.Add(time.Duration(i) * time.Minute)
			r.alone = append(r.alone, from)
			for at := time.Duration(0); at < r.length; {
				took := time.Millisecond + slow(i, at)
				r.beats = append(r.beats, beat{from.Add(at), took})
				at += max(pulseInterval, took)
			}
		}
		r.beats = withUnasked(r.beats)
	}
	for name, tc := range map[string]struct {
		slow func(stretch int, at time.Duration) time.Duration
		want bool // whether it is seen
	}{
		"never": {func(int, time.Duration) time.Duration { return 0 }, false},
		"each_time_elsewhere": {func(i int, at time.Duration) time.Duration {
			if at/raidPart == time.Duration(i) {
				return 4 * time.Millisecond
			}
			return 0
		}, false},
		"in_two_of_five": {func(i int, at time.Duration) time.Duration {
			if i < 2 && at < raidPart {
				return 4 * time.Millisecond
			}
			return 0
		}, false},
		"in_three_of_five": {func(i int, at time.Duration) time.Duration {
			if i < 3 && at < raidPart {
				return 4 * time.Millisecond
			}
			return 0
		}, true},
		"one_answer_that_lasts": {func(_ int, at time.Duration) time.Duration {
			if at == 100*time.Millisecond {
				return 100 * time.Millisecond
			}
			return 0
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r.alone, r.beats = nil, nil
			ask(5, tc.slow)
			all := r.typical(r.alone)
			if got := p99(all) > time.Millisecond; len(all) < 200 || got != tc.want {
				t.Errorf("p99 of %d answers is %v", len(all), p99(all))
			}
		})
	}
}
