package launch

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is a standard error that nobody reads until it is open.
type pipe struct {
	open chan struct{}
	text strings.Builder
}

func (p *pipe) Write(b []byte) (int, error) {
	<-p.open
	return p.text.Write(b)
}

// TestUnreadLog: the container runtime reads a program's output. While it stands still the program goes on; what is lost
// meanwhile is told.
func TestUnreadLog(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		synctest.Test(t, func(t *testing.T) {
			to := &pipe{open: make(chan struct{})}
			q := newQueue(to, format)
			logger := slog.New(handler(q, format))
			for range 2 * waitingLines {
				logger.Warn("flood")
			}
			close(to.open)
			synctest.Wait()
			logger.Warn("last")
			q.close()
			text := to.text.String()
			if n := strings.Count(text, "flood"); n < waitingLines || n > waitingLines+1 {
				t.Errorf("%d lines of %d came through a queue of %d", n, 2*waitingLines, waitingLines)
			}
			for _, want := range []string{"lines of the log are missing", "last"} {
				if strings.Count(text, want) != 1 {
					t.Errorf("the log does not say %q once", want)
				}
			}
		})
	}
}

// TestNobodyReads: an output that nobody ever reads does not keep the program from its end.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &pipe{open: make(chan struct{})}
		q := newQueue(to, "text")
		slog.New(handler(q, "text")).Warn("unread")
		begin := time.Now()
		q.close()
		if waited := time.Since(begin); waited != lastLines {
			t.Errorf("the end waits %s, want %s", waited, lastLines)
		}
		close(to.open) // for the writer to end
	})
}
