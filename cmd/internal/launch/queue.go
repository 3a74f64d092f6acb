package launch

import (
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// waitingLines is how many lines of the log wait for whoever reads it.
	waitingLines = 1024
	// lastLines is how long the end of the program waits for them.
	lastLines = time.Second
)

// queue is a writer of lines that never blocks: where the container runtime, which reads a program's output, stands still,
// the program goes on. What finds the queue full is dropped and counted. Write may be called concurrently, also after close.
type queue struct {
	to      io.Writer
	direct  *slog.Logger // to the same
	lines   chan []byte
	stop    chan struct{}
	stopped chan struct{}
	dropped atomic.Uint64
}

// newQueue returns a queue for lines of a format.
func newQueue(to io.Writer, format string) *queue {
	q := &queue{
		to: to, direct: slog.New(handler(to, format)),
		lines: make(chan []byte, waitingLines), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go q.run()
	return q
}

// Write implements io.Writer. It keeps nothing of line.
func (q *queue) Write(line []byte) (int, error) {
	select {
	case q.lines <- slices.Clone(line):
	default:
		q.dropped.Add(1)
	}
	return len(line), nil
}

func (q *queue) run() {
	defer close(q.stopped)
	for {
		select {
		case line := <-q.lines:
			q.write(line)
		case <-q.stop:
			for {
				select {
				case line := <-q.lines:
					q.write(line)
				default:
					return
				}
			}
		}
	}
}

func (q *queue) write(line []byte) {
	_, _ = q.to.Write(line)
	if dropped := q.dropped.Swap(0); dropped > 0 {
		q.direct.Warn("lines of the log are missing: nobody read it for a while", "lines", dropped)
	}
}

// close writes what waits, within lastLines. It must be called once.
func (q *queue) close() {
	close(q.stop)
	timer := time.NewTimer(lastLines)
	defer timer.Stop()
	select {
	case <-q.stopped:
	case <-timer.C:
	}
}
