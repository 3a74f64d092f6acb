package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// eventually asks until there is no error, for as long as patience lasts.
func eventually(ctx context.Context, what string, ask func() error) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-timer.C:
			return fmt.Errorf("wait until %s: after %v: %w", what, patience, err)
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w: %w", what, ctx.Err(), err)
		}
	}
}

// wait is eventually that ends the test.
func wait(t *testing.T, what string, ask func() error) {
	t.Helper()
	if err := eventually(t.Context(), what, ask); err != nil {
		t.Fatal(err)
	}
}

// consistently asks for the given time and ends the test at the first error.
func consistently(t *testing.T, what string, during time.Duration, ask func() error) {
	t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
