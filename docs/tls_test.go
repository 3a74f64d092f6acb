package docs_test

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
	"encoding/hex"
	"hash"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// keys is a direction's protection written from RFC 8446 alone: sections 5.2, 5.3, 7.1, 7.2 and 7.3.
type keys struct {
	hash   func() hash.Hash
	keyLen int
	secret []byte
	seq    uint64
}

var tlsSuites = []struct {
	name   string
	suite  uint16
	hash   func() hash.Hash
	keyLen int
}{
	{"aes128", tls.TLS_AES_128_GCM_SHA256, sha256.New, 16},
	{"aes256", tls.TLS_AES_256_GCM_SHA384, sha512.New384, 32},
}

// tlsParts are the vectors of each suite in 13.3.
var tlsParts = []string{"secret", "record-0", "record-1", "padded", "keyupdate", "next-secret", "close"}

func (k *keys) expand(t *testing.T, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := string([]byte{byte(n >> 8), byte(n), byte(len(label))}) + label + "\x00"
	out, err := hkdf.Expand(k.hash, k.secret, info, n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (k *keys) aead(t *testing.T) (cipher.AEAD, []byte) {
	t.Helper()
	block, err := aes.NewCipher(k.expand(t, "key", k.keyLen))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := k.expand(t, "iv", 12)
	for i := range 8 {
		nonce[11-i] ^= byte(k.seq >> (8 * i))
	}
	return aead, nonce
}

// seal protects content of an inner type with padding as the next record.
func (k *keys) seal(t *testing.T, typ byte, content []byte, padding int) []byte {
	t.Helper()
	aead, nonce := k.aead(t)
	k.seq++
	inner := append(append(bytes.Clone(content), typ), make([]byte, padding)...)
	n := len(inner) + 16
	head := []byte{23, 3, 3, byte(n >> 8), byte(n)}
	return aead.Seal(head, nonce, inner, head)
}

// open is the reverse of seal.
func (k *keys) open(t *testing.T, rec []byte) (typ byte, content []byte) {
	t.Helper()
	aead, nonce := k.aead(t)
	k.seq++
	inner, err := aead.Open(nil, nonce, rec[5:], rec[:5])
	if err != nil {
		t.Fatal(err)
	}
	inner = bytes.TrimRight(inner, "\x00")
	return inner[len(inner)-1], inner[:len(inner)-1]
}

// TestRecordsIndependent checks 13.3 with the code above.
func TestRecordsIndependent(t *testing.T) {
	d := load(t)
	for _, s := range tlsSuites {
		t.Run(s.name, func(t *testing.T) {
			k := &keys{hash: s.hash, keyLen: s.keyLen, secret: d.vector(t, s.name+"-secret")}
			check := func(part string, got []byte) {
				t.Helper()
				if want := d.vector(t, s.name+"-"+part); !bytes.Equal(got, want) {
					t.Errorf("%s is\n%x\nthe document says\n%x", part, got, want)
				}
			}
			check("record-0", k.seal(t, 23, d.vector(t, "data-up"), 0))
			check("record-1", k.seal(t, 23, d.vector(t, "end-up"), 0))
			k.seq = 1
			check("padded", k.seal(t, 23, d.vector(t, "end-up"), 3))
			check("keyupdate", k.seal(t, 22, []byte{24, 0, 0, 1, 1}, 0))
			k.secret, k.seq = k.expand(t, "traffic upd", len(k.secret)), 0
			check("next-secret", k.secret)
			check("close", k.seal(t, 21, []byte{1, 0}, 0))
		})
	}
}

// TestRecordsCulvert checks 13.3 with Culvert's record layer, both ways.
func TestRecordsCulvert(t *testing.T) {
	d := load(t)
	for _, s := range tlsSuites {
		for _, second := range []string{"record-1", "padded"} {
			t.Run(s.name+"/"+second, func(t *testing.T) {
				secret := d.vector(t, s.name+"-secret")
				c, err := record.New(record.State{Suite: s.suite, ReadSecret: secret, WriteSecret: secret})
				if err != nil {
					t.Fatal(err)
				}
				for i, name := range []string{"data-up", "end-up"} {
					want := d.vector(t, s.name+"-"+[]string{"record-0", "record-1"}[i])
					p := d.vector(t, name)
					slot := make([]byte, record.HeaderLen+len(p)+record.TrailerLen)
					copy(slot[record.HeaderLen:], p)
					if got := slot[:c.Seal(slot, len(p))]; !bytes.Equal(got, want) {
						t.Errorf("sealed %x, the document says %x", got, want)
					}
					if i == 1 {
						want = d.vector(t, s.name+"-"+second)
					}
					if got, err := c.Open(bytes.Clone(want)); err != nil || !bytes.Equal(got, p) {
						t.Errorf("opened %x, %v", got, err)
					}
				}
				update := d.vector(t, s.name+"-keyupdate")
				got, err := c.AppendKeyUpdate(nil, true)
				if err != nil || !bytes.Equal(got, update) {
					t.Errorf("KeyUpdate is %x, %v", got, err)
				}
				if p, err := c.Open(bytes.Clone(update)); err != nil || len(p) > 0 || !c.KeyUpdateDue() {
					t.Errorf("KeyUpdate opened %x, %v", p, err)
				}
				st := c.State()
				if next := d.vector(t, s.name+"-next-secret"); !bytes.Equal(st.ReadSecret, next) || !bytes.Equal(st.WriteSecret, next) {
					t.Errorf("next secrets are %x and %x", st.ReadSecret, st.WriteSecret)
				}
				if got := c.AppendAlert(nil, record.AlertCloseNotify); !bytes.Equal(got, d.vector(t, s.name+"-close")) {
					t.Errorf("close_notify is %x", got)
				}
				if _, err := c.Open(bytes.Clone(d.vector(t, s.name+"-close"))); err != io.EOF {
					t.Errorf("close_notify opened %v", err)
				}
			})
		}
	}
}

// TestRecordsLive: a handshake of crypto/tls cannot be made to use the secrets of the vectors, so the code that checks
// them is held against a live tls.Conn: it opens what that sends and seals what that accepts.
func TestRecordsLive(t *testing.T) {
	wire, conn, log := liveServer(t)
	secret := func(label string) []byte {
		for line := range strings.Lines(log.String()) {
			if f := strings.Fields(line); f[0] == label {
				b, err := hex.DecodeString(f[2])
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
		}
		t.Fatalf("no %s", label)
		return nil
	}
	if suite := conn.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("suite is %s", tls.CipherSuiteName(suite))
	}
	up := &keys{hash: sha256.New, keyLen: 16, secret: secret("CLIENT_TRAFFIC_SECRET_0")}
	down := &keys{hash: sha256.New, keyLen: 16, secret: secret("SERVER_TRAFFIC_SECRET_0")}
	send := func(b []byte) {
		t.Helper()
		if _, err := wire.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() (byte, []byte) {
		t.Helper()
		b := make([]byte, 5)
		if _, err := io.ReadFull(wire, b); err != nil {
			t.Fatal(err)
		}
		b = append(b, make([]byte, int(b[3])<<8|int(b[4]))...)
		if _, err := io.ReadFull(wire, b[5:]); err != nil {
			t.Fatal(err)
		}
		return down.open(t, b)
	}
	talk := func(text string, padding int) {
		t.Helper()
		send(up.seal(t, 23, []byte(text), padding))
		got := make([]byte, len(text))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
			t.Fatalf("the peer read %q, %v", got, err)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	talk("first", 0)
	if typ, got := receive(); typ != 23 || string(got) != "first" {
		t.Errorf("the peer sent type %d %q", typ, got)
	}
	send(up.seal(t, 22, []byte{24, 0, 0, 1, 1}, 0))
	up.secret, up.seq = up.expand(t, "traffic upd", 32), 0
	talk("second", 3)
	if typ, got := receive(); typ != 22 || !bytes.Equal(got, []byte{24, 0, 0, 1, 0}) {
		t.Errorf("the peer sent type %d %x instead of KeyUpdate", typ, got)
	}
	down.secret, down.seq = down.expand(t, "traffic upd", 32), 0
	if typ, got := receive(); typ != 23 || string(got) != "second" {
		t.Errorf("the peer sent type %d %q", typ, got)
	}
	send(up.seal(t, 21, []byte{1, 0}, 0))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the peer read %d, %v", n, err)
	}
}

// liveServer is a tls.Conn behind its handshake, the client's socket, and the secrets.
func liveServer(t *testing.T) (net.Conn, *tls.Conn, *bytes.Buffer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ours, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{ours, theirs} {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	log := &bytes.Buffer{}
	server := tls.Server(theirs, &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	// Without tickets the server sends nothing behind its handshake, so the client cannot read too much.
	client := tls.Client(ours, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, KeyLogWriter: log})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return ours, server, log
}
