package authority_test

import (
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

const day = 24 * time.Hour

// rotating is a rotation under a clock of its own.
type rotating struct {
	t   *testing.T
	cfg authority.Config
	now time.Time
	st  authority.State
}

func newRotating(t *testing.T, cfg authority.Config) *rotating {
	t.Helper()
	cfg.TrustDomain = td
	cfg, err := cfg.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r := &rotating{t: t, cfg: cfg, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	r.st = authority.NewState(r.root(), false)
	return r
}

func (r *rotating) root() *authority.Signer {
	r.t.Helper()
	s, err := authority.NewRoot(td, r.now, r.cfg.RootTTL)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// advance moves the clock and stores and reads what comes of it.
func (r *rotating) advance(d time.Duration) authority.Progress {
	r.t.Helper()
	r.now = r.now.Add(d)
	before := r.st
	st, p := authority.Advance(r.st, r.now, r.cfg)
	if again, q := authority.Advance(before, r.now, r.cfg); q != p || len(again.Roots) != len(st.Roots) {
		r.t.Errorf("not a pure function: %+v, then %+v", p, q)
	}
	data, err := st.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	if r.st, err = authority.Decode(data, td); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rotating) expect(signer *authority.Signer, rotating bool, roots int) {
	r.t.Helper()
	if !r.st.Signer.Certificate().Equal(signer.Certificate()) {
		r.t.Error("another one signs")
	}
	if (r.st.Next != nil) != rotating {
		r.t.Errorf("next signer: %v", r.st.Next != nil)
	}
	if got := len(r.st.Certificates()); got != roots {
		r.t.Errorf("%d roots, want %d", got, roots)
	}
}

func TestRotation(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: 2 * day, RootTTL: 100 * day, Settle: 3 * day, Overlap: 4 * day})
	first := r.st.Signer
	if p := r.advance(0); p.Changed || p.Step != authority.Wait || p.At.Sub(r.now).Round(day) != 80*day {
		t.Errorf("a new root: %+v", p)
	}
	if p := r.advance(81 * day); p.Step != authority.MakeRoot || p.Changed {
		t.Errorf("an old root: %+v", p)
	}
	second := r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	if p := r.advance(0); p.Changed || p.Step != authority.Wait || !p.At.Equal(r.now.Add(3*day)) {
		t.Errorf("introduced: %+v", p)
	}
	r.expect(first, true, 2)
	if p := r.advance(3*day - time.Second); p.Changed {
		t.Errorf("not settled yet: %+v", p)
	}
	if p := r.advance(time.Second); !p.Switched || !p.Changed || !p.At.Equal(r.now.Add(4*day)) {
		t.Errorf("settled: %+v", p)
	}
	r.expect(second, false, 2)
	if p := r.advance(4*day - time.Second); p.Changed {
		t.Errorf("overlapping: %+v", p)
	}
	if p := r.advance(time.Second); p.Dropped != 1 || !p.Changed || p.Step != authority.Wait {
		t.Errorf("over: %+v", p)
	}
	r.expect(second, false, 1)
}

// TestRotationLate has nobody look at the authority until its root has expired.
func TestRotationLate(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, RootTTL: 30 * day})
	if p := r.advance(31 * day); p.Step != authority.MakeRoot {
		t.Fatalf("%+v", p)
	}
	second := r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	if p := r.advance(0); !p.Switched || p.Dropped != 1 {
		t.Errorf("%+v", p)
	}
	r.expect(second, false, 1)
}

// TestRotationLosesPatience has the signer end before the settle time.
func TestRotationLosesPatience(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, RootTTL: 30 * day, Settle: 5 * day})
	r.now = r.st.Signer.NotAfter().Add(-time.Hour)
	second := r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	if p := r.advance(0); p.Switched || !p.At.Equal(r.st.Signer.NotAfter()) {
		t.Errorf("%+v", p)
	}
	if p := r.advance(time.Hour); !p.Switched {
		t.Errorf("%+v", p)
	}
	r.expect(second, false, 2)
}

// TestRotationReplaced has a second change come before the first has settled.
func TestRotationReplaced(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	first, second := r.st.Signer, r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	r.advance(day)
	third := r.root()
	r.st = r.st.Introduce(third, false, r.now, r.cfg)
	r.advance(0)
	r.expect(first, true, 3)
	r.advance(day) // the time of the second
	r.expect(first, true, 3)
	r.advance(day)
	r.expect(third, false, 3)
	r.advance(3 * day)
	r.expect(third, false, 1)
}

// TestRotationBack returns to the first signer while its root is still there.
func TestRotationBack(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	first, second := r.st.Signer, r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	r.advance(2 * day)
	r.expect(second, false, 2)
	r.st = r.st.Introduce(first, false, r.now, r.cfg)
	r.advance(0)
	r.expect(first, false, 2) // everybody has its root
	r.advance(3 * day)
	r.expect(first, false, 1)
	// What it was to leave at the first time is forgotten.
	third := r.root()
	r.st = r.st.Introduce(third, false, r.now, r.cfg)
	r.advance(2 * day)
	r.expect(third, false, 2)
	r.advance(3*day - time.Second)
	r.expect(third, false, 2)
}

// TestBroughtIntermediate changes an intermediate below the same root, which
// takes no time, and one below another, which does.
func TestBroughtIntermediate(t *testing.T) {
	root, other := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	parse := func(m authority.Material) *authority.Signer {
		t.Helper()
		s, err := authority.ParseSigner(m, td, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	r.now = time.Now()
	r.st = authority.NewState(parse(material(t, root.Intermediate(t), root)), true)
	second := parse(material(t, root.Intermediate(t), root))
	if r.st.Same(second) {
		t.Error("two intermediates are the same")
	}
	r.st = r.st.Introduce(second, true, r.now, r.cfg)
	if p := r.advance(0); !p.Switched || !r.st.Same(second) {
		t.Errorf("below the same root: %+v", p)
	}
	r.expect(second, false, 1)

	third := parse(material(t, other.Intermediate(t), other))
	r.st = r.st.Introduce(third, true, r.now, r.cfg)
	if p := r.advance(0); p.Changed || !r.st.Same(third) {
		t.Errorf("below another root: %+v", p)
	}
	r.expect(second, true, 2)
	r.advance(2 * day)
	r.expect(third, false, 2)
	if p := r.advance(200 * day); p.Step != authority.Wait {
		t.Errorf("replaces what the user has brought: %+v", p)
	}
	r.expect(third, false, 1)

	// The user announces a root of the future beside his own.
	m := material(t, other, other)
	m.Roots = append(m.Roots, root.RootPEM()...)
	r.st = authority.NewState(parse(material(t, other, other)), true)
	more := parse(m)
	if r.st.Same(more) {
		t.Error("another bundle is the same")
	}
	r.st = r.st.Introduce(more, true, r.now, r.cfg)
	r.advance(0)
	r.expect(more, false, 2)
	// And takes it back.
	r.st = r.st.Introduce(parse(material(t, other, other)), true, r.now, r.cfg)
	r.advance(0)
	r.expect(more, false, 2)
	r.advance(3 * day)
	r.expect(more, false, 1)
}

func TestRequested(t *testing.T) {
	r := newRotating(t, authority.Config{})
	if _, asked := r.st.Requested(""); asked {
		t.Error("no wish is one")
	}
	st, asked := r.st.Requested("monday")
	if !asked {
		t.Error("a wish is not heeded")
	}
	r.st = st
	r.advance(0)
	if _, asked := r.st.Requested("monday"); asked {
		t.Error("a wish is heeded twice")
	}
	if _, asked := r.st.Requested("tuesday"); !asked {
		t.Error("another wish is not heeded")
	}
}

func TestDecodeRefuses(t *testing.T) {
	st := authority.NewState(newRoot(t), false)
	cfg, err := authority.Config{TrustDomain: td}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	stranger := identitytest.NewCA(t, "td")
	for _, tt := range []struct {
		name, key string
		value     []byte
		err       string
	}{
		{"no_certificate", authority.KeyCert, nil, "read authority: ca-cert.pem: missing or empty"},
		{"other_key", authority.KeyKey, identitytest.KeyPEM(t, stranger.Key), "read authority: ca-key.pem: the key does not belong to the certificate in ca-cert.pem"},
		{"root_lost", authority.KeyRoots, stranger.RootPEM(), "read authority: cert-chain.pem: "},
		{"state_damaged", "state.json", []byte("{"), "read authority: state.json: unexpected end of JSON input"},
		{"state_of_the_future", "state.json", []byte(`{"version":7}`), "read authority: state.json: version 7 is not known here"},
		{"signer_without_roots", "state.json", []byte(`{"version":1}`), "read authority: state.json: the signer's chain leads to none of its roots"},
		{"next_damaged", "next-ca-key.pem", nil, "read authority: next signer: ca-key.pem: missing or empty"},
		{"retired_damaged", "retired.json", []byte("[{}]"), "read authority: retired.json: signer 1: chain: missing or empty"},
		{"retired_too_many", "retired.json", []byte("[" + strings.Repeat("{},", 32) + "{}]"), "read authority: retired.json: 33 signers, limit is 32"},
		{"crl_damaged", authority.KeyCRL, []byte("hello"), "read authority: ca-crl.pem: no revocation list found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, err := authority.NewRoot(td, time.Now(), authority.DefaultRootTTL)
			if err != nil {
				t.Fatal(err)
			}
			data, err := st.Introduce(next, false, time.Now(), cfg).Encode()
			if err != nil {
				t.Fatal(err)
			}
			data[tt.key] = tt.value
			if _, err := authority.Decode(data, td); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
}

// TestDecodeByHand reads a Secret that somebody made without our record.
func TestDecodeByHand(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	m := material(t, root.Intermediate(t), root)
	st, err := authority.Decode(map[string][]byte{
		authority.KeyCert: m.Cert, authority.KeyKey: m.Key, authority.KeyChain: m.Chain, authority.KeyRoots: m.Roots,
	}, td)
	if err != nil {
		t.Fatal(err)
	}
	if !st.Brought || len(st.Roots) != 1 || !st.Roots[0].Since.IsZero() {
		t.Errorf("brought %v, roots %+v", st.Brought, st.Roots)
	}
}

func TestRevoke(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	serials, err := authority.ParseSerials([]byte("# stolen\n0A:FF\n\nbeef # lost\r\n"))
	if err != nil || len(serials) != 2 || serials[0].Cmp(big.NewInt(0x0aff)) != 0 {
		t.Fatalf("serials %v, error %v", serials, err)
	}
	lists := func() int { return strings.Count(string(r.st.Revoked), "BEGIN X509 CRL") }
	revoke := func() {
		t.Helper()
		if r.st.Revokes(serials) {
			t.Error("the lists are as they should be already")
		}
		if r.st, err = r.st.Revoke(serials, r.now); err != nil {
			t.Fatal(err)
		}
		if !r.st.Revokes(serials) || r.st.Revokes(append(serials[:len(serials):len(serials)], big.NewInt(1))) {
			t.Error("the lists are not as they should be")
		}
		if _, err := r.st.WithRevoked(r.st.Revoked); err != nil {
			t.Error(err)
		}
	}
	if !r.st.Revokes(nil) {
		t.Error("no lists revoke something")
	}
	revoke()
	r.st = r.st.Introduce(r.root(), false, r.now, r.cfg)
	revoke() // one more signer
	if lists() != 2 {
		t.Errorf("%d lists", lists())
	}
	r.advance(2 * day)
	if !r.st.Revokes(serials) {
		t.Error("lists to be made again, though no new signer came")
	}
	serials = serials[:1]
	revoke()
	if lists() != 2 {
		t.Errorf("%d lists: that of the old signer is lost", lists())
	}
	r.advance(3 * day)
	serials = nil
	revoke()
	if lists() != 1 {
		t.Errorf("%d lists: that of a root that is gone stays", lists())
	}
}

func TestParseSerialsRefuses(t *testing.T) {
	for _, text := range []string{"xyz", "0", "-1", strings.Repeat("f", 41), strings.Repeat("1\n", 10001)} {
		if got, err := authority.ParseSerials([]byte(text)); err == nil {
			t.Errorf("%.20q: %d serials", text, len(got))
		}
	}
}

func TestWithRevoked(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	low := root.Intermediate(t)
	s, err := authority.ParseSigner(material(t, low, root), td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	st := authority.NewState(s, true)
	good := append(root.CRL(t, low.Certificate), low.CRL(t)...)
	if st, err = st.WithRevoked(good); err != nil || string(st.Revoked) != string(good) {
		t.Error(err)
	}
	stranger := identitytest.NewCA(t, "td")
	for name, tt := range map[string]struct {
		in  []byte
		err string
	}{
		"stranger":    {append(root.CRL(t), stranger.CRL(t)...), `ca-crl.pem: list 2, of "CN=root of td", is signed by no certificate of this authority`},
		"certificate": {root.RootPEM(), `ca-crl.pem: PEM block 1 is "CERTIFICATE", want X509 CRL`},
		"truncated":   {good[:len(good)-40], "ca-crl.pem: PEM block 2 is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := st.WithRevoked(tt.in); err == nil || err.Error() != tt.err || string(got.Revoked) != string(good) {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
	if st, err = st.WithRevoked([]byte("\n")); err != nil || len(st.Revoked) != 0 {
		t.Errorf("not removed: %v", err)
	}
}
