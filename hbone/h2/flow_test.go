package h2_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// TestSendWindows is RFC 9113 section 6.9 from the side that sends.
func TestSendWindows(t *testing.T) {
	// sent opens a stream and uses up n bytes of credit.
	sent := func(n int, f func(r *rig)) func(*rig) {
		return func(r *rig) {
			st := r.stream(1)
			for left := n; left > 0; {
				m := min(left, h2.MaxData)
				r.s.DataHeader(make([]byte, h2.FrameHeaderLen), st, m, false)
				left -= m
			}
			if got := r.s.Window(st); got != 65535-n {
				r.t.Errorf("window is %d behind %d bytes", got, n)
			}
			f(r)
		}
	}
	want := func(n int, blocked bool) func(*rig) {
		return func(r *rig) {
			r.feed()
			if got := r.s.Window(r.stream(1)); got != n {
				r.t.Errorf("window is %d, want %d", got, n)
			}
			if got := r.stream(1).StreamBlocked(); got != blocked {
				r.t.Errorf("stream is blocked by itself: %v", got)
			}
		}
	}
	then := func(fs ...func(*rig)) func(*rig) {
		return func(r *rig) {
			for _, f := range fs {
				f(r)
			}
		}
	}
	window := func(id, n uint32) func(*rig) { return func(r *rig) { r.w.window(id, n) } }
	initial := func(v uint32) func(*rig) {
		return func(r *rig) { r.w.settings(setting(http2.SettingInitialWindowSize, v)) }
	}
	const ack = "SETTINGS ack"
	rows := []row{
		{name: "first_credit", do: sent(100, want(65435, false))},
		{name: "used_up", do: sent(65535, want(0, true))},
		{name: "more_for_the_connection_alone", do: sent(65535, then(window(0, 10), want(0, true))), events: "credit"},
		{name: "more_for_the_stream_alone", do: sent(65535, then(window(1, 10), want(0, false))), events: "window 1"},
		{name: "more_for_both", do: sent(65535, then(window(1, 10), window(0, 7), want(7, false))), events: "window 1; credit"},
		{name: "more_before_it_is_needed", do: sent(10, then(window(1, 10), window(0, 7), want(65532, false)))},
		{name: "reserved_bit", do: sent(65535, then(window(0, 1), func(r *rig) { r.w.raw(tWindow, 0, 1, "\x80\x00\x00\x02") }, want(1, false))), events: "credit; window 1"},
		{name: "smaller_settings_make_it_negative", do: sent(65535, then(initial(0), window(0, 100000), want(0, true), window(1, 65535), want(0, true), window(1, 1), want(1, false))),
			events: "settings; credit; window 1", frames: ack},
		{name: "larger_settings", do: sent(65535, then(initial(65536), window(0, 5), want(1, false))), events: "window 1; window 3; settings; credit", frames: ack},
		{name: "larger_settings_that_do_not_suffice", do: then(initial(10), func(r *rig) { r.feed(); r.s.DataHeader(make([]byte, 9), r.stream(1), 10, false) }, initial(5), initial(10), want(0, true)),
			events: "settings; settings; window 3; settings", frames: ack + "; " + ack + "; " + ack},
		{name: "settings_twice_in_a_frame", do: sent(100, then(func(r *rig) {
			r.w.settings(setting(http2.SettingInitialWindowSize, 1), setting(http2.SettingInitialWindowSize, 1000))
		}, want(900, false))), events: "settings", frames: ack},
		{name: "settings_do_not_touch_the_connection", do: sent(65535, then(initial(1<<30), want(0, false))), events: "window 1; window 3; settings", frames: ack},
		{name: "settings_count_for_new_streams", do: then(initial(7), func(r *rig) {
			r.feed()
			if got := r.s.Window(r.dial()); got != 7 {
				r.t.Errorf("new stream has %d", got)
			}
			r.s.Sent(len(r.s.Out()))
		}), events: "settings", frames: ack},
		{name: "connection_overflow", do: window(0, 1<<31-65535), code: h2.FlowControlError, reason: "connection window"},
		{name: "connection_just_fits", do: window(0, 1<<31-1-65535)},
		{name: "stream_overflow", do: then(window(1, 1<<31-65535), func(r *rig) { r.w.ping(false, "stillfit") }),
			events: "reset 1 FLOW_CONTROL_ERROR (stream window above 2^31-1)", frames: "RST_STREAM 1 FLOW_CONTROL_ERROR; PING ack=true stillfit"},
		{name: "stream_just_fits", do: then(window(1, 1<<31-1-65535), window(0, 1<<31-1-65535), want(1<<31-1, false))},
		{name: "settings_overflow_a_stream", do: then(window(1, 1<<31-1-65535), initial(65536)), code: h2.FlowControlError, reason: "stream window"},
		{name: "connection_zero", do: window(0, 0), code: h2.ProtocolError, reason: "WINDOW_UPDATE of 0"},
		{name: "stream_zero", do: then(window(1, 0), window(3, 0), func(r *rig) { r.w.ping(false, "stillfit") }),
			events: "reset 1 PROTOCOL_ERROR (WINDOW_UPDATE of 0); reset 3 PROTOCOL_ERROR (WINDOW_UPDATE of 0)",
			frames: "RST_STREAM 1 PROTOCOL_ERROR; RST_STREAM 3 PROTOCOL_ERROR; PING ack=true stillfit"},
		{name: "closed_for_sending", do: then(func(r *rig) { r.s.End(r.stream(1)) }, want(0, false)), frames: "DATA 1 end=true "},
		{name: "gone", do: then(func(r *rig) { r.s.Reset(r.stream(1), h2.Cancel) }, want(0, false)), frames: "RST_STREAM 1 CANCEL"},
	}
	for i := range rows {
		rows[i].client, rows[i].dials = true, 2
	}
	run(t, rows)
}

func TestDataHeader(t *testing.T) {
	r := newRig(t, h2.Config{}, whole)
	r.preamble(false)
	st := r.dial()
	r.flush()
	r.out = nil
	for _, p := range []string{"abc", strings.Repeat("x", h2.MaxData), "", "end"} {
		b := append(make([]byte, h2.FrameHeaderLen), p...)
		r.s.DataHeader(b, st, len(p), p == "end")
		r.out = append(r.out, b...)
	}
	if got, want := r.frames(), "DATA 1 end=false abc; DATA 1 end=false "+strings.Repeat("x", h2.MaxData)+"; DATA 1 end=false ; DATA 1 end=true end"; got != want {
		t.Errorf("frames\n got %.200s\nwant %.200s", got, want)
	}
	if !st.LocalEnd() || st.Gone() {
		t.Error("the stream should be half closed")
	}
	r.w.headers(1, true, ":status", "200")
	r.feed()
	if !st.Gone() {
		t.Error("the stream should be gone")
	}
}

// TestReceiveWindow: a peer may use the credit of a stream to the last byte and no further.
func TestReceiveWindow(t *testing.T) {
	fill := func(r *rig, id uint32, n int) {
		for n > 0 {
			m := min(n, 16384)
			r.w.data(id, false, strings.Repeat("x", m))
			n -= m
		}
	}
	const over = "reset 1 FLOW_CONTROL_ERROR (stream window exceeded)"
	run(t, []row{
		{name: "exactly", do: func(r *rig) { r.w.connect(1); fill(r, 1, 65535) }, events: req1 + "; data 1 #65535"},
		{name: "exactly_and_the_end", do: func(r *rig) { r.w.connect(1); fill(r, 1, 65535); r.w.data(1, true, "") }, events: req1 + "; data 1 #65535; end 1"},
		{name: "one_more", do: func(r *rig) { r.w.connect(1); fill(r, 1, 65535); r.w.data(1, false, "x"); r.w.ping(false, "stillfit") },
			events: req1 + "; data 1 #65535; " + over, frames: "RST_STREAM 1 FLOW_CONTROL_ERROR; PING ack=true stillfit"},
		{name: "one_more_of_padding", do: func(r *rig) { r.w.connect(1); fill(r, 1, 65535-10); r.w.padded(1, true, "", 10) },
			events: req1 + "; data 1 #65525; " + over, frames: "RST_STREAM 1 FLOW_CONTROL_ERROR"},
		{name: "small_window", cfg: h2.Config{StreamWindow: 10}, do: func(r *rig) { r.w.connect(1); r.w.data(1, false, "0123456789"); r.w.data(1, false, "a") },
			events: req1 + "; data 1 0123456789; " + over, frames: "RST_STREAM 1 FLOW_CONTROL_ERROR"},
		{name: "others_are_not_touched", cfg: h2.Config{StreamWindow: 10}, do: func(r *rig) {
			r.w.connect(1)
			r.w.connect(3)
			r.w.data(1, false, "0123456789a")
			r.w.data(3, false, "0123456789")
		}, events: req1 + "; headers 3 CONNECT 10.0.0.1:80; " + over + "; data 3 0123456789", frames: "RST_STREAM 1 FLOW_CONTROL_ERROR"},
		// A stalled stream holds nothing of the connection: its credit comes back as data arrives.
		{name: "connection_credit_comes_back_at_once", cfg: h2.Config{ConnWindow: 65536, StreamWindow: 1 << 20}, do: func(r *rig) { r.w.connect(1); fill(r, 1, 81920) },
			events: req1 + "; data 1 #81920", frames: "WINDOW_UPDATE 0 +32768; WINDOW_UPDATE 0 +32768"},
		{name: "connection_credit_of_closed_streams", cfg: h2.Config{ConnWindow: 65536, StreamWindow: 1 << 20}, do: func(r *rig) {
			r.w.connect(1)
			r.w.reset(1, h2.Cancel)
			fill(r, 1, 81920)
		}, events: req1 + "; reset 1 CANCEL", frames: "WINDOW_UPDATE 0 +32768; WINDOW_UPDATE 0 +32768"},
	})
}

// TestPreamble is what a session announces first.
func TestPreamble(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  h2.Config
		want string
	}{
		{"client", h2.Config{}, "SETTINGS HEADER_TABLE_SIZE=0 ENABLE_PUSH=0 INITIAL_WINDOW_SIZE=65535 MAX_HEADER_LIST_SIZE=16384; WINDOW_UPDATE 0 +16711681"},
		{"server", h2.Config{Server: true}, "SETTINGS HEADER_TABLE_SIZE=0 MAX_CONCURRENT_STREAMS=200 INITIAL_WINDOW_SIZE=65535 MAX_HEADER_LIST_SIZE=65536; WINDOW_UPDATE 0 +16711681"},
		{"chosen", h2.Config{Server: true, MaxStreams: 7, StreamWindow: 1 << 20, ConnWindow: 1 << 21, MaxHeaderList: 1000},
			"SETTINGS HEADER_TABLE_SIZE=0 MAX_CONCURRENT_STREAMS=7 INITIAL_WINDOW_SIZE=1048576 MAX_HEADER_LIST_SIZE=1000; WINDOW_UPDATE 0 +2031617"},
		{"small_connection", h2.Config{ConnWindow: 1000}, "SETTINGS HEADER_TABLE_SIZE=0 ENABLE_PUSH=0 INITIAL_WINDOW_SIZE=65535 MAX_HEADER_LIST_SIZE=16384"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := h2.NewSession(test.cfg)
			if got := strings.HasPrefix(string(s.Out()), h2.Preface); got == test.cfg.Server {
				t.Errorf("begins with the client's preface: %v", got)
			}
			if got := strings.Join(decode(t, s.Out()), "; "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

const ms = 1_000_000

// TestWindowGrowth: credit follows what the application drains; it doubles for a stream that uses half a window within
// two round trips.
func TestWindowGrowth(t *testing.T) {
	// pump has the peer use credit and the application drain it, step by step, every interval; it returns the grants.
	pump := func(t *testing.T, r *rig, id uint32, step, times int, interval int64) []int {
		t.Helper()
		var grants []int
		for range times {
			r.s.Now += interval
			r.w.data(id, false, strings.Repeat("x", step))
			r.feed()
			if r.err != nil {
				t.Fatal(r.err)
			}
			r.s.Drained(r.stream(id), step)
			r.out = nil
			r.flush()
			for _, f := range decode(t, r.out) {
				var got uint32
				var n int
				if _, err := fmt.Sscanf(f, "WINDOW_UPDATE %d +%d", &got, &n); err == nil && got == id {
					grants = append(grants, n)
				}
			}
		}
		return grants
	}
	start := func(t *testing.T, cfg h2.Config) *rig {
		cfg.Server = true
		r := newRig(t, cfg, whole)
		r.preamble(true)
		r.s.RTT = 10 * ms
		r.w.connect(1)
		r.w.connect(3)
		r.feed()
		return r
	}
	sum := func(v []int) (n int) {
		for _, x := range v {
			n += x
		}
		return n
	}
	t.Run("slow_stream_keeps_its_window", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000})
		if got := fmt.Sprint(pump(t, r, 1, 5000, 6, 25*ms)); got != "[5000 5000 5000 5000 5000 5000]" {
			t.Errorf("grants %s", got)
		}
	})
	t.Run("grant_waits_for_half_a_window", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000})
		if got := fmt.Sprint(pump(t, r, 1, 1000, 12, 25*ms)); got != "[5000 5000]" {
			t.Errorf("grants %s", got)
		}
	})
	t.Run("fast_stream_grows_to_the_ceiling", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, StreamCeiling: 70000})
		grants := pump(t, r, 1, 10000, 20, 5*ms)
		// 10 → 20 → 40 → 70 thousand, then only what is drained.
		if got := sum(grants) - 20*10000; got > 60000 || got < 60000-35000 {
			t.Errorf("grants %v: window grew by %d", grants, got)
		}
		if got := fmt.Sprint(grants[:2]); got != "[20000 30000]" {
			t.Errorf("first grants %s", got)
		}
		// All of the larger window can be used now, and not a byte more.
		r.w.data(1, false, strings.Repeat("x", 16384))
		r.w.data(1, false, strings.Repeat("x", 16384))
		r.feed()
		if r.stream(1).Gone() {
			t.Error("the grown window is not honoured")
		}
	})
	// growth has both streams use their windows in turn and returns by how much more than that each is granted.
	growth := func(t *testing.T, r *rig, rounds int) (one, three int) {
		for range rounds {
			one += sum(pump(t, r, 1, 10000, 6, 1)) - 60000
			three += sum(pump(t, r, 3, 10000, 6, 1)) - 60000
		}
		return one, three
	}
	t.Run("budget_is_what_streams_have_above_four_windows", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, GrowBudget: 20000})
		// Alone: 10 → 60 thousand; half a window may be on its way back.
		if got := sum(pump(t, r, 1, 10000, 20, 1)) - 200000; got > 50000 || got < 20000 {
			t.Errorf("window grew by %d", got)
		}
	})
	t.Run("budget_is_shared_and_given_back", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, GrowBudget: 20000})
		alone := sum(pump(t, r, 1, 10000, 20, 1)) - 200000
		one, three := growth(t, r, 10)
		// Both have 50 thousand now.
		if one += alone; one > 40000 || three > 40000 || one < 15000 || three < 15000 {
			t.Errorf("windows grew by %d and %d", one, three)
		}
		r.w.reset(1, h2.Cancel)
		r.feed()
		if more := sum(pump(t, r, 3, 10000, 20, 1)) - 200000; three+more > 50000 || three+more <= 25000 {
			t.Errorf("window grew by %d, and by %d after the other had gone", three, more)
		}
	})
	t.Run("stream_behind_follows_the_largest", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, StreamCeiling: 40000})
		pump(t, r, 1, 10000, 10, 1)
		// What is under way makes round trips long for both now.
		var three int
		for range 6 {
			pump(t, r, 1, 10000, 2, 25*ms)
			three += sum(pump(t, r, 3, 10000, 2, 25*ms)) - 20000
		}
		if three > 30000 || three < 10000 {
			t.Errorf("window grew by %d", three)
		}
	})
	t.Run("slow_stream_does_not_follow", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, StreamCeiling: 40000})
		pump(t, r, 1, 10000, 10, 1)
		for range 6 {
			pump(t, r, 1, 10000, 20, 10*ms)
			if got := sum(pump(t, r, 3, 5000, 1, 1)); got != 5000 {
				t.Errorf("granted %d", got)
			}
		}
	})
	t.Run("nobody_follows_one_that_rests", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, StreamCeiling: 40000})
		pump(t, r, 1, 10000, 10, 1)
		pump(t, r, 1, 10000, 2, 50*ms)
		r.s.Now += 2000 * ms
		pump(t, r, 3, 5000, 1, 1) // took its time
		if got := fmt.Sprint(pump(t, r, 3, 5000, 3, 25*ms)); got != "[5000 5000 5000]" {
			t.Errorf("grants %s", got)
		}
	})
	t.Run("no_growth_without_room_above_the_window", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000, StreamCeiling: 1})
		if got := sum(pump(t, r, 1, 10000, 5, 1)); got != 50000 {
			t.Errorf("%d granted for 50000", got)
		}
	})
	t.Run("short_round_trips_count_as_one_millisecond", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000})
		r.s.RTT = 50_000
		if got := sum(pump(t, r, 1, 10000, 1, ms)); got != 20000 {
			t.Errorf("%d granted, want a doubled window", got)
		}
		if got := sum(pump(t, r, 1, 10000, 1, 3*ms)); got != 10000 {
			t.Errorf("%d granted, want no growth", got)
		}
	})
	t.Run("no_credit_behind_the_end", func(t *testing.T) {
		r := start(t, h2.Config{StreamWindow: 10000})
		r.w.data(1, true, strings.Repeat("x", 9000))
		r.w.data(3, false, strings.Repeat("x", 9000))
		r.w.reset(3, h2.Cancel)
		r.feed()
		r.s.Drained(r.stream(1), 9000)
		r.s.Drained(r.stream(3), 9000)
		if len(r.s.Out()) != 0 {
			t.Errorf("sent %q", decode(t, r.s.Out()))
		}
	})
}

// TestSentInPieces: the caller may send any prefix of Out.
func TestSentInPieces(t *testing.T) {
	s := h2.NewSession(h2.Config{})
	want := string(s.Out())
	var got string
	for i := 1; len(s.Out()) > 0; i++ {
		n := min(i, len(s.Out()))
		got += string(s.Out()[:n])
		s.Sent(n)
		if i == 3 {
			s.Ping([8]byte([]byte("between!")))
			want += "\x00\x00\x08\x06\x00\x00\x00\x00\x00between!"
		}
	}
	if got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}
