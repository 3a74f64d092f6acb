package tunnel_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// counter is a Handler that counts its calls. On the loop.
type counter struct {
	status     chan int
	st         *tunnel.Stream
	writable   int
	frames     int   // since the last DataDone
	deliveries []int // frames of each read
	data       int
	delay      time.Duration // before the first frame
	done       chan struct{} // closed when all is there
	all        int
}

func (c *counter) Response(h *h2.Header, _ bool) { c.status <- h.Status }

func (c *counter) Data(p []byte, _ bool) {
	time.Sleep(c.delay)
	c.delay = 0
	c.frames++
	c.data += len(p)
	c.st.Drained(len(p))
	if c.data == c.all {
		close(c.done)
	}
}

func (c *counter) DataDone() {
	c.deliveries = append(c.deliveries, c.frames)
	c.frames = 0
}

func (c *counter) Writable() {
	c.writable++
	c.st.Write(make([]byte, 100))
}

func (c *counter) Closed(error) {}

// answered opens a stream to a scripted server, which announces the settings and says 200.
func (f *fixture) answered(settings ...http2.Setting) (*counter, *http2.Framer, func(b []byte)) {
	f.t.Helper()
	tun, server, fr := f.client(f.config())
	if err := fr.WriteSettings(settings...); err != nil {
		f.t.Fatal(err)
	}
	c := &counter{status: make(chan int, 1), done: make(chan struct{})}
	f.on(func() { c.st, _ = tun.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, c) })
	next(f.t, fr, http2.FrameHeaders)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
	<-c.status
	return c, fr, func(b []byte) {
		f.t.Helper()
		if _, err := server.Write(b); err != nil {
			f.t.Fatal(err)
		}
	}
}

// TestHostileCredit: credit that comes byte by byte is used once for each read, not once for each byte.
func TestHostileCredit(t *testing.T) {
	f := newFixture(t)
	c, fr, write := f.answered(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	f.on(func() { c.st.Write([]byte("x")) }) // finds no credit
	var b bytes.Buffer
	frames := http2.NewFramer(&b, nil)
	const n = 50000
	for range n {
		_ = frames.WriteWindowUpdate(1, 1)
	}
	go write(b.Bytes())
	got := 0
	for got < n-200 {
		got += int(next(t, fr, http2.FrameData).Header().Length)
		if got > n {
			t.Fatal("more was sent than there was credit for")
		}
		f.on(func() { c.st.Write(make([]byte, 100)) })
	}
	f.on(func() {
		if c.writable > n/20 {
			t.Errorf("%d bytes of credit were used %d times", n, c.writable)
		}
	})
}

// TestHostileTurns: a peer that sends the smallest frames gets smaller turns, so that a round of the loop does not last.
func TestHostileTurns(t *testing.T) {
	f := newFixture(t)
	c, _, write := f.answered()
	const n = 60000                          // fit into the first window
	c.all, c.delay = n, 300*time.Millisecond // so that the next reads are full; the bounds hold without it too
	var b bytes.Buffer
	frames := http2.NewFramer(&b, nil)
	for range n {
		_ = frames.WriteData(1, false, []byte{'x'})
	}
	write(b.Bytes())
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		t.Fatal("data are missing")
	}
	f.on(func() {
		// The first reads may hold what there is. Behind four of them it is an eighth.
		if len(c.deliveries) < 6 {
			t.Errorf("%d frames came in %d reads: %v", n, len(c.deliveries), c.deliveries)
			return
		}
		for i, frames := range c.deliveries[4:] {
			if frames > 4000 {
				t.Errorf("read %d gave %d frames: %v", i+4, frames, c.deliveries)
			}
		}
	})
}

// TestHostileListTurns: so does a peer that sends long header lists.
func TestHostileListTurns(t *testing.T) {
	f := newFixture(t)
	cfg := f.config()
	var rounds []int64 // in which each request came
	const n, field = 1200, 100
	all := make(chan struct{})
	cfg.OnRequest = func(st *tunnel.Stream, _ *h2.Header) {
		if len(rounds) == 0 {
			time.Sleep(300 * time.Millisecond) // likewise
		}
		st.Respond(400, nil, true)
		if rounds = append(rounds, f.loop.Now()); len(rounds) == n {
			close(all)
		}
	}
	client, _ := f.server(cfg)
	go func() { _, _ = io.Copy(io.Discard, client) }()
	block := []byte{0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01, 4, 'a', ':', '8', '0'}
	for range 28 {
		block = append(append(block, 0, 1, 'x', field), bytes.Repeat([]byte{'b'}, field)...)
	}
	var b bytes.Buffer
	frames := http2.NewFramer(&b, nil)
	for i := range uint32(n) {
		_ = frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true, EndStream: true})
	}
	if _, err := client.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-time.After(10 * time.Second):
		t.Fatal("requests are missing")
	}
	f.on(func() {
		// The first reads may hold what there is, 89 requests each. Behind four of them it is an eighth, and a round has two at
		// most.
		in := map[int64]int{}
		long := 0
		for _, at := range rounds {
			if in[at]++; in[at] == 30 {
				long++
			}
		}
		if long > 4 {
			t.Errorf("%d rounds have brought 30 requests or more", long)
		}
	})
}
