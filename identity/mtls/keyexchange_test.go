package mtls_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// TestServerKeyExchange records which key exchange crypto/tls chooses for which
// ClientHello, and when it asks for another one. Our documentation rests on it;
// when a Go version changes this, base's comment has to change too.
func TestServerKeyExchange(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	hello := clientHello(t, mtls.Client(ca.SVID(t, webID), []identity.ID{api}, nil))
	tests := []struct {
		name   string
		shares []tls.CurveID // kept in the ClientHello
		groups []tls.CurveID // supported
		retry  bool
	}{
		{"our_client", []tls.CurveID{tls.X25519MLKEM768, tls.X25519}, []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}, false},
		// As ztunnel: knows X25519MLKEM768, sends a share for X25519 only.
		{"x25519_share_only", []tls.CurveID{tls.X25519}, []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}, true},
		{"without_post_quantum", []tls.CurveID{tls.X25519}, []tls.CurveID{tls.X25519, tls.CurveP256}, false},
		{"no_share", nil, []tls.CurveID{tls.X25519, tls.CurveP256}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := asksForRetry(t, mtls.Server(ca.SVID(t, apiID), nil), rewrite(t, hello, tt.groups, tt.shares)); got != tt.retry {
				t.Errorf("HelloRetryRequest: %v, want %v", got, tt.retry)
			}
		})
	}
}

// clientHello returns the first record that a client sends.
func clientHello(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(theirs, cfg).Handshake()
	}()
	record := readRecord(t, ours)
	_ = ours.Close()
	<-done
	return record
}

// asksForRetry sends a ClientHello and reports whether the answer is a
// HelloRetryRequest, which is a ServerHello with a fixed random (RFC 8446,
// section 4.1.3).
func asksForRetry(t *testing.T, cfg *tls.Config, hello []byte) bool {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Server(theirs, cfg).Handshake()
	}()
	defer func() {
		_ = ours.Close()
		<-done
	}()
	if _, err := ours.Write(hello); err != nil {
		t.Fatal(err)
	}
	answer := readRecord(t, ours)
	if answer[0] != 22 || answer[5] != 2 {
		t.Fatalf("the answer is no ServerHello: % x", answer)
	}
	magic := sha256.Sum256([]byte("HelloRetryRequest"))
	return bytes.Equal(answer[11:11+32], magic[:])
}

func readRecord(t *testing.T, r net.Conn) []byte {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// rewrite replaces the supported groups of a ClientHello record and drops key
// shares that are not kept.
func rewrite(t *testing.T, record []byte, groups, keep []tls.CurveID) []byte {
	t.Helper()
	body := record[9:]            // after record and handshake headers
	at := 2 + 32                  // version, random
	at += 1 + int(body[at])       // session id
	at += 2 + int(u16(body[at:])) // cipher suites
	at += 1 + int(body[at])       // compression methods
	extensions := body[at+2:]     // after their length
	out := append([]byte(nil), body[:at]...)
	var list []byte
	for len(extensions) > 0 {
		kind, value := u16(extensions), extensions[4:4+u16(extensions[2:])]
		extensions = extensions[4+len(value):]
		switch kind {
		case 10: // supported_groups
			value = nil
			for _, group := range groups {
				value = binary.BigEndian.AppendUint16(value, uint16(group))
			}
			value = vector(value)
		case 51: // key_share
			value = vector(shares(value[2:], keep))
		}
		list = binary.BigEndian.AppendUint16(list, kind)
		list = append(list, vector(value)...)
	}
	out = append(out, vector(list)...)
	handshake := append([]byte{1, 0}, vector(out)...)
	return append([]byte{22, 3, 1}, vector(handshake)...)
}

// shares returns the entries of a key_share list whose group is kept.
func shares(list []byte, keep []tls.CurveID) []byte {
	var out []byte
	for len(list) > 0 {
		n := 4 + int(u16(list[2:]))
		for _, group := range keep {
			if tls.CurveID(u16(list)) == group {
				out = append(out, list[:n]...)
			}
		}
		list = list[n:]
	}
	return out
}

func vector(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

func u16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
