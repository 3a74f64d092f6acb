package record_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// exchange sends one record each way.
func exchange(t *testing.T, a, b *record.Conn) {
	t.Helper()
	for _, dir := range []struct{ from, to *record.Conn }{{a, b}, {b, a}} {
		p, err := dir.to.Open(seal(dir.from, []byte("data")))
		if err != nil || string(p) != "data" {
			t.Fatalf("opened %q, %v", p, err)
		}
	}
}

func sendKeyUpdate(t *testing.T, from, to *record.Conn, request bool) {
	t.Helper()
	rec, err := from.AppendKeyUpdate(nil, request)
	if err != nil {
		t.Fatal(err)
	}
	if len(rec) > record.ControlLen {
		t.Fatalf("KeyUpdate record of %d bytes, ControlLen is %d", len(rec), record.ControlLen)
	}
	if p, err := to.Open(rec); err != nil || len(p) != 0 {
		t.Fatalf("KeyUpdate opened %q, %v", p, err)
	}
}

func TestKeyUpdate(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			a, b := newPair(t, s.suite)
			exchange(t, a, b)
			sendKeyUpdate(t, a, b, false)
			if b.KeyUpdateDue() {
				t.Error("an answer is due that was not asked for")
			}
			exchange(t, a, b)
			sendKeyUpdate(t, a, b, true)
			if !b.KeyUpdateDue() {
				t.Error("no answer is due")
			}
			exchange(t, a, b) // data may still come under the old key
			sendKeyUpdate(t, b, a, false)
			if b.KeyUpdateDue() || a.KeyUpdateDue() {
				t.Error("an answer is due behind the answer")
			}
			exchange(t, a, b)
			for range 20 { // both at once, many times
				fromA, err := a.AppendKeyUpdate(nil, true)
				if err != nil {
					t.Fatal(err)
				}
				sendKeyUpdate(t, b, a, true)
				if _, err := b.Open(fromA); err != nil {
					t.Fatal(err)
				}
				sendKeyUpdate(t, a, b, false)
				sendKeyUpdate(t, b, a, false)
				exchange(t, a, b)
			}
		})
	}
}

// TestKeyUpdateChangesTheKey compares with the independent key schedule: without the renewal of the key the two would
// still agree with each other.
func TestKeyUpdateChangesTheKey(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			_, b := newPair(t, s.suite)
			peer := &sealer{suite: s.suite, secret: secretOf(s.suite, 0x5a)}
			back := &sealer{suite: s.suite, secret: secretOf(s.suite, 0xc3)}
			for i := range 3 {
				if _, err := b.Open(peer.seal(t, inner(typeHandshake, keyUpdate(1), i))); err != nil {
					t.Fatal(err)
				}
				peer.update(t)
				if p, err := b.Open(peer.seal(t, inner(typeApplication, []byte("new key"), 0))); err != nil || string(p) != "new key" {
					t.Fatalf("update %d: opened %q, %v", i, p, err)
				}
				got, err := b.AppendKeyUpdate([]byte("before"), false)
				if err != nil {
					t.Fatal(err)
				}
				if want := append([]byte("before"), back.seal(t, inner(typeHandshake, keyUpdate(0), 0))...); !bytes.Equal(got, want) {
					t.Fatalf("update %d: answer is %x, want %x", i, got, want)
				}
				back.update(t)
				if got, want := seal(b, []byte("ours")), back.seal(t, inner(typeApplication, []byte("ours"), 0)); !bytes.Equal(got, want) {
					t.Fatalf("update %d: sealed %x, want %x", i, got, want)
				}
			}
			if _, err := b.Open((&sealer{suite: s.suite, secret: secretOf(s.suite, 0x5a), seq: 2}).seal(t, inner(typeApplication, []byte("x"), 0))); err == nil {
				t.Error("a record under the old key was opened")
			}
		})
	}
}

// TestKeyUpdateFloodIsOneAnswer: many requests before the answer is sent owe one answer (RFC 8446 section 4.6.3).
func TestKeyUpdateFloodIsOneAnswer(t *testing.T) {
	s := suites[0]
	_, b := newPair(t, s.suite)
	peer := &sealer{suite: s.suite, secret: secretOf(s.suite, 0x5a)}
	for i := range 16 {
		request := byte(1 - i/15) // the last one asks for nothing, and takes nothing back
		if _, err := b.Open(peer.seal(t, inner(typeHandshake, keyUpdate(request), 0))); err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
		peer.update(t)
	}
	if !b.KeyUpdateDue() {
		t.Error("no answer is due")
	}
	if _, err := b.AppendKeyUpdate(nil, false); err != nil {
		t.Fatal(err)
	}
	if b.KeyUpdateDue() {
		t.Error("a second answer is due")
	}
	_, err := b.Open(peer.seal(t, inner(typeHandshake, keyUpdate(1), 0)))
	wantFault(t, err, record.AlertUnexpectedMessage)
}

func TestKeyUpdateDueByUse(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			st := record.State{Suite: s.suite, ReadSecret: secretOf(s.suite, 1), WriteSecret: secretOf(s.suite, 2), WriteSeq: 1<<23 - 1}
			c, err := record.New(st)
			if err != nil {
				t.Fatal(err)
			}
			if c.KeyUpdateDue() {
				t.Error("due too early")
			}
			seal(c, []byte("x"))
			if !c.KeyUpdateDue() {
				t.Error("not due after 2^23 records")
			}
			if _, err := c.AppendKeyUpdate(nil, false); err != nil {
				t.Fatal(err)
			}
			if c.KeyUpdateDue() {
				t.Error("still due")
			}
			if got := c.State(); got.WriteSeq != 0 || bytes.Equal(got.WriteSecret, st.WriteSecret) || !bytes.Equal(got.ReadSecret, st.ReadSecret) {
				t.Errorf("state after the update: %+v", got)
			}
		})
	}
}

// TestStateContinues moves one end into a new Conn after every step, as a hand-over does.
func TestStateContinues(t *testing.T) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			a, b := newPair(t, s.suite)
			move := func() {
				t.Helper()
				st := a.State()
				next, err := record.New(st)
				if err != nil {
					t.Fatal(err)
				}
				// What New was given belongs to the caller.
				clear(st.ReadSecret)
				clear(st.WriteSecret)
				a = next
			}
			for i := range uint64(4) {
				if st := a.State(); st.Suite != s.suite || st.ReadSeq != i || st.WriteSeq != i {
					t.Fatalf("state is %+v, want sequence %d", st, i)
				}
				exchange(t, a, b)
				move()
			}
			sendKeyUpdate(t, a, b, true)
			move()
			sendKeyUpdate(t, b, a, true)
			sendKeyUpdate(t, a, b, false)
			move()
			exchange(t, a, b)
			if st := a.State(); st.ReadSeq != 1 || st.WriteSeq != 1 {
				t.Errorf("state is %+v, want sequence 1 under the new keys", st)
			}
			move()
			if _, err := b.Open(a.AppendAlert(nil, record.AlertCloseNotify)); err != io.EOF {
				t.Errorf("close_notify gives %v", err)
			}
		})
	}
}

func TestStateIsACopy(t *testing.T) {
	a, b := newPair(t, suites[0].suite)
	st := a.State()
	clear(st.ReadSecret)
	clear(st.WriteSecret)
	sendKeyUpdate(t, a, b, true) // derives from the secrets
	sendKeyUpdate(t, b, a, false)
	exchange(t, a, b)
}

func TestAppendAlert(t *testing.T) {
	for _, test := range []struct {
		alert record.Alert
		level byte
	}{
		{record.AlertCloseNotify, 1}, {record.AlertUserCanceled, 1}, {record.AlertBadRecordMAC, 2}, {record.AlertInternalError, 2},
		{record.AlertUnexpectedMessage, 2}, {record.AlertBadCertificate, 2},
	} {
		t.Run(test.alert.String(), func(t *testing.T) {
			for _, s := range suites {
				a, _ := newPair(t, s.suite)
				want := (&sealer{suite: s.suite, secret: secretOf(s.suite, 0x5a)}).seal(t, inner(typeAlert, []byte{test.level, byte(test.alert)}, 0))
				if got := a.AppendAlert([]byte("before"), test.alert); !bytes.Equal(got, append([]byte("before"), want...)) {
					t.Errorf("%s: alert is %x, want %x", s.name, got, want)
				}
			}
		})
	}
}
