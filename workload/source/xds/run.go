package xds

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	initialBackoff = 10 * time.Millisecond
	maxBackoff     = 15 * time.Second
	// shortLife is when a stream that ended well is still not reconnected at once:
	// a server which ends each stream after its first message would be asked for
	// everything again and again.
	shortLife = time.Second
)

// Reasons of a stream's end, as metrics call them.
const (
	connectionError = "ConnectionError"
	failure         = "Error"
	reconnect       = "Reconnect"
	complete        = "Complete"
)

// end is how one attempt ended.
type end struct {
	err error
	// established says that the server had answered.
	established bool
	lived       time.Duration
}

// Run connects, and again whenever the stream ends, until ctx ends. It always
// returns nil: a server that is away is no reason to stop.
func (c *Client) Run(ctx context.Context) error {
	backoff := initialBackoff
	for {
		e := c.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.noteEnd(e.err)
		var reason string
		var pause time.Duration
		reason, pause, backoff = e.next(backoff)
		c.cfg.Observer.Terminated(reason)
		if reason == reconnect {
			c.cfg.Logger.Debug("xds stream ended", "reason", reason, "error", e.err, "retry_in", pause)
		} else {
			c.cfg.Logger.Warn("xds stream ended", "reason", reason, "error", e.err, "retry_in", pause)
		}
		if pause > 0 {
			c.cfg.Sleep(ctx, pause)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// next decides what to do after an attempt: the pause, and the backoff to go on
// with. Backoff doubles while the server cannot be reached or refuses, and starts
// anew when a stream ended in a way that servers end streams.
func (e end) next(backoff time.Duration) (reason string, pause, after time.Duration) {
	doubled := min(maxBackoff, 2*backoff)
	switch {
	case !e.established:
		return connectionError, doubled, doubled
	case e.err == nil || errors.Is(e.err, io.EOF):
		reason = complete
	case isRoutine(e.err):
		return reconnect, initialBackoff, initialBackoff
	case isStatus(e.err):
		return failure, doubled, doubled
	default:
		reason = failure
	}
	if e.lived < shortLife {
		return reason, doubled, doubled
	}
	return reason, 0, initialBackoff
}

func isStatus(err error) bool {
	_, ok := status.FromError(err)
	return ok
}

// isRoutine tells the ends that belong to a server's life (maximum age of a
// connection, a rollout) from those that mean trouble.
func isRoutine(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		// The reference's two texts, and how gRPC for Go words a connection that
		// was closed or lost under the stream.
		for _, text := range []string{
			"transport is closing", "received prior goaway", "error reading from server", "closing transport due to",
		} {
			if strings.Contains(s.Message(), text) {
				return true
			}
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
