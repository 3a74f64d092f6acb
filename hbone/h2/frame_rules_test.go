package h2_test

import (
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

const (
	tData = iota
	tHeaders
	tPriority
	tReset
	tSettings
	tPush
	tPing
	tGoAway
	tWindow
	tContinuation
)

const (
	fEnd        = 0x1
	fAck        = 0x1
	fEndHeaders = 0x4
	fPadded     = 0x8
	fPriority   = 0x20
)

func setting(id http2.SettingID, v uint32) http2.Setting { return http2.Setting{ID: id, Val: v} }

// TestPreface is RFC 9113 section 3.4.
func TestPreface(t *testing.T) {
	run(t, []row{
		{name: "client_preface", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.settings() },
			events: "settings", frames: "SETTINGS ack"},
		{name: "nothing_yet", bare: true, do: func(r *rig) { r.w.text(h2.Preface[:23]) }},
		{name: "http_1", bare: true, do: func(r *rig) { r.w.text("GET / HTTP/1.1\r\n\r\n") }, code: h2.ProtocolError, reason: "does not speak HTTP/2"},
		{name: "wrong_at_the_end", bare: true, do: func(r *rig) { r.w.text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r") }, code: h2.ProtocolError, reason: "does not speak HTTP/2"},
		{name: "tls_inside", bare: true, do: func(r *rig) { r.w.text("\x16\x03\x01\x02\x00\x01") }, code: h2.ProtocolError, reason: "does not speak HTTP/2"},
		{name: "no_preface", bare: true, do: func(r *rig) { r.w.settings() }, code: h2.ProtocolError, reason: "does not speak HTTP/2"},
		{name: "twice", do: func(r *rig) { r.w.text(h2.Preface) }, code: h2.FrameSizeError},
		{name: "ping_first", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.ping(false, "12345678") }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "headers_first", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.connect(1) }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "window_update_first", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.window(0, 1) }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "unknown_first", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.raw(0xfa, 0, 0, "x") }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "acknowledgement_first", bare: true, do: func(r *rig) { r.w.text(h2.Preface); r.w.ack() }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "server_preface", client: true, bare: true, do: func(r *rig) { r.w.settings() }, events: "settings", frames: "SETTINGS ack"},
		{name: "server_sends_ping_first", client: true, bare: true, do: func(r *rig) { r.w.ping(false, "12345678") }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "server_sends_goaway_first", client: true, bare: true, do: func(r *rig) { r.w.goAway(0, h2.NoError, "") }, code: h2.ProtocolError, reason: "first frame is not SETTINGS"},
		{name: "server_speaks_http_1", client: true, bare: true, do: func(r *rig) { r.w.text("HTTP/1.1 400 Bad Request\r\n\r\n") }, code: h2.FrameSizeError},
	})
}

// TestFrameSize is RFC 9113 section 4.2 and the size rules of section 6.
func TestFrameSize(t *testing.T) {
	raw := func(typ, flags byte, id uint32, n int) func(*rig) {
		return func(r *rig) { r.w.raw(typ, flags, id, strings.Repeat("\x00", n)) }
	}
	open := func(f func(*rig)) func(*rig) {
		return func(r *rig) { r.w.connect(1); f(r) }
	}
	const req = "headers 1 CONNECT 10.0.0.1:80"
	run(t, []row{
		{name: "data_of_16384", do: open(raw(tData, 0, 1, 16384)), events: req + "; data 1 #16384"},
		{name: "data_of_16385", do: open(func(r *rig) { r.w.head(16385, tData, 0, 1) }), events: req, code: h2.FrameSizeError, reason: "16385"},
		{name: "data_of_2_to_the_24", do: open(func(r *rig) { r.w.head(1<<24-1, tData, 0, 1) }), events: req, code: h2.FrameSizeError},
		{name: "headers_of_16385", do: func(r *rig) { r.w.head(16385, tHeaders, fEndHeaders, 1) }, code: h2.FrameSizeError},
		{name: "settings_of_16386", do: func(r *rig) { r.w.head(16386, tSettings, 0, 0) }, code: h2.FrameSizeError},
		{name: "goaway_of_16385", do: func(r *rig) { r.w.head(16385, tGoAway, 0, 0) }, code: h2.FrameSizeError},
		{name: "unknown_of_16384", do: raw(0xfa, 0xff, 77, 16384)},
		{name: "unknown_of_16385", do: func(r *rig) { r.w.head(16385, 0xfa, 0, 0) }, code: h2.FrameSizeError},
		{name: "settings_of_5", do: raw(tSettings, 0, 0, 5), code: h2.FrameSizeError, reason: "multiple of 6"},
		{name: "settings_of_7", do: raw(tSettings, 0, 0, 7), code: h2.FrameSizeError, reason: "multiple of 6"},
		{name: "settings_acknowledgement_of_6", do: raw(tSettings, fAck, 0, 6), code: h2.FrameSizeError, reason: "acknowledgement"},
		{name: "ping_of_7", do: raw(tPing, 0, 0, 7), code: h2.FrameSizeError, reason: "PING"},
		{name: "ping_of_9", do: raw(tPing, 0, 0, 9), code: h2.FrameSizeError, reason: "PING"},
		{name: "ping_of_0", do: raw(tPing, 0, 0, 0), code: h2.FrameSizeError, reason: "PING"},
		{name: "pong_of_4", do: raw(tPing, fAck, 0, 4), code: h2.FrameSizeError, reason: "PING"},
		{name: "goaway_of_7", do: raw(tGoAway, 0, 0, 7), code: h2.FrameSizeError, reason: "GOAWAY"},
		{name: "window_update_of_3", do: raw(tWindow, 0, 0, 3), code: h2.FrameSizeError, reason: "WINDOW_UPDATE"},
		{name: "window_update_of_5", do: raw(tWindow, 0, 0, 5), code: h2.FrameSizeError, reason: "WINDOW_UPDATE"},
		{name: "window_update_of_3_on_stream", do: open(raw(tWindow, 0, 1, 3)), events: req, code: h2.FrameSizeError, reason: "WINDOW_UPDATE"},
		{name: "rst_stream_of_3", do: open(raw(tReset, 0, 1, 3)), events: req, code: h2.FrameSizeError, reason: "RST_STREAM"},
		{name: "rst_stream_of_5", do: open(raw(tReset, 0, 1, 5)), events: req, code: h2.FrameSizeError, reason: "RST_STREAM"},
		{name: "priority_of_4", do: raw(tPriority, 0, 1, 4), code: h2.FrameSizeError, reason: "PRIORITY"},
		{name: "priority_of_5", do: raw(tPriority, 0, 1, 5)},
		{name: "padded_data_of_0", do: open(raw(tData, fPadded, 1, 0)), events: req, code: h2.FrameSizeError, reason: "pad length"},
		{name: "padded_headers_of_0", do: raw(tHeaders, fPadded|fEndHeaders, 1, 0), code: h2.FrameSizeError, reason: "pad length"},
		{name: "headers_with_priority_of_4", do: raw(tHeaders, fPriority|fEndHeaders, 1, 4), code: h2.FrameSizeError, reason: "priority"},
		{name: "padded_headers_with_priority_of_5", do: raw(tHeaders, fPadded|fPriority|fEndHeaders, 1, 5), code: h2.FrameSizeError, reason: "priority"},
	})
}

// TestStreamZero: which frames belong to a stream and which to the connection.
func TestStreamZero(t *testing.T) {
	send := func(typ byte, id uint32, n int) func(*rig) {
		return func(r *rig) { r.w.raw(typ, 0, id, strings.Repeat("\x00", n)) }
	}
	run(t, []row{
		{name: "data_on_0", do: send(tData, 0, 1), code: h2.ProtocolError, reason: "needs a stream"},
		{name: "headers_on_0", do: send(tHeaders, 0, 1), code: h2.ProtocolError, reason: "needs a stream"},
		{name: "priority_on_0", do: send(tPriority, 0, 5), code: h2.ProtocolError, reason: "needs a stream"},
		{name: "rst_stream_on_0", do: send(tReset, 0, 4), code: h2.ProtocolError, reason: "needs a stream"},
		{name: "continuation_on_0", do: send(tContinuation, 0, 1), code: h2.ProtocolError, reason: "needs a stream"},
		{name: "settings_on_1", do: send(tSettings, 1, 0), code: h2.ProtocolError, reason: "must not be on a stream"},
		{name: "ping_on_1", do: send(tPing, 1, 8), code: h2.ProtocolError, reason: "must not be on a stream"},
		{name: "goaway_on_1", do: send(tGoAway, 1, 8), code: h2.ProtocolError, reason: "must not be on a stream"},
		{name: "push_promise_to_server", do: send(tPush, 1, 4), code: h2.ProtocolError, reason: "PUSH_PROMISE"},
		{name: "push_promise_to_client", client: true, dials: 1, do: send(tPush, 1, 4), code: h2.ProtocolError, reason: "PUSH_PROMISE"},
		{name: "unknown_on_0", do: send(0x0c, 0, 3)},
		{name: "unknown_on_idle_stream", do: send(0x10, 9, 3)},
		{name: "reserved_bit_is_ignored", do: func(r *rig) { r.w.head(8, tPing, 0, 1<<31); r.w.text("abcdefgh") },
			frames: "PING ack=true abcdefgh"},
	})
}

// TestSettings is RFC 9113 section 6.5.
func TestSettings(t *testing.T) {
	one := func(id http2.SettingID, v uint32) func(*rig) {
		return func(r *rig) { r.w.settings(setting(id, v)) }
	}
	const ok = "SETTINGS ack"
	run(t, []row{
		{name: "empty", do: func(r *rig) { r.w.settings() }, events: "settings", frames: ok},
		{name: "unknown_is_ignored", do: one(0x99, 7), events: "settings", frames: ok},
		{name: "connect_protocol_is_ignored", do: one(0x8, 1), events: "settings", frames: ok},
		{name: "push_0", do: one(http2.SettingEnablePush, 0), events: "settings", frames: ok},
		{name: "push_1_from_client", do: one(http2.SettingEnablePush, 1), events: "settings", frames: ok},
		{name: "push_2", do: one(http2.SettingEnablePush, 2), code: h2.ProtocolError, reason: "ENABLE_PUSH"},
		{name: "push_0_from_server", client: true, do: one(http2.SettingEnablePush, 0), events: "settings", frames: ok},
		{name: "push_1_from_server", client: true, do: one(http2.SettingEnablePush, 1), code: h2.ProtocolError, reason: "ENABLE_PUSH"},
		{name: "window_2_to_the_31", do: one(http2.SettingInitialWindowSize, 1<<31), code: h2.FlowControlError, reason: "INITIAL_WINDOW_SIZE"},
		{name: "window_2_to_the_31_less_1", do: one(http2.SettingInitialWindowSize, 1<<31-1), events: "settings", frames: ok},
		{name: "frame_size_16383", do: one(http2.SettingMaxFrameSize, 16383), code: h2.ProtocolError, reason: "MAX_FRAME_SIZE"},
		{name: "frame_size_16384", do: one(http2.SettingMaxFrameSize, 16384), events: "settings", frames: ok},
		{name: "frame_size_2_to_the_24", do: one(http2.SettingMaxFrameSize, 1<<24), code: h2.ProtocolError, reason: "MAX_FRAME_SIZE"},
		{name: "frame_size_2_to_the_24_less_1", do: one(http2.SettingMaxFrameSize, 1<<24-1), events: "settings", frames: ok},
		{name: "table_and_list_size", do: func(r *rig) {
			r.w.settings(setting(http2.SettingHeaderTableSize, 1<<20), setting(http2.SettingMaxHeaderListSize, 1))
		}, events: "settings", frames: ok},
		{name: "each_is_acknowledged", do: func(r *rig) { r.w.settings(); r.w.settings() },
			events: "settings; settings", frames: ok + "; " + ok},
		{name: "acknowledgement_without_question", do: func(r *rig) { r.w.ack() }},
	})
}

// TestPing is RFC 9113 section 6.7.
func TestPing(t *testing.T) {
	run(t, []row{
		{name: "is_answered", do: func(r *rig) { r.w.ping(false, "question") }, frames: "PING ack=true question"},
		{name: "answers_keep_order", do: func(r *rig) { r.w.ping(false, "11111111"); r.w.settings(); r.w.ping(false, "22222222") },
			events: "settings", frames: "PING ack=true 11111111; SETTINGS ack; PING ack=true 22222222"},
		{name: "answer", do: func(r *rig) { r.s.Ping([8]byte([]byte("whatever"))); r.w.ping(true, "whatever") },
			events: "pong whatever", frames: "PING ack=false whatever"},
		{name: "answer_without_question", client: true, do: func(r *rig) { r.w.ping(true, "12345678") }, events: "pong 12345678"},
		{name: "unknown_flags_are_ignored", do: func(r *rig) { r.w.raw(tPing, 0xfe, 0, "flagflag") }, frames: "PING ack=true flagflag"},
	})
}

// TestPadding is RFC 9113 sections 6.1 and 6.2: padding is content for nobody and credit for everybody.
func TestPadding(t *testing.T) {
	const req = "headers 1 CONNECT 10.0.0.1:80"
	request := func(r *rig, flags byte, before, behind string) {
		r.w.raw(tHeaders, flags|fEndHeaders, 1, before+string(r.w.block(":method", "CONNECT", ":authority", "10.0.0.1:80"))+behind)
	}
	run(t, []row{
		{name: "data", do: func(r *rig) { r.w.connect(1); r.w.padded(1, false, "abc", 10) }, events: req + "; data 1 abc"},
		{name: "data_with_no_padding", do: func(r *rig) { r.w.connect(1); r.w.padded(1, true, "abc", 0) }, events: req + "; data 1 abc; end 1"},
		{name: "only_padding", do: func(r *rig) { r.w.connect(1); r.w.padded(1, false, "", 255) }, events: req},
		{name: "only_padding_at_the_end", do: func(r *rig) { r.w.connect(1); r.w.padded(1, true, "", 255) }, events: req + "; end 1"},
		{name: "only_the_length", do: func(r *rig) { r.w.connect(1); r.w.padded(1, true, "", 0) }, events: req + "; end 1"},
		{name: "several", do: func(r *rig) {
			r.w.connect(1)
			r.w.padded(1, false, "abc", 3)
			r.w.data(1, false, "def")
			r.w.padded(1, false, "ghi", 200)
			r.w.padded(1, true, "jkl", 1)
		}, events: req + "; data 1 abcdefghijkl; end 1"},
		{name: "data_all_padding_but_too_long", do: func(r *rig) { r.w.connect(1); r.w.raw(tData, fPadded, 1, "\x04abc") }, events: req,
			code: h2.ProtocolError, reason: "padding"},
		{name: "data_padding_fills_the_frame", do: func(r *rig) { r.w.connect(1); r.w.raw(tData, fPadded, 1, "\x03abc") }, events: req},
		{name: "headers", do: func(r *rig) { request(r, fPadded, "\x05", "\x00\x00\x00\x00\x00") }, events: req},
		{name: "headers_with_priority", do: func(r *rig) { request(r, fPriority, "\x00\x00\x00\x00\x07", "") }, events: req},
		{name: "headers_with_both", do: func(r *rig) { request(r, fPadded|fPriority, "\x02\x80\x00\x00\x00\x07", "\x00\x00") }, events: req},
		{name: "headers_depend_on_themselves", do: func(r *rig) { request(r, fPriority, "\x00\x00\x00\x01\x07", "") },
			code: h2.ProtocolError, reason: "depends on itself"},
		{name: "headers_padding_too_long", do: func(r *rig) { r.w.raw(tHeaders, fPadded|fEndHeaders, 1, "\x04\x88\x88\x88") },
			code: h2.ProtocolError, reason: "padding"},
		{name: "padding_is_credit_on_a_stream", cfg: h2.Config{StreamWindow: 1000, StreamCeiling: 1000}, do: func(r *rig) {
			r.w.connect(1)
			for range 3 {
				r.w.padded(1, false, "abc", 199)
			}
		}, events: req + "; data 1 abcabcabc", frames: "WINDOW_UPDATE 1 +600"},
	})
}
