package record_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// FuzzOpen feeds bytes from the wire: whatever they are, Split stays inside them and Open neither panics nor lets
// anything through that was not sealed.
func FuzzOpen(f *testing.F) {
	good := &sealer{suite: tls.TLS_AES_128_GCM_SHA256, secret: secretOf(tls.TLS_AES_128_GCM_SHA256, 0x5a)}
	rec := good.seal(f, inner(typeApplication, []byte("payload"), 3))
	f.Add(rec)
	f.Add(append(bytes.Clone(rec), rec...))
	f.Add(good.seal(f, inner(typeHandshake, keyUpdate(1), 0)))
	f.Add([]byte{23, 3, 3, 0, 17})
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})
	f.Add([]byte{23, 3, 3, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, c := newPair(t, tls.TLS_AES_128_GCM_SHA256)
		for first := true; ; first = false {
			n, err := record.Split(b)
			if err != nil || n == 0 {
				return
			}
			if n > len(b) || n > record.MaxRecord || n < record.HeaderLen+record.TrailerLen {
				t.Fatalf("Split gives %d of %d bytes", n, len(b))
			}
			p, err := c.Open(bytes.Clone(b[:n]))
			if err == nil && !(first && bytes.Equal(b[:n], rec)) {
				t.Fatalf("%x was opened: %q", b[:n], p)
			}
			if err != nil {
				return
			}
			b = b[n:]
		}
	})
}

// FuzzInner seals arbitrary inner plaintexts as a hostile but authenticated peer could, cut into records by zero octets
// at the end of each.
func FuzzInner(f *testing.F) {
	f.Add([]byte("x\x17"), uint8(0))
	f.Add(append([]byte{24, 0, 0, 1, 1, 22}, 0, 0), uint8(6))
	f.Add([]byte{1, 0, 21}, uint8(3))
	f.Add([]byte{4, 0, 0, 9, 22, 1, 2, 3, 4, 5, 6, 7, 8, 9, 22}, uint8(5))
	f.Add(make([]byte, 40), uint8(40))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		suite := suites[len(in)%2].suite
		peer := &sealer{suite: suite, secret: secretOf(suite, 0x5a)}
		_, c := newPair(t, suite)
		for len(in) > 0 {
			n := min(len(in), int(step)+1)
			plain := in[:n]
			in = in[n:]
			before := c.State().ReadSecret
			p, err := c.Open(peer.seal(t, plain))
			if err != nil {
				if p != nil {
					t.Fatal("data with an error")
				}
				return
			}
			if len(p) > 0 {
				if !bytes.HasPrefix(plain, p) || plain[len(p)] != typeApplication || len(bytes.Trim(plain[len(p)+1:], "\x00")) != 0 {
					t.Fatalf("%x gives %x", plain, p)
				}
			}
			if !bytes.Equal(before, c.State().ReadSecret) {
				peer.update(t)
			}
		}
	})
}

// FuzzRoundTrip sends data, KeyUpdates and hand-overs in the order that the script says.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"), []byte{0, 1, 2, 3, 4, 5, 6}, false)
	f.Add(make([]byte, 1000), []byte{3, 3, 3, 0, 0, 5, 4, 1}, true)
	f.Fuzz(func(t *testing.T, payload, script []byte, big bool) {
		suite := suites[0].suite
		if big {
			suite = suites[1].suite
		}
		if len(payload) == 0 || len(payload) > record.MaxPayload || len(script) > 64 {
			return
		}
		a, b := newPair(t, suite)
		quiet := map[*record.Conn]int{} // records without data in a row, by who opened them
		for _, op := range script {
			from, to := a, b
			if op&1 != 0 {
				from, to = b, a
			}
			switch op >> 1 % 4 {
			case 0, 1:
				p, err := to.Open(seal(from, payload))
				if err != nil || !bytes.Equal(p, payload) {
					t.Fatalf("opened %x, %v", p, err)
				}
				quiet[to] = 0
			case 2:
				if quiet[to]++; quiet[to] > 16 {
					return
				}
				rec, err := from.AppendKeyUpdate(nil, op&0x80 != 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := to.Open(rec); err != nil {
					t.Fatal(err)
				}
				if op&0x80 != 0 && !to.KeyUpdateDue() {
					t.Fatal("no answer is due")
				}
			case 3:
				next, err := record.New(from.State())
				if err != nil {
					t.Fatal(err)
				}
				*from = *next
				quiet[from] = 0
			}
		}
		if _, err := b.Open(a.AppendAlert(nil, record.AlertCloseNotify)); err != io.EOF && quiet[b] < 16 {
			t.Fatal(err)
		}
	})
}
