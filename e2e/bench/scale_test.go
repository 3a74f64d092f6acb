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
