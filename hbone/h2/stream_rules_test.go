package h2_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

const req1 = "headers 1 CONNECT 10.0.0.1:80"

// TestServerStreams is the state machine of RFC 9113 section 5.1 as a server sees it.
func TestServerStreams(t *testing.T) {
	const closed = req1 + "; end 1"
	// ended gives a stream that both sides have ended.
	ended := func(f func(*rig)) func(*rig) {
		return func(r *rig) {
			r.onData = func(st *h2.Stream, _ int, end bool) {
				if end {
					r.s.End(st)
				}
			}
			r.w.connect(1)
			r.w.data(1, true, "")
			f(r)
			r.w.ping(false, "stillfit")
		}
	}
	const gone = "DATA 1 end=true "
	const alive = gone + "; PING ack=true stillfit"
	reset := func(f func(*rig)) func(*rig) {
		return func(r *rig) {
			r.w.connect(1)
			r.feed()
			r.s.Reset(r.stream(1), h2.ConnectError)
			f(r)
			r.w.ping(false, "stillfit")
		}
	}
	const afterReset = "RST_STREAM 1 CONNECT_ERROR; PING ack=true stillfit"
	run(t, []row{
		{name: "request", do: func(r *rig) { r.w.connect(1) }, events: req1},
		{name: "request_and_end", do: func(r *rig) { r.w.headers(1, true, ":method", "CONNECT", ":authority", "10.0.0.1:80") }, events: closed},
		{name: "ids_may_skip", do: func(r *rig) { r.w.connect(1); r.w.connect(2001) }, events: req1 + "; headers 2001 CONNECT 10.0.0.1:80"},
		{name: "highest_id", do: func(r *rig) { r.w.connect(1<<31 - 1) }, events: "headers 2147483647 CONNECT 10.0.0.1:80"},
		{name: "even_id", do: func(r *rig) { r.w.connect(2) }, code: h2.ProtocolError, reason: "even"},
		{name: "id_goes_back", do: func(r *rig) { r.w.connect(5); r.w.connect(3) }, events: "headers 5 CONNECT 10.0.0.1:80", code: h2.StreamClosed},
		{name: "data_and_end", do: func(r *rig) { r.w.connect(1); r.w.data(1, false, "abc"); r.w.data(1, true, "def") }, events: req1 + "; data 1 abcdef; end 1"},
		{name: "data_behind_end", do: func(r *rig) {
			r.w.connect(1)
			r.w.data(1, true, "abc")
			r.w.data(1, false, "def")
			r.w.ping(false, "stillfit")
		},
			events: req1 + "; data 1 abc; end 1; reset 1 STREAM_CLOSED (DATA behind END_STREAM)", frames: "RST_STREAM 1 STREAM_CLOSED; PING ack=true stillfit"},
		{name: "end_twice", do: func(r *rig) { r.w.connect(1); r.w.data(1, true, ""); r.w.data(1, true, "") },
			events: closed + "; reset 1 STREAM_CLOSED (DATA behind END_STREAM)", frames: "RST_STREAM 1 STREAM_CLOSED"},
		{name: "window_update_behind_end", do: func(r *rig) { r.w.connect(1); r.w.data(1, true, ""); r.w.window(1, 5) }, events: closed},
		{name: "reset_behind_end", do: func(r *rig) { r.w.connect(1); r.w.data(1, true, ""); r.w.reset(1, h2.Cancel) }, events: closed + "; reset 1 CANCEL"},
		{name: "reset", do: func(r *rig) { r.w.connect(1); r.w.data(1, false, "abc"); r.w.reset(1, h2.ConnectError) },
			events: req1 + "; data 1 abc; reset 1 CONNECT_ERROR"},
		{name: "reset_with_unknown_code", do: func(r *rig) { r.w.connect(1); r.w.reset(1, 0x77) }, events: req1 + "; reset 1 error code 119"},
		{name: "reset_twice", do: func(r *rig) { r.w.connect(1); r.w.reset(1, h2.Cancel); r.w.reset(1, h2.Cancel) }, events: req1 + "; reset 1 CANCEL"},

		{name: "data_on_idle_stream", do: func(r *rig) { r.w.data(1, false, "x") }, code: h2.ProtocolError, reason: "DATA on an idle stream"},
		{name: "data_above_last_stream", do: func(r *rig) { r.w.connect(1); r.w.data(3, false, "x") }, events: req1, code: h2.ProtocolError, reason: "idle"},
		{name: "data_on_even_stream", do: func(r *rig) { r.w.connect(3); r.w.data(2, false, "x") }, events: "headers 3 CONNECT 10.0.0.1:80", code: h2.ProtocolError, reason: "idle"},
		{name: "rst_stream_on_idle_stream", do: func(r *rig) { r.w.reset(1, h2.Cancel) }, code: h2.ProtocolError, reason: "RST_STREAM on an idle stream"},
		{name: "window_update_on_idle_stream", do: func(r *rig) { r.w.window(1, 1) }, code: h2.ProtocolError, reason: "WINDOW_UPDATE on an idle stream"},
		{name: "priority_on_idle_stream", do: func(r *rig) { r.w.raw(tPriority, 0, 7, "\x00\x00\x00\x00\x01") }},

		{name: "data_on_ended_stream", do: ended(func(r *rig) { r.w.data(1, false, "late") }), events: closed, frames: alive},
		{name: "window_update_on_ended_stream", do: ended(func(r *rig) { r.w.window(1, 1) }), events: closed, frames: alive},
		{name: "rst_stream_on_ended_stream", do: ended(func(r *rig) { r.w.reset(1, h2.Cancel) }), events: closed, frames: alive},
		{name: "priority_on_ended_stream", do: ended(func(r *rig) { r.w.raw(tPriority, 0, 1, "\x00\x00\x00\x00\x01") }), events: closed, frames: alive},
		{name: "headers_on_ended_stream", do: ended(func(r *rig) { r.w.connect(1) }), events: closed, frames: gone, code: h2.StreamClosed},
		{name: "data_on_reset_stream", do: reset(func(r *rig) { r.w.data(1, true, "late") }), events: req1, frames: afterReset},
		{name: "padded_data_on_reset_stream", do: reset(func(r *rig) { r.w.padded(1, false, "late", 20) }), events: req1, frames: afterReset},
		{name: "window_update_on_reset_stream", do: reset(func(r *rig) { r.w.window(1, 1) }), events: req1, frames: afterReset},
		{name: "window_update_of_0_on_reset_stream", do: reset(func(r *rig) { r.w.window(1, 0) }), events: req1, frames: afterReset},
		{name: "rst_stream_on_reset_stream", do: reset(func(r *rig) { r.w.reset(1, h2.Cancel) }), events: req1, frames: afterReset},

		{name: "reset_while_data_arrives", do: func(r *rig) {
			r.onData = func(st *h2.Stream, _ int, _ bool) { r.s.Reset(st, h2.Cancel); r.onData = nil; r.log = r.log[:1] }
			r.w.connect(1)
			r.w.data(1, false, "abc")
			r.w.data(1, true, "def")
			r.w.ping(false, "stillfit")
		}, events: req1, frames: "RST_STREAM 1 CANCEL; PING ack=true stillfit"},
		{name: "above_the_limit", cfg: h2.Config{MaxStreams: 2}, do: func(r *rig) {
			for _, id := range []uint32{1, 3, 5, 7} {
				r.w.connect(id)
			}
			r.w.data(5, false, "on the way already")
			r.w.reset(1, h2.Cancel)
			r.w.connect(9)
		}, events: req1 + "; headers 3 CONNECT 10.0.0.1:80; reset 1 CANCEL; headers 9 CONNECT 10.0.0.1:80",
			frames: "RST_STREAM 5 REFUSED_STREAM; RST_STREAM 7 REFUSED_STREAM"},
		{name: "half_closed_streams_count", cfg: h2.Config{MaxStreams: 1}, do: func(r *rig) {
			r.w.connect(1)
			r.w.data(1, true, "")
			r.w.connect(3)
		}, events: closed, frames: "RST_STREAM 3 REFUSED_STREAM"},
		{name: "answer_and_end_frees_the_place", cfg: h2.Config{MaxStreams: 1}, do: func(r *rig) {
			r.onRequest = func(st *h2.Stream, _ *h2.Header) {
				r.s.Respond(st, 401, nil, true)
				r.s.Respond(st, 200, nil, false)
				r.s.End(st)
				r.s.Reset(st, h2.InternalError)
			}
			r.w.connect(1)
			r.w.connect(3)
		}, events: req1 + "; headers 3 CONNECT 10.0.0.1:80",
			frames: "HEADERS 1 end=true :status=401; RST_STREAM 1 NO_ERROR; HEADERS 3 end=true :status=401; RST_STREAM 3 NO_ERROR"},
		{name: "answer_and_end_to_a_peer_that_has_ended", do: func(r *rig) {
			r.onRequest = func(st *h2.Stream, _ *h2.Header) { r.s.Respond(st, 503, []h2.Field{{Name: "x", Value: "y"}}, true) }
			r.w.headers(1, true, ":method", "CONNECT", ":authority", "10.0.0.1:80")
		}, events: closed, frames: "HEADERS 1 end=true :status=503 x=y"},
	})
}

// TestClientStreams is the state machine as a client sees it.
func TestClientStreams(t *testing.T) {
	const ok = "headers 1 200"
	rows := []row{
		{name: "response_and_data", do: func(r *rig) {
			r.w.headers(1, false, ":status", "200")
			r.w.data(1, false, "abc")
			r.w.data(1, true, "")
		}, events: ok + "; data 1 abc; end 1"},
		{name: "data_before_response", do: func(r *rig) { r.w.data(1, false, "abc"); r.w.ping(false, "stillfit") },
			events: "reset 1 PROTOCOL_ERROR (DATA before HEADERS)", frames: "RST_STREAM 1 PROTOCOL_ERROR; PING ack=true stillfit"},
		{name: "data_before_final_response", do: func(r *rig) { r.w.headers(1, false, ":status", "100"); r.w.data(1, false, "abc") },
			events: "reset 1 PROTOCOL_ERROR (DATA before HEADERS)", frames: "RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "response_on_idle_stream", do: func(r *rig) { r.w.headers(5, false, ":status", "200") }, code: h2.ProtocolError, reason: "HEADERS on an idle stream"},
		{name: "response_on_even_stream", do: func(r *rig) { r.w.headers(2, false, ":status", "200") }, code: h2.ProtocolError, reason: "HEADERS on an idle stream"},
		{name: "data_on_idle_stream", do: func(r *rig) { r.w.data(5, false, "x") }, code: h2.ProtocolError, reason: "DATA on an idle stream"},
		{name: "reset_on_idle_stream", do: func(r *rig) { r.w.reset(5, h2.Cancel) }, code: h2.ProtocolError, reason: "RST_STREAM on an idle stream"},
		{name: "window_update_on_idle_stream", do: func(r *rig) { r.w.window(5, 1) }, code: h2.ProtocolError, reason: "WINDOW_UPDATE on an idle stream"},
		{name: "response_to_reset_stream", do: func(r *rig) {
			r.s.Reset(r.stream(1), h2.Cancel)
			r.w.headers(1, false, ":status", "200", "baggage", "k=v")
			r.w.data(1, true, "late")
			r.w.headers(3, false, ":status", "200", "baggage", "k=v") // decodes with the table of the dropped one
		}, events: "headers 3 200 baggage=k=v", frames: "RST_STREAM 1 CANCEL"},
		{name: "refused", do: func(r *rig) { r.w.reset(1, h2.RefusedStream) }, events: "reset 1 REFUSED_STREAM"},
		{name: "end_then_reset_no_error", do: func(r *rig) { r.w.headers(1, true, ":status", "503"); r.w.reset(1, h2.NoError) },
			events: "headers 1 503; end 1; reset 1 NO_ERROR"},
		{name: "second_response", do: func(r *rig) { r.w.headers(1, false, ":status", "200"); r.w.headers(1, false, ":status", "200") },
			events: ok + "; reset 1 PROTOCOL_ERROR (pseudo-header field in trailers)", frames: "RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "both_ended", do: func(r *rig) {
			r.s.End(r.stream(1))
			r.w.headers(1, false, ":status", "200")
			r.w.data(1, true, "abc")
			r.feed()
			if st := r.stream(1); !st.Gone() || !st.LocalEnd() || !st.RemoteEnd() || r.s.Streams() != 1 {
				r.t.Error("the stream is not gone")
			}
			r.s.End(r.stream(1))
			r.s.Reset(r.stream(1), h2.Cancel)
		}, events: ok + "; data 1 abc; end 1", frames: "DATA 1 end=true "},
	}
	for i := range rows {
		rows[i].client, rows[i].dials = true, 2
	}
	run(t, rows)
}

// TestGoAway is RFC 9113 section 6.8.
func TestGoAway(t *testing.T) {
	run(t, []row{
		{name: "streams_above_last_are_refused", client: true, dials: 3, do: func(r *rig) {
			r.w.headers(1, false, ":status", "200")
			r.w.goAway(1, h2.NoError, "bye")
			r.w.data(1, true, "to the end")
			r.feed()
			if !r.s.GoingAway() {
				r.t.Error("not going away")
			}
			if _, err := r.s.Open(&h2.Header{Method: "CONNECT"}); !errors.Is(err, h2.ErrGoingAway) {
				r.t.Errorf("Open gives %v", err)
			}
		}, events: `headers 1 200; goaway 1 NO_ERROR "bye"; reset 3 REFUSED_STREAM; reset 5 REFUSED_STREAM; data 1 to the end; end 1`},
		{name: "two_steps", client: true, dials: 2, do: func(r *rig) {
			r.w.goAway(1<<31-1, h2.NoError, "")
			r.w.goAway(1, h2.NoError, "")
		}, events: `goaway 2147483647 NO_ERROR ""; goaway 1 NO_ERROR ""; reset 3 REFUSED_STREAM`},
		{name: "with_an_error", client: true, dials: 1, do: func(r *rig) { r.w.goAway(0, h2.EnhanceYourCalm, "too\nmuch\x00\xff") },
			events: `goaway 0 ENHANCE_YOUR_CALM "too?much??"; reset 1 REFUSED_STREAM`},
		{name: "debug_text_is_bounded", do: func(r *rig) { r.w.goAway(0, 99, strings.Repeat("x", 1000)) },
			events: `goaway 0 error code 99 "` + strings.Repeat("x", 200) + `"`},
		{name: "reserved_bit", client: true, dials: 2, do: func(r *rig) { r.w.raw(tGoAway, 0, 0, "\x80\x00\x00\x01\x00\x00\x00\x00") },
			events: `goaway 1 NO_ERROR ""; reset 3 REFUSED_STREAM`},
		{name: "server_keeps_its_streams", do: func(r *rig) { r.w.connect(1); r.w.goAway(0, h2.NoError, ""); r.w.data(1, true, "x") },
			events: req1 + `; goaway 0 NO_ERROR ""; data 1 x; end 1`},
		{name: "ours_first_step", do: func(r *rig) {
			r.w.connect(1)
			r.feed()
			r.s.GoAway(false, h2.NoError, "")
			r.w.connect(3)
			r.feed()
			r.s.GoAway(true, h2.NoError, "done")
			r.w.connect(5)
			r.w.data(5, true, "on the way already")
			r.w.window(5, 10)
			r.w.reset(5, h2.Cancel)
			r.w.data(3, true, "x")
		}, events: req1 + "; headers 3 CONNECT 10.0.0.1:80; data 3 x; end 3", frames: `GOAWAY 2147483647 NO_ERROR ""; GOAWAY 3 NO_ERROR "done"`},
		{name: "ours_keeps_the_table", do: func(r *rig) {
			r.s.GoAway(true, h2.NoError, "")
			r.w.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "x", "y")
			r.w.raw(tHeaders, fEndHeaders, 3, "\xff") // ignored streams are decoded all the same
		}, frames: `GOAWAY 0 NO_ERROR ""`, code: h2.CompressionError},
	})
}

// TestStreamLimit: Open follows the peer's SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113 section 5.1.2).
func TestStreamLimit(t *testing.T) {
	open := func(r *rig, want error) {
		t.Helper()
		st, err := r.s.Open(&h2.Header{Method: "CONNECT", Authority: "a:1"})
		if !errors.Is(err, want) || (st == nil) != (want != nil) {
			t.Fatalf("Open gives %v, want %v", err, want)
		}
		if st != nil {
			r.open = append(r.open, st)
		}
	}
	t.Run("before_settings", func(t *testing.T) {
		r := newRig(t, h2.Config{}, whole)
		if n, known := r.s.PeerStreams(); n != 100 || known {
			t.Errorf("limit %d, known %v", n, known)
		}
		for range 100 {
			open(r, nil)
		}
		open(r, h2.ErrStreamLimit)
		r.w.settings() // without the setting there is no limit
		r.feed()
		if n, known := r.s.PeerStreams(); n < 1<<20 || !known {
			t.Errorf("limit %d, known %v", n, known)
		}
		open(r, nil)
	})
	t.Run("follows_settings", func(t *testing.T) {
		r := newRig(t, h2.Config{}, whole)
		r.preamble(false, setting(http2.SettingMaxConcurrentStreams, 2))
		open(r, nil)
		open(r, nil)
		open(r, h2.ErrStreamLimit)
		r.w.reset(1, h2.Cancel)
		r.feed()
		open(r, nil)
		open(r, h2.ErrStreamLimit)
		r.w.settings(setting(http2.SettingMaxConcurrentStreams, 3))
		r.feed()
		open(r, nil)
		open(r, h2.ErrStreamLimit)
		r.w.settings(setting(http2.SettingMaxConcurrentStreams, 0))
		r.feed()
		for _, st := range r.open {
			r.s.Reset(st, h2.Cancel)
		}
		open(r, h2.ErrStreamLimit)
		r.w.settings(setting(http2.SettingMaxConcurrentStreams, 1))
		r.feed()
		open(r, nil)
		st := r.open[len(r.open)-1]
		r.s.End(st)
		open(r, h2.ErrStreamLimit) // half closed still counts
		r.w.headers(st.ID, true, ":status", "200")
		r.feed()
		open(r, nil)
		if got := r.open[len(r.open)-1].ID; got != st.ID+2 {
			t.Errorf("stream %d follows %d", got, st.ID)
		}
	})
	t.Run("ids_run_out", func(t *testing.T) {
		r := newRig(t, h2.Config{}, whole)
		r.preamble(false)
		h2.SetNextID(r.s, 1<<31-3)
		open(r, nil)
		if r.s.GoingAway() {
			t.Error("going away too early")
		}
		open(r, nil)
		if got := r.open[1].ID; got != 1<<31-1 {
			t.Errorf("last stream is %d", got)
		}
		open(r, h2.ErrGoingAway)
		if !r.s.GoingAway() {
			t.Error("not going away")
		}
		r.w.headers(1<<31-1, false, ":status", "200")
		r.feed()
		if r.err != nil || r.events() != "headers 2147483647 200" {
			t.Errorf("%v, %s", r.err, r.events())
		}
	})
}

func TestEach(t *testing.T) {
	r := newRig(t, h2.Config{}, whole)
	r.preamble(false)
	for range 10 {
		r.dial()
	}
	seen := 0
	r.s.Each(func(st *h2.Stream) { seen++; r.s.Reset(st, h2.Cancel) })
	if seen != 10 || r.s.Streams() != 0 {
		t.Errorf("%d streams seen, %d left", seen, r.s.Streams())
	}
}

func TestErrCodeNames(t *testing.T) {
	for c := range h2.ErrCode(14) {
		if got, want := c.String(), http2.ErrCode(c).String(); got != want {
			t.Errorf("code %d reads %q, want %q", c, got, want)
		}
	}
	if got := h2.ErrCode(14).String(); got != "error code 14" {
		t.Errorf("unknown code reads %q", got)
	}
}
