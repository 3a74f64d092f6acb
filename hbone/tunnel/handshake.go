package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/record"
)

// HandshakeError is a TLS handshake that failed; Unwrap gives the cause.
type HandshakeError struct{ Err error }

// Error implements error.
func (e *HandshakeError) Error() string { return "TLS handshake: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *HandshakeError) Unwrap() error { return e.Err }

// handshake runs the TLS handshake on a non-blocking socket and returns the record layer that goes on after it. The
// socket is consumed: the returned one is a duplicate that nothing else watches.
func handshake(ctx context.Context, fd int, config *tls.Config, server bool) (int, *record.Conn, tls.ConnectionState, error) {
	none := tls.ConnectionState{}
	conn := &recordConn{file: os.NewFile(uintptr(fd), "tunnel")}
	defer func() { _ = conn.file.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.file.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var keys keyLog
	config = config.Clone()
	config.KeyLogWriter = &keys
	config.MinVersion, config.SessionTicketsDisabled = tls.VersionTLS13, true
	var tc *tls.Conn
	if server {
		tc = tls.Server(conn, config)
	} else {
		tc = tls.Client(conn, config)
	}
	if err := tc.Handshake(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		} else if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return -1, nil, none, &HandshakeError{err}
	}
	// From here on the tls.Conn is dead: closing it would seal an alert under a nonce that the record layer uses.
	state := tc.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		return -1, nil, none, &HandshakeError{fmt.Errorf("peer did not agree on ALPN h2 (got %q)", state.NegotiatedProtocol)}
	}
	rec, err := keys.conn(state.CipherSuite, server)
	if err != nil {
		return -1, nil, none, &HandshakeError{err}
	}
	dup, err := loop.Duplicate(conn.file)
	if err != nil {
		return -1, nil, none, err
	}
	return dup, rec, state, nil
}

// keyLog takes the application traffic secrets out of crypto/tls (the format is draft-ietf-tls-keylogfile).
type keyLog struct{ client, server []byte }

// Write implements io.Writer for one line.
func (k *keyLog) Write(line []byte) (int, error) {
	label, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
	_, secret, _ := bytes.Cut(rest, []byte(" "))
	var into *[]byte
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		into = &k.client
	case "SERVER_TRAFFIC_SECRET_0":
		into = &k.server
	default:
		return len(line), nil
	}
	raw := make([]byte, hex.DecodedLen(len(secret)))
	if _, err := hex.Decode(raw, secret); err != nil {
		return 0, errors.New("decode traffic secret") // the cause would quote a part of the secret
	}
	*into = raw
	return len(line), nil
}

func (k *keyLog) conn(suite uint16, server bool) (*record.Conn, error) {
	if k.client == nil || k.server == nil {
		return nil, errors.New("handshake gave no traffic secrets")
	}
	s := record.State{Suite: suite, ReadSecret: k.server, WriteSecret: k.client}
	if server {
		s.ReadSecret, s.WriteSecret = k.client, k.server
	}
	rec, err := record.New(s)
	clear(k.client)
	clear(k.server)
	return rec, err
}

// recordConn gives crypto/tls one record at a time, so that nothing behind the handshake is taken from the socket.
type recordConn struct {
	file *os.File
	head [record.HeaderLen]byte
	give []byte // part of head that has not been given yet
	left int    // body bytes of the record that have not been given
}

// Read implements net.Conn.
func (c *recordConn) Read(p []byte) (int, error) {
	if len(c.give) == 0 && c.left == 0 {
		if _, err := io.ReadFull(c.file, c.head[:]); err != nil {
			return 0, plain(err)
		}
		c.give, c.left = c.head[:], int(c.head[3])<<8|int(c.head[4])
	}
	if len(c.give) > 0 {
		n := copy(p, c.give)
		c.give = c.give[n:]
		return n, nil
	}
	n, err := c.file.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, plain(err)
}

// Write implements net.Conn.
func (c *recordConn) Write(p []byte) (int, error) {
	n, err := c.file.Write(p)
	return n, plain(err)
}

// plain strips os.File's wrapping, which names a file where there is a socket.
func plain(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Close implements net.Conn; the socket is closed by its owner.
func (c *recordConn) Close() error { return nil }

// LocalAddr implements net.Conn.
func (c *recordConn) LocalAddr() net.Addr { return &net.TCPAddr{} }

// RemoteAddr implements net.Conn.
func (c *recordConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }

// SetDeadline implements net.Conn.
func (c *recordConn) SetDeadline(t time.Time) error { return c.file.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *recordConn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *recordConn) SetWriteDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }

// NotTLS reports a handshake that failed because the peer does not speak TLS at all.
func NotTLS(err error) bool {
	var rh tls.RecordHeaderError
	return errors.As(err, &rh)
}

// TimedOut reports a handshake or connection that took too long.
func TimedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}
