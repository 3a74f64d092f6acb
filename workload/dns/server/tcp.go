package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxPipelined bounds the questions of one TCP connection in work; at the limit
// no more are read until one is answered.
const maxPipelined = 32

// writeTimeout bounds sending one answer to a client that does not read.
const writeTimeout = 5 * time.Second

// serveTCP accepts connections until serving ends.
func (s *Server) serveTCP(serving, asking context.Context, l net.Listener) error {
	defer context.AfterFunc(serving, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if serving.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("serve dns over tcp: %w", err)
			}
			// Out of descriptors or an aborted connection: later ones may succeed.
			s.cfg.Logger.Debug("cannot accept dns connection", "error", err)
			sleep(serving, 10*time.Millisecond)
			continue
		}
		select {
		case s.conns <- struct{}{}:
			s.work.Go(func() {
				defer func() { <-s.conns }()
				s.serveConn(serving, asking, c)
			})
		default:
			_ = c.Close()
		}
	}
}

// serveConn answers the questions of one connection. They are worked on side by
// side and answered as they finish (RFC 7766 section 6.2.1.1). A client may close
// its sending side and still gets every answer.
func (s *Server) serveConn(serving, asking context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(serving, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	client := addrPort(c.RemoteAddr())

	var (
		pending  sync.WaitGroup
		pipeline = make(chan struct{}, maxPipelined)
		writing  sync.Mutex
	)
	defer pending.Wait()
	for {
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.IdleTimeout))
		if serving.Err() != nil { // the deadline above may have undone the one of AfterFunc
			return
		}
		question, err := readMessage(c)
		if err != nil {
			return
		}
		if !take(asking, pipeline) || !take(asking, s.questions) {
			return
		}
		pending.Go(func() {
			defer func() { <-s.questions; <-pipeline }()
			reply := s.answer(asking, question, client, protoTCP)
			if reply == nil {
				return
			}
			writing.Lock()
			defer writing.Unlock()
			_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err := writeMessage(c, reply); err != nil {
				_ = c.Close() // ends the reader too
			}
		})
	}
}

// take puts a token in; false when ctx ends first.
func take(ctx context.Context, tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// readMessage reads one message with its length in front (RFC 1035 section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, err
	}
	return msg, nil
}

// writeMessage writes one message with its length in front, in one segment where
// it fits: some clients read length and message as one.
func writeMessage(w io.Writer, msg []byte) error {
	if len(msg) > 0xffff {
		return fmt.Errorf("write dns message: %d octets are too many", len(msg))
	}
	buf := make([]byte, 2+len(msg))
	binary.BigEndian.PutUint16(buf, uint16(len(msg)))
	copy(buf[2:], msg)
	_, err := w.Write(buf)
	return err
}

// exchangeTCP asks one upstream server over a connection of its own.
func exchangeTCP(conn net.Conn, q *query) ([]byte, error) {
	if err := writeMessage(conn, q.wire); err != nil {
		return nil, err
	}
	// A message that is not the answer makes the peer no DNS server worth
	// listening to; a bounded number is skipped, then it has failed.
	for range maxStray {
		msg, err := readMessage(conn)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(msg) {
			return msg, nil
		}
	}
	return nil, errStray
}
