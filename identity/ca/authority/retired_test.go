package authority_test

import (
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

const keyRetired = "retired.json"

// revokes reports whether a list of issuer names the serial number.
func revokes(t *testing.T, st authority.State, issuer *x509.Certificate, serial *big.Int) bool {
	t.Helper()
	for rest := st.Revoked; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if list.CheckSignatureFrom(issuer) == nil && slices.ContainsFunc(list.RevokedCertificateEntries,
			func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(serial) == 0 }) {
			return true
		}
	}
}

func parseBrought(t *testing.T, m authority.Material) *authority.Signer {
	t.Helper()
	s, err := authority.ParseSigner(m, td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stored returns the entry of the Secret with the retired signers.
func stored(t *testing.T, st authority.State) string {
	t.Helper()
	data, err := st.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !authority.IsKey(keyRetired) {
		t.Error("the entry is not known as one of ours, so it would stay for ever")
	}
	return string(data[keyRetired])
}

// TestRevokeBelowOldRoot: a certificate can be revoked as long as the root that it is below is trusted, and the key that does
// it is gone with the root.
func TestRevokeBelowOldRoot(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	old := r.st.Signer
	r.st = r.st.Introduce(r.root(), false, r.now, r.cfg)
	if p := r.advance(2 * day); !p.Switched {
		t.Fatal("not switched")
	}
	// Something is stolen that the old signer has made a moment ago.
	stolen := []*big.Int{big.NewInt(0xbeef)}
	if r.st.Revokes(stolen) {
		t.Error("said to be revoked before")
	}
	var err error
	if r.st, err = r.st.Revoke(stolen, r.now); err != nil {
		t.Fatal(err)
	}
	r.advance(3*day - time.Second)
	if !r.st.Revokes(stolen) || !revokes(t, r.st, old.Certificate(), stolen[0]) || !revokes(t, r.st, r.st.Signer.Certificate(), stolen[0]) {
		t.Error("no list of the old signer, which is trusted, names it")
	}
	if p := r.advance(time.Second); p.Dropped != 1 || stored(t, r.st) != "" {
		t.Errorf("the key of a root that is gone is still stored: %+v", p)
	}
}

// TestRevokeBelowFormerSigner returns to a signer that was retired: it has one list, as any.
func TestRevokeBelowFormerSigner(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	first, second := r.st.Signer, r.root()
	r.st = r.st.Introduce(second, false, r.now, r.cfg)
	r.advance(2 * day)
	r.st = r.st.Introduce(first, false, r.now, r.cfg)
	r.advance(0)
	var err error
	if r.st, err = r.st.Revoke([]*big.Int{big.NewInt(1)}, r.now); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(r.st.Revoked), "BEGIN X509 CRL"); n != 2 {
		t.Errorf("%d lists of two signers", n)
	}
	for range 3 {
		for _, s := range []*authority.Signer{second, first} { // everybody has both roots
			r.st = r.st.Introduce(s, false, r.now, r.cfg)
			r.advance(0)
		}
	}
	r.expect(first, false, 2)
	if n := strings.Count(stored(t, r.st), `"chain"`); n != 2 {
		t.Errorf("%d retired signers of two", n)
	}
}

// TestRevokeOlderRecord reads what was stored before it was told whose the signer is.
func TestRevokeOlderRecord(t *testing.T) {
	data, err := authority.NewState(newRoot(t), false).Encode()
	if err != nil {
		t.Fatal(err)
	}
	older := strings.Replace(string(data["state.json"]), `,"own":true`, "", 1)
	if older == string(data["state.json"]) {
		t.Fatalf("another record: %s", older)
	}
	data["state.json"] = []byte(older)
	st, err := authority.Decode(data, td)
	if err != nil {
		t.Fatal(err)
	}
	if st.Revokes([]*big.Int{big.NewInt(1)}) {
		t.Error("our own signer is taken for one that was brought")
	}
}

// TestRevokeOwnAfterBrought: serial numbers are revoked below our own signer while somebody's is to follow it, after it has
// followed, and when it is the same one.
func TestRevokeOwnAfterBrought(t *testing.T) {
	other := identitytest.NewCA(t, "td")
	for name, bring := range map[string]func(own *authority.Signer) *authority.Signer{
		"other": func(*authority.Signer) *authority.Signer { return parseBrought(t, material(t, other, other)) },
		"same": func(own *authority.Signer) *authority.Signer {
			m, err := own.Material()
			if err != nil {
				t.Fatal(err)
			}
			return parseBrought(t, m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := authority.Config{TrustDomain: td, MaxTTL: day, Settle: 2 * day, Overlap: 3 * day}.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			own := newRoot(t)
			r := &rotating{t: t, cfg: cfg, now: time.Now(), st: authority.NewState(own, false)}
			r.st = r.st.Introduce(bring(own), true, r.now, cfg)
			for i, d := range []time.Duration{0, 2 * day} {
				r.advance(d)
				serial := big.NewInt(int64(i) + 7)
				if r.st.Revokes([]*big.Int{serial}) {
					t.Error("said to be revoked before")
				}
				if r.st, err = r.st.Revoke([]*big.Int{serial}, r.now); err != nil {
					t.Fatal(err)
				}
				if r.st, err = r.st.WithRevoked(nil); err != nil {
					t.Fatal(err)
				}
				if !revokes(t, r.st, own.Certificate(), serial) || !r.st.Revokes([]*big.Int{serial}) {
					t.Error("not revoked below our own signer, which is trusted")
				}
				if n := strings.Count(string(r.st.Revoked), "BEGIN X509 CRL"); n != 1 {
					t.Errorf("%d lists", n)
				}
			}
		})
	}
}

// TestInheritedLists has a user replace an intermediate that is revoked, at first without a list.
func TestInheritedLists(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	one, two := root.Intermediate(t), root.Intermediate(t)
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	r.now = time.Now()
	r.st = authority.NewState(parseBrought(t, material(t, one, root)), true)
	carry := func(lists []byte) {
		t.Helper()
		var err error
		if r.st, err = r.st.WithRevoked(lists); err != nil {
			t.Fatal(err)
		}
	}
	first := strings.TrimSpace(string(root.CRL(t, one.Certificate))) // without an end of its line
	carry([]byte(first))
	r.st = r.st.Introduce(parseBrought(t, material(t, two, root)), true, r.now, r.cfg)
	r.advance(0)
	carry(nil)
	if !revokes(t, r.st, root.Certificate, one.Certificate.SerialNumber) {
		t.Error("the intermediate that was replaced is not revoked any more")
	}
	if strings.Contains(stored(t, r.st), "PRIVATE KEY") || !strings.Contains(stored(t, r.st), "BEGIN CERTIFICATE") {
		t.Error("of a signer that was brought and is gone the certificate is enough")
	}
	// Lists of the one, too, old and new; that of the root stays beside them.
	of := strings.TrimSpace(string(one.CRL(t, two.Certificate)))
	carry([]byte(of))
	r.advance(0)
	if !revokes(t, r.st, root.Certificate, one.Certificate.SerialNumber) || !revokes(t, r.st, one.Certificate, two.Certificate.SerialNumber) {
		t.Error("of two lists one is lost")
	}
	// Another list of the same issuer takes the place of the inherited one, and goes when it is taken away.
	carry(root.CRL(t, two.Certificate))
	if revokes(t, r.st, root.Certificate, one.Certificate.SerialNumber) || !revokes(t, r.st, root.Certificate, two.Certificate.SerialNumber) {
		t.Error("the list was not replaced")
	}
	carry(nil)
	if len(r.st.Revoked) != 0 {
		t.Error("the list was not removed")
	}
	// What is there is accepted, even when its issuer is forgotten.
	carry([]byte(of))
	if r.advance(4 * day); stored(t, r.st) != "" {
		t.Error("signers whose certificates have ended are still stored")
	}
	carry([]byte(of))
	carry(nil)
	if _, err := r.st.WithRevoked([]byte(of)); err == nil {
		t.Error("a list of nobody was accepted")
	}
}

// TestRevokeLeavesBroughtLists: new lists of ours push out none that the user still brings, whoever signed it long ago.
func TestRevokeLeavesBroughtLists(t *testing.T) {
	root, gone := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	r := newRotating(t, authority.Config{MaxTTL: day})
	r.now = time.Now()
	r.st = authority.NewState(newRoot(t), false).Introduce(parseBrought(t, material(t, root, root)), true, r.now, r.cfg)
	r.st.Revoked = gone.CRL(t)
	brought := r.st.Revoked
	var err error
	if r.st, err = r.st.Revoke([]*big.Int{big.NewInt(1)}, r.now); err != nil {
		t.Fatal(err)
	}
	if r.st, err = r.st.WithRevoked(brought); err != nil {
		t.Error(err)
	}
	if n := strings.Count(string(r.st.Revoked), "BEGIN X509 CRL"); n != 2 {
		t.Errorf("%d lists, want ours and the user's", n)
	}
}

// TestRetiredBound has somebody bring another intermediate every hour.
func TestRetiredBound(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	r := newRotating(t, authority.Config{})
	r.now = time.Now()
	r.st = authority.NewState(parseBrought(t, material(t, root.Intermediate(t), root)), true)
	for range 40 {
		r.st = r.st.Introduce(parseBrought(t, material(t, root.Intermediate(t), root)), true, r.now, r.cfg)
		r.advance(time.Hour)
	}
	if n := strings.Count(stored(t, r.st), `"chain"`); n != 32 {
		t.Errorf("%d signers are stored", n)
	}
}

// TestRevokeTooMuch: lists that are too long are refused, and not stored for nobody to read.
func TestRevokeTooMuch(t *testing.T) {
	r := newRotating(t, authority.Config{MaxTTL: day, Settle: 2 * day, Overlap: 3 * day})
	r.st = r.st.Introduce(r.root(), false, r.now, r.cfg)
	serials := make([]*big.Int, 10000)
	for i := range serials {
		serials[i] = new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 150), big.NewInt(int64(i)))
	}
	if _, err := r.st.Revoke(serials, r.now); err == nil || !strings.Contains(err.Error(), "limit is") {
		t.Errorf("error %v", err)
	}
}
