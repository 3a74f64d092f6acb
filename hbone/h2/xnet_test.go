//nolint:staticcheck // the deprecated API reaches x/net itself on one connection, which is the independent peer that is wanted
package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// driver runs a Session on an in-memory connection: what the tunnel does on its loop, with a lock and two goroutines.
type driver struct {
	t    *testing.T
	conn net.Conn
	done sync.WaitGroup

	mu      sync.Mutex
	more    *sync.Cond // something happened
	s       *h2.Session
	err     error
	closed  bool
	writing bool
	settled bool
	request func(st *h2.Stream, h *h2.Header)
	streams map[*h2.Stream]*side
	goAway  string
	pong    [8]byte
}

// side is what arrived on a stream.
type side struct {
	head  *h2.Header
	data  []byte
	end   bool
	reset string
}

func newDriver(t *testing.T, cfg h2.Config, conn net.Conn, request func(*h2.Stream, *h2.Header)) *driver {
	d := &driver{t: t, conn: conn, s: h2.NewSession(cfg), request: request, streams: map[*h2.Stream]*side{}}
	d.more = sync.NewCond(&d.mu)
	d.done.Go(d.read)
	d.done.Go(d.write)
	t.Cleanup(func() {
		conn.Close()
		d.mu.Lock()
		d.closed = true
		d.more.Broadcast()
		d.mu.Unlock()
		d.done.Wait()
	})
	return d
}

func (d *driver) read() {
	buf := make([]byte, 7000)
	for {
		n, err := d.conn.Read(buf)
		d.mu.Lock()
		if err == nil {
			d.s.Now = time.Now().UnixNano()
			err = d.s.Feed(buf[:n], (*driverEvents)(d))
		}
		d.err = err
		d.more.Broadcast()
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (d *driver) write() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		for len(d.s.Out()) == 0 && !d.closed {
			d.more.Wait()
		}
		if d.closed {
			return
		}
		b := bytes.Clone(d.s.Out())
		d.s.Sent(len(b))
		d.writing = true
		d.mu.Unlock()
		_, err := d.conn.Write(b)
		d.mu.Lock()
		d.writing = false
		if err != nil {
			d.closed = true
		}
		d.more.Broadcast()
	}
}

// wait blocks until cond holds; it is called under the lock.
func (d *driver) wait(what string, cond func() bool) {
	d.t.Helper()
	stop := time.AfterFunc(20*time.Second, func() {
		d.mu.Lock()
		d.closed = true
		d.more.Broadcast()
		d.mu.Unlock()
	})
	defer stop.Stop()
	for !cond() {
		if d.closed {
			d.t.Fatalf("waited in vain for %s (%v)", what, d.err)
		}
		d.more.Wait()
	}
}

// send puts p on the stream as credit allows, the end behind it if asked.
func (d *driver) send(st *h2.Stream, p []byte, end bool) {
	d.t.Helper()
	for len(p) > 0 {
		d.wait("credit", func() bool { return d.s.Window(st) > 0 || st.Gone() })
		if st.Gone() {
			d.t.Fatal("the stream is gone")
		}
		d.more.Broadcast()
		d.wait("room", func() bool { return len(d.s.Out()) == 0 && !d.writing }) // DATA may not overtake control frames
		n := min(len(p), d.s.Window(st), h2.MaxData)
		b := append(make([]byte, h2.FrameHeaderLen), p[:n]...)
		d.s.DataHeader(b, st, n, false)
		d.mu.Unlock()
		_, err := d.conn.Write(b)
		d.mu.Lock()
		if err != nil {
			d.t.Fatal(err)
		}
		p = p[n:]
	}
	if end {
		d.s.End(st)
	}
	d.more.Broadcast()
}

type driverEvents driver

func (e *driverEvents) of(st *h2.Stream) *side {
	if e.streams[st] == nil {
		e.streams[st] = &side{}
	}
	return e.streams[st]
}

func (e *driverEvents) OnSettings() { e.settled = true }
func (e *driverEvents) OnHeaders(st *h2.Stream, h *h2.Header, end bool) {
	e.of(st).head, e.of(st).end = h, end
	if e.request != nil {
		e.request(st, h)
	}
}
func (e *driverEvents) OnData(st *h2.Stream, p []byte, end bool) {
	x := e.of(st)
	x.data, x.end = append(x.data, p...), end
	e.s.Drained(st, len(p))
}
func (e *driverEvents) OnWindow(*h2.Stream) {}
func (e *driverEvents) OnReset(st *h2.Stream, code h2.ErrCode, fault string) {
	e.of(st).reset = code.String() + fault
}
func (e *driverEvents) OnGoAway(last uint32, code h2.ErrCode, debug string) {
	e.goAway = fmt.Sprint(last, " ", code, " ", debug)
}
func (e *driverEvents) OnPong(data [8]byte) { e.pong = data }

// xnetServer connects our client to the server of x/net.
func xnetServer(t *testing.T, srv *http2.Server, cfg h2.Config, handler http.HandlerFunc) (*driver, *http.Server) {
	ours, theirs := socketPair(t)
	base := &http.Server{ErrorLog: log.New(io.Discard, "", 0)}
	if err := http2.ConfigureServer(base, srv); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { srv.ServeConn(theirs, &http2.ServeConnOpts{Handler: handler, BaseConfig: base}) })
	t.Cleanup(wg.Wait)
	return newDriver(t, cfg, ours, nil), base
}

// socketPair is two connected sockets.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func (d *driver) connect(fields ...h2.Field) *h2.Stream {
	d.t.Helper()
	st, err := d.s.Open(&h2.Header{Method: "CONNECT", Authority: "10.1.2.3:8080", Fields: fields})
	if err != nil {
		d.t.Fatal(err)
	}
	d.streams[st] = &side{}
	d.more.Broadcast()
	return st
}

// locked runs f under the driver's lock.
func (d *driver) locked(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func echoHandler(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Host != "10.1.2.3:8080" || r.Header.Get("Baggage") != "k8s.namespace.name=a" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Baggage", "k8s.namespace.name=b")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	buf := make([]byte, 10000)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			w.Write(buf[:n])
			w.(http.Flusher).Flush()
		}
		if err != nil {
			return
		}
	}
}

// TestXNetServer is our client against the server of x/net.
func TestXNetServer(t *testing.T) {
	baggage := h2.Field{Name: "baggage", Value: "k8s.namespace.name=a"}
	t.Run("echo_and_half_close", func(t *testing.T) {
		for _, window := range []uint32{65535, 1000} {
			d, _ := xnetServer(t, &http2.Server{}, h2.Config{StreamWindow: window}, echoHandler)
			d.locked(func() {
				st := d.connect(baggage)
				x := d.streams[st]
				d.wait("the answer", func() bool { return x.head != nil })
				if x.head.Status != 200 || x.head.Get("baggage") != "k8s.namespace.name=b" {
					t.Errorf("answer is %+v", x.head)
				}
				payload := random(3 << 20)
				d.send(st, payload, true)
				d.wait("the end", func() bool { return x.end })
				if !bytes.Equal(x.data, payload) {
					t.Errorf("%d bytes came back, %d were sent", len(x.data), len(payload))
				}
				if !st.Gone() || d.s.Streams() != 0 {
					t.Error("the stream is not gone")
				}
			})
		}
	})
	t.Run("refusal", func(t *testing.T) {
		d, _ := xnetServer(t, &http2.Server{}, h2.Config{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
		d.locked(func() {
			st := d.connect()
			x := d.streams[st]
			// x/net ends the response, then asks us to stop with RST_STREAM(NO_ERROR).
			d.wait("the answer", func() bool { return x.reset != "" })
			if x.head.Status != 503 || !x.end || x.reset != "NO_ERROR" {
				t.Errorf("answer is %+v, end %v, reset %s", x.head, x.end, x.reset)
			}
		})
	})
	t.Run("reset", func(t *testing.T) {
		d, _ := xnetServer(t, &http2.Server{}, h2.Config{}, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		d.locked(func() {
			st := d.connect()
			x := d.streams[st]
			d.wait("the reset", func() bool { return x.reset != "" })
			if x.head.Status != 200 || x.reset != "INTERNAL_ERROR" {
				t.Errorf("answer is %+v, reset %s", x.head, x.reset)
			}
		})
	})
	t.Run("our_reset", func(t *testing.T) {
		got := make(chan error, 1)
		d, _ := xnetServer(t, &http2.Server{}, h2.Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			_, err := io.ReadAll(r.Body)
			got <- err
		})
		d.locked(func() {
			st := d.connect()
			d.wait("the answer", func() bool { return d.streams[st].head != nil })
			d.s.Reset(st, h2.ConnectError)
			d.more.Broadcast()
		})
		var se http2.StreamError
		if err := <-got; !errors.As(err, &se) || se.Code != http2.ErrCodeConnect {
			t.Errorf("the handler read %v", err)
		}
	})
	t.Run("stream_limit", func(t *testing.T) {
		release := make(chan struct{})
		d, _ := xnetServer(t, &http2.Server{MaxConcurrentStreams: 3}, h2.Config{}, func(http.ResponseWriter, *http.Request) { <-release })
		d.locked(func() {
			d.wait("settings", func() bool { return d.settled })
			if n, known := d.s.PeerStreams(); n != 3 || !known {
				t.Errorf("limit %d, known %v", n, known)
			}
			for range 3 {
				d.connect()
			}
			if _, err := d.s.Open(&h2.Header{Method: "CONNECT", Authority: "a:1"}); !errors.Is(err, h2.ErrStreamLimit) {
				t.Errorf("Open gives %v", err)
			}
		})
		close(release)
	})
	t.Run("ping", func(t *testing.T) {
		d, _ := xnetServer(t, &http2.Server{}, h2.Config{}, echoHandler)
		d.locked(func() {
			want := [8]byte([]byte("alive?!?"))
			d.s.Ping(want)
			d.more.Broadcast()
			d.wait("the pong", func() bool { return d.pong == want })
		})
	})
	t.Run("shutdown", func(t *testing.T) {
		d, base := xnetServer(t, &http2.Server{}, h2.Config{}, echoHandler)
		d.locked(func() {
			st := d.connect(baggage)
			d.wait("the answer", func() bool { return d.streams[st].head != nil })
			go base.Shutdown(t.Context())
			d.wait("GOAWAY", func() bool { return d.goAway != "" })
			if _, err := d.s.Open(&h2.Header{Method: "CONNECT"}); !errors.Is(err, h2.ErrGoingAway) {
				t.Errorf("Open gives %v", err)
			}
			d.send(st, []byte("to the end"), true)
			d.wait("the end", func() bool { return d.streams[st].end })
			if string(d.streams[st].data) != "to the end" {
				t.Errorf("read %q", d.streams[st].data)
			}
		})
	})
	t.Run("many_streams", func(t *testing.T) {
		d, _ := xnetServer(t, &http2.Server{}, h2.Config{}, echoHandler)
		d.locked(func() {
			var open []*h2.Stream
			for i := range 80 {
				st := d.connect(baggage)
				open = append(open, st)
				d.send(st, bytes.Repeat([]byte{byte(i)}, 1000*i+1), true)
			}
			for i, st := range open {
				d.wait("the end", func() bool { return d.streams[st].end })
				if !bytes.Equal(d.streams[st].data, bytes.Repeat([]byte{byte(i)}, 1000*i+1)) {
					t.Errorf("stream %d got %d bytes", st.ID, len(d.streams[st].data))
				}
			}
		})
	})
}

// xnetClient connects the transport of x/net to our server.
func xnetClient(t *testing.T, cfg h2.Config, request func(d *driver, st *h2.Stream, h *h2.Header)) (*http2.ClientConn, *driver) {
	ours, theirs := socketPair(t)
	cfg.Server = true
	var d *driver
	d = newDriver(t, cfg, ours, func(st *h2.Stream, h *h2.Header) { request(d, st, h) })
	cc, err := (&http2.Transport{StrictMaxConcurrentStreams: true, DisableCompression: true}).NewClientConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc, d
}

func connectRequest(ctx context.Context, t *testing.T, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://10.1.2.3:8080", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Baggage", "k8s.namespace.name=a")
	return req
}

// TestXNetClient is our server against the transport of x/net.
func TestXNetClient(t *testing.T) {
	ok := func(d *driver, st *h2.Stream, h *h2.Header) {
		if h.Method != "CONNECT" || h.Authority != "10.1.2.3:8080" || h.Get("baggage") != "k8s.namespace.name=a" || h.Scheme != "" || h.Path != "" {
			d.s.Respond(st, 400, nil, true)
			return
		}
		d.s.Respond(st, 200, []h2.Field{{Name: "baggage", Value: "k8s.namespace.name=b"}}, false)
	}
	t.Run("both_ways_and_half_close", func(t *testing.T) {
		cc, d := xnetClient(t, h2.Config{}, ok)
		up, down := random(2<<20), random(3<<20)
		body, feed := io.Pipe()
		resp, err := cc.RoundTrip(connectRequest(t.Context(), t, body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("Baggage") != "k8s.namespace.name=b" {
			t.Errorf("answer is %v %v", resp.StatusCode, resp.Header)
		}
		go func() {
			feed.Write(up)
			feed.Close()
		}()
		d.locked(func() {
			for st, x := range d.streams {
				d.wait("the end", func() bool { return x.end })
				if !bytes.Equal(x.data, up) {
					t.Errorf("%d bytes arrived", len(x.data))
				}
				go d.locked(func() { d.send(st, down, true) }) // the other half is still open
			}
		})
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, down) {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		for _, status := range []int{400, 401, 503} {
			cc, _ := xnetClient(t, h2.Config{}, func(d *driver, st *h2.Stream, _ *h2.Header) { d.s.Respond(st, status, nil, true) })
			body, feed := io.Pipe()
			resp, err := cc.RoundTrip(connectRequest(t.Context(), t, body))
			if err != nil || resp.StatusCode != status {
				t.Fatalf("%v, %v", resp, err)
			}
			if got, err := io.ReadAll(resp.Body); len(got) != 0 || err != nil {
				t.Errorf("body %q, %v", got, err)
			}
			feed.Close()
		}
	})
	t.Run("client_cancels", func(t *testing.T) {
		cc, d := xnetClient(t, h2.Config{}, ok)
		body, _ := io.Pipe()
		resp, err := cc.RoundTrip(connectRequest(t.Context(), t, body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		d.locked(func() {
			for _, x := range d.streams {
				d.wait("the reset", func() bool { return x.reset != "" })
				if x.reset != "CANCEL" {
					t.Errorf("reset is %s", x.reset)
				}
			}
		})
	})
	t.Run("our_reset", func(t *testing.T) {
		cc, d := xnetClient(t, h2.Config{}, ok)
		body, _ := io.Pipe()
		resp, err := cc.RoundTrip(connectRequest(t.Context(), t, body))
		if err != nil {
			t.Fatal(err)
		}
		d.locked(func() {
			for st := range d.streams {
				d.s.Reset(st, h2.ConnectError)
			}
			d.more.Broadcast()
		})
		var se http2.StreamError
		if _, err := io.ReadAll(resp.Body); !errors.As(err, &se) || se.Code != http2.ErrCodeConnect {
			t.Errorf("the body ends with %v", err)
		}
	})
	t.Run("stream_limit_and_ping", func(t *testing.T) {
		cc, d := xnetClient(t, h2.Config{MaxStreams: 2}, ok)
		if err := cc.Ping(t.Context()); err != nil { // the settings have arrived
			t.Fatal(err)
		}
		if got := cc.State().MaxConcurrentStreams; got != 2 {
			t.Errorf("limit is %d", got)
		}
		d.locked(func() {
			d.s.Ping([8]byte([]byte("question")))
			d.more.Broadcast()
			d.wait("the pong", func() bool { return d.pong == [8]byte([]byte("question")) })
		})
	})
	t.Run("goaway", func(t *testing.T) {
		cc, d := xnetClient(t, h2.Config{}, ok)
		body, feed := io.Pipe()
		resp, err := cc.RoundTrip(connectRequest(t.Context(), t, body))
		if err != nil {
			t.Fatal(err)
		}
		d.locked(func() {
			d.s.GoAway(false, h2.NoError, "")
			d.s.Ping([8]byte{1})
			d.more.Broadcast()
			d.wait("the pong", func() bool { return d.pong == [8]byte{1} })
			d.s.GoAway(true, h2.NoError, "")
			d.s.Ping([8]byte{2})
			d.more.Broadcast()
			d.wait("the pong", func() bool { return d.pong == [8]byte{2} })
		})
		if cc.CanTakeNewRequest() {
			t.Error("the client would open another stream")
		}
		go feed.CloseWithError(io.EOF)
		d.locked(func() {
			for st, x := range d.streams {
				d.wait("the end", func() bool { return x.end })
				d.send(st, []byte("to the end"), true)
			}
		})
		if got, err := io.ReadAll(resp.Body); string(got) != "to the end" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
	t.Run("large_headers_use_continuation", func(t *testing.T) {
		value := strings.Repeat("v", 50000)
		var got string
		cc, _ := xnetClient(t, h2.Config{}, func(d *driver, st *h2.Stream, h *h2.Header) {
			got = h.Get("x-large")
			d.s.Respond(st, 200, []h2.Field{{Name: "x-large", Value: value}}, true)
		})
		req := connectRequest(t.Context(), t, nil)
		req.Header.Set("X-Large", value)
		resp, err := cc.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if got != value || resp.Header.Get("X-Large") != value {
			t.Errorf("%d bytes arrived, %d came back", len(got), len(resp.Header.Get("X-Large")))
		}
	})
	t.Run("other_methods_arrive_too", func(t *testing.T) {
		cc, _ := xnetClient(t, h2.Config{}, func(d *driver, st *h2.Stream, h *h2.Header) {
			d.s.Respond(st, 400, []h2.Field{{Name: "saw", Value: h.Method + " " + h.Scheme + " " + h.Path}}, true)
		})
		req, err := http.NewRequest(http.MethodGet, "https://10.1.2.3/path?query", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := cc.RoundTrip(req)
		if err != nil || resp.StatusCode != 400 || resp.Header.Get("Saw") != "GET https /path?query" {
			t.Errorf("%v, %v", resp, err)
		}
	})
}
