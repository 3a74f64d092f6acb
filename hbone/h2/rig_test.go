package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// wire writes what a peer sends, with the framer and the HPACK encoder of x/net, which share no code with the package.
type wire struct {
	buf bytes.Buffer
	fr  *http2.Framer
	blk bytes.Buffer
	enc *hpack.Encoder
}

func newWire() *wire {
	w := &wire{}
	w.fr = http2.NewFramer(&w.buf, nil)
	w.fr.AllowIllegalWrites = true
	w.enc = hpack.NewEncoder(&w.blk)
	return w
}

// take returns what has been written since the last call.
func (w *wire) take() []byte {
	b := bytes.Clone(w.buf.Bytes())
	w.buf.Reset()
	return b
}

func (w *wire) text(s string)                 { w.buf.WriteString(s) }
func (w *wire) settings(s ...http2.Setting)   { w.must(w.fr.WriteSettings(s...)) }
func (w *wire) ack()                          { w.must(w.fr.WriteSettingsAck()) }
func (w *wire) window(id, n uint32)           { w.must(w.fr.WriteWindowUpdate(id, n)) }
func (w *wire) reset(id uint32, c h2.ErrCode) { w.must(w.fr.WriteRSTStream(id, http2.ErrCode(c))) }
func (w *wire) ping(ack bool, data string)    { w.must(w.fr.WritePing(ack, [8]byte([]byte(data)))) }
func (w *wire) goAway(last uint32, c h2.ErrCode, debug string) {
	w.must(w.fr.WriteGoAway(last, http2.ErrCode(c), []byte(debug)))
}
func (w *wire) data(id uint32, end bool, p string) { w.must(w.fr.WriteData(id, end, []byte(p))) }
func (w *wire) padded(id uint32, end bool, p string, pad int) {
	w.must(w.fr.WriteDataPadded(id, end, []byte(p), make([]byte, pad)))
}

// raw writes any frame.
func (w *wire) raw(typ, flags byte, id uint32, payload string) {
	w.must(w.fr.WriteRawFrame(http2.FrameType(typ), http2.Flags(flags), id, []byte(payload)))
}

// head writes only a frame header.
func (w *wire) head(length int, typ, flags byte, id uint32) {
	w.buf.Write([]byte{byte(length >> 16), byte(length >> 8), byte(length), typ, flags, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
}

// block encodes fields given as name, value, name, value …
func (w *wire) block(pairs ...string) []byte {
	w.blk.Reset()
	for i := 0; i < len(pairs); i += 2 {
		w.must(w.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return bytes.Clone(w.blk.Bytes())
}

func (w *wire) headers(id uint32, end bool, pairs ...string) {
	w.must(w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.block(pairs...), EndStream: end, EndHeaders: true}))
}

// connect opens a stream as a client of HBONE does.
func (w *wire) connect(id uint32) {
	w.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
}

func (w *wire) must(err error) {
	if err != nil {
		panic(err)
	}
}

// rig is a Session, what a peer sends to it, and a log of all that it does.
type rig struct {
	t    testing.TB
	s    *h2.Session
	w    *wire
	cut  func(left int) int // size of the next piece that is fed
	err  error
	open []*h2.Stream // every stream seen or opened, in order

	// onRequest answers requests; nil leaves them open.
	onRequest func(st *h2.Stream, h *h2.Header)
	// onData follows every piece of data; nil leaves it undrained.
	onData func(st *h2.Stream, n int, end bool)

	log []entry
	out []byte
}

type entry struct {
	kind string
	id   uint32
	text string
	data []byte
}

func (e entry) String() string {
	s := e.kind
	if e.id != 0 {
		s += fmt.Sprintf(" %d", e.id)
	}
	switch {
	case len(e.data) > 40:
		return s + fmt.Sprintf(" #%d", len(e.data))
	case e.kind == "data":
		return s + " " + string(e.data)
	case e.text != "":
		return s + " " + e.text
	}
	return s
}

func whole(left int) int { return left }
func bytewise(int) int   { return 1 }
func ragged(seed uint64) func(int) int {
	r := rand.New(rand.NewPCG(seed, 1))
	return func(left int) int { return min(left, 1+r.IntN(1+r.IntN(40))) }
}

func newRig(t testing.TB, cfg h2.Config, cut func(int) int) *rig {
	return &rig{t: t, s: h2.NewSession(cfg), w: newWire(), cut: cut}
}

// preamble brings a fresh session to the point where streams can be opened, and forgets what that logged.
func (r *rig) preamble(server bool, settings ...http2.Setting) {
	r.t.Helper()
	if server {
		r.w.text(h2.Preface)
	}
	r.w.settings(settings...)
	r.w.ack()
	r.feed()
	if r.err != nil {
		r.t.Fatalf("preamble: %v", r.err)
	}
	r.log, r.out = nil, nil
}

// feed gives the session what the wire holds.
func (r *rig) feed() {
	b := r.w.take()
	for len(b) > 0 && r.err == nil {
		n := max(1, min(len(b), r.cut(len(b))))
		piece := bytes.Clone(b[:n])
		b = b[n:]
		r.err = r.s.Feed(piece, r)
		for i := range piece {
			piece[i] = 0xdd // what was fed belongs to the caller again
		}
	}
	r.flush()
}

func (r *rig) flush() {
	r.out = append(r.out, r.s.Out()...)
	r.s.Sent(len(r.s.Out()))
}

// dial opens a stream as the client.
func (r *rig) dial() *h2.Stream {
	r.t.Helper()
	st, err := r.s.Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.open = append(r.open, st)
	return st
}

// stream returns the open or past stream with the id.
func (r *rig) stream(id uint32) *h2.Stream {
	r.t.Helper()
	for _, st := range r.open {
		if st.ID == id {
			return st
		}
	}
	r.t.Fatalf("no stream %d", id)
	return nil
}

func (r *rig) add(kind string, id uint32, text string) {
	r.log = append(r.log, entry{kind: kind, id: id, text: text})
}

func (r *rig) OnSettings() { r.add("settings", 0, "") }

func (r *rig) OnHeaders(st *h2.Stream, h *h2.Header, end bool) {
	var text []string
	if h.Method != "" {
		text = append(text, h.Method, h.Authority)
		r.open = append(r.open, st)
	}
	if h.Scheme != "" || h.Path != "" {
		text = append(text, h.Scheme, h.Path)
	}
	if h.Status != 0 {
		text = append(text, fmt.Sprint(h.Status))
	}
	for _, f := range h.Fields {
		text = append(text, f.Name+"="+f.Value)
	}
	r.add("headers", st.ID, strings.Join(text, " "))
	if end {
		r.add("end", st.ID, "")
	}
	if h.Method != "" && r.onRequest != nil {
		r.onRequest(st, h)
	}
}

func (r *rig) OnData(st *h2.Stream, p []byte, end bool) {
	if len(p) == 0 && !end {
		r.t.Error("OnData without data and without end")
	}
	if len(p) > 0 {
		if n := len(r.log) - 1; n < 0 || r.log[n].kind != "data" || r.log[n].id != st.ID {
			r.add("data", st.ID, "")
		}
		last := &r.log[len(r.log)-1] // pieces of one run are one entry
		last.data = append(last.data, p...)
	}
	if end {
		r.add("end", st.ID, "")
	}
	if r.onData != nil {
		r.onData(st, len(p), end)
	}
}

func (r *rig) OnWindow(st *h2.Stream) {
	if st == nil {
		r.add("credit", 0, "")
		return
	}
	r.add("window", st.ID, "")
}

func (r *rig) OnReset(st *h2.Stream, code h2.ErrCode, fault string) {
	if !st.Gone() {
		r.t.Errorf("stream %d is reset and not gone", st.ID)
	}
	text := code.String()
	if fault != "" {
		text += " (" + fault + ")"
	}
	r.add("reset", st.ID, text)
}

func (r *rig) OnGoAway(last uint32, code h2.ErrCode, debug string) {
	r.add("goaway", 0, fmt.Sprintf("%d %v %q", last, code, debug))
}

func (r *rig) OnPong(data [8]byte) { r.add("pong", 0, string(data[:])) }

// events is the log as text. Streams that one frame touches together come in no order, so a run of them is sorted.
func (r *rig) events() string {
	log := slices.Clone(r.log)
	for i := 0; i < len(log); {
		j := i + 1
		for j < len(log) && log[j].kind == log[i].kind && (log[i].kind == "window" || log[i].kind == "reset") {
			j++
		}
		slices.SortStableFunc(log[i:j], func(a, b entry) int { return int(a.id) - int(b.id) })
		i = j
	}
	text := make([]string, len(log))
	for i, e := range log {
		text[i] = e.String()
	}
	return strings.Join(text, "; ")
}

// frames is what the session sent since the preamble as text, read by x/net's framer, which refuses what is malformed.
func (r *rig) frames() string {
	r.t.Helper()
	return strings.Join(decode(r.t, r.out), "; ")
}

// decode gives each frame as one line.
func decode(t testing.TB, b []byte) []string {
	t.Helper()
	b = bytes.TrimPrefix(b, []byte(h2.Preface))
	fr := http2.NewFramer(io.Discard, bytes.NewReader(b))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var out []string
	for {
		f, err := fr.ReadFrame()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatalf("frame behind %q: %v", out, err)
		}
		out = append(out, frameText(f))
	}
}

func frameText(f http2.Frame) string {
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ack"
		}
		s := "SETTINGS"
		f.ForeachSetting(func(v http2.Setting) error { s += fmt.Sprintf(" %v=%d", v.ID, v.Val); return nil })
		return s
	case *http2.PingFrame:
		return fmt.Sprintf("PING ack=%v %s", f.IsAck(), f.Data)
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE %d +%d", id, f.Increment)
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM %d %v", id, h2.ErrCode(f.ErrCode))
	case *http2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY %d %v %q", f.LastStreamID, h2.ErrCode(f.ErrCode), f.DebugData())
	case *http2.DataFrame:
		return fmt.Sprintf("DATA %d end=%v %s", id, f.StreamEnded(), f.Data())
	case *http2.MetaHeadersFrame:
		s := fmt.Sprintf("HEADERS %d end=%v", id, f.StreamEnded())
		for _, h := range f.Fields {
			s += " " + h.Name + "=" + h.Value
		}
		return s
	}
	return fmt.Sprintf("%v %d", f.Header().Type, id)
}

// row is one rule: what the peer does and everything that must come of it.
type row struct {
	name   string
	client bool // role of the session; a server unless set
	bare   bool // no preamble
	dials  int  // streams that a client opens first
	cfg    h2.Config
	do     func(r *rig)
	events string
	frames string     // without the GOAWAY of a connection error
	code   h2.ErrCode // of the connection error; 0: none
	reason string     // what the connection error says
}

func (x row) play(t *testing.T, cut func(int) int) *rig {
	x.cfg.Server = !x.client
	r := newRig(t, x.cfg, cut)
	if x.bare {
		r.s.Sent(len(r.s.Out()))
	} else {
		r.preamble(!x.client)
	}
	for range x.dials {
		r.dial()
	}
	r.s.Sent(len(r.s.Out()))
	x.do(r)
	r.feed()
	return r
}

// run plays rows in one piece, byte by byte and in ragged pieces; all of it has to come out the same.
func run(t *testing.T, rows []row) {
	for _, x := range rows {
		t.Run(x.name, func(t *testing.T) {
			for _, cut := range []struct {
				name string
				f    func(int) int
			}{{"whole", whole}, {"bytewise", bytewise}, {"ragged", ragged(7)}, {"ragged_again", ragged(8)}} {
				r := x.play(t, cut.f)
				if got := r.events(); got != x.events {
					t.Errorf("%s: events\n got %s\nwant %s", cut.name, got, x.events)
				}
				want := x.frames
				if x.code != 0 {
					r.wantError(x.code, x.reason)
					var ce *h2.ConnError
					errors.As(r.err, &ce)
					frames := decode(t, r.out)
					if n := len(frames) - 1; n < 0 || !strings.HasPrefix(frames[n], "GOAWAY ") ||
						!strings.HasSuffix(frames[n], fmt.Sprintf(" %v %q", x.code, ce.Reason)) {
						t.Fatalf("%s: no GOAWAY with %v at the end of %q", cut.name, x.code, frames)
					}
					if got := strings.Join(frames[:len(frames)-1], "; "); got != want {
						t.Errorf("%s: frames\n got %s\nwant %s", cut.name, got, want)
					}
					continue
				}
				if r.err != nil {
					t.Errorf("%s: unexpected %v", cut.name, r.err)
				}
				if got := r.frames(); got != want {
					t.Errorf("%s: frames\n got %s\nwant %s", cut.name, got, want)
				}
			}
		})
	}
}

// wantError asserts the connection error, and that it is final.
func (r *rig) wantError(code h2.ErrCode, reason string) {
	r.t.Helper()
	var ce *h2.ConnError
	if !errors.As(r.err, &ce) {
		r.t.Fatalf("error is %v, want %v", r.err, code)
	}
	if ce.Code != code || !strings.Contains(ce.Reason, reason) || ce.Reason == "" {
		r.t.Fatalf("error is %v, want %v %q", ce, code, reason)
	}
	w := newWire()
	w.ping(false, "afterall")
	before := len(r.s.Out())
	if err := r.s.Feed(w.take(), r); err != r.err {
		r.t.Errorf("Feed after the error gives %v", err)
	}
	if len(r.s.Out()) != before {
		r.t.Error("frames are sent behind the last GOAWAY")
	}
	if _, err := r.s.Open(&h2.Header{Method: "CONNECT"}); !errors.Is(err, h2.ErrGoingAway) {
		r.t.Errorf("Open after the error gives %v", err)
	}
}
