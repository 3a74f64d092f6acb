package xds

import (
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestNext(t *testing.T) {
	const ms = time.Millisecond
	long := time.Hour
	tests := []struct {
		name          string
		end           end
		backoff       time.Duration
		reason        string
		pause, wantBO time.Duration
	}{
		{"not-established", end{err: errors.New("refused")}, 10 * ms, connectionError, 20 * ms, 20 * ms},
		{"not-established-at-the-limit", end{err: errors.New("refused")}, 15 * time.Second, connectionError, 15 * time.Second, 15 * time.Second},
		{"routine-status-before-an-answer", end{err: status.Error(codes.Unknown, "x")}, 10 * ms, connectionError, 20 * ms, 20 * ms},
		{"unknown", end{status.Error(codes.Unknown, "x"), true, long}, time.Second, reconnect, 10 * ms, 10 * ms},
		{"cancelled", end{status.Error(codes.Canceled, "x"), true, long}, time.Second, reconnect, 10 * ms, 10 * ms},
		{"deadline", end{status.Error(codes.DeadlineExceeded, "x"), true, long}, time.Second, reconnect, 10 * ms, 10 * ms},
		{"closing", end{status.Error(codes.Unavailable, "the transport is closing now"), true, 0}, time.Second, reconnect, 10 * ms, 10 * ms},
		{"goaway", end{status.Error(codes.Unavailable, "received prior goaway: code"), true, 0}, time.Second, reconnect, 10 * ms, 10 * ms},
		{"unavailable", end{status.Error(codes.Unavailable, "x"), true, long}, time.Second, failure, 2 * time.Second, 2 * time.Second},
		{"other-status", end{status.Error(codes.PermissionDenied, "x"), true, long}, time.Second, failure, 2 * time.Second, 2 * time.Second},
		{"clean", end{io.EOF, true, long}, time.Second, complete, 0, 10 * ms},
		{"clean-but-short", end{io.EOF, true, ms}, time.Second, complete, 2 * time.Second, 2 * time.Second},
		{"no-status", end{errors.New("x"), true, long}, time.Second, failure, 0, 10 * ms},
		{"no-status-and-short", end{errors.New("x"), true, ms}, time.Second, failure, 2 * time.Second, 2 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reason, pause, backoff := tt.end.next(tt.backoff)
			if reason != tt.reason || pause != tt.pause || backoff != tt.wantBO {
				t.Errorf("next = %s, %v, %v; want %s, %v, %v", reason, pause, backoff, tt.reason, tt.pause, tt.wantBO)
			}
		})
	}
}
