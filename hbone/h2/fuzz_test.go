package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// react makes the rig do a bit of everything in answer to its peer, the same for the same input.
func react(r *rig) {
	r.onRequest = func(st *h2.Stream, h *h2.Header) {
		switch {
		case h.Method != "CONNECT":
			r.s.Respond(st, 400, nil, true)
		case st.ID%8 == 3:
			r.s.Respond(st, 503, nil, true)
		case st.ID%8 == 5:
			r.s.Reset(st, h2.RefusedStream)
		case st.ID%8 == 7: // left open
		default:
			r.s.Respond(st, 200, []h2.Field{{Name: "baggage", Value: "k=v"}}, false)
		}
	}
	r.onData = func(st *h2.Stream, _ int, end bool) {
		if end && st.ID%4 == 1 {
			r.s.End(st)
		}
	}
}

// outcome is all that can be seen of a session from outside.
type outcome struct {
	events, frames string
	err            string
	streams        int
}

func (r *rig) outcome() outcome {
	o := outcome{events: r.events(), frames: r.frames(), streams: r.s.Streams()}
	if r.err != nil {
		o.err = r.err.Error()
		var ce *h2.ConnError
		if !errors.As(r.err, &ce) {
			r.t.Fatalf("error is no ConnError: %v", r.err)
		}
		if frames := decode(r.t, r.out); len(frames) == 0 || !strings.HasPrefix(frames[len(frames)-1], "GOAWAY") {
			r.t.Fatalf("no GOAWAY at the end of %q", frames)
		}
	}
	open := 0
	for _, st := range r.open {
		if r.s.Window(st) < 0 {
			r.t.Fatal("negative window")
		}
		if !st.Gone() {
			open++
		}
		if st.LocalEnd() && st.RemoteEnd() && !st.Gone() {
			r.t.Fatal("a stream that has ended both ways is not gone")
		}
	}
	if open != o.streams {
		r.t.Fatalf("%d streams open, the session says %d", open, o.streams)
	}
	return o
}

// same plays f with several cuts and requires one outcome.
func same(t *testing.T, seed uint64, play func(cut func(int) int) *rig) {
	t.Helper()
	want := play(whole).outcome()
	for _, cut := range []struct {
		name string
		f    func(int) int
	}{{"bytewise", bytewise}, {"ragged", ragged(seed)}} {
		if got := play(cut.f).outcome(); got != want {
			t.Fatalf("%s: outcome\n got %+v\nwant %+v", cut.name, got, want)
		}
	}
}

const fuzzStreams = 8

func fuzzConfig(server bool) h2.Config {
	return h2.Config{Server: server, MaxStreams: fuzzStreams, StreamWindow: 1000, StreamCeiling: 4000, ConnWindow: 70000, MaxHeaderList: 600}
}

// seeds are exchanges for the corpus, each as a list of frames.
func seeds(server bool) [][]byte {
	w := newWire()
	var out [][]byte
	add := func(f func()) { f(); out = append(out, w.take()) }
	first := func(id uint32, end bool) {
		if server {
			w.headers(id, end, ":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "k=v")
		} else {
			w.headers(id, end, ":status", "200", "baggage", "k=v")
		}
	}
	add(func() { first(1, false); w.data(1, false, "hello"); w.data(1, true, "") })
	add(func() {
		first(1, false)
		first(3, true)
		w.padded(1, true, "padded", 9)
		w.window(0, 10)
		w.window(1, 10)
	})
	add(func() {
		w.settings(setting(http2.SettingInitialWindowSize, 0), setting(http2.SettingHeaderTableSize, 0))
		w.ack()
	})
	add(func() { w.ping(false, "12345678"); w.ping(true, "87654321"); w.goAway(1, h2.NoError, "bye") })
	add(func() { first(1, false); w.reset(1, h2.ConnectError); w.data(1, false, "late"); w.window(1, 1) })
	add(func() { first(1, false); w.headers(1, true, "x", "trailers") })
	add(func() {
		b := string(w.block(":method", "CONNECT", ":authority", "a:1"))
		w.raw(tHeaders, 0, 1, b[:3])
		w.raw(tContinuation, 0, 1, "")
		w.raw(tContinuation, fEndHeaders, 1, b[3:])
	})
	add(func() { w.raw(tHeaders, fPadded|fPriority|fEndHeaders, 1, "\x01\x00\x00\x00\x00\x10\x88\x00") })
	add(func() {
		w.raw(tPriority, 0, 3, "\x00\x00\x00\x00\x01")
		w.raw(0xfa, 7, 9, "unknown")
		w.raw(tPush, 0, 1, "\x00\x00\x00\x02")
	})
	add(func() { first(7, false); w.window(7, 0); w.window(0, 0) })
	add(func() { w.head(16385, tData, 0, 1) })
	add(func() { first(1, false); w.data(1, false, strings.Repeat("x", 1001)) })
	return out
}

func fuzzSession(f *testing.F, server bool) {
	for i, s := range seeds(server) {
		f.Add(s, uint64(i), true)
		f.Add(append([]byte(h2.Preface), s...), uint64(i), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, polite bool) {
		same(t, seed, func(cut func(int) int) *rig {
			r := newRig(t, fuzzConfig(server), cut)
			r.s.Sent(len(r.s.Out()))
			if polite {
				r.preamble(server)
			}
			react(r)
			if !server {
				for range 4 {
					r.dial()
				}
			}
			r.w.text(string(in))
			r.feed()
			return r
		})
	})
}

// FuzzServer: any bytes, in any pieces.
func FuzzServer(f *testing.F) { fuzzSession(f, true) }

// FuzzClient is FuzzServer for the other role.
func FuzzClient(f *testing.F) { fuzzSession(f, false) }

// script reads a fuzzer's bytes as parameters.
type script []byte

func (s *script) next() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

// FuzzFrames reads its input as a program of whole frames, right and wrong, and of calls from this side, so that it gets
// deeper than bytes that have to become frames first.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{1, 1, 0, 0, 1, 1, 5, 0}, false)
	f.Add([]byte{0, 1, 1, 0, 3, 4, 9, 20, 1, 21, 1, 22, 1, 23, 1}, true)
	f.Add(bytes.Repeat([]byte{1, 3, 5, 7, 2, 24, 1, 25, 8, 100}, 10), true)
	f.Fuzz(func(t *testing.T, program []byte, server bool) {
		if len(program) > 300 {
			return
		}
		same(t, uint64(len(program)), func(cut func(int) int) *rig {
			r := newRig(t, fuzzConfig(server), cut)
			r.s.Sent(len(r.s.Out()))
			r.preamble(server)
			react(r)
			for s := script(slices.Clone(program)); len(s) > 0 && r.err == nil; {
				step(r, &s, server)
				r.feed()
			}
			return r
		})
	})
}

var fuzzBlocks = [][]string{
	{":method", "CONNECT", ":authority", "a:1"}, {":status", "200"}, {":status", "100"}, {"x", "trailers"}, {":status", "503", "x", "y"},
	{":method", "GET", ":scheme", "http", ":path", "/"}, {":method", "CONNECT", ":path", "/"}, {"X", "upper"}, {"x", strings.Repeat("l", 700)}, {},
}

func step(r *rig, s *script, server bool) {
	op := s.next() % 28
	id := uint32(s.next() % 18)
	var local *h2.Stream
	for _, st := range r.open {
		if st.ID == id {
			local = st
		}
	}
	switch {
	case op < 3:
		r.w.headers(id, s.next()%3 == 0, fuzzBlocks[int(s.next())%len(fuzzBlocks)]...)
	case op < 6:
		r.w.data(id, s.next()%4 == 0, strings.Repeat("d", int(s.next())*4))
	case op < 7:
		r.w.padded(id, s.next()%4 == 0, strings.Repeat("p", int(s.next())), int(s.next()))
	case op < 8:
		r.w.reset(id, h2.ErrCode(s.next()))
	case op < 10:
		r.w.window(id, uint32(s.next())<<(s.next()%24))
	case op < 11:
		r.w.settings(setting(http2.SettingID(s.next()%7), uint32(s.next())<<(s.next()%25)))
	case op < 12:
		r.w.ack()
	case op < 13:
		r.w.ping(s.next()%2 == 0, "12345678")
	case op < 14:
		r.w.goAway(id, h2.ErrCode(s.next()), "bye")
	case op < 15:
		flags, n := s.next(), int(s.next()%20)
		r.w.raw(s.next()%12, flags, id, strings.Repeat("\x00", n))
	case op < 16:
		r.w.raw(tHeaders, 0, id, "")
		r.w.raw(tContinuation, s.next()&fEndHeaders, id, string(r.w.block(fuzzBlocks[int(s.next())%len(fuzzBlocks)]...)))
	case op < 17:
		r.s.Now += int64(s.next()) * ms
	case op < 18:
		r.s.GoAway(s.next()%2 == 0, h2.NoError, "")
	case op < 22:
		if !server {
			if st, err := r.s.Open(&h2.Header{Method: "CONNECT", Authority: "a:1"}); err == nil {
				r.open = append(r.open, st)
			}
		}
	case local == nil:
	case op < 23:
		r.s.Reset(local, h2.ConnectError)
	case op < 24:
		r.s.End(local)
	case op < 25:
		if server {
			r.s.Respond(local, 200, nil, s.next()%3 == 0)
		}
	case op < 27:
		r.s.Drained(local, int(s.next()))
	default:
		if n := min(int(s.next()), r.s.Window(local)); n > 0 {
			b := append(make([]byte, h2.FrameHeaderLen), make([]byte, n)...)
			r.flush()
			r.s.DataHeader(b, local, n, false)
			r.out = append(r.out, b...)
		}
	}
}

// FuzzHeaders sends arbitrary fields through the encoder, x/net's decoder and the package's own.
func FuzzHeaders(f *testing.F) {
	f.Add("10.0.0.1:80", "baggage", "k=v,k2=v2", "forwarded", `for="[::1]:80";host=a.b`)
	f.Add("", "x", strings.Repeat("v", 20000), "y", "")
	f.Add("a:1", "Bad Name", "\x00", ":path", "x")
	f.Fuzz(func(t *testing.T, authority, name1, value1, name2, value2 string) {
		fields := []h2.Field{{Name: name1, Value: value1}, {Name: name2, Value: value2}}
		c := newRig(t, h2.Config{}, whole)
		c.preamble(false)
		if _, err := c.s.Open(&h2.Header{Method: "CONNECT", Authority: authority, Fields: fields}); err != nil {
			t.Fatal(err)
		}
		c.flush()
		s := newRig(t, h2.Config{Server: true}, whole)
		s.preamble(true)
		var got *h2.Header
		s.w.text(string(c.out))
		b := s.w.take()
		s.err = s.s.Feed(b, &catch{rig: s, head: &got})
		if s.err != nil {
			if len(value1)+len(value2)+len(name1)+len(name2)+len(authority) < 60000 {
				t.Fatal(s.err)
			}
			return
		}
		if got == nil {
			if frames := decode(t, s.s.Out()); len(frames) != 1 || frames[0] != "RST_STREAM 1 PROTOCOL_ERROR" {
				t.Fatalf("neither taken nor refused: %q", frames)
			}
			return
		}
		if got.Method != "CONNECT" || got.Authority != authority || fmt.Sprint(got.Fields) != fmt.Sprint(fields) {
			t.Fatalf("sent %q %q, got %+v", authority, fields, got)
		}
	})
}

// catch keeps the header of the request.
type catch struct {
	*rig
	head **h2.Header
}

func (c *catch) OnHeaders(_ *h2.Stream, h *h2.Header, _ bool) { *c.head = h }
