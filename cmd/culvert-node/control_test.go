package main

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestRedial: an end that is gone, and refuses or says nothing, is followed by another attempt, until time is up.
func TestRedial(t *testing.T) {
	errRefused := errors.New("refused")
	for name, tt := range map[string]struct {
		silent, refused int           // attempts that nobody answers, then those that are refused
		answer          time.Duration // how long the next one takes
		took            time.Duration
		err             error
	}{
		"at once":             {},
		"refused once":        {refused: 1, took: 100 * time.Millisecond},
		"refused twice":       {refused: 2, took: 300 * time.Millisecond},
		"silent once":         {silent: 1, took: time.Second},
		"silent twice":        {silent: 2, took: 3 * time.Second},
		"silent, refused":     {silent: 1, refused: 1, took: 1100 * time.Millisecond},
		"slow":                {silent: 1, answer: 1500 * time.Millisecond, took: 2500 * time.Millisecond},
		"nobody answers":      {silent: 99, took: 5 * time.Second, err: context.DeadlineExceeded},
		"everybody refuses":   {refused: 99, took: 5 * time.Second, err: errRefused},
		"too late in the end": {silent: 2, answer: 3 * time.Second, took: 5 * time.Second, err: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				begin, attempts := time.Now(), 0
				conn, err := redial(ctx, func(ctx context.Context) (net.Conn, error) {
					attempts++
					wait := tt.answer
					switch {
					case attempts <= tt.silent:
						wait = time.Hour
					case attempts <= tt.silent+tt.refused:
						return nil, errRefused
					}
					select {
					case <-time.After(wait):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					conn, _ := net.Pipe()
					return conn, nil
				})
				if !errors.Is(err, tt.err) || (conn == nil) != (tt.err != nil) {
					t.Errorf("connection %v, error %v", conn, err)
				}
				if took := time.Since(begin); took != tt.took {
					t.Errorf("it took %s, want %s", took, tt.took)
				}
			})
		})
	}
}
