package proxy_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// forger is a TLS client that writes its own records after the handshake, which crypto/tls would not let it do.
type forger struct {
	t      testing.TB
	conn   net.Conn
	tls    *tls.Conn // for reading only
	addr   netip.AddrPort
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
	out    bytes.Buffer
}

// TLS content and handshake types (RFC 8446, sections 5.1 and 4).
const (
	alertType        = 21
	handshakeType    = 22
	applicationType  = 23
	newSessionTicket = 4
	keyUpdate        = 24
)

// forge makes a connection to the pod under attack and says what HTTP/2 wants to hear first.
func (s *siege) forge() *forger {
	s.t.Helper()
	c, addr := s.knock()
	_ = c.SetDeadline(time.Time{})
	var keys bytes.Buffer
	config := s.tlsAs("mallory", s.server)
	config.KeyLogWriter = &keys
	tc := tls.Client(c, config)
	if err := tc.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		s.t.Fatalf("suite is %s", tls.CipherSuiteName(suite))
	}
	f := &forger{t: s.t, conn: c, tls: tc, addr: addr}
	for line := range bytes.Lines(keys.Bytes()) {
		if words := bytes.Fields(line); string(words[0]) == "CLIENT_TRAFFIC_SECRET_0" {
			f.secret, _ = hex.DecodeString(string(words[2]))
		}
	}
	f.rekey(f.secret)
	f.seal(applicationType, append([]byte(http2.ClientPreface), 0, 0, 0, 4, 0, 0, 0, 0, 0))
	f.flush()
	return f
}

func (f *forger) expand(label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(6+len(label)))
	info = append(append(info, "tls13 "...), label...)
	b, err := hkdf.Expand(sha256.New, f.secret, string(append(info, 0)), n)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *forger) rekey(secret []byte) {
	f.secret, f.seq = secret, 0
	block, err := aes.NewCipher(f.expand("key", 16))
	if err != nil {
		f.t.Fatal(err)
	}
	f.aead, _ = cipher.NewGCM(block)
	f.iv = f.expand("iv", 12)
}

// seal puts a record of any type into out.
func (f *forger) seal(typ byte, body []byte) {
	n := len(body) + 1 + f.aead.Overhead()
	head := []byte{applicationType, 3, 3, byte(n >> 8), byte(n)}
	nonce := bytes.Clone(f.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^f.seq)
	f.seq++
	f.out.Write(head)
	f.out.Write(f.aead.Seal(nil, nonce, append(bytes.Clone(body), typ), head))
}

// update renews the sending key and asks the other side to do so too.
func (f *forger) update() {
	f.seal(handshakeType, []byte{keyUpdate, 0, 0, 1, 1})
	f.rekey(f.expand("traffic upd", 32))
}

// flush writes what is sealed; it reports whether that was possible.
func (f *forger) flush() bool {
	_ = f.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := f.conn.Write(f.out.Bytes())
	f.out.Reset()
	return err == nil
}

// flood is what attacker's is, on the record layer.
func (f *forger) flood(n int, one func(i int)) {
	for i := 0; i < n; {
		for ; i < n && f.out.Len() < 64<<10; i++ {
			one(i)
		}
		if !f.flush() {
			return
		}
	}
}

var ping = []byte{0, 0, 8, 6, 1, 0, 0, 0, 0, 'p', 'i', 'n', 'g', 'p', 'i', 'n', 'g'}

// TestHostileRecords: a peer with a good certificate breaks the rules of TLS, or stretches them.
func TestHostileRecords(t *testing.T) {
	for _, tc := range []struct {
		name        string
		attack      func(f *forger)
		alert, text string
	}{
		{"record-that-does-not-authenticate", func(f *forger) {
			f.seal(applicationType, ping)
			f.out.Bytes()[30] ^= 1
			f.flush()
		}, "bad record MAC", "TLS bad_record_mac: record does not authenticate"},
		{"oversized-record", func(f *forger) {
			f.out.Write([]byte{applicationType, 3, 3, 0xff, 0xff})
			f.flush()
		}, "record overflow", "TLS record_overflow: record is too long"},
		{"plaintext-behind-the-handshake", func(f *forger) {
			f.out.WriteString("GET / HTTP/1.1\r\n\r\n")
			f.flush()
		}, "unexpected message", "TLS unexpected_message: record type is not application_data"},
		{"plaintext-alert-behind-the-handshake", func(f *forger) {
			f.out.Write([]byte{alertType, 3, 3, 0, 2, 1, 0})
			f.flush()
		}, "unexpected message", "TLS unexpected_message: record type is not application_data"},
		{"empty-records", func(f *forger) {
			f.flood(1<<16, func(int) { f.seal(applicationType, nil) })
		}, "unexpected message", "TLS unexpected_message: too many records without application data"},
		{"session-tickets", func(f *forger) {
			ticket := append([]byte{newSessionTicket, 0, 0x30, 0}, make([]byte, 0x3000)...)
			f.flood(1<<12, func(int) { f.seal(handshakeType, ticket) })
		}, "unexpected message", "TLS unexpected_message: too many records without application data"},
		{"endless-handshake-message", func(f *forger) {
			f.seal(handshakeType, []byte{newSessionTicket, 0xff, 0xff, 0xff})
			f.flush()
		}, "unexpected message", "TLS unexpected_message: handshake message is too long"},
		{"key-updates", func(f *forger) {
			f.flood(1<<12, func(int) { f.update() })
		}, "unexpected message", "TLS unexpected_message: too many"},
		// Each renewal has a frame behind it, so that the records do carry data.
		{"key-updates-between-data", func(f *forger) {
			f.flood(1<<12, func(int) {
				f.update()
				f.seal(applicationType, ping)
			})
		}, "unexpected message", "TLS unexpected_message: too many KeyUpdates"},
		{"renegotiation", func(f *forger) {
			f.seal(handshakeType, []byte{1, 0, 0, 0})
			f.flush()
		}, "unexpected message", "TLS unexpected_message: handshake message after the handshake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, nil)
			f := s.forge()
			tc.attack(f)
			_ = f.conn.SetDeadline(time.Now().Add(patience))
			_, err := io.Copy(io.Discard, f.tls)
			if want := "remote error: tls: " + tc.alert; err == nil || err.Error() != want {
				t.Errorf("connection ended with %v, want %q", err, want)
			}
			s.seen.reason(t, f.addr, proxy.FlagTLSFailure, tc.text)
			s.probe()
			f.conn.Close()
			s.survived()
		})
	}
}
