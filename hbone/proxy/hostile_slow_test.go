package proxy_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// beat is the step of the peers that send next to nothing; quick has the agent lose patience with them soon.
func beat() time.Duration { return 20 * time.Millisecond * slowness() }

func quick(c *proxy.Config) {
	c.PingInterval, c.PingTimeout = 400*time.Millisecond*slowness(), 600*time.Millisecond*slowness()
}

// TestHostileSlowHandshake: a handshake has its time, however lively the peer is.
func TestHostileSlowHandshake(t *testing.T) {
	hello := clientHello(t)
	for _, tc := range []struct {
		name string
		send func(c net.Conn)
	}{
		{"silent", func(net.Conn) {}},
		{"half-a-record-header", func(c net.Conn) { _, _ = c.Write(hello[:3]) }},
		{"half-a-client-hello", func(c net.Conn) { _, _ = c.Write(hello[:len(hello)/2]) }},
		{"byte-by-byte", func(c net.Conn) {
			for _, b := range hello {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(beat())
			}
		}},
		{"silent-behind-the-client-hello", func(c net.Conn) { _, _ = c.Write(hello) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, func(c *proxy.Config) { c.HandshakeTimeout = 500 * time.Millisecond * slowness() })
			c, addr := s.knock()
			tc.send(c)
			_, _ = io.Copy(io.Discard, c)
			if f := s.seen.reason(t, addr, proxy.FlagTLSFailure, "TLS handshake: "); f != nil && mtls.Reason(f.Err) != mtls.ReasonTimeout {
				t.Errorf("reported as %v (%s)", f.Err, mtls.Reason(f.Err))
			}
			s.probe()
			c.Close()
			s.survived()
		})
	}
}

// TestHostileSlow: peers with a good certificate that do not get on. A tunnel whose peer completes no frame and answers no
// ping ends, and so does one whose peer does not read.
func TestHostileSlow(t *testing.T) {
	drip := func(a *attacker, step func(i int) error) {
		for i := 0; step(i) == nil; i++ {
			time.Sleep(beat())
			if i > 500 {
				a.t.Error("the tunnel goes on")
				return
			}
		}
	}
	for _, tc := range []struct {
		name   string
		attack func(s *siege) *attacker
		text   string
	}{
		{"vanishes", func(s *siege) *attacker {
			a := s.attack()
			a.open(1, s.dst)
			a.Mute()
			return a
		}, "tunnel lost: peer does not answer pings"},
		{"vanishes-in-the-middle-of-a-download", func(s *siege) *attacker {
			a := s.deaf()
			a.must(func(fr *http2.Framer) { connectFrame(fr, 1, connectBlock(s.source.String())) })
			return a
		}, "tunnel lost: peer does not answer pings"},
		{"half-a-frame-header", func(s *siege) *attacker {
			a := s.attack()
			a.Mute()
			_, _ = a.conn.Write([]byte{0, 0, 8})
			return a
		}, "tunnel lost: peer does not answer pings"},
		{"half-a-frame-drop-by-drop", func(s *siege) *attacker {
			a := s.attack()
			a.Mute()
			_, _ = a.conn.Write([]byte{0, 0x40, 0, 0xee, 0, 0, 0, 0, 0})
			drip(a, func(int) error {
				_, err := a.conn.Write([]byte{0})
				return err
			})
			return a
		}, "tunnel lost: peer does not answer pings"},
		{"half-a-header-block-drop-by-drop", func(s *siege) *attacker {
			a := s.attack()
			a.Mute()
			a.must(func(fr *http2.Framer) { _ = fr.WriteRawFrame(headersType, 0, 1, nil) })
			drip(a, func(i int) error {
				return a.send(func(fr *http2.Framer) {
					if i%4 == 0 && i < 100 { // fewer frames than what counts as a flood
						_ = fr.WriteRawFrame(continuationType, 0, 1, []byte{0x82})
					}
				})
			})
			return a
		}, "tunnel lost: peer does not answer pings"},
		{"does-not-read-a-download", func(s *siege) *attacker {
			a := s.deaf()
			a.must(func(fr *http2.Framer) {
				for i := range uint32(100) {
					connectFrame(fr, 2*i+1, connectBlock(s.source.String()))
				}
			})
			drip(a, func(int) error { return a.send(func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1) }) })
			return a
		}, "tunnel lost: peer does not read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, quick)
			start := time.Now()
			a := tc.attack(s)
			f := s.seen.reason(t, a.addr, proxy.FlagConnect, tc.text)
			if took := time.Since(start); took > 5*time.Second*slowness() {
				t.Errorf("it took %v", took)
			}
			if f != nil && f.Source.ID.ServiceAccount() != "mallory" {
				t.Errorf("reported of %s", f.Source.ID)
			}
			s.probe()
			a.leave()
			s.survived()
		})
	}
}

// TestHostileUnusedStreams: a peer opens what it may and leaves it at that.
func TestHostileUnusedStreams(t *testing.T) {
	s := newSiege(t, nil)
	var all []*attacker
	for range 5 {
		a := s.attack()
		all = append(all, a)
		for i := range uint32(200) {
			a.Connect(2*i+1, s.sink.String())
		}
		for i := range uint32(200) {
			if status := a.WaitStatus(t, 2*i+1); status != 200 {
				t.Fatalf("stream %d of 200 got status %d", i+1, status)
			}
		}
		a.Connect(401, s.sink.String())
		refused := a.Wait(t, 401, "reset", func(st hbonetest.Stream) bool { return st.Reset >= 0 })
		if refused.Reset != int64(http2.ErrCodeRefusedStream) {
			t.Errorf("stream above the limit was reset with %s", http2.ErrCode(refused.Reset))
		}
	}
	s.probe()
	for _, a := range all {
		a.leave()
	}
	s.survived()
}

// TestHostileCancelledStreams: streams that the peer cancels when they are served count against no limit any more. What is
// behind them must not pile up, also where the application takes no notice.
func TestHostileCancelledStreams(t *testing.T) {
	s := newSiege(t, func(c *proxy.Config) { c.Linger = 500 * time.Millisecond * slowness() })
	a := s.attack()
	id := uint32(1)
	for range 10 {
		first := id
		for range 100 {
			a.Connect(id, s.sink.String())
			id += 2
		}
		for ; first < id; first += 2 {
			if status := a.WaitStatus(t, first); status != 200 {
				t.Fatalf("status is %d", status)
			}
			a.Reset(first, http2.ErrCodeCancel)
		}
	}
	waitFor(t, "end of what was cancelled", func() bool { return len(s.server.Flows()) <= 1 })
	s.seen.reason(t, a.addr, proxy.FlagNone, "application did not end after its peer had gone")
	a.alive(id, s.dst)
	s.probe()
	a.leave()
	s.survived()
}

// TestHostileManyUnread: many tunnels whose peer reads nothing hold little each.
func TestHostileManyUnread(t *testing.T) {
	s := newSiege(t, nil)
	block := connectBlock(s.source.String())
	var all []*attacker
	for range 160 {
		a := s.deaf()
		a.must(func(fr *http2.Framer) { connectFrame(fr, 1, block) })
		all = append(all, a)
	}
	for _, c := range s.calm {
		c.wait(t, 50)
	}
	s.probe()
	runtime.GC()
	for _, a := range all {
		a.leave()
	}
	s.survived()
}
