package proxy_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// villain is one connection to a server with bad intentions. Its methods report false when the connection has ended.
type villain struct {
	s    *siege
	conn net.Conn
	tls  *tls.Conn
	fr   *http2.Framer
	buf  bytes.Buffer
	out  *http2.Framer
}

// villainy makes a member of the mesh whose HBONE port is served by handle, and returns an address there. All
// connections have ended when the test is over.
func (s *siege) villainy(handle func(v *villain)) netip.AddrPort {
	s.t.Helper()
	w := s.workloadAt("villain", "127.0.20.1", nil)
	l, err := net.Listen("tcp", netip.AddrPortFrom(w.Addresses[0], s.hbone).String())
	if err != nil {
		s.t.Fatal(err)
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done := make(chan struct{})
			wg.Go(func() {
				defer c.Close()
				defer close(done)
				handle(&villain{s: s, conn: c})
			})
			wg.Go(func() {
				select {
				case <-over:
					c.Close()
				case <-done:
				}
			})
		}
	})
	s.allies = append(s.allies, func() {
		close(over)
		l.Close()
		wg.Wait()
	})
	return netip.AddrPortFrom(w.Addresses[0], 80)
}

// shake does the TLS handshake under the identity that is expected, unless s says otherwise.
func (v *villain) shake(change func(*tls.Config)) bool {
	config := mtls.Server(v.s.ca.SVID(v.s.t, "spiffe://cluster.local/ns/default/sa/villain"), nil)
	if change != nil {
		change(config)
	}
	v.tls = tls.Server(v.conn, config)
	return v.tls.Handshake() == nil
}

// meet does the handshake and the beginning of HTTP/2, and waits for the first request; it returns that stream.
func (v *villain) meet(settings ...http2.Setting) uint32 {
	if !v.shake(nil) {
		return 0
	}
	if _, err := io.ReadFull(v.tls, make([]byte, len(http2.ClientPreface))); err != nil {
		return 0
	}
	v.fr = http2.NewFramer(nil, v.tls)
	v.out = http2.NewFramer(&v.buf, nil)
	v.out.AllowIllegalWrites = true
	v.say(func(fr *http2.Framer) { _ = fr.WriteSettings(settings...) })
	return v.request()
}

// request reads up to the next request and returns its stream, 0 at the end of the connection.
func (v *villain) request() uint32 {
	for {
		f, err := v.fr.ReadFrame()
		if err != nil {
			return 0
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			return h.StreamID
		}
	}
}

// say sends frames.
func (v *villain) say(f func(fr *http2.Framer)) bool {
	v.buf.Reset()
	f(v.out)
	_, err := v.tls.Write(v.buf.Bytes())
	return err == nil
}

// flood says one again and again until the connection ends.
func (v *villain) flood(one func(fr *http2.Framer)) {
	for v.say(func(fr *http2.Framer) {
		for v.buf.Len() < 64<<10 {
			one(fr)
		}
	}) {
	}
}

// answer says 200 to stream 1.
func (v *villain) answer() bool {
	return v.say(func(fr *http2.Framer) { respond(fr, 1, "200") })
}

func respond(fr *http2.Framer, id uint32, status string) {
	var b bytes.Buffer
	_ = hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: status, Sensitive: true})
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true})
}

// linger reads until the other side ends the connection, and answers pings.
func (v *villain) linger() {
	if v.fr == nil {
		v.sulk()
		return
	}
	for {
		f, err := v.fr.ReadFrame()
		if err != nil {
			return
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			v.say(func(fr *http2.Framer) { _ = fr.WritePing(true, p.Data) })
		}
	}
}

// sulk reads and answers nothing.
func (v *villain) sulk() { _, _ = io.Copy(io.Discard, v.tls) }

// certificate has the villain show another one.
func (v *villain) certificate(s *svid.SVID) func(*tls.Config) {
	return func(c *tls.Config) {
		c.Certificates = []tls.Certificate{s.TLSCertificate()}
		c.GetCertificate, c.GetConfigForClient = nil, nil
	}
}

// TestHostileServer: what a server can do to an agent that connects to it. The application that wanted to go there sees a
// reset; all others go on.
func TestHostileServer(t *testing.T) {
	rev, path := revocation(t)
	for _, tc := range []struct {
		name   string
		server func(v *villain)
		flag   proxy.Flag
		text   string
		times  int // that an application tries; 0 means once, doesNotRead once without reading
	}{
		{"closes-at-once", func(v *villain) {}, proxy.FlagTLSFailure, "TLS handshake: ", 0},
		{"plaintext", func(v *villain) { _, _ = io.WriteString(v.conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }, proxy.FlagTLSFailure, "first record does not look like a TLS handshake", 0},
		{"tls-garbage", func(v *villain) {
			_, _ = v.conn.Write(garbage(rand.New(rand.NewPCG(1, 2))))
			_, _ = io.Copy(io.Discard, v.conn)
		}, proxy.FlagTLSFailure, "TLS handshake: ", 0},
		{"silent", func(v *villain) { _, _ = io.Copy(io.Discard, v.conn) }, proxy.FlagTLSFailure, "TLS handshake: ", 0},
		{"tls-1.2", func(v *villain) {
			v.shake(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
		}, proxy.FlagTLSFailure, "protocol version not supported", 0},
		{"no-alpn", func(v *villain) {
			v.shake(func(c *tls.Config) { c.NextProtos = nil })
			v.linger()
		}, proxy.FlagTLSFailure, "peer did not agree on ALPN h2", 0},
		{"certificate-of-another-identity", func(v *villain) {
			v.shake(v.certificate(v.s.mallory()))
			v.linger()
		}, proxy.FlagTLSFailure, "identity mismatch: peer is spiffe://cluster.local/ns/default/sa/mallory, want spiffe://cluster.local/ns/default/sa/villain", 0},
		{"certificate-of-another-trust-domain", func(v *villain) {
			chain, key := v.s.ca.Issue(v.s.t, "spiffe://elsewhere.test/ns/default/sa/villain")
			other, _ := svid.New(chain, key, identity.NewBundle(identity.MustTrustDomain("elsewhere.test"), v.s.ca.Bundle().Certificates()))
			v.shake(v.certificate(other))
			v.linger()
		}, proxy.FlagTLSFailure, "identity mismatch: peer is spiffe://elsewhere.test/ns/default/sa/villain", 0},
		{"expired", func(v *villain) {
			v.shake(v.certificate(v.s.ca.SVID(v.s.t, "spiffe://cluster.local/ns/default/sa/villain", identitytest.Expired())))
			v.linger()
		}, proxy.FlagTLSFailure, "expired", 0},
		{"revoked", func(v *villain) {
			bad := v.s.ca.SVID(v.s.t, "spiffe://cluster.local/ns/default/sa/villain")
			v.s.revoke(path, bad)
			eventually(func() bool { return rev.Check(bad.Certificates, v.s.ca.Bundle()) != nil })
			v.shake(v.certificate(bad))
			v.linger()
		}, proxy.FlagCertRevoked, "is on the revocation list", 0},

		{"not-http2", func(v *villain) {
			v.shake(nil)
			_, _ = io.WriteString(v.tls, "HTTP/1.1 400 Bad Request\r\n\r\n")
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "HTTP/2 ", 0},
		{"no-settings", func(v *villain) {
			v.shake(nil)
			_, _ = v.tls.Write(ping)
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "first frame is not SETTINGS", 0},
		{"never-answers", func(v *villain) {
			v.meet()
			v.linger()
		}, proxy.FlagConnect, "connect timed out", 0},
		{"refuses-every-stream", func(v *villain) {
			for id := v.meet(); id != 0; id = v.request() {
				v.say(func(fr *http2.Framer) { _ = fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) })
			}
		}, proxy.FlagConnect, "stream reset by peer: REFUSED_STREAM", 0},
		{"resets-every-stream", func(v *villain) {
			for id := v.meet(); id != 0; id = v.request() {
				v.say(func(fr *http2.Framer) { _ = fr.WriteRSTStream(id, http2.ErrCodeInternal) })
			}
		}, proxy.FlagConnect, "stream reset by peer: INTERNAL_ERROR", 0},
		{"leaves-at-once", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteGoAway(0, http2.ErrCodeNo, nil) })
			v.linger()
		}, proxy.FlagConnect, "stream reset by peer: REFUSED_STREAM", 0},
		{"allows-no-streams", func(v *villain) {
			v.meet(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
			v.linger()
		}, proxy.FlagConnect, "", 3},
		{"informational-responses-for-ever", func(v *villain) {
			v.meet()
			v.flood(func(fr *http2.Framer) { respond(fr, 1, "100") })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "too many informational responses", 0},
		{"informational-responses-now-and-then", func(v *villain) {
			for id := v.meet(); id != 0 && v.say(func(fr *http2.Framer) { respond(fr, id, "103") }); {
				time.Sleep(beat())
			}
		}, proxy.FlagConnect, "connect timed out", 0},
		{"status-that-is-none", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { respond(fr, 1, "abc") })
			v.linger()
		}, proxy.FlagConnect, "stream ended with PROTOCOL_ERROR: invalid :status", 0},
		{"status-of-its-own", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { respond(fr, 1, "999") })
			v.linger()
		}, proxy.FlagConnect, "http status: 999", 0},
		{"header-table-bomb", func(v *villain) {
			v.meet()
			bomb, long := tableBomb()
			v.say(func(fr *http2.Framer) {
				_ = fr.WriteRawFrame(headersType, endHeaders, 1, append([]byte{0x88}, long...))
				_ = fr.WriteRawFrame(headersType, endHeaders|1, 1, bomb)
			})
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "header list is too large", 0},
		{"continuation-flood", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteRawFrame(headersType, 0, 1, []byte{0x88}) })
			v.flood(func(fr *http2.Framer) { _ = fr.WriteRawFrame(continuationType, 0, 1, make([]byte, 16384)) })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "header block is too large", 0},
		{"settings-flood", func(v *villain) {
			v.meet()
			v.flood(func(fr *http2.Framer) { _ = fr.WriteSettings() })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "too many SETTINGS frames", 0},
		{"ping-flood", func(v *villain) {
			v.meet()
			v.flood(func(fr *http2.Framer) { _ = fr.WritePing(false, [8]byte{}) })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "too many PING frames", 0},
		{"oversized-frame", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteRawFrame(dataType, 0, 1, make([]byte, 16385)) })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "frame of 16385 bytes", 0},
		{"push-promise", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteRawFrame(http2.FramePushPromise, endHeaders, 1, make([]byte, 4)) })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "PUSH_PROMISE", 0},
		{"data-before-the-answer", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteData(1, false, []byte("x")) })
			v.linger()
		}, proxy.FlagConnect, "DATA before HEADERS", 0},
		{"data-on-idle-stream", func(v *villain) {
			v.meet()
			v.say(func(fr *http2.Framer) { _ = fr.WriteData(7, false, []byte("x")) })
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "DATA on an idle stream", 0},
		{"data-beyond-the-stream-window", func(v *villain) {
			v.meet()
			v.answer()
			for range 10 << 20 / 16384 {
				v.say(func(fr *http2.Framer) { _ = fr.WriteData(1, false, make([]byte, 16384)) })
			}
			v.linger()
		}, proxy.FlagNone, "stream ended with FLOW_CONTROL_ERROR: stream window exceeded", doesNotRead},
		{"stream-window-overflow", func(v *villain) {
			v.meet()
			v.answer()
			for range 2 { // the application may have used up what there was
				v.say(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(1, 1<<31-1) })
			}
			v.linger()
		}, proxy.FlagNone, "stream window above 2^31-1", 0},
		{"connection-window-overflow", func(v *villain) {
			v.meet()
			v.answer()
			for range 2 {
				v.say(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1<<31-1) })
			}
			v.linger()
		}, proxy.FlagH2HandshakeFailure, "connection window above 2^31-1", 0},
		{"cut-in-the-middle", func(v *villain) {
			v.meet()
			v.answer()
		}, proxy.FlagConnect, "tunnel lost: connection", 0}, // its end, or the reset that unread data makes of it
		{"closes-in-the-middle", func(v *villain) {
			v.meet()
			v.answer()
			_ = v.tls.CloseWrite()
			v.linger()
		}, proxy.FlagConnect, "tunnel closed by peer", 0},
		{"vanishes-in-the-middle", func(v *villain) {
			v.meet()
			v.answer()
			v.sulk()
		}, proxy.FlagConnect, "tunnel lost: peer does not answer pings", 0},
		{"does-not-read", func(v *villain) {
			v.meet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			v.answer()
			for v.say(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1<<16) }) {
				time.Sleep(beat())
			}
		}, proxy.FlagConnect, "tunnel lost: peer does not read", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := besiege(t, func(c *proxy.Config) {
				quick(c)
				c.Revocation = rev
				c.ConnectTimeout, c.HandshakeTimeout = 3*time.Second*slowness(), time.Second*slowness()
			}, nil)
			dst := s.villainy(tc.server)
			for range max(1, tc.times) {
				c := s.client.dial(dst)
				if tc.times == doesNotRead {
					s.seen.reason(t, netip.AddrPort{}, tc.flag, tc.text)
				}
				s.loses(c)
			}
			f := s.seen.reason(t, netip.AddrPort{}, tc.flag, tc.text)
			if f != nil && f.Direction != proxy.Outbound {
				t.Errorf("reported of an %s flow", f.Direction)
			}
			if out, _ := s.client.Tunnels(); out > 3 {
				t.Errorf("%d tunnels are kept", out)
			}
			s.survived()
		})
	}
}

const doesNotRead = -1

// loses expects that an application's connection, on which it sends without end, is reset and does not end as if all
// were well. Who of the sender and the reader hears of the reset first is the only one to do so.
func (s *siege) loses(c net.Conn) {
	s.t.Helper()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second * slowness()))
	sent := make(chan error, 1)
	go func() {
		for b := make([]byte, 32<<10); ; {
			if _, err := c.Write(b); err != nil {
				sent <- err
				return
			}
		}
	}()
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Error("connection goes on")
	}
	if werr := <-sent; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(werr, syscall.ECONNRESET) {
		s.t.Errorf("connection ended with %v for the reader and %v for the sender, want a reset", err, werr)
	}
}
