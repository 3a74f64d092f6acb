package xds_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// pauses is a Sleep that records and does not wait for long.
func pauses(n int) (chan time.Duration, func(context.Context, time.Duration)) {
	c := make(chan time.Duration, n)
	return c, func(ctx context.Context, d time.Duration) {
		select {
		case c <- d:
		case <-ctx.Done():
		}
	}
}

func take(t *testing.T, c chan time.Duration, n int) []time.Duration {
	t.Helper()
	var out []time.Duration
	for range n {
		select {
		case d := <-c:
			out = append(out, d)
		case <-time.After(patience):
			t.Fatalf("no pause after %v", out)
		}
	}
	return out
}

// TestBackoffUnreachable: pauses double from 20 ms to 15 s while nobody answers.
func TestBackoffUnreachable(t *testing.T) {
	s := startServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	got, sleep := pauses(0)
	r := start(t, s, xds.Config{Address: l.Addr().String(), Sleep: sleep})
	const ms = time.Millisecond
	want := []time.Duration{20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, 1280 * ms, 2560 * ms, 5120 * ms, 10240 * ms, 15000 * ms, 15000 * ms}
	if pauses := take(t, got, len(want)); !slices.Equal(pauses, want) {
		t.Errorf("pauses are %v, want %v", pauses, want)
	}
	r.stop()
	for _, reason := range r.observed.ends {
		if reason != "ConnectionError" {
			t.Errorf("reason is %q, want ConnectionError", reason)
		}
	}
}

// TestBackoffByEnd: how a stream ended decides about the pause.
func TestBackoffByEnd(t *testing.T) {
	s := startServer(t)
	got, sleep := pauses(0)
	r := start(t, s, xds.Config{Sleep: sleep})
	var reasons []string
	for _, step := range []struct {
		err    error
		early  bool // before anything was sent
		reason string
		want   time.Duration
	}{
		{status.Error(codes.Unauthenticated, "no"), true, "ConnectionError", 20 * time.Millisecond},
		{status.Error(codes.Internal, "no"), false, "Error", 40 * time.Millisecond},
		{status.Error(codes.Unavailable, "no"), false, "Error", 80 * time.Millisecond},
		{nil, true, "ConnectionError", 160 * time.Millisecond},
		{status.Error(codes.Unknown, "rollout"), false, "Reconnect", 10 * time.Millisecond},
		{status.Error(codes.Internal, "no"), false, "Error", 20 * time.Millisecond},
		{status.Error(codes.Unavailable, "transport is closing"), false, "Reconnect", 10 * time.Millisecond},
		{nil, false, "Complete", 20 * time.Millisecond}, // a clean end, but of a short life
	} {
		a := s.accept(t)
		if !step.early {
			a.request()
			a.request()
			a.send(addresses("n", nil))
		}
		a.end <- step.err
		if pause := take(t, got, 1)[0]; pause != step.want {
			t.Errorf("after %v (early %v) the pause is %v, want %v", step.err, step.early, pause, step.want)
		}
		reasons = append(reasons, step.reason)
	}
	r.stop()
	if ends := r.observed.ends; !slices.Equal(ends[:len(reasons)], reasons) {
		t.Errorf("reasons are %v, want %v", ends, reasons)
	}
}

// TestBackoffServerGone: a server that closes the connection under a stream is
// routine.
func TestBackoffServerGone(t *testing.T) {
	s := startServer(t)
	got, sleep := pauses(0)
	start(t, s, xds.Config{Sleep: sleep})
	a, _, _ := s.subscribed(t)
	a.send(addresses("n", nil))
	s.grpc.Stop()
	if pauses := take(t, got, 2); !slices.Equal(pauses, []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}) {
		t.Errorf("pauses are %v, want 10ms, then 20ms", pauses)
	}
}

// TestStopWhileWaiting: Run ends at once in each state.
func TestStopWhileWaiting(t *testing.T) {
	s := startServer(t)
	connected := start(t, s, xds.Config{})
	s.subscribed(t)
	hanging := start(t, s, xds.Config{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	pausing := start(t, s, xds.Config{Address: "127.0.0.1:1", Sleep: func(ctx context.Context, _ time.Duration) { <-ctx.Done() }})
	for name, r := range map[string]*running{"connected": connected, "hanging": hanging, "pausing": pausing} {
		begin := time.Now()
		r.stop()
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("%s: stopping took %v", name, took)
		}
	}
}
