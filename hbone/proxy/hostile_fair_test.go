package proxy_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// stormTime is how long a storm lasts.
const stormTime = 700 * time.Millisecond

// storm has several tunnels of an attacker do something at the same time, as fast as they can, for a while. They must not
// lose their tunnels for it: all of it is allowed.
func (s *siege) storm(n int, settings []http2.Setting, begin func(a *attacker), step func(a *attacker, i int) error) {
	s.t.Helper()
	var wg sync.WaitGroup
	var all []*attacker
	for range n {
		a := s.attackWith(settings)
		all = append(all, a)
		if begin != nil {
			begin(a)
		}
	}
	until := time.Now().Add(stormTime)
	for _, a := range all {
		wg.Go(func() {
			for i := 0; time.Now().Before(until); i++ {
				if err := step(a, i); err != nil {
					s.t.Errorf("step %d: %v", i, err)
					return
				}
			}
		})
	}
	time.Sleep(stormTime / 4)
	s.probe()
	wg.Wait()
	for _, a := range all {
		a.leave()
	}
}

var errUnanswered = errors.New("no answer")

// ask sends n requests at once and waits until all are over.
func (a *attacker) ask(n, i int, block []byte) error {
	first := uint32(2*n*i + 1)
	end := first + uint32(2*n)
	if err := a.send(func(fr *http2.Framer) {
		for id := first; id < end; id += 2 {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true})
		}
	}); err != nil {
		return err
	}
	for id := first; id < end; id += 2 {
		if !eventually(func() bool { st := a.Stream(id); return st.Ended || st.Reset >= 0 }) {
			return errUnanswered
		}
	}
	return nil
}

// TestHostileStorm: what is allowed, as fast as possible. It may go on; others get their turns all the same.
func TestHostileStorm(t *testing.T) {
	full, pad := make([]byte, 1<<14-256), make([]byte, 255)
	for _, tc := range []struct {
		name     string
		settings []http2.Setting
		begin    func(s *siege) func(a *attacker)
		step     func(s *siege) func(a *attacker, i int) error
	}{
		{name: "requests-that-are-refused", step: func(*siege) func(a *attacker, i int) error {
			block := connectBlock("127.0.10.9:80")
			return func(a *attacker, i int) error { return a.ask(190, i, block) }
		}},
		{name: "requests-for-a-port-where-nobody-listens", step: func(*siege) func(a *attacker, i int) error {
			block := connectBlock("127.0.10.2:1")
			return func(a *attacker, i int) error { return a.ask(190, i, block) }
		}},
		{name: "requests-that-are-served", step: func(s *siege) func(a *attacker, i int) error {
			block := connectBlock(s.dst.String())
			return func(a *attacker, i int) error { return a.ask(190, i, block) }
		}},
		{name: "data-of-one-byte", step: func(s *siege) func(a *attacker, i int) error {
			return s.upload(func(fr *http2.Framer, id uint32) {
				for range 3000 {
					_ = fr.WriteData(id, false, pad[:1])
				}
			})
		}},
		{name: "data-of-one-byte-and-much-padding", step: func(s *siege) func(a *attacker, i int) error {
			return s.upload(func(fr *http2.Framer, id uint32) {
				for range 250 {
					_ = fr.WriteDataPadded(id, false, pad[:1], pad)
				}
			})
		}},
		{name: "bulk", step: func(s *siege) func(a *attacker, i int) error {
			return s.upload(func(fr *http2.Framer, id uint32) {
				for range 4 {
					_ = fr.WriteData(id, false, full)
				}
			})
		}},
		{
			name:     "credit-byte-by-byte",
			settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}},
			begin: func(s *siege) func(a *attacker) {
				return func(a *attacker) {
					a.Mute()
					for i := range uint32(100) {
						a.open(2*i+1, s.source)
					}
				}
			},
			step: func(*siege) func(a *attacker, i int) error {
				return func(a *attacker, i int) error {
					return a.send(func(fr *http2.Framer) {
						_ = fr.WriteWindowUpdate(0, 4000)
						for j := range uint32(4000) {
							_ = fr.WriteWindowUpdate(2*(j%100)+1, 1)
						}
					})
				}
			},
		},
		{
			name:     "windows-that-flap",
			settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}},
			begin: func(s *siege) func(a *attacker) {
				return func(a *attacker) {
					a.Mute()
					for i := range uint32(190) {
						a.open(2*i+1, s.source)
					}
				}
			},
			step: func(*siege) func(a *attacker, i int) error {
				return func(a *attacker, i int) error {
					time.Sleep(11 * time.Millisecond) // two are paid for every 10 ms
					return a.send(func(fr *http2.Framer) {
						_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
						_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
					})
				}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			var begin func(a *attacker)
			if tc.begin != nil {
				begin = tc.begin(s)
			}
			s.storm(3, tc.settings, begin, tc.step(s))
			s.survived()
		})
	}
}

// upload is a step that sends data on a stream of its own and waits until they have been taken.
func (s *siege) upload(data func(fr *http2.Framer, id uint32)) func(a *attacker, i int) error {
	block := connectBlock(s.drain.String())
	return func(a *attacker, i int) error {
		id := uint32(2*i + 1)
		if err := a.send(func(fr *http2.Framer) {
			connectFrame(fr, id, block)
			data(fr, id)
			_ = fr.WriteData(id, true, nil)
		}); err != nil {
			return err
		}
		if !eventually(func() bool { return a.Stream(id).Ended }) {
			return errUnanswered
		}
		return nil
	}
}

// stranger connects from an address of its own.
func (s *siege) stranger(n byte) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 66, n)}}
	return d.Dial("tcp", s.server.inbound.String())
}

// TestHostileArrivals: peers that come as fast as they can.
func TestHostileArrivals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		arrive func(c net.Conn, config *tls.Config)
	}{
		{"connections", func(net.Conn, *tls.Config) {}},
		{"garbage", func(c net.Conn, _ *tls.Config) { _, _ = c.Write([]byte("garbage")) }},
		{"handshakes-without-certificate", func(c net.Conn, config *tls.Config) {
			config.GetClientCertificate = nil
			_ = tls.Client(c, config).Handshake()
		}},
		{"tunnels", func(c net.Conn, config *tls.Config) { _ = tls.Client(c, config).Handshake() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			config := s.tlsAs("mallory", s.server)
			until := time.Now().Add(stormTime)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for time.Now().Before(until) {
						c, err := s.stranger(1)
						if err != nil {
							continue // refused already
						}
						_ = c.SetDeadline(time.Now().Add(patience))
						tc.arrive(c, config.Clone())
						_ = c.(*net.TCPConn).SetLinger(0) // no port is kept
						c.Close()
					}
				})
			}
			time.Sleep(stormTime / 4)
			s.probe()
			wg.Wait()
			s.survived()
		})
	}
}

// TestHostileHandshakeCrowd: peers begin more handshakes than there may be, and do not go on. Who comes behind them is served.
func TestHostileHandshakeCrowd(t *testing.T) {
	for _, tc := range []struct {
		name  string
		addrs int
		text  string
	}{
		{"of-one-address", 1, "TLS handshake: too many handshakes with this address are under way"},
		{"of-many-addresses", 30, "TLS handshake: handshake took too long while others waited"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, func(c *proxy.Config) { c.MaxHandshakes, c.HandshakeTimeout = 20, time.Minute })
			s.probe()
			var crowd []net.Conn
			for i := range 30 {
				if c, err := s.stranger(byte(1 + i%tc.addrs)); err == nil { // else it was refused already
					defer c.Close()
					crowd = append(crowd, c)
				}
			}
			s.probe()
			s.seen.reason(t, netip.AddrPort{}, proxy.FlagTLSFailure, tc.text)
			for _, c := range crowd {
				c.Close()
			}
			s.survived()
		})
	}
}
