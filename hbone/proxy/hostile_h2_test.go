package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// Frame types and flags that the framer has no method for, or would not write so.
const (
	dataType         = http2.FrameData
	headersType      = http2.FrameHeaders
	continuationType = http2.FrameContinuation
	endHeaders       = http2.FlagHeadersEndHeaders
)

// connectBlock is the header block of a CONNECT; it leaves HPACK's table alone.
func connectBlock(authority string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}} {
		f.Sensitive = true
		_ = enc.WriteField(f)
	}
	return b.Bytes()
}

func connectFrame(fr *http2.Framer, id uint32, block []byte) {
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
}

// TestHostileFrames: a peer with a good certificate breaks the rules of HTTP/2, and loses its tunnel for it.
func TestHostileFrames(t *testing.T) {
	for _, tc := range []struct {
		name   string
		attack func(s *siege, a *attacker)
		code   http2.ErrCode
		text   string
	}{
		{"oversized-frame", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteRawFrame(dataType, 0, 1, make([]byte, 16385)) })
		}, http2.ErrCodeFrameSize, "frame of 16385 bytes"},
		{"oversized-frame-that-never-comes", func(_ *siege, a *attacker) {
			_, _ = a.Conn.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
		}, http2.ErrCodeFrameSize, "frame of 16777215 bytes"},
		{"zero-length-data-flood", func(s *siege, a *attacker) {
			a.open(1, s.dst)
			a.flood(1<<20, func(fr *http2.Framer, _ int) { _ = fr.WriteData(1, false, nil) })
		}, http2.ErrCodeEnhanceYourCalm, "too many empty DATA frames"},
		{"zero-length-padded-data-flood", func(s *siege, a *attacker) {
			a.open(1, s.dst)
			pad := make([]byte, 3)
			a.flood(1<<20, func(fr *http2.Framer, _ int) { _ = fr.WriteDataPadded(1, false, nil, pad) })
		}, http2.ErrCodeEnhanceYourCalm, "too many empty DATA frames"},
		{"rapid-resets", func(s *siege, a *attacker) {
			block := connectBlock(s.dst.String())
			a.flood(1<<18, func(fr *http2.Framer, i int) {
				connectFrame(fr, uint32(2*i+1), block)
				_ = fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
			})
		}, http2.ErrCodeEnhanceYourCalm, "too many early RST_STREAM frames"},
		{"made-to-reset", func(s *siege, a *attacker) {
			block := connectBlock(s.dst.String())
			a.flood(1<<18, func(fr *http2.Framer, i int) {
				connectFrame(fr, uint32(2*i+1), block)
				_ = fr.WriteWindowUpdate(uint32(2*i+1), 0)
			})
		}, http2.ErrCodeEnhanceYourCalm, "too many stream errors"},
		{"settings-flood", func(_ *siege, a *attacker) {
			a.flood(1<<20, func(fr *http2.Framer, _ int) { _ = fr.WriteSettings() })
		}, http2.ErrCodeEnhanceYourCalm, "too many SETTINGS frames"},
		{"ping-flood", func(_ *siege, a *attacker) {
			a.flood(1<<20, func(fr *http2.Framer, _ int) { _ = fr.WritePing(false, [8]byte{}) })
		}, http2.ErrCodeEnhanceYourCalm, "too many PING frames"},
		{"priority-flood", func(_ *siege, a *attacker) {
			a.flood(1<<20, func(fr *http2.Framer, i int) {
				_ = fr.WriteRawFrame(http2.FramePriority, 0, uint32(i+1), make([]byte, 5))
			})
		}, http2.ErrCodeEnhanceYourCalm, "too many PRIORITY frames"},
		{"unknown-frame-flood", func(_ *siege, a *attacker) {
			a.flood(1<<20, func(fr *http2.Framer, _ int) { _ = fr.WriteRawFrame(0xee, 0, 0, nil) })
		}, http2.ErrCodeEnhanceYourCalm, "too many unknown frames"},
		{"streams-above-the-limit", func(s *siege, a *attacker) {
			silent := connectBlock(s.sink.String())
			a.flood(1<<18, func(fr *http2.Framer, i int) { connectFrame(fr, uint32(2*i+1), silent) })
		}, http2.ErrCodeEnhanceYourCalm, "too many streams above the limit"},
		// Each is refused as soon as it is looked at, so that without turns no limit would ever be met.
		{"refused-requests-without-waiting", func(_ *siege, a *attacker) {
			block := connectBlock("127.0.10.9:80")
			a.flood(1<<18, func(fr *http2.Framer, i int) { connectFrame(fr, uint32(2*i+1), block) })
		}, http2.ErrCodeEnhanceYourCalm, "too many streams above the limit"},
		{"continuation-flood", func(_ *siege, a *attacker) {
			part := bytes.Repeat([]byte{0x82}, 16384)
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteRawFrame(headersType, 0, 1, part) })
			a.flood(1<<14, func(fr *http2.Framer, _ int) { _ = fr.WriteRawFrame(continuationType, 0, 1, part) })
		}, http2.ErrCodeEnhanceYourCalm, "header block is too large"},
		{"empty-continuation-flood", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteRawFrame(headersType, 0, 1, nil) })
			a.flood(1<<18, func(fr *http2.Framer, _ int) { _ = fr.WriteRawFrame(continuationType, 0, 1, nil) })
		}, http2.ErrCodeEnhanceYourCalm, "header block is too large"},
		{"header-table-bomb", func(_ *siege, a *attacker) {
			bomb, long := tableBomb()
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteRawFrame(headersType, endHeaders, 1, long) })
			a.flood(1<<10, func(fr *http2.Framer, i int) { _ = fr.WriteRawFrame(headersType, endHeaders, uint32(2*i+3), bomb) })
		}, http2.ErrCodeEnhanceYourCalm, "header list is too large"},
		{"header-lists-that-are-a-little-too-large", func(_ *siege, a *attacker) {
			block := connectBlock("127.0.10.2:80")
			for i := range 7 {
				block = append(block, 0, 1, 'x', 0x7f, 0x91, 0x4d) // a literal of 10,000 bytes
				block = append(block, bytes.Repeat([]byte{byte('a' + i)}, 10000)...)
			}
			var parts [][]byte
			for ; len(block) > 16384; block = block[16384:] {
				parts = append(parts, block[:16384])
			}
			a.flood(1<<14, func(fr *http2.Framer, i int) {
				_ = fr.WriteRawFrame(headersType, 0, uint32(2*i+1), parts[0])
				for _, p := range parts[1:] {
					_ = fr.WriteRawFrame(continuationType, 0, uint32(2*i+1), p)
				}
				_ = fr.WriteRawFrame(continuationType, endHeaders, uint32(2*i+1), block)
			})
		}, http2.ErrCodeEnhanceYourCalm, "too many large header lists"},
		{"header-block-that-does-not-decode", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) {
				_ = fr.WriteRawFrame(headersType, endHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff})
			})
		}, http2.ErrCodeCompression, "HTTP/2 COMPRESSION_ERROR"},
		{"interrupted-header-block", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) {
				_ = fr.WriteRawFrame(headersType, 0, 1, []byte{0x82})
				_ = fr.WritePing(false, [8]byte{})
			})
		}, http2.ErrCodeProtocol, "header block is interrupted"},
		{"connection-window-overflow", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1<<31-1) })
		}, http2.ErrCodeFlowControl, "connection window above 2^31-1"},
		{"initial-window-overflow", func(s *siege, a *attacker) {
			a.open(1, s.dst)
			_ = a.send(func(fr *http2.Framer) {
				_ = fr.WriteWindowUpdate(1, 1<<30)
				_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			})
		}, http2.ErrCodeFlowControl, "stream window above 2^31-1"},
		{"data-on-idle-stream", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteData(7, false, []byte("x")) })
		}, http2.ErrCodeProtocol, "DATA on an idle stream"},
		{"even-stream", func(s *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { connectFrame(fr, 2, connectBlock(s.dst.String())) })
		}, http2.ErrCodeProtocol, "client opened an even stream"},
		{"push-promise", func(_ *siege, a *attacker) {
			_ = a.send(func(fr *http2.Framer) { _ = fr.WriteRawFrame(http2.FramePushPromise, endHeaders, 1, make([]byte, 4)) })
		}, http2.ErrCodeProtocol, "PUSH_PROMISE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			a := s.attack()
			tc.attack(s, a)
			a.endedWith(tc.code)
			s.seen.reason(t, a.addr, proxy.FlagH2HandshakeFailure, tc.text)
			s.probe()
			a.leave()
			s.survived()
		})
	}
}

// tableBomb is a block that refers 16,000 times to an entry of 4,000 bytes (compare CVE-2016-1544), and the block that puts
// the entry there.
func tableBomb() (bomb, long []byte) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	_ = enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("v", 4000)})
	return bytes.Repeat([]byte{0x80 | 62}, 16000), b.Bytes()
}

// TestHostilePreface: TLS is right, what is inside is not HTTP/2.
func TestHostilePreface(t *testing.T) {
	for _, tc := range []struct{ name, say, text string }{
		{"bad-preface", "GET / HTTP/1.1\r\nHost: server\r\n\r\n", "peer does not speak HTTP/2"},
		{"preface-of-another-version", "PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", "peer does not speak HTTP/2"},
		{"no-settings", http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", "first frame is not SETTINGS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			c, addr := s.knock()
			tc2 := tls.Client(c, s.tlsAs("mallory", s.server))
			if _, err := tc2.Write([]byte(tc.say)); err != nil {
				t.Fatal(err)
			}
			fr := http2.NewFramer(nil, tc2)
			for {
				f, err := fr.ReadFrame()
				if err != nil {
					t.Fatalf("connection ended without GOAWAY: %v", err)
				}
				if g, ok := f.(*http2.GoAwayFrame); ok {
					if g.ErrCode != http2.ErrCodeProtocol || string(g.DebugData()) != tc.text {
						t.Errorf("GOAWAY is %v %q", g.ErrCode, g.DebugData())
					}
					break
				}
			}
			s.seen.reason(t, addr, proxy.FlagH2HandshakeFailure, tc.text)
			s.probe()
			c.Close()
			s.survived()
		})
	}
}

// TestHostileStreams: what concerns one stream ends that stream; the tunnel, and even the attacker's next stream, go on.
func TestHostileStreams(t *testing.T) {
	for _, tc := range []struct {
		name   string
		attack func(s *siege, a *attacker)
		code   http2.ErrCode // of stream 1
		text   string
	}{
		{"stream-window-overflow", func(s *siege, a *attacker) {
			a.open(1, s.dst)
			a.must(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(1, 1<<31-1) })
		}, http2.ErrCodeFlowControl, "stream ended with FLOW_CONTROL_ERROR: stream window above 2^31-1"},
		{"data-beyond-the-stream-window", func(s *siege, a *attacker) {
			a.open(1, s.sink)
			for range 10 << 20 / 16384 {
				a.Data(1, make([]byte, 16384), false)
			}
		}, http2.ErrCodeFlowControl, "stream ended with FLOW_CONTROL_ERROR: stream window exceeded"},
		{"data-behind-the-end", func(s *siege, a *attacker) {
			a.open(1, s.sink)
			a.Data(1, nil, true)
			a.Data(1, []byte("more"), false)
		}, http2.ErrCodeStreamClosed, "stream ended with STREAM_CLOSED: DATA behind END_STREAM"},
		{"headers-behind-the-end", func(s *siege, a *attacker) {
			a.open(1, s.sink)
			a.Data(1, nil, true)
			a.Headers(1, true, hbonetest.Fields("x", "y"))
		}, http2.ErrCodeStreamClosed, "stream ended with STREAM_CLOSED: HEADERS behind END_STREAM"},
		{"window-update-of-nothing", func(s *siege, a *attacker) {
			a.open(1, s.dst)
			a.must(func(fr *http2.Framer) { _ = fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 1, make([]byte, 4)) })
		}, http2.ErrCodeProtocol, "stream ended with PROTOCOL_ERROR: WINDOW_UPDATE of 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			a := s.attack()
			tc.attack(s, a)
			if got := a.Wait(t, 1, "reset", func(st hbonetest.Stream) bool { return st.Reset >= 0 }).Reset; got != int64(tc.code) {
				t.Errorf("stream was reset with %s, want %s", http2.ErrCode(got), tc.code)
			}
			s.seen.reason(t, a.addr, proxy.FlagNone, tc.text)
			a.alive(3, s.dst)
			s.probe()
			a.leave()
			s.survived()
		})
	}
}

// TestHostileDataOnClosedStream: what comes late on a stream that is over is dropped, however much it is.
func TestHostileDataOnClosedStream(t *testing.T) {
	s := newSiege(t, nil)
	a := s.attack()
	a.open(1, s.dst)
	a.Data(1, nil, true)
	a.Wait(t, 1, "end", func(st hbonetest.Stream) bool { return st.Ended })
	full := make([]byte, 16384)
	if a.flood(64<<20/len(full), func(fr *http2.Framer, _ int) { _ = fr.WriteData(1, false, full) }) {
		t.Error("the tunnel ended")
	}
	a.alive(3, s.dst)
	s.probe()
	a.leave()
	s.survived()
}

// TestHostileRequests: requests that lead nowhere are answered with a status, a thousand times each.
func TestHostileRequests(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header func(i int, dst netip.AddrPort) hbonetest.Header
		status int
		text   string
	}{
		{"method-other-than-connect", func(i int, dst netip.AddrPort) hbonetest.Header {
			method := []string{"GET", "POST", "OPTIONS", "PRI", "connect", "TRACE", "CONNECTX"}[i%7]
			return hbonetest.Fields(":method", method, ":scheme", "https", ":path", "/", ":authority", dst.String())
		}, 400, "invalid method, only CONNECT is supported"},
		{"malformed-authority", func(i int, _ netip.AddrPort) hbonetest.Header {
			authority := []string{
				"", ":", "127.0.10.2", "127.0.10.2:", ":80", "127.0.10.2:0", "127.0.10.2:65536", "127.0.10.2:80:80", "[::1:80", "user@127.0.10.2:80/", "127.0.10.2:+80",
				"[fe80::1%25eth0]:80", "\x1b[2J:80x", strings.Repeat("a", 3000), // more would be charged for
			}[i%14]
			return hbonetest.Fields(":method", "CONNECT", ":authority", authority)
		}, 400, "no valid authority pseudo header"},
		{"authority-of-another-pod", func(i int, _ netip.AddrPort) hbonetest.Header {
			authority := []string{"127.0.10.3:80", "127.0.10.1:80", "10.0.0.1:80", "169.254.169.254:80", "127.0.0.1:80", "[::1]:80", "0.0.0.0:80"}[i%7]
			return hbonetest.Fields(":method", "CONNECT", ":authority", authority)
		}, 400, "ip mismatch: 127.0.10.2 != "},
		{"authority-of-the-agent", func(i int, _ netip.AddrPort) hbonetest.Header {
			return hbonetest.Fields(":method", "CONNECT", ":authority", fmt.Sprintf("127.0.10.2:%d", []int{15001, 15006, 15008}[i%3]))
		}, 503, "attempted recursive call to ourselves"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			a := s.attack()
			const n = 1000
			for i := range n {
				a.Headers(uint32(2*i+1), i%2 == 0, tc.header(i, s.dst))
				if i%20 == 19 {
					a.WaitStatus(t, uint32(2*i+1))
				}
			}
			for i := range n {
				if status := a.WaitStatus(t, uint32(2*i+1)); status != tc.status {
					t.Fatalf("request %d got status %d, want %d", i, status, tc.status)
				}
			}
			f := s.seen.reason(t, a.addr, proxy.FlagConnect, tc.text)
			if f != nil && !f.Early {
				t.Error("the request got to policy")
			}
			a.alive(2*n+1, s.dst)
			s.probe()
			a.leave()
			s.survived()
		})
	}
}
