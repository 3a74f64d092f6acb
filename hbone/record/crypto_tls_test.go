package record_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// roles runs f with our end in each role against a live tls.Conn.
func roles(t *testing.T, f func(t *testing.T, l *link, peer *tls.Conn)) {
	for _, role := range []struct {
		name   string
		server bool
	}{{"client", false}, {"server", true}} {
		t.Run(role.name, func(t *testing.T) {
			l, peer := withPeer(t, role.server)
			f(t, l, peer)
		})
	}
}

func echo(t *testing.T, l *link, peer *tls.Conn, n int) {
	t.Helper()
	payload := bytes.Repeat([]byte{byte(n), byte(n >> 8), 7}, n/3+1)[:n]
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, n)
		_, err := io.ReadFull(peer, buf)
		if err == nil {
			_, err = peer.Write(buf)
		}
		done <- err
	}()
	l.send(payload)
	if got := l.read(n); !bytes.Equal(got, payload) {
		t.Fatalf("echo of %d bytes differs", n)
	}
	if err := <-done; err != nil {
		t.Fatalf("peer: %v", err)
	}
}

func TestCryptoTLSEcho(t *testing.T) {
	roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
		for _, n := range []int{1, 2, 100, 1369, 8192, 16383, record.MaxPayload} {
			echo(t, l, peer, n)
		}
		for range 50 {
			echo(t, l, peer, 1+rand.IntN(record.MaxPayload))
		}
	})
}

func TestCryptoTLSKeyUpdate(t *testing.T) {
	roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
		echo(t, l, peer, 10)
		for i := range 5 {
			// The peer reads the request with the data behind it, answers with its own KeyUpdate, then echoes.
			rec, err := l.conn.AppendKeyUpdate(nil, i%2 == 0)
			if err != nil {
				t.Fatal(err)
			}
			before := l.conn.State().ReadSecret
			l.write(rec)
			echo(t, l, peer, 1000)
			if changed := !bytes.Equal(before, l.conn.State().ReadSecret); changed != (i%2 == 0) {
				t.Errorf("update %d: the peer's key changed: %v", i, changed)
			}
			if l.conn.KeyUpdateDue() {
				t.Error("the peer's answer asks for another")
			}
		}
	})
}

func TestCryptoTLSCloseNotify(t *testing.T) {
	roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if p, err := l.next(); err != io.EOF || p != nil {
			t.Fatalf("opened %q, %v", p, err)
		}
		l.send([]byte("still"))
		if got := readFull(t, peer, 5); string(got) != "still" {
			t.Fatalf("peer read %q", got)
		}
		l.write(l.conn.AppendAlert(nil, record.AlertCloseNotify))
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("peer read %d, %v", n, err)
		}
	})
}

func TestCryptoTLSAlerts(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
			l.write(l.conn.AppendAlert(nil, record.AlertInternalError))
			if _, err := peer.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "remote error: tls: internal error") {
				t.Errorf("peer's error is %v", err)
			}
		})
	})
	t.Run("theirs", func(t *testing.T) {
		roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
			rec := seal(l.conn, []byte("x"))
			rec[len(rec)-1] ^= 1
			l.write(rec)
			if _, err := peer.Read(make([]byte, 1)); err == nil {
				t.Error("peer accepted a tampered record")
			}
			_, err := l.next()
			wantRemote(t, err, record.AlertBadRecordMAC)
		})
	})
}

// TestCryptoTLSRefusedCertificate: in TLS 1.3 the client's handshake is over before the server has seen its certificate;
// the refusal is the first record.
func TestCryptoTLSRefusedCertificate(t *testing.T) {
	ours, theirs := tcpPair(t)
	scfg := serverConfig(t)
	scfg.ClientAuth = tls.RequireAnyClientCert
	done := make(chan error, 1)
	go func() { done <- tls.Server(theirs, scfg).Handshake() }()
	l := takeOver(t, ours, false, clientConfig())
	if err := <-done; err == nil {
		t.Fatal("the server accepted a client without certificate")
	}
	_, err := l.next()
	wantRemote(t, err, 116)
	if got := err.Error(); got != "peer sent TLS alert certificate_required" {
		t.Errorf("error reads %q", got)
	}
}

// TestCryptoTLSTicket: the server's NewSessionTicket is the first record that the client opens.
func TestCryptoTLSTicket(t *testing.T) {
	ours, theirs := tcpPair(t)
	scfg, ccfg := serverConfig(t), clientConfig()
	scfg.SessionTicketsDisabled = false
	ccfg.ClientSessionCache, ccfg.ServerName = tls.NewLRUClientSessionCache(1), "peer"
	peer := tls.Server(theirs, scfg)
	done := make(chan error, 1)
	go func() {
		err := peer.Handshake()
		if err == nil {
			_, err = peer.Write([]byte("behind the ticket"))
		}
		done <- err
	}()
	l := takeOver(t, ours, false, ccfg)
	if got := l.read(17); string(got) != "behind the ticket" {
		t.Errorf("read %q", got)
	}
	if got := l.conn.State().ReadSeq; got != 2 {
		t.Errorf("%d records read, want the ticket and the data", got)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	echo(t, l, peer, 100)
}

// TestCryptoTLSCoalesced writes many records in one piece and opens what comes in pieces of every size.
func TestCryptoTLSCoalesced(t *testing.T) {
	roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
		var wire, want []byte
		for i := range 40 {
			p := bytes.Repeat([]byte{byte(i)}, 1+i*97)
			wire, want = append(wire, seal(l.conn, p)...), append(want, p...)
		}
		done := make(chan []byte, 1)
		go func() {
			b := make([]byte, len(want))
			n, _ := io.ReadFull(peer, b)
			done <- b[:n]
			for i := range 40 {
				if _, err := peer.Write(bytes.Repeat([]byte{byte(i)}, 1+i*97)); err != nil {
					return
				}
			}
		}()
		l.write(wire)
		if got := <-done; !bytes.Equal(got, want) {
			t.Error("the peer read something else")
		}
		if got := l.read(len(want)); !bytes.Equal(got, want) {
			t.Error("read something else")
		}
	})
}

// TestCryptoTLSStateMoves hands our end to a new Conn in the middle of a live connection.
func TestCryptoTLSStateMoves(t *testing.T) {
	roles(t, func(t *testing.T, l *link, peer *tls.Conn) {
		for i := range 6 {
			echo(t, l, peer, 500)
			if i == 3 {
				rec, err := l.conn.AppendKeyUpdate(nil, true)
				if err != nil {
					t.Fatal(err)
				}
				l.write(rec)
			}
			next, err := record.New(l.conn.State())
			if err != nil {
				t.Fatal(err)
			}
			l.conn = next
		}
	})
}
