package loop

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by a loop that has stopped.
var ErrClosed = errors.New("loop is closed")

// Flusher is called once at the end of the batch of events in which it was given to Loop.FlushLater, at the latest.
type Flusher interface{ Flush() }

// Runner is called again in the next round although no event came; see Loop.RunLater.
type Runner interface{ Run() }

const (
	maxEvents = 256
	// rawWait is how long a wait for events may keep the scheduler's processor: a raw system call costs a fifth less per
	// request than an ordinary one, but the garbage collector has to wait for it.
	rawWait = 2 * time.Millisecond
	// ReadBuffer is the size of Loop.Buffer.
	ReadBuffer = 256 << 10
)

// Stats are counters of one loop since it started, for metrics.
type Stats struct {
	Wakeups, Events, Posts uint64
	Sockets                int64
}

// Loop is one event loop. Make it with New, run it with Run.
type Loop struct {
	// Buffer is scratch space for reading, valid until the function that the loop called returns. On the loop.
	Buffer []byte

	epoll, event int
	now          int64 // nanoseconds since start, taken once a round
	start        time.Time
	slots        []slot
	flush        []Flusher
	runners      []Runner
	spareRunners []Runner
	timers       timerHeap
	buffers      bufferPool
	events       [maxEvents]unix.EpollEvent

	mu     sync.Mutex
	queue  []func()
	spare  []func()
	closed bool

	sleeping atomic.Bool
	stop     atomic.Bool
	done     chan struct{}

	wakeups, seen, posts atomic.Uint64
	sockets              atomic.Int64
}

// slot is who owns a descriptor. The generation tells a late event of a descriptor's former owner from the new one's.
type slot struct {
	fd  *FD
	gen uint32
}

// New makes a loop that does nothing until Run.
func New() (*Loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | epollET, Fd: int32(event)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &ev); err != nil {
		_ = unix.Close(epoll)
		_ = unix.Close(event)
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	l := &Loop{epoll: epoll, event: event, start: time.Now(), done: make(chan struct{}), Buffer: make([]byte, ReadBuffer)}
	return l, nil
}

// Run serves the loop on the calling goroutine, which it locks to its thread, until Close. It returns after the last
// posted function has run; sockets that are still attached are closed.
func (l *Loop) Run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	wait := time.Duration(0)
	for !l.stop.Load() {
		n := l.wait(wait)
		l.tick()
		l.dispatch(n)
		l.runQueue()
		l.runRunners()
		l.timers.fire(l.now)
		l.runFlush()
		wait = l.idle()
	}
	l.shutdown()
}

func (l *Loop) tick() { l.now = int64(time.Since(l.start)) }

// Now returns the nanoseconds since the loop was made, as of this round. On the loop.
func (l *Loop) Now() int64 { return l.now }

// idle says how long the loop may sleep: 0 when work is waiting, negative for ever.
func (l *Loop) idle() time.Duration {
	if len(l.runners) > 0 || len(l.flush) > 0 {
		return 0
	}
	if when, ok := l.timers.next(); ok {
		return max(0, time.Duration(when-l.now))
	}
	return -1
}

// wait returns the number of events. A short raw wait comes first; only when nothing came does the thread give its
// processor away for the rest of the time.
func (l *Loop) wait(d time.Duration) int {
	if d == 0 {
		return l.epollWait(0, true)
	}
	l.sleeping.Store(true)
	defer l.sleeping.Store(false)
	l.mu.Lock()
	pending := len(l.queue) > 0
	l.mu.Unlock()
	if pending || l.stop.Load() {
		return l.epollWait(0, true)
	}
	first := rawWait
	if d > 0 && d < first {
		first = d
	}
	if n := l.epollWait(ceilMillis(first), true); n > 0 || first == d {
		return n
	}
	l.buffers.rest()
	if d > 0 {
		return l.epollWait(ceilMillis(d-first), false)
	}
	return l.epollWait(-1, false)
}

func ceilMillis(d time.Duration) int { return int((d + time.Millisecond - 1) / time.Millisecond) }

func (l *Loop) dispatch(n int) {
	if n > 0 {
		l.wakeups.Add(1)
		l.seen.Add(uint64(n))
	}
	for i := range n {
		ev := &l.events[i]
		if ev.Fd == int32(l.event) {
			var b [8]byte
			_, _ = rawRead(l.event, b[:])
			continue
		}
		if int(ev.Fd) >= len(l.slots) {
			continue
		}
		if s := l.slots[ev.Fd]; s.fd != nil && s.gen == uint32(ev.Pad) {
			s.fd.handler.Event(Events(ev.Events))
			l.flushMany()
		}
	}
}

func (l *Loop) runQueue() {
	l.mu.Lock()
	queue := l.queue
	l.queue = l.spare[:0]
	l.mu.Unlock()
	for i, f := range queue {
		f()
		queue[i] = nil
	}
	l.spare = queue
}

func (l *Loop) runRunners() {
	runners := l.runners
	l.runners = l.spareRunners[:0]
	for i, r := range runners {
		r.Run()
		runners[i] = nil
		l.flushMany()
	}
	l.spareRunners = runners
}

func (l *Loop) runFlush() {
	for i := 0; i < len(l.flush); i++ {
		l.flush[i].Flush()
		l.flush[i] = nil
	}
	l.flush = l.flush[:0]
}

// flushMany ends a batch early that concerns so many flushers that their buffers would take much memory.
func (l *Loop) flushMany() {
	if len(l.flush) >= keepBusy {
		l.runFlush()
	}
}

// FlushLater has f.Flush called when this batch of events is done, or when it has become large. The caller takes care not
// to ask twice. On the loop.
func (l *Loop) FlushLater(f Flusher) { l.flush = append(l.flush, f) }

// RunLater has r.Run called in the next round, after the events that are waiting. On the loop.
func (l *Loop) RunLater(r Runner) { l.runners = append(l.runners, r) }

// Post has f called on the loop, in order of posting. It never blocks and may be called from anywhere. It reports false
// when the loop has stopped; f is not called then.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, f)
	l.mu.Unlock()
	l.posts.Add(1)
	if l.sleeping.Swap(false) {
		l.wake()
	}
	return true
}

func (l *Loop) wake() {
	one := [8]byte{1}
	_, _ = rawWrite(l.event, one[:])
}

// Close stops the loop and waits until Run has returned. It must not be called on the loop.
func (l *Loop) Close() {
	l.stop.Store(true)
	l.wake()
	<-l.done
}

func (l *Loop) shutdown() {
	for {
		l.runQueue()
		l.runFlush()
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.closed = true
			l.mu.Unlock()
			break
		}
		l.mu.Unlock()
	}
	for i := range l.slots {
		if fd := l.slots[i].fd; fd != nil {
			fd.Close()
		}
	}
	_ = unix.Close(l.epoll)
	_ = unix.Close(l.event)
}

// Stats returns the loop's counters. It may be called from anywhere.
func (l *Loop) Stats() Stats {
	return Stats{Wakeups: l.wakeups.Load(), Events: l.seen.Load(), Posts: l.posts.Load(), Sockets: l.sockets.Load()}
}
