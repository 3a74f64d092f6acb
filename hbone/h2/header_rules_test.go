package h2_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// TestRequestRules is RFC 9113 sections 8.2, 8.3 and 8.5 for requests. A malformed one costs its stream only.
func TestRequestRules(t *testing.T) {
	fields := func(pairs ...string) func(*rig) {
		return func(r *rig) { r.w.headers(1, false, pairs...); r.w.ping(false, "stillfit") }
	}
	connect := func(more ...string) func(*rig) {
		return fields(append([]string{":method", "CONNECT", ":authority", "a:1"}, more...)...)
	}
	const alive = "PING ack=true stillfit"
	const bad = "RST_STREAM 1 PROTOCOL_ERROR; " + alive
	run(t, []row{
		{name: "connect", do: connect(), events: "headers 1 CONNECT a:1", frames: alive},
		{name: "connect_with_fields", do: connect("baggage", "k=v", "forwarded", `for="[::1]:80"`, "x", "", "baggage", "second"),
			events: `headers 1 CONNECT a:1 baggage=k=v forwarded=for="[::1]:80" x= baggage=second`, frames: alive},
		{name: "connect_without_authority_is_the_callers_business", do: fields(":method", "CONNECT"), events: "headers 1 CONNECT ", frames: alive},
		{name: "empty_authority_is_the_callers_business", do: fields(":method", "CONNECT", ":authority", ""), events: "headers 1 CONNECT ", frames: alive},
		{name: "get_is_the_callers_business", do: fields(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/"),
			events: "headers 1 GET a https /", frames: alive},
		{name: "authority_before_method", do: fields(":authority", "a:1", ":method", "CONNECT"), events: "headers 1 CONNECT a:1", frames: alive},
		{name: "te_trailers", do: connect("te", "trailers"), events: "headers 1 CONNECT a:1 te=trailers", frames: alive},
		{name: "high_octets_in_value", do: connect("x", "\xff\x80\tz"), events: "headers 1 CONNECT a:1 x=\xff\x80\tz", frames: alive},
		{name: "connect_with_scheme", do: connect(":scheme", "https"), frames: bad},
		{name: "connect_with_path", do: connect(":path", "/"), frames: bad},
		{name: "connect_with_empty_path", do: connect(":path", ""), frames: bad},
		{name: "extended_connect", do: connect(":protocol", "websocket", ":scheme", "https", ":path", "/"), frames: bad},
		{name: "get_without_path", do: fields(":method", "GET", ":scheme", "https", ":authority", "a"), frames: bad},
		{name: "get_without_scheme", do: fields(":method", "GET", ":path", "/", ":authority", "a"), frames: bad},
		{name: "no_method", do: fields(":authority", "a:1"), frames: bad},
		{name: "nothing", do: fields(), frames: bad},
		{name: "status_in_request", do: connect(":status", "200"), frames: bad},
		{name: "unknown_pseudo_field", do: connect(":culvert", "1"), frames: bad},
		{name: "method_twice", do: connect(":method", "CONNECT"), frames: bad},
		{name: "authority_twice", do: connect(":authority", "b:2"), frames: bad},
		{name: "pseudo_field_behind_field", do: fields("x", "y", ":method", "CONNECT", ":authority", "a:1"), frames: bad},
		{name: "pseudo_field_behind_bad_field", do: fields("upgrade", "y", ":method", "CONNECT", ":authority", "a:1"), frames: bad},
		{name: "upper_case_name", do: connect("Baggage", "x"), frames: bad},
		{name: "empty_name", do: connect("", "x"), frames: bad},
		{name: "colon_in_name", do: connect("a:b", "x"), frames: bad},
		{name: "space_in_name", do: connect("a b", "x"), frames: bad},
		{name: "control_in_name", do: connect("a\x01", "x"), frames: bad},
		{name: "delete_in_name", do: connect("a\x7f", "x"), frames: bad},
		{name: "high_octet_in_name", do: connect("\xc3\xa4", "x"), frames: bad},
		{name: "nul_in_value", do: connect("x", "a\x00b"), frames: bad},
		{name: "cr_in_value", do: connect("x", "a\rb"), frames: bad},
		{name: "lf_in_value", do: connect("x", "a\nb"), frames: bad},
		{name: "lf_in_authority", do: fields(":method", "CONNECT", ":authority", "a:1\n"), frames: bad},
		{name: "leading_space_in_value", do: connect("x", " a"), frames: bad},
		{name: "trailing_tab_in_value", do: connect("x", "a\t"), frames: bad},
		{name: "connection", do: connect("connection", "close"), frames: bad},
		{name: "proxy_connection", do: connect("proxy-connection", "close"), frames: bad},
		{name: "keep_alive", do: connect("keep-alive", "1"), frames: bad},
		{name: "transfer_encoding", do: connect("transfer-encoding", "chunked"), frames: bad},
		{name: "upgrade", do: connect("upgrade", "h2c"), frames: bad},
		{name: "te_gzip", do: connect("te", "gzip"), frames: bad},
		{name: "te_trailers_and_more", do: connect("te", "trailers, gzip"), frames: bad},
		{name: "list_too_large", cfg: h2.Config{MaxHeaderList: 300}, do: connect("x", strings.Repeat("v", 200)), frames: bad},
		{name: "list_just_fits", cfg: h2.Config{MaxHeaderList: 300}, do: connect("x", strings.Repeat("v", 300-32-1-(7+7+32)-(10+3+32))),
			events: "headers 1 CONNECT a:1 x=" + strings.Repeat("v", 176), frames: alive},
		{name: "list_one_too_large", cfg: h2.Config{MaxHeaderList: 300}, do: connect("x", strings.Repeat("v", 1+300-32-1-(7+7+32)-(10+3+32))), frames: bad},
	})
}

// TestResponseRules is the client's side of TestRequestRules.
func TestResponseRules(t *testing.T) {
	fields := func(end bool, pairs ...string) func(*rig) {
		return func(r *rig) { r.w.headers(1, end, pairs...); r.w.ping(false, "stillfit") }
	}
	const alive = "PING ack=true stillfit"
	const bad = "RST_STREAM 1 PROTOCOL_ERROR; " + alive
	fault := func(why string) string { return "reset 1 PROTOCOL_ERROR (" + why + ")" }
	rows := []row{
		{name: "200", do: fields(false, ":status", "200", "baggage", "k=v"), events: "headers 1 200 baggage=k=v", frames: alive},
		{name: "503_and_end", do: fields(true, ":status", "503"), events: "headers 1 503; end 1", frames: alive},
		{name: "599", do: fields(false, ":status", "599"), events: "headers 1 599", frames: alive},
		{name: "100_before_200", do: func(r *rig) {
			r.w.headers(1, false, ":status", "100")
			r.w.headers(1, false, ":status", "103", "link", "x")
			r.w.headers(1, false, ":status", "200")
		}, events: "headers 1 200"},
		{name: "100_and_end", do: fields(true, ":status", "100"), events: fault("informational response with END_STREAM"), frames: bad},
		{name: "no_status", do: fields(false, "x", "y"), events: fault("wrong pseudo-header fields"), frames: bad},
		{name: "status_of_two_digits", do: fields(false, ":status", "20"), events: fault("invalid :status"), frames: bad},
		{name: "status_of_four_digits", do: fields(false, ":status", "0200"), events: fault("invalid :status"), frames: bad},
		{name: "status_with_sign", do: fields(false, ":status", "+20"), events: fault("invalid :status"), frames: bad},
		{name: "status_of_letters", do: fields(false, ":status", "OK!"), events: fault("invalid :status"), frames: bad},
		{name: "status_of_099", do: fields(false, ":status", "099"), events: fault("invalid :status"), frames: bad},
		{name: "status_twice", do: fields(false, ":status", "200", ":status", "200"), events: fault("repeated pseudo-header field :status"), frames: bad},
		{name: "method_in_response", do: fields(false, ":status", "200", ":method", "CONNECT"), events: fault("wrong pseudo-header fields"), frames: bad},
		{name: "unknown_pseudo_field", do: fields(false, ":status", "200", ":x", "y"), events: fault("unknown pseudo-header field"), frames: bad},
		{name: "status_behind_field", do: fields(false, "x", "y", ":status", "200"), events: fault("pseudo-header field behind a regular field"), frames: bad},
		{name: "connection_field", do: fields(false, ":status", "200", "connection", "close"), events: fault(`field "connection" is not allowed`), frames: bad},
		{name: "upper_case_name", do: fields(false, ":status", "200", "Via", "x"), events: fault("field has invalid characters"), frames: bad},
		{name: "list_too_large", cfg: h2.Config{MaxHeaderList: 200}, do: fields(false, ":status", "200", "x", strings.Repeat("v", 150)),
			events: fault("header list is too large"), frames: bad},
	}
	for i := range rows {
		rows[i].client, rows[i].dials = true, 1
	}
	run(t, rows)
}

// TestTrailers: section 8.5 has no place for them on a connected stream; they read as the end of the direction, as
// Envoy and nghttp2 based peers may send them.
func TestTrailers(t *testing.T) {
	const req = "headers 1 CONNECT 10.0.0.1:80"
	run(t, []row{
		{name: "of_request", do: func(r *rig) { r.w.connect(1); r.w.data(1, false, "abc"); r.w.headers(1, true, "x", "y") }, events: req + "; data 1 abc; end 1"},
		{name: "of_response", client: true, dials: 1, do: func(r *rig) {
			r.w.headers(1, false, ":status", "200")
			r.w.data(1, false, "abc")
			r.w.headers(1, true, "x", "y")
		}, events: "headers 1 200; data 1 abc; end 1"},
		{name: "without_end_stream", do: func(r *rig) { r.w.connect(1); r.w.headers(1, false, "x", "y") },
			events: req + "; reset 1 PROTOCOL_ERROR (trailers without END_STREAM)", frames: "RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "with_pseudo_field", do: func(r *rig) { r.w.connect(1); r.w.headers(1, true, ":status", "200") },
			events: req + "; reset 1 PROTOCOL_ERROR (pseudo-header field in trailers)", frames: "RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "malformed", do: func(r *rig) { r.w.connect(1); r.w.headers(1, true, "X", "y") },
			events: req + "; reset 1 PROTOCOL_ERROR (field has invalid characters)", frames: "RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "behind_end_stream", do: func(r *rig) { r.w.connect(1); r.w.data(1, true, ""); r.w.headers(1, true, "x", "y") },
			events: req + "; end 1; reset 1 STREAM_CLOSED (HEADERS behind END_STREAM)", frames: "RST_STREAM 1 STREAM_CLOSED"},
		{name: "of_stream_that_we_reset", do: func(r *rig) {
			r.w.connect(1)
			r.w.connect(3)
			r.feed()
			r.s.Reset(r.stream(1), h2.ConnectError)
			r.w.headers(1, true, "x", "y")
			r.w.data(3, false, "alive")
		}, events: req + "; headers 3 CONNECT 10.0.0.1:80; data 3 alive", frames: "RST_STREAM 1 CONNECT_ERROR"},
		{name: "of_several_that_we_reset", do: func(r *rig) {
			for id := uint32(1); id < 41; id += 2 {
				r.w.connect(id)
			}
			r.feed()
			for _, st := range r.open {
				r.s.Reset(st, h2.Cancel)
			}
			for id := uint32(1); id < 41; id += 2 {
				r.w.headers(id, true, "x", "y")
			}
			r.feed()
			r.log, r.out = nil, nil
		}},
		{name: "of_stream_that_we_refused", do: func(r *rig) {
			r.onRequest = func(st *h2.Stream, _ *h2.Header) { r.s.Respond(st, 503, nil, true) }
			r.w.connect(1)
			r.w.headers(1, true, "x", "y")
			r.w.ping(false, "stillfit")
		}, events: req, frames: "HEADERS 1 end=true :status=503; RST_STREAM 1 NO_ERROR; PING ack=true stillfit"},
		{name: "of_stream_above_the_limit", cfg: h2.Config{MaxStreams: 1}, do: func(r *rig) {
			r.w.connect(1)
			r.w.connect(3)
			r.w.headers(3, true, "x", "y")
			r.w.data(1, false, "alive")
		}, events: req + "; data 1 alive", frames: "RST_STREAM 3 REFUSED_STREAM"},
		{name: "of_stream_that_ended_long_ago", do: func(r *rig) {
			r.onRequest = func(st *h2.Stream, _ *h2.Header) { r.s.Respond(st, 200, nil, false); r.s.End(st) }
			r.w.headers(1, true, ":method", "CONNECT", ":authority", "10.0.0.1:80")
			r.w.headers(1, true, "x", "y")
		}, events: req + "; end 1", frames: "HEADERS 1 end=false :status=200; DATA 1 end=true ", code: h2.StreamClosed, reason: "closed stream"},
	})
}

// TestContinuation is RFC 9113 sections 4.3 and 6.10.
func TestContinuation(t *testing.T) {
	split := func(r *rig, id uint32, flags byte, parts int, pairs ...string) {
		block := r.w.block(pairs...)
		for i := range parts {
			n := len(block) / (parts - i)
			piece := string(block[:n])
			block = block[n:]
			last := byte(0)
			if i == parts-1 {
				last = fEndHeaders
			}
			if i == 0 {
				r.w.raw(tHeaders, flags|last, id, piece)
			} else {
				r.w.raw(tContinuation, last, id, piece)
			}
		}
	}
	connect := []string{":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", strings.Repeat("b", 30)}
	req := "headers 1 CONNECT 10.0.0.1:80 baggage=" + strings.Repeat("b", 30)
	rows := []row{
		{name: "two_frames", do: func(r *rig) { split(r, 1, 0, 2, connect...) }, events: req},
		{name: "thirty_frames", do: func(r *rig) { split(r, 1, 0, 30, connect...) }, events: req},
		{name: "end_stream_on_headers", do: func(r *rig) { split(r, 1, fEnd, 3, connect...) }, events: req + "; end 1"},
		{name: "empty_continuation_ends_it", do: func(r *rig) {
			r.w.raw(tHeaders, 0, 1, string(r.w.block(connect...)))
			r.w.raw(tContinuation, fEndHeaders, 1, "")
		}, events: req},
		{name: "of_other_stream", do: func(r *rig) { r.w.raw(tHeaders, 0, 1, "\x82"); r.w.raw(tContinuation, fEndHeaders, 3, "") },
			code: h2.ProtocolError, reason: "interrupted"},
		{name: "without_headers", do: func(r *rig) { r.w.raw(tContinuation, fEndHeaders, 1, "\x82") }, code: h2.ProtocolError, reason: "without HEADERS"},
		{name: "behind_end_headers", do: func(r *rig) { split(r, 1, 0, 2, connect...); r.w.raw(tContinuation, fEndHeaders, 1, "\x82") },
			events: req, code: h2.ProtocolError, reason: "without HEADERS"},
		{name: "response", client: true, dials: 1, do: func(r *rig) { split(r, 1, 0, 4, ":status", "200", "baggage", "k=v") }, events: "headers 1 200 baggage=k=v"},
		{name: "never_ending_empty", do: func(r *rig) {
			r.w.raw(tHeaders, 0, 1, "")
			for range 100 {
				r.w.raw(tContinuation, 0, 1, "")
			}
		}, code: h2.EnhanceYourCalm, reason: "header block"},
		{name: "never_ending_large", do: func(r *rig) {
			r.w.raw(tHeaders, 0, 1, strings.Repeat("\x82", 16384))
			for range 8 {
				r.w.raw(tContinuation, 0, 1, strings.Repeat("\x82", 16384))
			}
		}, code: h2.EnhanceYourCalm, reason: "header block"},
	}
	for typ := byte(0); typ < 11; typ++ {
		if typ != tContinuation {
			rows = append(rows, row{name: fmt.Sprintf("interrupted_by_type_%d", typ), do: func(r *rig) {
				r.w.raw(tHeaders, 0, 1, "\x82")
				r.w.raw(typ, 0, map[bool]uint32{true: 0, false: 1}[typ == tSettings || typ == tPing || typ == tGoAway], "")
			}, code: h2.ProtocolError, reason: "interrupted"})
		}
	}
	run(t, rows)
}

// TestCompression is RFC 7541: what cannot be decoded ends the connection, since nobody knows the table any more.
func TestCompression(t *testing.T) {
	block := func(b string) func(*rig) {
		return func(r *rig) { r.w.raw(tHeaders, fEndHeaders, 1, b) }
	}
	bomb := func(r *rig, n int) string {
		b := string(r.w.block(":method", "CONNECT", ":authority", "a:1", "bomb", strings.Repeat("x", 4000)))
		return b + strings.Repeat("\xbe", n) // the table's newest entry, again and again
	}
	run(t, []row{
		{name: "index_0", do: block("\x80"), code: h2.CompressionError},
		{name: "index_beyond_the_table", do: block("\xbf"), code: h2.CompressionError},
		{name: "cut_string", do: block("\x00\x05ab"), code: h2.CompressionError},
		{name: "cut_integer", do: block("\xff"), code: h2.CompressionError},
		{name: "endless_integer", do: block("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), code: h2.CompressionError},
		{name: "bad_huffman", do: block("\x00\x01a\x84\xff\xff\xff\xff"), code: h2.CompressionError},
		{name: "table_size_above_4096", do: block("\x3f\xe2\x1f\x82"), code: h2.CompressionError},
		{name: "table_size_behind_a_field", do: block("\x40\x01a\x01b\x20"), code: h2.CompressionError},
		{name: "string_above_the_list_limit", cfg: h2.Config{MaxHeaderList: 100}, do: func(r *rig) {
			r.w.headers(1, false, ":method", "CONNECT", ":authority", "a:1", "x", strings.Repeat("@", 101))
		}, code: h2.CompressionError},
		{name: "bomb", bare: true, do: func(r *rig) {
			r.w.text(h2.Preface)
			r.w.settings()
			r.w.raw(tHeaders, fEndHeaders, 1, bomb(r, 12000))
		}, events: "settings", code: h2.EnhanceYourCalm, frames: "SETTINGS ack"},
		{name: "four_times_the_limit", bare: true, do: func(r *rig) {
			r.w.text(h2.Preface)
			r.w.settings()
			r.w.raw(tHeaders, fEndHeaders, 1, bomb(r, 50))
			r.w.connect(3)
		}, events: "settings; headers 3 CONNECT 10.0.0.1:80", frames: "SETTINGS ack; RST_STREAM 1 PROTOCOL_ERROR"},
		{name: "table_before_our_settings_are_acknowledged", bare: true, do: func(r *rig) {
			r.w.text(h2.Preface)
			r.w.settings()
			r.w.headers(1, false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "same")
			r.w.headers(3, false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "same") // from the table
			r.w.enc.SetMaxDynamicTableSize(0)
			r.w.ack()
			r.w.headers(5, false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "same")
		}, events: "settings; headers 1 CONNECT 10.0.0.1:80 baggage=same; headers 3 CONNECT 10.0.0.1:80 baggage=same; headers 5 CONNECT 10.0.0.1:80 baggage=same",
			frames: "SETTINGS ack"},
		{name: "table_grows_behind_our_settings", do: block("\x3f\x01\x82"), code: h2.CompressionError},
		// The table is the connection's: what a refused or malformed request defines, the next may use.
		{name: "table_follows_refused_requests", bare: true, cfg: h2.Config{MaxStreams: 1}, do: func(r *rig) {
			r.w.text(h2.Preface)
			r.w.settings()
			r.w.connect(1)
			r.w.headers(3, false, ":method", "CONNECT", ":authority", "b:2", "baggage", "defined-here")
			r.w.headers(5, false, ":method", "CONNECT", ":authority", "b:2", "Bad", "malformed-here")
			r.w.reset(1, h2.Cancel)
			r.w.headers(7, false, ":method", "CONNECT", ":authority", "b:2", "baggage", "defined-here")
		}, events: "settings; headers 1 CONNECT 10.0.0.1:80; reset 1 CANCEL; headers 7 CONNECT b:2 baggage=defined-here",
			frames: "SETTINGS ack; RST_STREAM 3 REFUSED_STREAM; RST_STREAM 5 REFUSED_STREAM"},
	})
}

// TestEncoding decodes what Open and Respond send with x/net.
func TestEncoding(t *testing.T) {
	long := strings.Repeat("v", 40000)
	for _, n := range []int{0, 1, 126, 127, 128, 254, 255, 256, 16000, 16384, 16385, 40000} {
		t.Run(fmt.Sprintf("value_of_%d", n), func(t *testing.T) {
			fields := []h2.Field{{Name: "baggage", Value: long[:n]}, {Name: "x-" + long[:min(n, 300)], Value: ""}}
			c := newRig(t, h2.Config{}, whole)
			c.preamble(false)
			if _, err := c.s.Open(&h2.Header{Method: "CONNECT", Authority: "[2001:db8::1]:65535", Fields: fields}); err != nil {
				t.Fatal(err)
			}
			s := newRig(t, h2.Config{Server: true}, whole)
			s.preamble(true)
			for _, status := range []int{200, 400, 401, 503} {
				s.w.connect(uint32(status*2 + 1))
				s.onRequest = func(st *h2.Stream, _ *h2.Header) { s.s.Respond(st, status, fields, false) }
				s.feed()
			}
			want := func(pairs ...string) []hpack.HeaderField {
				var f []hpack.HeaderField
				for i := 0; i < len(pairs); i += 2 {
					f = append(f, hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
				}
				for _, x := range fields {
					f = append(f, hpack.HeaderField{Name: x.Name, Value: x.Value})
				}
				return f
			}
			c.flush()
			checkBlocks(t, c.out, [][]hpack.HeaderField{want(":method", "CONNECT", ":authority", "[2001:db8::1]:65535")})
			checkBlocks(t, s.out, [][]hpack.HeaderField{want(":status", "200"), want(":status", "400"), want(":status", "401"), want(":status", "503")})
		})
	}
}

// checkBlocks reads the header blocks in b; no frame may exceed the smallest limit.
func checkBlocks(t *testing.T, b []byte, want [][]hpack.HeaderField) {
	t.Helper()
	fr := http2.NewFramer(io.Discard, bytes.NewReader(b))
	fr.SetMaxReadFrameSize(16384)
	dec := hpack.NewDecoder(0, nil) // no table: nothing may be added to it
	var block []byte
	for n := 0; ; {
		f, err := fr.ReadFrame()
		if err == io.EOF {
			if n != len(want) {
				t.Errorf("%d header blocks, want %d", n, len(want))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		done := false
		switch f := f.(type) {
		case *http2.HeadersFrame:
			block, done = bytes.Clone(f.HeaderBlockFragment()), f.HeadersEnded()
		case *http2.ContinuationFrame:
			block, done = append(block, f.HeaderBlockFragment()...), f.HeadersEnded()
		default:
			continue
		}
		if !done {
			continue
		}
		fields, err := dec.DecodeFull(block)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(fields); got != fmt.Sprint(want[n]) {
			t.Errorf("block %d differs", n)
		}
		n++
	}
}

// TestTableSizeUpdate is RFC 7541 section 4.2: a peer that lowers SETTINGS_HEADER_TABLE_SIZE below what it was has to be
// told so at the start of the next header block; nghttp2 takes a block without it for a compression error.
func TestTableSizeUpdate(t *testing.T) {
	const update = 0x20 // dynamic table size 0
	first := func(b []byte) byte {
		t.Helper()
		for len(b) > 0 {
			n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
			if b[3] == tHeaders {
				return b[9]
			}
			b = b[9+n:]
		}
		t.Fatal("no HEADERS")
		return 0
	}
	for _, test := range []struct {
		name  string
		sizes []uint32
		want  bool
	}{{"default", nil, false}, {"larger", []uint32{65536}, false}, {"same", []uint32{4096}, false}, {"zero", []uint32{0}, true},
		{"smaller", []uint32{4095}, true}, {"zero_and_back", []uint32{0, 4096}, true}} {
		t.Run(test.name, func(t *testing.T) {
			var s []http2.Setting
			for _, v := range test.sizes {
				s = append(s, setting(http2.SettingHeaderTableSize, v))
			}
			c := newRig(t, h2.Config{}, whole)
			c.preamble(false, s...)
			srv := newRig(t, h2.Config{Server: true}, whole)
			srv.preamble(true, s...)
			srv.onRequest = func(st *h2.Stream, _ *h2.Header) { srv.s.Respond(st, 200, nil, false) }
			for i := range 3 {
				c.out, srv.out = nil, nil
				c.dial()
				c.flush()
				srv.w.connect(uint32(2*i + 1))
				srv.feed()
				want := test.want && i == 0
				if got := first(c.out) == update; got != want {
					t.Errorf("request %d begins with a size update: %v, want %v", i, got, want)
				}
				if got := first(srv.out) == update; got != want {
					t.Errorf("response %d begins with a size update: %v, want %v", i, got, want)
				}
			}
		})
	}
}

func TestHeaderAccess(t *testing.T) {
	h := h2.Header{Fields: []h2.Field{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}, {Name: "a", Value: "3"}}}
	if got := h.Get("a"); got != "1" {
		t.Errorf("Get gives %q", got)
	}
	if got := h.Get("none"); got != "" {
		t.Errorf("Get of an absent field gives %q", got)
	}
	if got := h.Values("a"); len(got) != 2 || got[1] != "3" {
		t.Errorf("Values gives %q", got)
	}
}
