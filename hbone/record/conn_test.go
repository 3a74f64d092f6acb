package record_test

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/record"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRFC8448 replays the application phase of the simple 1-RTT handshake of RFC 8448 section 3.
func TestRFC8448(t *testing.T) {
	client := unhex(t, "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
	server := unhex(t, "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
	payload := make([]byte, 50)
	for i := range payload {
		payload[i] = byte(i)
	}
	fromClient := unhex(t, `17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab
		3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`)
	fromServer := unhex(t, `17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36
		e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d`)
	clientClose := unhex(t, "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3")
	serverClose := unhex(t, "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9")

	// The server's sequence starts at 1: its NewSessionTicket was record 0.
	c, err := record.New(record.State{Suite: tls.TLS_AES_128_GCM_SHA256, ReadSecret: server, WriteSecret: client, ReadSeq: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := record.New(record.State{Suite: tls.TLS_AES_128_GCM_SHA256, ReadSecret: client, WriteSecret: server, WriteSeq: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := seal(c, payload); !bytes.Equal(got, fromClient) {
		t.Errorf("client sealed %x\nwant %x", got, fromClient)
	}
	if got := seal(s, payload); !bytes.Equal(got, fromServer) {
		t.Errorf("server sealed %x\nwant %x", got, fromServer)
	}
	if got := c.AppendAlert(nil, record.AlertCloseNotify); !bytes.Equal(got, clientClose) {
		t.Errorf("client's close_notify is %x\nwant %x", got, clientClose)
	}
	if got := s.AppendAlert(nil, record.AlertCloseNotify); !bytes.Equal(got, serverClose) {
		t.Errorf("server's close_notify is %x\nwant %x", got, serverClose)
	}
	for _, x := range []struct {
		who       string
		conn      *record.Conn
		data, end []byte
	}{{"client", c, fromServer, serverClose}, {"server", s, fromClient, clientClose}} {
		got, err := x.conn.Open(x.data)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%s opened %x, %v", x.who, got, err)
		}
		if got, err := x.conn.Open(x.end); err != io.EOF || got != nil {
			t.Errorf("%s opened %x, %v instead of close_notify", x.who, got, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	ok := secretOf(tls.TLS_AES_128_GCM_SHA256, 1)
	long := secretOf(tls.TLS_AES_256_GCM_SHA384, 1)
	for _, test := range []struct {
		name  string
		state record.State
		suite bool
	}{
		{"chacha20", record.State{Suite: tls.TLS_CHACHA20_POLY1305_SHA256, ReadSecret: ok, WriteSecret: ok}, true},
		{"tls12_suite", record.State{Suite: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ReadSecret: ok, WriteSecret: ok}, true},
		{"zero_state", record.State{}, true},
		{"no_read_secret", record.State{Suite: tls.TLS_AES_128_GCM_SHA256, WriteSecret: ok}, false},
		{"no_write_secret", record.State{Suite: tls.TLS_AES_128_GCM_SHA256, ReadSecret: ok}, false},
		{"secret_of_other_suite", record.State{Suite: tls.TLS_AES_128_GCM_SHA256, ReadSecret: long, WriteSecret: ok}, false},
		{"short_secret", record.State{Suite: tls.TLS_AES_256_GCM_SHA384, ReadSecret: long, WriteSecret: ok}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := record.New(test.state)
			if err == nil || c != nil {
				t.Fatalf("New gives %v, %v", c, err)
			}
			if errors.Is(err, record.ErrSuite) != test.suite {
				t.Errorf("error is %v, ErrSuite wanted: %v", err, test.suite)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			a, b := newPair(t, s.suite)
			for _, n := range []int{1, 2, 15, 16, 17, 100, 16383, record.MaxPayload} {
				payload := bytes.Repeat([]byte{byte(n)}, n)
				for _, dir := range []struct{ from, to *record.Conn }{{a, b}, {b, a}} {
					rec := seal(dir.from, payload)
					if len(rec) != record.HeaderLen+n+record.TrailerLen {
						t.Fatalf("record of %d bytes for %d of payload", len(rec), n)
					}
					if size, err := record.Split(rec); size != len(rec) || err != nil {
						t.Fatalf("Split gives %d, %v", size, err)
					}
					got, err := dir.to.Open(rec)
					if err != nil || !bytes.Equal(got, payload) {
						t.Fatalf("%d bytes: opened %d, %v", n, len(got), err)
					}
					if &got[0] != &rec[record.HeaderLen] {
						t.Fatal("payload is not opened in place")
					}
				}
			}
		})
	}
}

func TestSealTouchesOnlyItsSlot(t *testing.T) {
	a, _ := newPair(t, tls.TLS_AES_128_GCM_SHA256)
	buf := bytes.Repeat([]byte{0xee}, 200)
	n := a.Seal(buf[50:], 20)
	if n != record.HeaderLen+20+record.TrailerLen {
		t.Fatalf("record is %d bytes", n)
	}
	if !bytes.Equal(buf[:50], bytes.Repeat([]byte{0xee}, 50)) || !bytes.Equal(buf[50+n:], bytes.Repeat([]byte{0xee}, 150-n)) {
		t.Error("bytes outside of the record changed")
	}
}

func TestSplit(t *testing.T) {
	head := func(typ byte, n int) []byte { return []byte{typ, 3, 3, byte(n >> 8), byte(n)} }
	whole := func(n, extra int) []byte { return append(head(23, n), make([]byte, n+extra)...) }
	const most = record.MaxRecord - record.HeaderLen
	for _, test := range []struct {
		name  string
		in    []byte
		n     int
		alert record.Alert // 0: no error
	}{
		{"nothing", nil, 0, 0},
		{"part_of_header", []byte{23, 3, 3, 0}, 0, 0},
		{"part_of_header_of_other_type", []byte{22, 3, 3, 0}, 0, 0},
		{"header_only", head(23, 100), 0, 0},
		{"one_byte_missing", whole(100, -1), 0, 0},
		{"whole", whole(100, 0), 105, 0},
		{"whole_and_more", whole(100, 50), 105, 0},
		{"shortest", whole(record.TrailerLen, 0), 22, 0},
		{"longest", whole(most, 0), record.MaxRecord, 0},
		{"longest_incomplete", whole(most, -1), 0, 0},
		{"too_long", head(23, most+1), 0, record.AlertRecordOverflow},
		{"longest_possible_field", head(23, 65535), 0, record.AlertRecordOverflow},
		{"too_short", head(23, record.TrailerLen-1), 0, record.AlertBadRecordMAC},
		{"empty", head(23, 0), 0, record.AlertBadRecordMAC},
		{"change_cipher_spec", append(head(20, 1), 1), 0, record.AlertUnexpectedMessage},
		{"alert_in_the_clear", append(head(21, 2), 2, 40), 0, record.AlertUnexpectedMessage},
		{"handshake_in_the_clear", head(22, 100), 0, record.AlertUnexpectedMessage},
		{"http", []byte("GET / HTTP/1.1\r\n"), 0, record.AlertUnexpectedMessage},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, err := record.Split(test.in)
			if n != test.n {
				t.Errorf("length %d, want %d", n, test.n)
			}
			if test.alert == 0 {
				if err != nil {
					t.Errorf("unexpected %v", err)
				}
				return
			}
			wantFault(t, err, test.alert)
		})
	}
}

// TestOpenRules gives sealed records that no Seal writes, one after the other, to a fresh Conn.
func TestOpenRules(t *testing.T) {
	repeat := func(n int, inner []byte) (out [][]byte) {
		for range n {
			out = append(out, inner)
		}
		return out
	}
	app, hs := byte(typeApplication), byte(typeHandshake)
	full := make([]byte, record.MaxPayload)
	for _, test := range []struct {
		name  string
		inner [][]byte
		data  int          // application data that all records give together
		alert record.Alert // of the last record; 0: no error
		eof   bool         // the last record is close_notify
	}{
		{"data", [][]byte{inner(app, []byte("abc"), 0)}, 3, 0, false},
		{"padded_data", [][]byte{inner(app, []byte("abc"), 200)}, 3, 0, false},
		{"data_ending_in_zeros", [][]byte{inner(app, []byte{1, 0, 0}, 9)}, 3, 0, false},
		{"only_zeros_as_data", [][]byte{inner(app, make([]byte, 10), 4)}, 10, 0, false},
		{"full_record", [][]byte{inner(app, full, 0)}, len(full), 0, false},
		{"full_record_padded_over_the_limit", [][]byte{inner(app, full, 1)}, 0, record.AlertRecordOverflow, false},
		{"padding_over_the_limit", [][]byte{inner(app, []byte("abc"), record.MaxPayload-2)}, 0, record.AlertRecordOverflow, false},
		{"padding_up_to_the_limit", [][]byte{inner(app, []byte("abc"), record.MaxPayload-3)}, 3, 0, false},
		{"one_byte_too_much", [][]byte{inner(app, make([]byte, record.MaxPayload+1), 0)}, 0, record.AlertRecordOverflow, false},
		{"largest_that_split_passes", [][]byte{make([]byte, record.MaxPayload+240)}, 0, record.AlertRecordOverflow, false},
		{"no_content_type", [][]byte{make([]byte, 30)}, 0, record.AlertUnexpectedMessage, false},
		{"unknown_type", [][]byte{inner(99, []byte("x"), 0)}, 0, record.AlertUnexpectedMessage, false},
		{"change_cipher_spec_inside", [][]byte{inner(20, []byte{1}, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"empty_data", [][]byte{inner(app, nil, 0), inner(app, nil, 100), inner(app, []byte("x"), 0)}, 1, 0, false},
		{"sixteen_empty_records", repeat(16, inner(app, nil, 0)), 0, 0, false},
		{"seventeen_empty_records", repeat(17, inner(app, nil, 0)), 0, record.AlertUnexpectedMessage, false},
		{"empty_records_between_data", append(append(repeat(16, inner(app, nil, 0)), inner(app, []byte("x"), 0)), repeat(16, inner(app, nil, 3))...), 1, 0, false},
		{"close_notify", [][]byte{inner(typeAlert, []byte{1, 0}, 0)}, 0, 0, true},
		{"close_notify_marked_fatal", [][]byte{inner(typeAlert, []byte{2, 0}, 0)}, 0, 0, true},
		{"close_notify_padded", [][]byte{inner(typeAlert, []byte{1, 0}, 7)}, 0, 0, true},
		{"user_canceled_then_close_notify", [][]byte{inner(typeAlert, []byte{1, 90}, 0), inner(typeAlert, []byte{1, 0}, 0)}, 0, 0, true},
		{"user_canceled_flood", repeat(17, inner(typeAlert, []byte{1, 90}, 0)), 0, record.AlertUnexpectedMessage, false},
		{"empty_alert", [][]byte{inner(typeAlert, nil, 0)}, 0, record.AlertDecodeError, false},
		{"short_alert", [][]byte{inner(typeAlert, []byte{1}, 0)}, 0, record.AlertDecodeError, false},
		{"two_alerts_in_a_record", [][]byte{inner(typeAlert, []byte{1, 90, 1, 0}, 0)}, 0, record.AlertDecodeError, false},
		{"ticket", [][]byte{inner(hs, ticket(200), 0), inner(app, []byte("x"), 0)}, 1, 0, false},
		{"two_tickets_in_a_record", [][]byte{inner(hs, append(ticket(20), ticket(30)...), 0)}, 0, 0, false},
		{"ticket_over_three_records", [][]byte{inner(hs, ticket(50)[:2], 0), inner(hs, ticket(50)[2:30], 0), inner(hs, ticket(50)[30:], 5), inner(app, []byte("x"), 0)}, 1, 0, false},
		{"sixteen_tickets", repeat(16, inner(hs, ticket(9), 0)), 0, 0, false},
		{"seventeen_tickets", repeat(17, inner(hs, ticket(9), 0)), 0, record.AlertUnexpectedMessage, false},
		{"huge_ticket", [][]byte{inner(hs, []byte{msgNewSessionTicket, 1, 0, 1}, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"largest_ticket", append(append([][]byte{inner(hs, ticket(1 << 16)[:4], 0)}, repeat(4, inner(hs, full, 0))...), inner(app, []byte("x"), 0)), 1, 0, false},
		{"data_inside_a_ticket", [][]byte{inner(hs, ticket(50)[:10], 0), inner(app, []byte("x"), 0)}, 0, record.AlertUnexpectedMessage, false},
		{"empty_data_inside_a_ticket", [][]byte{inner(hs, ticket(50)[:10], 0), inner(app, nil, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"alert_inside_a_ticket", [][]byte{inner(hs, ticket(50)[:10], 0), inner(typeAlert, []byte{1, 0}, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"empty_handshake_record", [][]byte{inner(hs, nil, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"empty_handshake_record_inside_a_ticket", [][]byte{inner(hs, ticket(50)[:10], 0), inner(hs, nil, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"client_hello", [][]byte{inner(hs, []byte{1, 0, 0, 0}, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"certificate_request_after_the_handshake", [][]byte{inner(hs, []byte{13, 0, 0, 3, 0, 0, 0}, 0)}, 0, record.AlertUnexpectedMessage, false},
		{"finished_again", [][]byte{inner(hs, append([]byte{20, 0, 0, 32}, make([]byte, 32)...), 0)}, 0, record.AlertUnexpectedMessage, false},
		{"key_update_without_body", [][]byte{inner(hs, []byte{msgKeyUpdate, 0, 0, 0}, 0)}, 0, record.AlertDecodeError, false},
		{"key_update_too_long", [][]byte{inner(hs, []byte{msgKeyUpdate, 0, 0, 2, 0, 0}, 0)}, 0, record.AlertDecodeError, false},
		{"key_update_with_unknown_request", [][]byte{inner(hs, keyUpdate(2), 0)}, 0, record.AlertDecodeError, false},
		{"key_update_then_more_in_the_record", [][]byte{inner(hs, append(keyUpdate(0), ticket(3)...), 0)}, 0, record.AlertUnexpectedMessage, false},
		{"two_key_updates_in_a_record", [][]byte{inner(hs, append(keyUpdate(1), keyUpdate(1)...), 0)}, 0, record.AlertUnexpectedMessage, false},
		{"key_update_behind_a_ticket", [][]byte{inner(hs, append(ticket(3), keyUpdate(0)...), 0)}, 0, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, s := range suites {
				peer := &sealer{suite: s.suite, secret: secretOf(s.suite, 0x5a)}
				_, us := newPair(t, s.suite)
				data, last := 0, len(test.inner)-1
				for i, in := range test.inner {
					rec := peer.seal(t, in)
					if n, err := record.Split(rec); n != len(rec) || err != nil {
						t.Fatalf("Split gives %d, %v", n, err)
					}
					p, err := us.Open(rec)
					data += len(p)
					switch {
					case i == last && test.eof:
						if err != io.EOF {
							t.Fatalf("%s: error is %v, want EOF", s.name, err)
						}
					case i == last && test.alert != 0:
						wantFault(t, err, test.alert)
					case err != nil:
						t.Fatalf("%s: record %d: %v", s.name, i, err)
					}
				}
				if data != test.data {
					t.Errorf("%s: %d bytes of data, want %d", s.name, data, test.data)
				}
			}
		})
	}
}

func TestRemoteAlerts(t *testing.T) {
	for _, alert := range []record.Alert{10, 20, 22, 40, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 70, 71, 80, 109, 110, 112, 116, 120, 255} {
		t.Run(alert.String(), func(t *testing.T) {
			for _, level := range []byte{1, 2} { // RFC 8446 section 6: the level does not matter
				peer := &sealer{suite: suites[0].suite, secret: secretOf(suites[0].suite, 0x5a)}
				_, us := newPair(t, suites[0].suite)
				_, err := us.Open(peer.seal(t, inner(typeAlert, []byte{level, byte(alert)}, 0)))
				wantRemote(t, err, alert)
				if !strings.Contains(err.Error(), alert.String()) || !strings.Contains(err.Error(), "peer") {
					t.Errorf("error reads %q", err)
				}
			}
		})
	}
}

func TestTampered(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			a, _ := newPair(t, s.suite)
			rec := seal(a, []byte("twenty bytes of text"))
			for bit := range 8 * len(rec) {
				_, b := newPair(t, s.suite)
				bad := bytes.Clone(rec)
				bad[bit/8] ^= 1 << (bit % 8)
				_, err := b.Open(bad)
				wantFault(t, err, record.AlertBadRecordMAC)
			}
		})
	}
}

func TestSequence(t *testing.T) {
	s := suites[0]
	t.Run("replayed", func(t *testing.T) {
		a, b := newPair(t, s.suite)
		rec := seal(a, []byte("x"))
		again := bytes.Clone(rec)
		if _, err := b.Open(rec); err != nil {
			t.Fatal(err)
		}
		_, err := b.Open(again)
		wantFault(t, err, record.AlertBadRecordMAC)
	})
	t.Run("swapped", func(t *testing.T) {
		a, b := newPair(t, s.suite)
		_, second := seal(a, []byte("x")), seal(a, []byte("y"))
		_, err := b.Open(second)
		wantFault(t, err, record.AlertBadRecordMAC)
	})
	t.Run("reflected", func(t *testing.T) {
		a, _ := newPair(t, s.suite)
		_, err := a.Open(seal(a, []byte("x")))
		wantFault(t, err, record.AlertBadRecordMAC)
	})
	t.Run("nonce_uses_all_64_bits", func(t *testing.T) {
		for _, seq := range []uint64{1, 255, 256, 1<<32 - 1, 1 << 32, 1<<63 + 12345} {
			secret := secretOf(s.suite, 0x77)
			c, err := record.New(record.State{Suite: s.suite, ReadSecret: secret, WriteSecret: secret, ReadSeq: seq, WriteSeq: seq})
			if err != nil {
				t.Fatal(err)
			}
			peer := &sealer{suite: s.suite, secret: secret, seq: seq}
			want := peer.seal(t, inner(typeApplication, []byte("payload"), 0))
			if got := seal(c, []byte("payload")); !bytes.Equal(got, want) {
				t.Errorf("sequence %d: sealed %x, want %x", seq, got, want)
			}
			if p, err := c.Open(want); err != nil || string(p) != "payload" {
				t.Errorf("sequence %d: opened %q, %v", seq, p, err)
			}
		}
	})
}

func TestAlertNames(t *testing.T) {
	if got := record.Alert(77).String(); got != "alert(77)" {
		t.Errorf("unknown alert reads %q", got)
	}
	if got := record.AlertRecordOverflow.String(); got != "record_overflow" {
		t.Errorf("record_overflow reads %q", got)
	}
	err := &record.Error{Alert: record.AlertBadRecordMAC, Reason: "why"}
	if got := err.Error(); got != "TLS bad_record_mac: why" {
		t.Errorf("error reads %q", got)
	}
}

func TestZeroAllocations(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			a, b := newPair(t, s.suite)
			slot := make([]byte, record.HeaderLen+1000+record.TrailerLen)
			n := testing.AllocsPerRun(200, func() {
				size := a.Seal(slot, 1000)
				if got, err := record.Split(slot); got != size || err != nil {
					t.Fatal(got, err)
				}
				if p, err := b.Open(slot[:size]); err != nil || len(p) != 1000 {
					t.Fatal(len(p), err)
				}
				if b.KeyUpdateDue() {
					t.Fatal("KeyUpdate is due")
				}
			})
			if n != 0 {
				t.Errorf("%v allocations a record", n)
			}
		})
	}
}
