package tunnel_test

import (
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// What had no room behind the payload that a slow socket held back goes out when the socket has taken that, whether or not
// the peer says anything meanwhile: here new requests.
func TestFramesBehindAFullBuffer(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.PingInterval, cfg.PingTimeout = time.Hour, time.Hour
	tun, server, fr := f.client(cfg)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	var st *tunnel.Stream
	open := func() *tunnel.Stream {
		st, err := tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, newHandler())
		if err != nil {
			t.Error(err)
		}
		return st
	}
	f.on(func() { st = open() })
	next(t, fr, http2.FrameHeaders)
	_ = fr.WritePing(false, [8]byte{1})
	for !next(t, fr, http2.FramePing).(*http2.PingFrame).IsAck() { // nothing is under way any more
	}
	const buffer = 16*16375 + 8161 // fills the tunnel's buffer
	for sent, blocked := 0, false; !blocked; {
		f.on(func() {
			if blocked = reflect.ValueOf(tun).Elem().FieldByName("blocked").Bool(); !blocked {
				sent += st.Write(make([]byte, buffer))
			}
		})
		if sent%buffer != 0 {
			t.Fatalf("%d bytes were taken", sent)
		}
	}
	f.on(func() {
		for range 10 {
			open()
		}
	})
	requests := 0
	_ = server.SetReadDeadline(time.Now().Add(3 * time.Second))
	for requests < 10 {
		frame, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("%d requests of 10 came, then %v", requests, err)
		}
		if frame.Header().Type == http2.FrameHeaders {
			requests++
		}
	}
}

// writer sends what is left whenever there is room, then the end.
type writer struct {
	*handler
	st   *tunnel.Stream
	left int
}

func (w *writer) Writable() {
	for w.left > 0 {
		n := w.st.Write(make([]byte, min(w.left, 16<<10)))
		if n == 0 {
			return
		}
		w.left -= n
	}
	w.st.End()
}

// A drained tunnel ends when its last stream has, but what it has sent arrives, although the peer goes on to say things.
func TestWhatADrainedTunnelSentArrives(t *testing.T) {
	const size = 512 << 10
	f := newFixture(t)
	cfg := f.config()
	requests := make(chan *tunnel.Stream, 1)
	cfg.OnRequest = func(st *tunnel.Stream, _ *h2.Header) {
		st.Handler = newHandler()
		st.Respond(200, nil, false)
		requests <- st
	}
	_, fr := f.server(cfg)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
	_ = fr.WriteWindowUpdate(0, size)
	connect := []byte{0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01, 4, 'a', ':', '8', '0'}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect, EndHeaders: true, EndStream: true})
	st := <-requests
	f.on(st.Tunnel().Drain)
	for next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame).LastStreamID != 1 { // answers pings
	}
	f.on(func() {
		w := &writer{handler: newHandler(), st: st, left: size}
		st.Handler = w
		w.Writable()
	})
	f.on(func() {}) // all of it has been given to the kernel
	got := 0
	for {
		frame, err := fr.ReadFrame()
		if err != nil {
			if err != io.EOF || got != size {
				t.Errorf("%d of %d bytes came, then %v", got, size, err)
			}
			break
		}
		if d, ok := frame.(*http2.DataFrame); ok {
			got += len(d.Data())
			_ = fr.WriteWindowUpdate(0, uint32(len(d.Data())))
		}
	}
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
}

// A drained tunnel waits for what it has sent to arrive, but not for a peer that reads nothing any more, whatever that says.
func TestDrainedTunnelEndsThoughThePeerReadsNothing(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.PingInterval, cfg.PingTimeout = 100*time.Millisecond, 200*time.Millisecond
	tun, _, fr := f.client(cfg)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = fr.WriteWindowUpdate(0, 1<<30)
	_ = fr.WritePing(false, [8]byte{1})
	for !next(t, fr, http2.FramePing).(*http2.PingFrame).IsAck() { // the peer reads nothing behind this
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				_ = fr.WriteWindowUpdate(0, 1)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	f.on(func() {
		st, err := tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, newHandler())
		if err != nil {
			t.Error(err)
			return
		}
		for sent := 0; sent < 512<<10; { // more than the peer's socket holds
			n := st.Write(make([]byte, 64<<10))
			if n == 0 {
				t.Errorf("only %d bytes were taken", sent)
				break
			}
			sent += n
		}
		st.Reset(h2.Cancel)
		tun.Drain()
	})
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
}
