package h2_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// flood is something that costs this side work and moves nothing forward.
type flood struct {
	name   string
	client bool
	cfg    h2.Config
	before func(r *rig) // once
	one    func(r *rig, i int)
	reason string
}

var floods = []flood{
	{name: "ping", one: func(r *rig, _ int) { r.w.ping(false, "12345678") }, reason: "PING"},
	{name: "pong", one: func(r *rig, _ int) { r.w.ping(true, "12345678") }, reason: "PING"},
	{name: "settings", one: func(r *rig, _ int) { r.w.settings() }, reason: "SETTINGS"},
	{name: "settings_acknowledgements", one: func(r *rig, _ int) { r.w.ack() }, reason: "SETTINGS"},
	{name: "empty_data", before: func(r *rig) { r.w.connect(1) }, one: func(r *rig, _ int) { r.w.data(1, false, "") }, reason: "empty DATA"},
	{name: "padded_empty_data", before: func(r *rig) { r.w.connect(1) }, one: func(r *rig, _ int) { r.w.padded(1, false, "", 3) }, reason: "empty DATA"},
	{name: "padded_empty_data_without_padding", before: func(r *rig) { r.w.connect(1) }, one: func(r *rig, _ int) { r.w.padded(1, false, "", 0) }, reason: "empty DATA"},
	{name: "empty_data_on_closed_stream", before: func(r *rig) { r.w.connect(1); r.w.reset(1, h2.Cancel) },
		one: func(r *rig, _ int) { r.w.data(1, false, "") }, reason: "empty DATA"},
	{name: "priority", one: func(r *rig, i int) { r.w.raw(tPriority, 0, uint32(i+1), "\x00\x00\x00\x00\x00") }, reason: "PRIORITY"},
	{name: "unknown_frames", one: func(r *rig, _ int) { r.w.raw(0xfa, 0, 0, "") }, reason: "unknown frames"},
	{name: "goaway", one: func(r *rig, _ int) { r.w.goAway(0, h2.NoError, "") }, reason: "GOAWAY"},
	{name: "rst_stream_on_closed_stream", before: func(r *rig) { r.w.connect(1); r.w.reset(1, h2.Cancel) },
		one: func(r *rig, _ int) { r.w.reset(1, h2.Cancel) }, reason: "RST_STREAM"},
	// CVE-2023-44487: streams that are taken back before they were answered.
	{name: "rapid_reset", one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)); r.w.reset(uint32(2*i+1), h2.Cancel) }, reason: "RST_STREAM"},
	// CVE-2025-8671: streams that this side is made to reset.
	{name: "made_reset_by_window_update", one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)); r.w.window(uint32(2*i+1), 0) }, reason: "stream errors"},
	{name: "made_reset_by_window_overflow", one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)); r.w.window(uint32(2*i+1), 1<<31-1) }, reason: "stream errors"},
	{name: "made_reset_by_data_behind_end", one: func(r *rig, i int) {
		r.w.headers(uint32(2*i+1), true, ":method", "CONNECT", ":authority", "a:1")
		r.w.data(uint32(2*i+1), false, "x")
	}, reason: "stream errors"},
	{name: "made_reset_by_headers_behind_end", one: func(r *rig, i int) {
		r.w.headers(uint32(2*i+1), true, ":method", "CONNECT", ":authority", "a:1")
		r.w.headers(uint32(2*i+1), true, "x", "y")
	}, reason: "stream errors"},
	{name: "made_reset_by_trailers", one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)); r.w.headers(uint32(2*i+1), false, "x", "y") }, reason: "stream errors"},
	{name: "made_reset_by_window_overrun", cfg: h2.Config{StreamWindow: 10}, one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)); r.w.data(uint32(2*i+1), false, "0123456789a") }, reason: "stream errors"},
	{name: "malformed_requests", one: func(r *rig, i int) { r.w.headers(uint32(2*i+1), true, "x", "y") }, reason: "malformed"},
	{name: "too_many_streams", cfg: h2.Config{MaxStreams: 1}, before: func(r *rig) { r.w.connect(1) },
		one: func(r *rig, i int) { r.w.connect(uint32(2*i + 3)) }, reason: "above the limit"},
	{name: "requests_behind_the_final_goaway", before: func(r *rig) { r.s.GoAway(true, h2.NoError, "") },
		one: func(r *rig, i int) { r.w.connect(uint32(2*i + 1)) }, reason: "final GOAWAY"},
	{name: "headers_on_closed_stream", before: func(r *rig) {
		r.w.connect(1)
		r.feed()
		r.s.Reset(r.stream(1), h2.ConnectError)
	}, one: func(r *rig, _ int) { r.w.headers(1, true, "x", "y") }, reason: "HEADERS on closed"},
	{name: "informational_responses", client: true, before: func(r *rig) { r.dial() },
		one: func(r *rig, _ int) { r.w.headers(1, false, ":status", "100") }, reason: "informational"},
}

func (f flood) rig(t *testing.T) *rig {
	f.cfg.Server = !f.client
	r := newRig(t, f.cfg, whole)
	r.preamble(!f.client)
	r.w.enc.SetMaxDynamicTableSize(0)
	if f.before != nil {
		f.before(r)
		r.feed()
	}
	return r
}

// TestHostileFloods: a burst of about a thousand is taken, more ends the connection.
func TestHostileFloods(t *testing.T) {
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			r := f.rig(t)
			i := 0
			for ; i < 2000 && r.err == nil; i++ {
				f.one(r, i)
				r.feed()
			}
			if i < 900 || i > 1001 {
				t.Errorf("the connection ended after %d", i)
			}
			r.wantError(h2.EnhanceYourCalm, f.reason)
		})
	}
}

// TestHostileFloodsSlowly: at the pace of a busy but honest peer the same goes on for ever.
func TestHostileFloodsSlowly(t *testing.T) {
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			r := f.rig(t)
			for i := range 3000 {
				r.s.Now += 5 * ms
				f.one(r, i)
				r.feed()
				if r.err != nil {
					t.Fatalf("the connection ended after %d: %v", i, r.err)
				}
				r.log, r.out = nil, nil
			}
		})
	}
}

// TestHostileBudgetComesBack: a burst, a pause, a burst.
func TestHostileBudgetComesBack(t *testing.T) {
	r := newRig(t, h2.Config{Server: true}, whole)
	r.preamble(true)
	for range 3 {
		for range 990 {
			r.w.ping(false, "12345678")
		}
		r.feed()
		if r.err != nil {
			t.Fatal(r.err)
		}
		r.s.Now += 5 * 1000 * ms
	}
}

// TestHostileLargeHeaderLists: each KiB of a list above 4 KiB counts five times, those below are free, and at a slow pace all go on.
func TestHostileLargeHeaderLists(t *testing.T) {
	const enough = 1100
	for name, tc := range map[string]struct {
		fields   int // of 133 bytes each (RFC 9113 section 6.5.2)
		pause    int64
		min, max int // requests until the connection ends
	}{
		"usual":        {30, 0, enough, enough},
		"large":        {40, 0, 38, 41},
		"large-slowly": {40, 125 * ms, enough, enough},
		"very-large":   {110, 0, 13, 15},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, h2.Config{Server: true}, whole)
			r.preamble(true)
			r.w.enc.SetMaxDynamicTableSize(0)
			fields := []string{":method", "CONNECT", ":authority", "a:1"}
			for range tc.fields {
				fields = append(fields, "x", strings.Repeat("b", 100))
			}
			i := 0
			for ; i < enough; i++ {
				r.s.Now += tc.pause
				r.w.headers(uint32(2*i+1), true, fields...)
				if r.feed(); r.err != nil {
					break
				}
				r.s.Reset(r.stream(uint32(2*i+1)), h2.Cancel)
				r.log, r.out = nil, nil
			}
			if i < tc.min || i > tc.max {
				t.Errorf("the connection ended after %d", i)
			}
			if tc.max < enough {
				r.wantError(h2.EnhanceYourCalm, "large header lists")
			}
		})
	}
}

// TestHonestTrafficIsFree: what carries something is never counted.
func TestHonestTrafficIsFree(t *testing.T) {
	r := newRig(t, h2.Config{Server: true, StreamCeiling: 65535}, whole)
	r.preamble(true)
	r.w.enc.SetMaxDynamicTableSize(0)
	r.onRequest = func(st *h2.Stream, _ *h2.Header) { r.s.Respond(st, 200, nil, false) }
	r.onData = func(st *h2.Stream, n int, _ bool) { r.s.Drained(st, n) }
	for i := range uint32(5000) {
		id := 2*i + 1
		r.w.connect(id)
		r.w.data(id, false, "x")
		r.w.padded(id, false, "y", 1)
		r.w.window(id, 1)
		r.w.window(0, 1)
		if i%2 == 0 {
			r.w.reset(id, h2.Cancel) // an answered stream may be reset
		} else {
			r.w.data(id, true, "")
			r.feed()
			r.s.End(r.open[len(r.open)-1])
		}
		r.feed()
		if r.err != nil {
			t.Fatalf("stream %d: %v", id, r.err)
		}
	}
	if n := r.s.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// TestRefusedPeersMayReset: a peer that is refused may end its side of the request by a reset, which crosses ours. Envoy does so
// with every answer but 200. One for each refusal is free, more are counted.
func TestRefusedPeersMayReset(t *testing.T) {
	const streams, rounds = 200, 100
	for name, tc := range map[string]struct{ resets, min, max int }{
		"once":  {1, rounds, rounds},
		"twice": {2, 4, 6},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, h2.Config{Server: true}, whole)
			r.preamble(true)
			r.w.enc.SetMaxDynamicTableSize(0)
			r.onRequest = func(st *h2.Stream, _ *h2.Header) { r.s.Respond(st, 503, nil, true) }
			i := 0
			for ; i < rounds && r.err == nil; i++ {
				first := uint32(2*streams*i + 1)
				for id := first; id < first+2*streams; id += 2 {
					r.w.connect(id)
				}
				r.feed()
				for id := first; id < first+2*streams; id += 2 {
					for range tc.resets {
						r.w.reset(id, h2.Cancel)
					}
				}
				r.feed()
				r.log, r.out = nil, nil
			}
			if i < tc.min || i > tc.max {
				t.Errorf("the connection ended after %d rounds: %v", i, r.err)
			}
		})
	}
}

// TestHostileUnread: a peer that makes this side answer and never reads the answers is cut off while Out is small.
func TestHostileUnread(t *testing.T) {
	for _, test := range []struct {
		name string
		one  func(r *rig, i int)
	}{
		{"pings", func(r *rig, _ int) { r.w.ping(false, "12345678") }},
		{"settings", func(r *rig, _ int) { r.w.settings() }},
		{"refused_requests", func(r *rig, i int) { r.w.connect(uint32(2*i + 1)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, h2.Config{Server: true}, whole)
			r.preamble(true)
			r.w.enc.SetMaxDynamicTableSize(0)
			r.onRequest = func(st *h2.Stream, _ *h2.Header) {
				r.s.Respond(st, 503, []h2.Field{{Name: "x", Value: strings.Repeat("v", 100)}}, true)
			}
			most := 0
			for i := 0; r.err == nil; i++ {
				if i > 1<<17 {
					t.Fatalf("still going with %d bytes unread", len(r.s.Out()))
				}
				r.s.Now += 10 * ms // slow enough for the budget
				test.one(r, i)
				r.err = r.s.Feed(r.w.take(), r)
				most = max(most, len(r.s.Out()))
			}
			r.wantError(h2.EnhanceYourCalm, "does not read")
			if most > 2<<20 {
				t.Errorf("Out grew to %d bytes", most)
			}
		})
	}
}

// TestHostileSettingsAreCheap: a frame may hold 2,730 changes of the window, and each of them touched every stream
// (compare CVE-2020-11080).
func TestHostileSettingsAreCheap(t *testing.T) {
	cost := func(streams int) time.Duration {
		r := newRig(t, h2.Config{}, whole)
		r.preamble(false, setting(http2.SettingMaxConcurrentStreams, 10000))
		for range streams {
			r.dial()
		}
		r.flush()
		var s []http2.Setting
		for i := range uint32(2730) {
			s = append(s, setting(http2.SettingInitialWindowSize, 65535+i%2))
		}
		for range 20 {
			r.w.settings(s...)
		}
		b := r.w.take()
		start := time.Now()
		if err := r.s.Feed(b, r); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	few, many := cost(1), cost(1000)
	if many > 50*few+10*time.Millisecond {
		t.Errorf("with 1000 streams it takes %v, with one %v", many, few)
	}
}

// TestHostileMemory: whatever header block is in progress, little is kept.
func TestHostileBlockIsBounded(t *testing.T) {
	r := newRig(t, h2.Config{Server: true}, whole)
	r.preamble(true)
	r.w.raw(tHeaders, 0, 1, strings.Repeat("\x82", 16384))
	total := 16384
	for r.err == nil {
		r.w.raw(tContinuation, 0, 1, strings.Repeat("\x82", 4096))
		total += 4096
		r.feed()
	}
	if total > 2*64<<10+4096 {
		t.Errorf("%d bytes of a header block were taken", total)
	}
}

// TestZeroAllocations: DATA both ways, credit and its grants.
func TestZeroAllocations(t *testing.T) {
	r := newRig(t, h2.Config{Server: true, StreamCeiling: 65535, ConnWindow: 65535}, whole)
	r.preamble(true)
	r.w.connect(1)
	r.feed()
	st := r.stream(1)
	r.w.data(1, false, strings.Repeat("x", 16384))
	r.w.window(1, 16384)
	r.w.window(0, 16384)
	in := r.w.take()
	ev := &sink{}
	out := make([]byte, h2.FrameHeaderLen)
	feed := func(pieces int) func() {
		return func() {
			for at := 0; at < len(in); {
				n := min(len(in)-at, len(in)/pieces+1)
				if err := r.s.Feed(in[at:at+n], ev); err != nil {
					t.Fatal(err)
				}
				at += n
			}
			r.s.Drained(st, 16384)
			r.s.DataHeader(out, st, min(r.s.Window(st), h2.MaxData), false)
			r.s.Sent(len(r.s.Out()))
		}
	}
	for _, pieces := range []int{1, 3, 1000} {
		if n := testing.AllocsPerRun(100, feed(pieces)); n != 0 {
			t.Errorf("%v allocations for a DATA frame in %d pieces", n, pieces)
		}
	}
	if ev.data == 0 {
		t.Error("no data arrived")
	}
}

// sink takes events and keeps only their size.
type sink struct{ data int }

func (*sink) OnSettings()                             {}
func (*sink) OnHeaders(*h2.Stream, *h2.Header, bool)  {}
func (s *sink) OnData(_ *h2.Stream, p []byte, _ bool) { s.data += len(p) }
func (*sink) OnWindow(*h2.Stream)                     {}
func (*sink) OnReset(*h2.Stream, h2.ErrCode, string)  {}
func (*sink) OnGoAway(uint32, h2.ErrCode, string)     {}
func (*sink) OnPong([8]byte)                          {}

// TestImpatientPeers: who gives up requests that have not been answered in time may do so as often as there are streams, who
// does it at once may not.
func TestImpatientPeers(t *testing.T) {
	const streams, rounds = 200, 100
	for name, tc := range map[string]struct {
		wait     int64
		min, max int // rounds until the connection ends
	}{
		"patient":   {100 * ms, rounds, rounds},
		"impatient": {50 * ms, 5, 6}, // 190 of each round are left to be paid for
		"at-once":   {0, 5, 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, h2.Config{Server: true}, whole)
			r.preamble(true)
			r.w.enc.SetMaxDynamicTableSize(0)
			i := 0
			for ; i < rounds && r.err == nil; i++ {
				first := uint32(2*streams*i + 1)
				for id := first; id < first+2*streams; id += 2 {
					r.w.connect(id)
				}
				r.feed()
				r.s.Now += tc.wait
				for id := first; id < first+2*streams; id += 2 {
					r.w.reset(id, h2.Cancel)
				}
				r.feed()
				r.log, r.out = nil, nil
			}
			if i < tc.min || i > tc.max {
				t.Errorf("the connection ended after %d rounds: %v", i, r.err)
			}
		})
	}
}

// TestHostileListsForNothing: a header list that would be free costs by its size when its request comes to nothing.
func TestHostileListsForNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		fields   int // of 133 bytes each
		min, max int // requests until the connection ends
	}{
		"usual": {5, 990, 1000},
		"long":  {15, 90, 91},
		"most":  {29, 62, 63},
	} {
		list := []string{":method", "CONNECT", ":authority", "a:1"}
		for range tc.fields {
			list = append(list, "x", strings.Repeat("b", 100))
		}
		for way, end := range map[string]func(r *rig, id uint32){
			"taken_back": func(r *rig, id uint32) { r.w.headers(id, false, list...); r.w.reset(id, h2.Cancel) },
			"made_reset": func(r *rig, id uint32) { r.w.headers(id, false, list...); r.w.window(id, 0) },
			"malformed":  func(r *rig, id uint32) { r.w.headers(id, false, append(list, "te", "x")...) },
		} {
			t.Run(name+"/"+way, func(t *testing.T) {
				r := newRig(t, h2.Config{Server: true}, whole)
				r.preamble(true)
				r.w.enc.SetMaxDynamicTableSize(0)
				i := 0
				for ; i < 2000 && r.err == nil; i++ {
					end(r, uint32(2*i+1))
					r.feed()
					r.log, r.out = nil, nil
				}
				if i < tc.min || i > tc.max {
					t.Errorf("the connection ended after %d", i)
				}
			})
		}
	}
}
