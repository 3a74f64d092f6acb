package record_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// Inner content types and handshake messages of RFC 8446, spelled out again so that a slip in the package shows.
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23

	msgNewSessionTicket = 4
	msgKeyUpdate        = 24
)

var suites = []struct {
	name  string
	suite uint16
}{
	{"AES_128_GCM_SHA256", tls.TLS_AES_128_GCM_SHA256},
	{"AES_256_GCM_SHA384", tls.TLS_AES_256_GCM_SHA384},
}

func secretOf(suite uint16, fill byte) []byte {
	n := 32
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		n = 48
	}
	return bytes.Repeat([]byte{fill}, n)
}

// newPair returns the two ends of one connection, without a handshake.
func newPair(t testing.TB, suite uint16) (a, b *record.Conn) {
	t.Helper()
	up, down := secretOf(suite, 0x5a), secretOf(suite, 0xc3)
	a, err := record.New(record.State{Suite: suite, ReadSecret: down, WriteSecret: up})
	if err != nil {
		t.Fatal(err)
	}
	b, err = record.New(record.State{Suite: suite, ReadSecret: up, WriteSecret: down})
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// sealer writes records that a well-behaved Conn never would. It shares no code with the package: keys come from RFC 8446
// sections 7.1 to 7.3 written once more.
type sealer struct {
	suite  uint16
	secret []byte
	seq    uint64
}

func (s *sealer) hash() func() hash.Hash {
	if s.suite == tls.TLS_AES_256_GCM_SHA384 {
		return sha512.New384
	}
	return sha256.New
}

func (s *sealer) expand(t testing.TB, label string, n int) []byte {
	t.Helper()
	info := append([]byte{byte(n >> 8), byte(n), byte(len("tls13 " + label))}, "tls13 "+label...)
	out, err := hkdf.Expand(s.hash(), s.secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// seal encrypts a TLSInnerPlaintext given whole: content, type octet, zeros.
func (s *sealer) seal(t testing.TB, inner []byte) []byte {
	t.Helper()
	keyLen := 16
	if s.suite == tls.TLS_AES_256_GCM_SHA384 {
		keyLen = 32
	}
	block, err := aes.NewCipher(s.expand(t, "key", keyLen))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := s.expand(t, "iv", 12)
	for i := range 8 {
		nonce[4+i] ^= byte(s.seq >> (56 - 8*i))
	}
	s.seq++
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+aead.Overhead()))
	return aead.Seal(head, nonce, inner, head)
}

func (s *sealer) update(t testing.TB) {
	t.Helper()
	s.secret, s.seq = s.expand(t, "traffic upd", len(s.secret)), 0
}

// inner is a TLSInnerPlaintext.
func inner(typ byte, content []byte, padding int) []byte {
	return append(append(bytes.Clone(content), typ), make([]byte, padding)...)
}

// keyUpdate is the handshake message of RFC 8446 section 4.6.3.
func keyUpdate(request byte) []byte { return []byte{msgKeyUpdate, 0, 0, 1, request} }

// ticket is a NewSessionTicket with n octets of body.
func ticket(n int) []byte {
	return append([]byte{msgNewSessionTicket, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
}

// seal returns one record of Conn.Seal.
func seal(c *record.Conn, payload []byte) []byte {
	slot := make([]byte, record.HeaderLen+len(payload)+record.TrailerLen)
	copy(slot[record.HeaderLen:], payload)
	return slot[:c.Seal(slot, len(payload))]
}

// wantFault asserts that err is a local fault with the alert.
func wantFault(t testing.TB, err error, alert record.Alert) {
	t.Helper()
	var e *record.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want an *Error with %v", err, alert)
	}
	if e.Remote || e.Alert != alert || e.Reason == "" {
		t.Fatalf("error is %+v, want a local %v with a reason", e, alert)
	}
}

// wantRemote asserts that err is the peer's alert.
func wantRemote(t testing.TB, err error, alert record.Alert) {
	t.Helper()
	var e *record.Error
	if !errors.As(err, &e) || !e.Remote || e.Alert != alert {
		t.Fatalf("error is %v, want the peer's %v", err, alert)
	}
}

// recordReader lets crypto/tls read no further than the record that it asked for, so that what follows the handshake
// stays in the socket.
type recordReader struct {
	net.Conn
	head [record.HeaderLen]byte
	have int
	left int
}

func (r *recordReader) Read(p []byte) (int, error) {
	limit := r.left
	if limit == 0 {
		limit = record.HeaderLen - r.have
	}
	n, err := r.Conn.Read(p[:min(len(p), limit)])
	if r.left > 0 {
		r.left -= n
		return n, err
	}
	copy(r.head[r.have:], p[:n])
	if r.have += n; r.have == record.HeaderLen {
		r.have, r.left = 0, int(binary.BigEndian.Uint16(r.head[3:]))
	}
	return n, err
}

// keyLog collects the lines of a KeyLogWriter.
type keyLog struct{ bytes.Buffer }

func (k *keyLog) secret(t testing.TB, label string) []byte {
	t.Helper()
	for line := range strings.Lines(k.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == label {
			b, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("key log has no %s", label)
	return nil
}

// link is our end of a connection after the handshake.
type link struct {
	t    testing.TB
	raw  net.Conn
	conn *record.Conn
	in   []byte
}

// takeOver does the handshake on raw with crypto/tls and goes on with the record layer.
func takeOver(t testing.TB, raw net.Conn, server bool, cfg *tls.Config) *link {
	t.Helper()
	var log keyLog
	cfg = cfg.Clone()
	cfg.KeyLogWriter = &log
	limited := &recordReader{Conn: raw}
	tc := tls.Client(limited, cfg)
	if server {
		tc = tls.Server(limited, cfg)
	}
	if err := tc.Handshake(); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	if limited.have != 0 || limited.left != 0 {
		t.Fatal("the handshake did not end at a record boundary")
	}
	s := record.State{
		Suite:       tc.ConnectionState().CipherSuite,
		ReadSecret:  log.secret(t, "SERVER_TRAFFIC_SECRET_0"),
		WriteSecret: log.secret(t, "CLIENT_TRAFFIC_SECRET_0"),
	}
	if server {
		s.ReadSecret, s.WriteSecret = s.WriteSecret, s.ReadSecret
	}
	conn, err := record.New(s)
	if err != nil {
		t.Fatal(err)
	}
	return &link{t: t, raw: raw, conn: conn}
}

func (l *link) write(b []byte) {
	l.t.Helper()
	if _, err := l.raw.Write(b); err != nil {
		l.t.Fatalf("write: %v", err)
	}
}

func (l *link) send(payload []byte) { l.t.Helper(); l.write(seal(l.conn, payload)) }

// next opens one record; what it carries is empty for control records.
func (l *link) next() ([]byte, error) {
	l.t.Helper()
	for {
		n, err := record.Split(l.in)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			rec := l.in[:n]
			l.in = l.in[n:]
			return l.conn.Open(rec)
		}
		buf := make([]byte, 4096)
		m, err := l.raw.Read(buf)
		if err != nil {
			l.t.Fatalf("read: %v", err)
		}
		l.in = append(l.in, buf[:m]...)
	}
}

// read returns exactly n bytes of application data.
func (l *link) read(n int) []byte {
	l.t.Helper()
	var out []byte
	for len(out) < n {
		p, err := l.next()
		if err != nil {
			l.t.Fatalf("open: %v", err)
		}
		out = append(out, p...)
	}
	if len(out) != n {
		l.t.Fatalf("got %d bytes, want %d", len(out), n)
	}
	return out
}

// tcpPair returns two connected sockets that fail after half a minute.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

// certificate is self-signed, for the name "peer".
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peer"}, DNSNames: []string{"peer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func clientConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
}

func serverConfig(t testing.TB) *tls.Config {
	t.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"},
		SessionTicketsDisabled: true,
	}
}

// withPeer connects our end to a live tls.Conn, which is us in the other role.
func withPeer(t testing.TB, server bool) (*link, *tls.Conn) {
	t.Helper()
	ours, theirs := tcpPair(t)
	ccfg, scfg := clientConfig(), serverConfig(t)
	peer, cfg := tls.Server(theirs, scfg), ccfg
	if server {
		peer, cfg = tls.Client(theirs, ccfg), scfg
	}
	done := make(chan error, 1)
	go func() { done <- peer.Handshake() }()
	l := takeOver(t, ours, server, cfg)
	if err := <-done; err != nil {
		t.Fatalf("peer's handshake: %v", err)
	}
	return l, peer
}

func readFull(t testing.TB, r io.Reader, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatalf("peer's read: %v", err)
	}
	return b
}
