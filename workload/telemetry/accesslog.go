package telemetry

import (
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// batchLines and batchBytes end a batch, which is one write.
	batchLines = 64
	batchBytes = 64 << 10
	// linger is how long the writer rests when it has caught up. A line that comes
	// meanwhile waits that long, and costs whoever logs it no wake-up.
	linger = 10 * time.Millisecond
)

// accessLog writes lines from one goroutine. Whoever logs hands over a finished
// connection and goes on; lines are made by the writer.
type accessLog struct {
	out    io.Writer
	format Format
	level  slog.Leveler

	queue   chan entry
	stop    chan struct{} // closed by close
	stopped chan struct{} // closed by the writer when it has ended
	once    sync.Once
	ended   atomic.Bool
	dropped atomic.Uint64
}

// entry is one line to be written: a line that is made already, or a connection.
type entry struct {
	connection *Connection
	line       []byte
	at         time.Time
	level      slog.Level
	message    string
}

func newAccessLog(cfg Config) *accessLog {
	a := &accessLog{
		out: cfg.AccessLog, format: cfg.AccessFormat, level: cfg.AccessLevel,
		queue: make(chan entry, cfg.AccessQueue), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go a.run()
	return a
}

// opened logs the beginning of a connection. It is at DEBUG, so the line is made
// at once: the connection goes on changing.
func (a *accessLog) opened(c *Connection) {
	if slog.LevelDebug < a.level.Level() {
		return
	}
	e := entry{connection: c, at: time.Now(), level: slog.LevelDebug, message: "connection opened"}
	a.enqueue(entry{line: a.append(nil, e)})
}

// closed logs the end of a connection, which does not change any more.
func (a *accessLog) closed(c *Connection) {
	level := slog.LevelInfo
	if c.failed() {
		level = slog.LevelError
	}
	a.log(c, level, "connection complete")
}

// refused logs a connection that did not come to be one.
func (a *accessLog) refused(c *Connection) { a.log(c, slog.LevelWarn, "connection failed") }

func (a *accessLog) log(c *Connection, level slog.Level, message string) {
	if level >= a.level.Level() {
		a.enqueue(entry{connection: c, at: time.Now(), level: level, message: message})
	}
}

// enqueue never blocks; at the limit the line is dropped.
func (a *accessLog) enqueue(e entry) {
	if !a.ended.Load() {
		select {
		case a.queue <- e:
			return
		default:
		}
	}
	a.dropped.Add(1)
}

// run writes lines until it is stopped, then those that still wait.
func (a *accessLog) run() {
	defer close(a.stopped)
	buf := make([]byte, 0, 4096)
	rest := time.NewTimer(0)
	defer rest.Stop()
	<-rest.C
	for {
		select {
		case e := <-a.queue:
			if buf = a.batch(buf[:0], e); len(a.queue) > 0 {
				continue
			}
			rest.Reset(linger)
			select {
			case <-rest.C:
			case <-a.stop:
			}
		case <-a.stop:
			for {
				select {
				case e := <-a.queue:
					buf = a.batch(buf[:0], e)
				default:
					return
				}
			}
		}
	}
}

// batch makes lines of the entry and those that wait behind it and writes them at
// once. It returns the buffer for the next batch.
func (a *accessLog) batch(buf []byte, e entry) []byte {
	lines := 0
	for {
		buf = a.append(buf, e)
		lines++
		if lines == batchLines || len(buf) >= batchBytes {
			break
		}
		select {
		case e = <-a.queue:
			continue
		default:
		}
		break
	}
	if _, err := a.out.Write(buf); err != nil {
		a.dropped.Add(uint64(lines))
	}
	return buf
}

// errFlush is returned by Close when the log's reader does not take the lines.
var errFlush = errors.New("flush access log: timed out")

func (a *accessLog) close(patience time.Duration) error {
	a.once.Do(func() {
		a.ended.Store(true)
		close(a.stop)
	})
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-a.stopped:
		return nil
	case <-t.C:
		return errFlush
	}
}

// append makes the line of an entry.
func (a *accessLog) append(buf []byte, e entry) []byte {
	if e.line != nil {
		return append(buf, e.line...)
	}
	l := line{buf: buf, json: a.format == JSON}
	l.begin(e.at, e.level, e.message)
	if e.level == slog.LevelWarn {
		l.refusal(e.connection)
	} else {
		l.connection(e)
	}
	return l.end()
}
