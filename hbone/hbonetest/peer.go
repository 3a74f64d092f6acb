// Package hbonetest is a scripted HBONE peer for tests, built on crypto/tls and golang.org/x/net/http2 so that it shares
// no code with the engine: it says exactly what the test tells it to, right or wrong, and reports what it gets.
//
// It answers SETTINGS and PING by itself and gives back credit for what it receives, unless told otherwise. All methods
// of a Peer may be called concurrently.
package hbonetest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience bounds every wait.
const patience = 10 * time.Second

// Header is a request or a response; pseudo-header fields are among the fields.
type Header []hpack.HeaderField

// Get returns the first value of a field, "" when it is absent.
func (h Header) Get(name string) string {
	for _, f := range h {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Fields makes a Header of names and values in turn.
func Fields(kv ...string) Header {
	var h Header
	for i := 0; i+1 < len(kv); i += 2 {
		h = append(h, hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return h
}

// Stream is what a peer has received on one stream so far.
type Stream struct {
	Header Header
	Data   []byte
	Ended  bool
	// Reset is the code of the RST_STREAM, -1 when there was none.
	Reset int64
}

// Status returns the response's status, 0 when there is none.
func (s Stream) Status() int {
	n, _ := strconv.Atoi(s.Header.Get(":status"))
	return n
}

// GoAway is a GOAWAY frame that was received.
type GoAway struct {
	Last uint32
	Code http2.ErrCode
}

// Peer is one end of an HBONE connection.
type Peer struct {
	// Conn is the TLS connection. Closing it is a cut without GOAWAY; Raw's Close one without close_notify too.
	Conn *tls.Conn
	// Raw is what Conn stands on.
	Raw net.Conn

	framer *http2.Framer
	handle func(*Peer, uint32, Header) // nil, or told about header blocks
	write  sync.Mutex
	enc    *hpack.Encoder
	block  bytes.Buffer

	mu       sync.Mutex
	changed  chan struct{}
	streams  map[uint32]*Stream
	opened   []uint32 // streams in the order of their headers
	goaways  []GoAway
	settings bool
	mute     bool
	pings    [][8]byte // unanswered
	err      error     // what ended the connection
}

// Client handshakes on an open connection as a client and sends its preface and settings.
func Client(conn net.Conn, config *tls.Config, settings ...http2.Setting) (*Peer, error) {
	return start(conn, tls.Client(conn, config), true, settings, nil)
}

// Dial connects to addr and is Client then.
func Dial(t testing.TB, addr string, config *tls.Config, settings ...http2.Setting) (*Peer, error) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return Client(conn, config, settings...)
}

func start(raw net.Conn, conn *tls.Conn, client bool, settings []http2.Setting, handle func(*Peer, uint32, Header)) (*Peer, error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	p := &Peer{Conn: conn, Raw: raw, framer: http2.NewFramer(conn, conn), handle: handle, changed: make(chan struct{}), streams: make(map[uint32]*Stream)}
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.framer.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	if client {
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return nil, err
		}
	} else if err := readPreface(conn); err != nil {
		return nil, err
	}
	if err := p.framer.WriteSettings(settings...); err != nil {
		return nil, err
	}
	go p.read()
	return p, nil
}

func readPreface(r io.Reader) error {
	b := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if string(b) != http2.ClientPreface {
		return fmt.Errorf("preface is %q", b)
	}
	return nil
}

// read handles frames until the connection ends.
func (p *Peer) read() {
	for {
		f, err := p.framer.ReadFrame()
		if se, ok := errors.AsType[http2.StreamError](err); ok {
			p.update(func() { p.stream(se.StreamID).Reset = int64(se.Code) })
			continue
		}
		if err != nil {
			p.update(func() { p.err = err })
			return
		}
		p.take(f)
	}
}

func (p *Peer) take(f http2.Frame) {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			p.writing(func() error { return p.framer.WriteSettingsAck() })
			p.update(func() { p.settings = true })
		}
	case *http2.PingFrame:
		if !f.IsAck() && !p.muted() {
			p.writing(func() error { return p.framer.WritePing(true, f.Data) })
		} else if !f.IsAck() {
			p.update(func() { p.pings = append(p.pings, f.Data) })
		}
	case *http2.MetaHeadersFrame:
		p.update(func() {
			s := p.stream(f.StreamID)
			s.Header, s.Ended = append(Header(nil), f.Fields...), f.StreamEnded()
			p.opened = append(p.opened, f.StreamID)
		})
		if p.handle != nil {
			p.handle(p, f.StreamID, Header(f.Fields))
		}
	case *http2.DataFrame:
		n := f.Header().Length
		p.update(func() {
			s := p.stream(f.StreamID)
			s.Data = append(s.Data, f.Data()...)
			s.Ended = s.Ended || f.StreamEnded()
		})
		if n > 0 && !p.muted() {
			p.writing(func() error { return p.framer.WriteWindowUpdate(0, n) })
			p.writing(func() error { return p.framer.WriteWindowUpdate(f.StreamID, n) })
		}
	case *http2.RSTStreamFrame:
		p.update(func() { p.stream(f.StreamID).Reset = int64(f.ErrCode) })
	case *http2.GoAwayFrame:
		p.update(func() { p.goaways = append(p.goaways, GoAway{f.LastStreamID, f.ErrCode}) })
	}
}

// Mute stops answering pings and giving credit.
func (p *Peer) Mute() { p.update(func() { p.mute = true }) }

// Unmute answers the pings that came since Mute, and goes on answering.
func (p *Peer) Unmute() {
	var pings [][8]byte
	p.update(func() { p.mute, p.pings, pings = false, nil, p.pings })
	for _, data := range pings {
		p.writing(func() error { return p.framer.WritePing(true, data) })
	}
}

func (p *Peer) muted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mute
}

func (p *Peer) stream(id uint32) *Stream {
	s := p.streams[id]
	if s == nil {
		s = &Stream{Reset: -1}
		p.streams[id] = s
	}
	return s
}

func (p *Peer) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Peer) writing(f func() error) {
	p.write.Lock()
	defer p.write.Unlock()
	_ = f() // the reader finds out
}

// Headers sends a header block.
func (p *Peer) Headers(id uint32, end bool, h Header) {
	p.writing(func() error {
		p.block.Reset()
		for _, f := range h {
			if err := p.enc.WriteField(f); err != nil {
				return err
			}
		}
		return p.framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: p.block.Bytes(), EndStream: end, EndHeaders: true,
		})
	})
}

// Connect sends a CONNECT request with further fields in turn.
func (p *Peer) Connect(id uint32, authority string, kv ...string) {
	p.Headers(id, false, append(Fields(":method", "CONNECT", ":authority", authority), Fields(kv...)...))
}

// Data sends payload, without regard to windows.
func (p *Peer) Data(id uint32, b []byte, end bool) {
	p.writing(func() error { return p.framer.WriteData(id, end, b) })
}

// Reset sends RST_STREAM.
func (p *Peer) Reset(id uint32, code http2.ErrCode) {
	p.writing(func() error { return p.framer.WriteRSTStream(id, code) })
}

// GoAway sends GOAWAY.
func (p *Peer) GoAway(last uint32, code http2.ErrCode) {
	p.writing(func() error { return p.framer.WriteGoAway(last, code, nil) })
}

// Settings sends SETTINGS.
func (p *Peer) Settings(settings ...http2.Setting) {
	p.writing(func() error { return p.framer.WriteSettings(settings...) })
}

// Stream returns what has been received on a stream.
func (p *Peer) Stream(id uint32) Stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.copyLocked(id)
}

func (p *Peer) copyLocked(id uint32) Stream {
	s := *p.stream(id)
	s.Data = bytes.Clone(s.Data)
	return s
}

// Wait waits until the stream satisfies ok, and fails the test when it does not in time, or the connection ends first.
func (p *Peer) Wait(t testing.TB, id uint32, what string, ok func(Stream) bool) Stream {
	t.Helper()
	var got Stream
	p.until(t, fmt.Sprintf("stream %d: %s", id, what), func() bool {
		got = p.copyLocked(id)
		return ok(got)
	})
	return got
}

// WaitStatus waits for a response.
func (p *Peer) WaitStatus(t testing.TB, id uint32) int {
	t.Helper()
	return p.Wait(t, id, "response", func(s Stream) bool { return s.Status() != 0 }).Status()
}

// WaitGoAway waits for the n-th GOAWAY, the first being 1.
func (p *Peer) WaitGoAway(t testing.TB, n int) GoAway {
	t.Helper()
	var got GoAway
	p.until(t, "GOAWAY", func() bool {
		if len(p.goaways) < n {
			return false
		}
		got = p.goaways[n-1]
		return true
	})
	return got
}

// WaitSettings waits for the other side's settings.
func (p *Peer) WaitSettings(t testing.TB) {
	t.Helper()
	p.until(t, "SETTINGS", func() bool { return p.settings })
}

// WaitEnd waits for the end of the connection and returns how it ended; io.EOF stands for close_notify.
func (p *Peer) WaitEnd(t testing.TB) error {
	t.Helper()
	p.until(t, "end of connection", func() bool { return p.err != nil })
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// WaitRequest waits for the n-th header block that the other side sends, the first being 1, and returns its stream.
func (p *Peer) WaitRequest(t testing.TB, n int) uint32 {
	t.Helper()
	var id uint32
	p.until(t, "request", func() bool {
		if len(p.opened) < n {
			return false
		}
		id = p.opened[n-1]
		return true
	})
	return id
}

// Requests returns how many header blocks have come.
func (p *Peer) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.opened)
}

func (p *Peer) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		done, err, changed := ok(), p.err, p.changed
		p.mu.Unlock()
		if done {
			return
		}
		if err != nil {
			t.Fatalf("%s did not come: connection ended: %v", what, err)
		}
		select {
		case <-changed:
		case <-timer.C:
			t.Fatalf("%s did not come", what)
		}
	}
}
