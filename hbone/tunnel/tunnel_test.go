package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/record"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	t          *testing.T
	loop       *loop.Loop
	alice, bob *svid.SVID
	ends       chan error
	drains     chan struct{}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(l.Close)
	ca := identitytest.NewCA(t, "cluster.local")
	return &fixture{
		t: t, loop: l, ends: make(chan error, 8), drains: make(chan struct{}, 8),
		alice: ca.SVID(t, "spiffe://cluster.local/ns/a/sa/alice"), bob: ca.SVID(t, "spiffe://cluster.local/ns/b/sa/bob"),
	}
}

func (f *fixture) config() tunnel.Config {
	return tunnel.Config{
		Loop:    f.loop,
		OnClose: func(_ *tunnel.Tunnel, err error) { f.ends <- err },
		OnDrain: func(*tunnel.Tunnel) { f.drains <- struct{}{} },
	}
}

func (f *fixture) on(do func()) {
	f.t.Helper()
	done := make(chan struct{})
	f.loop.Post(func() { do(); close(done) })
	<-done
}

func (f *fixture) end() error {
	f.t.Helper()
	select {
	case err := <-f.ends:
		return err
	case <-time.After(10 * time.Second):
		f.t.Fatal("tunnel does not end")
		return nil
	}
}

// peer gives one TCP connection: a raw socket for the tunnel, and the other end for an independent implementation.
func peer(t *testing.T) (fd int, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	fd, err = loop.TCPSocket(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = loop.Connect(t.Context(), fd, l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		t.Fatal(err)
	}
	other, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	_ = other.SetDeadline(time.Now().Add(20 * time.Second))
	return fd, other
}

// client starts a client tunnel against crypto/tls and x/net/http2.
func (f *fixture) client(cfg tunnel.Config) (*tunnel.Tunnel, *tls.Conn, *http2.Framer) {
	f.t.Helper()
	fd, other := peer(f.t)
	server := tls.Server(other, mtls.Server(f.bob, nil))
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	t, err := tunnel.Client(f.t.Context(), fd, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(server, preface); err != nil || string(preface) != http2.ClientPreface {
		f.t.Fatalf("preface is %q, %v", preface, err)
	}
	fr := http2.NewFramer(server, server)
	if err := fr.WriteSettings(); err != nil {
		f.t.Fatal(err)
	}
	return t, server, fr
}

// handler records what a stream is told.
type handler struct {
	status chan int
	closed chan error
	data   chan string
}

func newHandler() *handler {
	return &handler{status: make(chan int, 4), closed: make(chan error, 4), data: make(chan string, 64)}
}

func (h *handler) Response(head *h2.Header, _ bool) { h.status <- head.Status }
func (h *handler) Data(p []byte, _ bool)            { h.data <- string(p) }
func (h *handler) DataDone()                        {}
func (h *handler) Writable()                        {}
func (h *handler) Closed(err error)                 { h.closed <- err }

// next reads frames until one of the wanted type comes; PINGs are answered.
func next(t *testing.T, fr *http2.Framer, want http2.FrameType) http2.Frame {
	t.Helper()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("wait for %s: %v", want, err)
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			_ = fr.WritePing(true, p.Data)
		}
		if f.Header().Type == want {
			return f
		}
	}
}

func TestGoAwayOfThePeerLetsStreamsFinish(t *testing.T) {
	f := newFixture(t)
	tun, _, fr := f.client(f.config())
	h := newHandler()
	var st *tunnel.Stream
	f.on(func() { st, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, h) })
	next(t, fr, http2.FrameHeaders)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
	_ = fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	<-f.drains
	if s := <-h.status; s != 200 {
		t.Errorf("status %d", s)
	}
	f.on(func() {
		if _, err := tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, newHandler()); !errors.Is(err, h2.ErrGoingAway) {
			t.Errorf("open after GOAWAY: %v", err)
		}
		st.Write([]byte("late"))
		st.End()
	})
	next(t, fr, http2.FrameData)
	_ = fr.WriteData(1, true, []byte("answer"))
	if got := <-h.data; got != "answer" {
		t.Errorf("got %q", got)
	}
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
	if len(h.closed) != 0 {
		t.Errorf("stream that ended in order was told %v", <-h.closed)
	}
}

func TestStreamsThatAPeerDidNotProcessSaySo(t *testing.T) {
	f := newFixture(t)
	tun, _, fr := f.client(f.config())
	h := newHandler()
	f.on(func() { _, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, h) })
	next(t, fr, http2.FrameHeaders)
	_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	var reset *tunnel.ResetError
	if err := <-h.closed; !errors.As(err, &reset) || reset.Code != h2.RefusedStream {
		t.Errorf("stream was told %v", err)
	}
}

func TestRequestsThatAPeerForgetsAtItsGoAwaySaySo(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.AnswerGrace = 50 * time.Millisecond
	tun, _, fr := f.client(cfg)
	answered, forgotten := newHandler(), newHandler()
	var st *tunnel.Stream
	f.on(func() {
		st, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, answered)
		_, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, forgotten)
	})
	next(t, fr, http2.FrameHeaders)
	next(t, fr, http2.FrameHeaders)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
	_ = fr.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
	_ = fr.WriteGoAway(3, http2.ErrCodeNo, nil)
	var reset *tunnel.ResetError
	if err := <-forgotten.closed; !errors.As(err, &reset) || reset.Code != h2.RefusedStream {
		t.Errorf("the forgotten stream was told %v", err)
	}
	if r := next(t, fr, http2.FrameRSTStream).(*http2.RSTStreamFrame); r.StreamID != 3 || r.ErrCode != http2.ErrCodeCancel {
		t.Errorf("the peer was told %v", r)
	}
	f.on(func() { st.Write([]byte("late")); st.End() })
	next(t, fr, http2.FrameData)
	_ = fr.WriteData(1, true, nil)
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
	if len(answered.closed) != 0 {
		t.Errorf("the other stream was told %v", <-answered.closed)
	}
}

func TestEndWithoutCloseNotifyIsATruncation(t *testing.T) {
	f := newFixture(t)
	tun, server, fr := f.client(f.config())
	h := newHandler()
	f.on(func() { _, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, h) })
	next(t, fr, http2.FrameHeaders)
	_ = server.NetConn().(*net.TCPConn).CloseWrite()
	if err := f.end(); !errors.Is(err, tunnel.ErrTruncated) {
		t.Errorf("tunnel ended with %v", err)
	}
	if err := <-h.closed; !errors.Is(err, tunnel.ErrTruncated) {
		t.Errorf("stream was told %v", err)
	}
	if !tun.Closed() {
		t.Error("tunnel does not say that it is closed")
	}
}

func TestCloseNotifyIsAnOrderlyEnd(t *testing.T) {
	f := newFixture(t)
	_, server, fr := f.client(f.config())
	next(t, fr, http2.FrameSettings)
	_ = server.CloseWrite()
	if err := f.end(); !errors.Is(err, tunnel.ErrPeerClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
}

func TestCloseTellsThePeer(t *testing.T) {
	f := newFixture(t)
	tun, server, fr := f.client(f.config())
	next(t, fr, http2.FrameSettings)
	tun.Post(func() { tun.Close(nil) })
	if g := next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame); g.ErrCode != http2.ErrCodeNo {
		t.Errorf("GOAWAY with %v", g.ErrCode)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read behind GOAWAY: %v, want the EOF of a close_notify", err)
	}
}

func TestProtocolErrorsAreAnswered(t *testing.T) {
	f := newFixture(t)
	_, _, fr := f.client(f.config())
	_ = fr.WriteRawFrame(http2.FramePushPromise, 0, 2, make([]byte, 4))
	if g := next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame); g.ErrCode != http2.ErrCodeProtocol {
		t.Errorf("GOAWAY with %v", g.ErrCode)
	}
	var ce *h2.ConnError
	if err := f.end(); !errors.As(err, &ce) || ce.Code != h2.ProtocolError {
		t.Errorf("tunnel ended with %v", err)
	}
}

func TestSilentPeerIsFoundDead(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.PingInterval, cfg.PingTimeout = 20*time.Millisecond, 50*time.Millisecond
	f.client(cfg)
	if err := f.end(); !errors.Is(err, tunnel.ErrDead) {
		t.Errorf("tunnel ended with %v", err)
	}
}

func TestAnsweredPingsKeepATunnelAlive(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	cfg.PingInterval, cfg.PingTimeout = 5*time.Millisecond, 10*time.Second
	_, _, fr := f.client(cfg)
	for range 10 {
		next(t, fr, http2.FramePing)
	}
	if len(f.ends) != 0 {
		t.Errorf("tunnel ended: %v", <-f.ends)
	}
}

// TestReserveWithoutCommitHoldsNoBuffer: an application that was said to be readable and is not must not cost its tunnel
// a buffer until the next time that something is sent.
func TestReserveWithoutCommitHoldsNoBuffer(t *testing.T) {
	f := newFixture(t)
	tn, _, fr := f.client(f.config())
	var st *tunnel.Stream
	h := newHandler()
	f.on(func() {
		var err error
		if st, err = tn.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, h); err != nil {
			t.Error(err)
		}
	})
	next(t, fr, http2.FrameHeaders)
	var place weak.Pointer[byte]
	f.on(func() {
		pieces := st.Reserve(100)
		if len(pieces) != 1 {
			t.Errorf("%d pieces", len(pieces))
			return
		}
		place = weak.Make(&loop.Bytes(&pieces[0])[0])
	})
	f.on(func() {}) // in a later batch
	f.on(func() {
		b := f.loop.Get() // is the tunnel's last, and goes away
		for i := range 64 {
			if weak.Make(&b[i]) == place {
				return
			}
		}
		t.Error("the tunnel still has its buffer")
	})
	runtime.GC()
	if place.Value() != nil {
		t.Error("the tunnel keeps the buffer that it gave back")
	}
}

func TestDrainOfAServer(t *testing.T) {
	f := newFixture(t)
	fd, other := peer(t)
	client := tls.Client(other, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil))
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	cfg := f.config()
	var served *tunnel.Stream
	h := newHandler()
	cfg.OnRequest = func(st *tunnel.Stream, _ *h2.Header) { served, st.Handler = st, h; st.Respond(200, nil, false) }
	tun, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, _ = client.Write([]byte(http2.ClientPreface))
	fr := http2.NewFramer(client, client)
	_ = fr.WriteSettings()
	connect := []byte{0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01, 4, 'a', ':', '8', '0'}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect, EndHeaders: true})
	next(t, fr, http2.FrameHeaders)

	tun.Post(tun.Drain)
	if g := next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame); g.LastStreamID != 1<<31-1 {
		t.Errorf("first GOAWAY names stream %d", g.LastStreamID)
	}
	if g := next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame); g.LastStreamID != 1 {
		t.Errorf("second GOAWAY names stream %d", g.LastStreamID)
	}
	f.on(func() { served.Write([]byte("still served")); served.End() })
	if d := next(t, fr, http2.FrameData).(*http2.DataFrame); string(d.Data()) != "still served" {
		t.Errorf("got %q", d.Data())
	}
	_ = fr.WriteData(1, true, nil)
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
}

func TestRefusedClientCertificateArrivesAsAnAlert(t *testing.T) {
	for _, reset := range []bool{false, true} {
		f := newFixture(t)
		fd, other := peer(t)
		stranger := identitytest.NewCA(t, "cluster.local").SVID(t, "spiffe://cluster.local/ns/b/sa/bob")
		refused := make(chan struct{})
		go func() { // trusts another authority than the client's, but presents a certificate of the client's
			defer close(refused)
			c := mtls.Server(&svid.SVID{ID: f.bob.ID, Certificates: f.bob.Certificates, PrivateKey: f.bob.PrivateKey, Bundle: stranger.Bundle}, nil)
			_ = tls.Server(other, c).Handshake()
			if reset { // so that our first write fails, before anything is read
				_ = other.(*net.TCPConn).SetLinger(0)
				_ = other.Close()
			}
		}()
		f.loop.Post(func() { <-refused })
		if _, err := tunnel.Client(t.Context(), fd, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil), f.config()); err != nil {
			t.Fatalf("the refusal came within the handshake: %v", err)
		}
		var re *record.Error
		if err := f.end(); !errors.As(err, &re) || !re.Remote {
			t.Errorf("tunnel ended with %v (reset: %t)", err, reset)
		}
	}
}

// TestAnswerBeforeAResetArrives: a write that finds the connection gone does not hide what came before.
func TestAnswerBeforeAResetArrives(t *testing.T) {
	f := newFixture(t)
	tun, server, fr := f.client(f.config())
	h := newHandler()
	var st *tunnel.Stream
	f.on(func() { st, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, h) })
	next(t, fr, http2.FrameHeaders)
	f.on(func() { // nothing is read meanwhile
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
		_ = fr.WriteData(1, true, []byte("answer"))
		_ = server.NetConn().(*net.TCPConn).SetLinger(0)
		_ = server.NetConn().Close()
		if n := st.Write([]byte("x")); n != 1 {
			t.Errorf("%d bytes were taken", n)
		}
	})
	if err := f.end(); !errors.Is(err, tunnel.ErrLost) || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("tunnel ended with %v", err)
	}
	if len(h.status) != 1 || len(h.data) != 1 || <-h.data != "answer" {
		t.Errorf("%d answers and %d pieces of data came", len(h.status), len(h.data))
	}
}

func TestHandshakeFailures(t *testing.T) {
	f := newFixture(t)
	t.Run("not_tls", func(t *testing.T) {
		fd, other := peer(t)
		_, _ = other.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		_, err := tunnel.Client(t.Context(), fd, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil), f.config())
		if !tunnel.NotTLS(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cut", func(t *testing.T) {
		fd, other := peer(t)
		_ = other.(*net.TCPConn).CloseWrite()
		_, err := tunnel.Client(t.Context(), fd, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil), f.config())
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		fd, _ := peer(t)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		_, err := tunnel.Client(ctx, fd, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil), f.config())
		if !tunnel.TimedOut(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("old_tls", func(t *testing.T) {
		fd, other := peer(t)
		go func() {
			_ = tls.Client(other, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		}()
		_, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), f.config(), nil)
		if err == nil || !strings.Contains(err.Error(), "unsupported versions") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no_alpn", func(t *testing.T) {
		fd, other := peer(t)
		go func() {
			c := mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil).Clone()
			c.NextProtos = nil
			_ = tls.Client(other, c).Handshake()
		}()
		_, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), f.config(), nil)
		if err == nil || !strings.Contains(err.Error(), "ALPN") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("refused_by_owner", func(t *testing.T) {
		fd, other := peer(t)
		go func() { _ = tls.Client(other, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil)).Handshake() }()
		want := errors.New("not today")
		if _, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), f.config(), func(*tunnel.Tunnel) error { return want }); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	})
}

// A request that crosses the first GOAWAY of a drain is served, although the tunnel had no stream then, and also when the
// acknowledgement of that has overtaken it.
func TestRequestsThatCrossADrainAreServed(t *testing.T) {
	t.Run("before_the_acknowledgement", func(t *testing.T) { testCrossingRequest(t, false) })
	t.Run("after_the_acknowledgement", func(t *testing.T) { testCrossingRequest(t, true) })
}

func testCrossingRequest(t *testing.T, overtaken bool) {
	f := newFixture(t)
	fd, other := peer(t)
	client := tls.Client(other, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil))
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	cfg := f.config()
	if overtaken {
		cfg.CrossingGrace = 2 * time.Second // for a slow machine
	}
	cfg.OnRequest = func(st *tunnel.Stream, _ *h2.Header) { st.Respond(503, nil, true) }
	tun, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, _ = client.Write([]byte(http2.ClientPreface))
	fr := http2.NewFramer(client, client)
	_ = fr.WriteSettings()
	tun.Post(tun.Drain)
	for { // the first GOAWAY, its ping not answered yet
		frame, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if frame.Header().Type == http2.FrameGoAway {
			break
		}
	}
	if overtaken {
		next(t, fr, http2.FramePing) // answers it
	}
	connect := []byte{0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01, 4, 'a', ':', '8', '0'}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect, EndHeaders: true, EndStream: true})
	next(t, fr, http2.FrameHeaders) // answers the pings on its way
	if g := next(t, fr, http2.FrameGoAway).(*http2.GoAwayFrame); g.LastStreamID != 1 {
		t.Errorf("final GOAWAY names stream %d", g.LastStreamID)
	}
	if err := f.end(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("tunnel ended with %v", err)
	}
}

// Whoever knows a tunnel from ready may close it before it has its socket, as hbone.Listener does.
func TestClosedBeforeItHasItsSocket(t *testing.T) {
	f := newFixture(t)
	fd, other := peer(t)
	client := tls.Client(other, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil))
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	_, err := tunnel.Server(t.Context(), fd, mtls.Server(f.bob, nil), f.config(), func(tn *tunnel.Tunnel) error {
		tn.Post(func() { tn.Close(nil) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = f.end()
	f.on(func() {})
	if n := f.loop.Stats().Sockets; n != 0 {
		t.Errorf("the loop holds %d sockets", n)
	}
	_ = other.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := other.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer of a closed tunnel reads %v", err)
	}
}
