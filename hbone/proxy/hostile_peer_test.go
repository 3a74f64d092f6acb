package proxy_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
)

// attacker is a peer with a valid certificate and bad intentions. What it gets is recorded by the Peer; what it sends goes
// through a framer that lets anything pass.
type attacker struct {
	*hbonetest.Peer // nil when it does not read
	t               testing.TB
	addr            netip.AddrPort
	conn            *tls.Conn
	buf             bytes.Buffer
	fr              *http2.Framer
}

// attack makes a tunnel to the pod under attack.
func (s *siege) attack() *attacker {
	s.t.Helper()
	return s.attackWith(nil)
}

// attackWith is attack with the attacker's own settings.
func (s *siege) attackWith(settings []http2.Setting) *attacker {
	s.t.Helper()
	a, err := s.tryAttack(settings...)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// tryAttack is attackWith that may be refused.
func (s *siege) tryAttack(settings ...http2.Setting) (*attacker, error) {
	s.t.Helper()
	p, err := hbonetest.Dial(s.t, s.server.inbound.String(), s.tlsAs("mallory", s.server), settings...)
	if err != nil {
		return nil, err
	}
	p.WaitSettings(s.t)
	return newAttacker(s.t, p, p.Conn), nil
}

// deaf is an attacker that never reads. It announces the largest windows there are, so that it is sent what there is.
func (s *siege) deaf() *attacker {
	s.t.Helper()
	c, _ := s.knock()
	_ = c.SetDeadline(time.Time{})
	_ = c.(*net.TCPConn).SetReadBuffer(16 << 10)
	a := newAttacker(s.t, nil, tls.Client(c, s.tlsAs("mallory", s.server)))
	if err := a.conn.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	a.must(func(fr *http2.Framer) {
		a.buf.WriteString(http2.ClientPreface)
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		_ = fr.WriteWindowUpdate(0, 1<<30)
	})
	return a
}

func newAttacker(t testing.TB, p *hbonetest.Peer, conn *tls.Conn) *attacker {
	a := &attacker{Peer: p, t: t, addr: conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn: conn}
	a.fr = http2.NewFramer(&a.buf, nil)
	a.fr.AllowIllegalWrites = true
	return a
}

// leave closes the attacker's socket.
func (a *attacker) leave() { _ = a.conn.NetConn().Close() }

// send writes what f frames, all of it at once.
func (a *attacker) send(f func(fr *http2.Framer)) error {
	a.buf.Reset()
	f(a.fr)
	_ = a.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := a.conn.Write(a.buf.Bytes())
	return err
}

// must is send for what has to arrive.
func (a *attacker) must(f func(fr *http2.Framer)) {
	a.t.Helper()
	if err := a.send(f); err != nil {
		a.t.Fatal(err)
	}
}

// flood sends one again and again, in pieces of about 64 KiB, until the connection ends or n are out. It reports whether it
// ended.
func (a *attacker) flood(n int, one func(fr *http2.Framer, i int)) bool {
	for i := 0; i < n; {
		if err := a.send(func(fr *http2.Framer) {
			for ; i < n && a.buf.Len() < 64<<10; i++ {
				one(fr, i)
			}
		}); err != nil {
			return true
		}
	}
	return false
}

// open opens a stream to the echo and waits for the answer.
func (a *attacker) open(id uint32, dst netip.AddrPort) {
	a.t.Helper()
	a.Connect(id, dst.String())
	if status := a.WaitStatus(a.t, id); status != 200 {
		a.t.Fatalf("status is %d", status)
	}
}

// endedWith expects GOAWAY with a code and then the end.
func (a *attacker) endedWith(code http2.ErrCode) {
	a.t.Helper()
	if g := a.WaitGoAway(a.t, 1); g.Code != code {
		a.t.Errorf("GOAWAY says %s, want %s", g.Code, code)
	}
	a.WaitEnd(a.t)
}

// alive expects that the tunnel still serves.
func (a *attacker) alive(id uint32, dst netip.AddrPort) {
	a.t.Helper()
	a.open(id, dst)
	a.Data(id, []byte("still here"), false)
	a.Wait(a.t, id, "echo", func(st hbonetest.Stream) bool { return string(st.Data) == "still here" })
}

// wantAlert expects that a TLS connection ends with the alert that crypto/tls describes so.
func wantAlert(t testing.TB, c *tls.Conn, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	err := c.Handshake()
	if err == nil { // in TLS 1.3 the client is through before the server has seen its certificate
		_, err = io.Copy(io.Discard, c)
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "remote error" || op.Err.Error() != "tls: "+text {
		t.Errorf("the connection ended with %v, want the alert %q", err, text)
	}
}
