package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// patience is how long one read or write may take: longer than any disturbance, so that what exceeds it has stalled.
const patience = 60 * time.Second

// corruption is content that differs from what the other end has sent.
type corruption struct{ what string }

func (c *corruption) Error() string { return c.what }

// exchange is one end of a connection on its way through its script.
type exchange struct {
	conn   *net.TCPConn
	client bool
	hurry  <-chan struct{} // closed when pauses are to end early; nil for never
	peer   instance        // the server, for a client that has been greeted

	out, in                  pattern
	sentOffset, readOffset   uint64 // in the patterns
	sent, received           int64  // all bytes, those of header and greeting too
	sentFin, readFin, silent bool   // silent: the greeting has not been read
	buffer                   []byte
}

const chunk = 64 << 10

// newExchange is an end of a connection whose header has been exchanged.
func newExchange(conn *net.TCPConn, h header, client bool) *exchange {
	up, down := pattern{h.seed ^ 0xa5a5a5a5a5a5a5a5}, pattern{h.seed*31 + 7}
	x := &exchange{conn: conn, client: client, peer: nobody(), out: up, in: down, silent: client, buffer: make([]byte, chunk)}
	if !client {
		x.out, x.in = down, up
	}
	return x
}

// run goes through the script and ends the connection in order.
func (x *exchange) run(steps []step) error {
	for i, s := range steps {
		if err := x.step(s); err != nil {
			return fmt.Errorf("step %d of %d: %w", i+1, len(steps), err)
		}
	}
	return x.finish()
}

func (x *exchange) step(s step) error {
	mine, theirs, finMine, finTheirs := s.up, s.down, s.finUp, s.finDown
	if !x.client {
		mine, theirs, finMine, finTheirs = theirs, mine, finTheirs, finMine
	}
	if s.both {
		return x.both(mine, theirs)
	}
	clientBegins := s.up > 0 || s.finUp
	if x.client {
		if clientBegins {
			x.pause(s.pause)
		}
		if err := x.send(mine, finMine); err != nil {
			return err
		}
		return x.receive(theirs, finTheirs, s.pause)
	}
	if err := x.receive(theirs, finTheirs, s.pause); err != nil {
		return err
	}
	if !clientBegins {
		x.pause(s.pause)
	}
	return x.send(mine, finMine)
}

// both sends and receives at once.
func (x *exchange) both(mine, theirs int) error {
	sent := make(chan error, 1)
	buffer := x.buffer
	x.buffer = make([]byte, chunk) // the sender's, and that of later steps
	go func() { sent <- x.send(mine, false) }()
	err := x.receiveInto(buffer, theirs, false, 0)
	if err != nil {
		_ = x.conn.SetWriteDeadline(time.Unix(1, 0)) // a sender that nobody reads from any more need not wait
	}
	return errors.Join(err, <-sent)
}

// pause waits, until hurry at most.
func (x *exchange) pause(d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-x.hurry:
	}
}

// write sends bytes that are not of the pattern.
func (x *exchange) write(b []byte) error {
	_ = x.conn.SetWriteDeadline(time.Now().Add(patience))
	n, err := x.conn.Write(b)
	x.sent += int64(n)
	return err
}

func (x *exchange) send(n int, fin bool) error {
	for n > 0 {
		b := x.buffer[:min(n, chunk)]
		x.out.fill(b, x.sentOffset)
		if err := x.write(b); err != nil {
			return err
		}
		x.sentOffset += uint64(len(b))
		n -= len(b)
	}
	if fin {
		x.sentFin = true
		return x.conn.CloseWrite()
	}
	return nil
}

// greeted reads the server's greeting, once.
func (x *exchange) greeted() error {
	if !x.silent {
		return nil
	}
	b := make([]byte, greetingSize)
	_ = x.conn.SetReadDeadline(time.Now().Add(patience))
	n, err := io.ReadFull(x.conn, b)
	x.received += int64(n)
	if err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if x.peer, err = decodeGreeting(b); err != nil {
		return &corruption{err.Error()}
	}
	x.silent = false
	return nil
}

func (x *exchange) receive(n int, fin bool, pause time.Duration) error {
	return x.receiveInto(x.buffer, n, fin, pause)
}

// receiveInto reads n bytes and, with fin, the end of the direction. The sender may pause before.
func (x *exchange) receiveInto(buffer []byte, n int, fin bool, pause time.Duration) error {
	if n == 0 && !fin {
		return nil
	}
	if err := x.greeted(); err != nil {
		return err
	}
	for n > 0 {
		_ = x.conn.SetReadDeadline(time.Now().Add(patience + pause))
		got, err := x.conn.Read(buffer[:min(n, chunk)])
		x.received += int64(got)
		if i := x.in.check(buffer[:got], x.readOffset); i >= 0 {
			return &corruption{fmt.Sprintf("byte %d of the stream is wrong", x.readOffset+uint64(i))}
		}
		x.readOffset += uint64(got)
		n -= got
		if n > 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%d bytes are missing: %w", n, err)
		}
	}
	if fin {
		return x.end()
	}
	return nil
}

// end wants the end of the peer's direction and nothing before it.
func (x *exchange) end() error {
	if x.readFin {
		return nil
	}
	if err := x.greeted(); err != nil {
		return err
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(patience))
	var b [1]byte
	n, err := x.conn.Read(b[:])
	x.received += int64(n)
	switch {
	case n > 0:
		return &corruption{"there are bytes behind the end of the script"}
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("wait for the end: %w", err)
	}
	x.readFin = true
	return nil
}

// finish ends what the script has left open: the client's direction first.
func (x *exchange) finish() error {
	fin := func() error {
		if x.sentFin {
			return nil
		}
		x.sentFin = true
		return x.conn.CloseWrite()
	}
	if !x.client {
		if err := x.end(); err != nil {
			return err
		}
		return fin()
	}
	if err := fin(); err != nil {
		return err
	}
	return x.end()
}

func isCorruption(err error) bool {
	var c *corruption
	return errors.As(err, &c)
}
