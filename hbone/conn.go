package hbone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// Conn is one stream as a connection. It behaves as net.Conn says and keeps half-close: CloseWrite ends the sending
// direction only, and io.EOF means that the peer did so. A stream that was reset fails with the *tunnel.ResetError.
type Conn struct {
	// Request is what opened the stream.
	Request Request
	// Baggage is what the server said about the destination; on the dialling side only.
	Baggage string

	t      *tunnel.Tunnel
	stream *tunnel.Stream // on the loop

	readDeadline, writeDeadline deadline

	mu       sync.Mutex
	received []byte
	readErr  error // io.EOF, or what ended the stream
	lost     error // what ended the stream for both directions
	closed   bool
	readable chan struct{} // closed when the fields above change; replaced by who waits

	writing  sync.Mutex   // one Write at a time
	finished bool         // guarded by writing: CloseWrite was called
	out      []byte       // on the loop: what the Write in progress has not sent
	outDone  chan error   // on the loop
	answered chan *answer // dialling side
}

type answer struct {
	head *h2.Header
	err  error
}

func newConn(t *tunnel.Tunnel, r Request) *Conn {
	return &Conn{t: t, Request: r, readable: make(chan struct{}), readDeadline: newDeadline(), writeDeadline: newDeadline(), answered: make(chan *answer, 1)}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, net.ErrClosed
		case c.readDeadline.over():
			c.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(c.received) > 0:
			n := copy(p, c.received)
			if c.received = c.received[n:]; len(c.received) == 0 {
				c.received = nil
			}
			c.mu.Unlock()
			c.t.Post(func() { c.stream.Drained(n) })
			return n, nil
		case c.readErr != nil:
			defer c.mu.Unlock()
			return 0, c.readErr
		case len(p) == 0:
			c.mu.Unlock()
			return 0, nil
		}
		changed := c.readable
		c.mu.Unlock()
		select {
		case <-changed:
		case <-c.readDeadline.wait():
		}
	}
}

// changedLocked wakes readers.
func (c *Conn) changedLocked() {
	close(c.readable)
	c.readable = make(chan struct{})
}

// Write implements net.Conn. It returns when the tunnel has taken all of p, which is copied.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writable(); err != nil || len(p) == 0 {
		return 0, err
	}
	if c.finished {
		return 0, io.ErrClosedPipe
	}
	done := make(chan error, 1)
	if !c.t.Post(func() { c.out, c.outDone = p, done; c.pump() }) {
		return 0, net.ErrClosed
	}
	select {
	case err := <-done:
		if err == nil {
			return len(p), nil
		}
		return 0, err
	case <-c.writeDeadline.wait():
	}
	left := make(chan int, 1)
	if c.t.Post(func() { left <- len(c.out); c.out, c.outDone = nil, nil }) {
		return len(p) - <-left, os.ErrDeadlineExceeded
	}
	return 0, net.ErrClosed
}

func (c *Conn) writable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.lost != nil:
		return c.lost
	case c.writeDeadline.over():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// pump sends what the Write in progress has left. On the loop.
func (c *Conn) pump() {
	if c.outDone == nil {
		return
	}
	if c.stream.Gone() {
		c.endWrite(io.ErrClosedPipe)
		return
	}
	if c.out = c.out[c.stream.Write(c.out):]; len(c.out) == 0 {
		c.endWrite(nil)
	}
}

func (c *Conn) endWrite(err error) {
	if c.outDone != nil {
		c.outDone <- err
		c.out, c.outDone = nil, nil
	}
}

// CloseWrite ends the sending direction; the peer reads io.EOF behind what was written. Writing
// fails with io.ErrClosedPipe from then on.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writable(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	c.finished = true
	c.t.Post(func() { c.stream.End() })
	return nil
}

// Close implements net.Conn: it ends the sending direction, and tells the peer that nothing is read any more.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.received = nil
	c.changedLocked()
	c.mu.Unlock()
	c.t.Post(func() {
		c.endWrite(net.ErrClosed)
		c.stream.End()
		c.stream.Reset(h2.Cancel)
	})
	return nil
}

// Abort ends the stream so that the other application sees a reset.
func (c *Conn) Abort() {
	c.mu.Lock()
	c.closed = true
	c.changedLocked()
	c.mu.Unlock()
	c.t.Post(func() {
		c.endWrite(net.ErrClosed)
		c.stream.Reset(h2.ConnectError)
	})
}

// LocalAddr implements net.Conn: the tunnel's own end.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.t.Local) }

// RemoteAddr implements net.Conn: the tunnel's other end.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.t.Remote) }

// Tunnel returns the tunnel that carries the stream.
func (c *Conn) Tunnel() *tunnel.Tunnel { return c.t }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { c.readDeadline.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.writeDeadline.set(t); return nil }

// handler is Conn as its stream sees it.
type handler Conn

// Response implements tunnel.Handler.
func (h *handler) Response(head *h2.Header, end bool) {
	if end {
		h.ended(io.EOF)
	}
	h.answered <- &answer{head: head}
}

// Data implements tunnel.Handler.
func (h *handler) Data(p []byte, end bool) {
	c := (*Conn)(h)
	c.mu.Lock()
	if !c.closed {
		c.received = append(c.received, p...)
	}
	c.changedLocked()
	c.mu.Unlock()
	if end {
		h.ended(io.EOF)
	}
}

// DataDone implements tunnel.Handler.
func (h *handler) DataDone() {}

// Writable implements tunnel.Handler.
func (h *handler) Writable() { (*Conn)(h).pump() }

// Closed implements tunnel.Handler.
func (h *handler) Closed(err error) {
	c := (*Conn)(h)
	c.mu.Lock()
	c.lost = fmt.Errorf("stream: %w", err)
	c.mu.Unlock()
	var reset *tunnel.ResetError
	if errors.As(err, &reset) && reset.Fault == "" && (reset.Code == h2.Cancel || reset.Code == h2.NoError) {
		h.ended(io.EOF)
	} else {
		h.ended(fmt.Errorf("stream: %w", err))
	}
	c.endWrite(fmt.Errorf("stream: %w", err))
	select {
	case c.answered <- &answer{err: err}:
	default:
	}
}

func (h *handler) ended(err error) {
	c := (*Conn)(h)
	c.mu.Lock()
	if c.readErr == nil {
		c.readErr = err
	}
	c.changedLocked()
	c.mu.Unlock()
}

// deadline is a moment that may be moved.
type deadline struct{ *deadlineState }

type deadlineState struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

func newDeadline() deadline { return deadline{&deadlineState{done: make(chan struct{})}} }

func (d deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // it has fired, or is about to
	}
	d.timer = nil
	select {
	case <-d.done:
		d.done = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	done := d.done
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}

func (d deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

func (d deadline) over() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}
