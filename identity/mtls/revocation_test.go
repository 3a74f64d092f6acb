package mtls_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// lists writes content to a file and loads it.
func lists(t testing.TB, content ...[]byte) *mtls.Revocation {
	t.Helper()
	path := filepath.Join(t.TempDir(), "crl.pem")
	write(t, path, bytes.Join(content, nil))
	r, err := mtls.NewRevocation(mtls.RevocationConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRevokedPeer(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	middle := root.Intermediate(t)
	low := middle.Intermediate(t)
	peer, direct, own := low.SVID(t, apiID), root.SVID(t, apiID), root.SVID(t, webID)
	namesake := identitytest.NewCA(t, "td") // another key under the root's name
	tests := []struct {
		name    string
		peer    *svid.SVID
		crls    [][]byte
		revoked *x509.Certificate // nil: the peer passes
	}{
		{"no_lists", peer, nil, nil},
		{"leaf", peer, [][]byte{low.CRL(t, peer.Leaf())}, peer.Leaf()},
		{"leaf_under_root", direct, [][]byte{root.CRL(t, direct.Leaf())}, direct.Leaf()},
		{"intermediate", peer, [][]byte{middle.CRL(t, low.Certificate)}, low.Certificate},
		{"upper_intermediate", peer, [][]byte{root.CRL(t, middle.Certificate)}, middle.Certificate},
		{"among_many", peer, [][]byte{root.CRL(t), middle.CRL(t), low.CRL(t, own.Leaf(), peer.Leaf())}, peer.Leaf()},
		{"two_lists_of_one_issuer", peer, [][]byte{low.CRL(t), low.CRL(t, peer.Leaf())}, peer.Leaf()},
		{"somebody_else", peer, [][]byte{low.CRL(t, own.Leaf()), root.CRL(t, direct.Leaf())}, nil},
		{"serial_of_another_issuer", peer, [][]byte{root.CRL(t, peer.Leaf())}, nil},
		{"list_of_a_namesake", direct, [][]byte{namesake.CRL(t, direct.Leaf())}, nil},
		{"lists_of_both", direct, [][]byte{namesake.CRL(t, direct.Leaf()), root.CRL(t, direct.Leaf())}, direct.Leaf()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rev := lists(t, tt.crls...)
			check := func(t *testing.T, err error) {
				t.Helper()
				if tt.revoked == nil {
					if err != nil {
						t.Errorf("refused: %v", err)
					}
					return
				}
				e, ok := errors.AsType[*mtls.RevokedError](err)
				if !ok || mtls.Reason(err) != mtls.ReasonRevoked {
					t.Fatalf("got error %v", err)
				}
				if e.Serial.Cmp(tt.revoked.SerialNumber) != 0 || e.Issuer != tt.revoked.Issuer.String() || e.Peer != api {
					t.Errorf("got %v, want serial number %x", e, tt.revoked.SerialNumber)
				}
			}
			t.Run("server", func(t *testing.T) {
				client, server := shake(t, mtls.Client(own, []identity.ID{api}, rev), mtls.Server(tt.peer, nil))
				check(t, client.err)
				if tt.revoked != nil && mtls.Reason(server.err) != mtls.ReasonRefusedByPeer {
					t.Errorf("server: %v", server.err)
				}
			})
			t.Run("client", func(t *testing.T) {
				client, server := shake(t, mtls.Client(tt.peer, []identity.ID{web}, nil), mtls.Server(own, rev))
				check(t, server.err)
				if tt.revoked != nil && mtls.Reason(client.err) != mtls.ReasonRefusedByPeer {
					t.Errorf("client: %v", client.err)
				}
			})
			t.Run("live", func(t *testing.T) {
				check(t, rev.Check(tt.peer.Certificates, own.Bundle))
				withRoot := append(slices.Clone(tt.peer.Certificates), root.Certificate)
				check(t, rev.Check(withRoot, own.Bundle))
			})
		})
	}
}

// TestCheckOfLiveConnections covers what a handshake does not meet.
func TestCheckOfLiveConnections(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	low := root.Intermediate(t)
	stranger := identitytest.NewCA(t, "td")
	expired := low.SVID(t, apiID, identitytest.Expired())
	rev := lists(t, root.CRL(t, low.Certificate))
	if err := rev.Check(expired.Certificates, root.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
		t.Errorf("expired meanwhile, and revoked: error %v", err)
	}
	if err := lists(t, root.CRL(t)).Check(expired.Certificates, root.Bundle()); err != nil {
		t.Errorf("expired meanwhile, not revoked: error %v", err)
	}
	junk := slices.Concat(expired.Certificates, []*x509.Certificate{stranger.Certificate, low.Certificate, low.Certificate})
	if err := rev.Check(junk, root.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
		t.Errorf("with certificates that do not belong to it: error %v", err)
	}
	// What was found out about a chain counts for it alone, and for its roots.
	for range 2 {
		if err := rev.Check(expired.Certificates, root.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
			t.Errorf("asked again: error %v", err)
		}
		if err := rev.Check(root.SVID(t, apiID).Certificates, root.Bundle()); err != nil {
			t.Errorf("another chain: error %v", err)
		}
		if err := rev.Check(expired.Certificates, stranger.Bundle()); err != nil {
			t.Errorf("roots that it leads not to: error %v", err)
		}
	}
	if err := rev.Check(nil, root.Bundle()); err != nil {
		t.Errorf("no chain: error %v", err)
	}
	var none *mtls.Revocation
	if err := none.Check(expired.Certificates, root.Bundle()); err != nil {
		t.Errorf("no lists: error %v", err)
	}
}

// TestDecoys: whoever has the key of an authority that is revoked may have sent along certificates for it that lead
// nowhere, or back to it. They are no clean way to a root.
func TestDecoys(t *testing.T) {
	root, stranger := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	a := root.Intermediate(t)
	b := a.Intermediate(t)
	leaf := a.SVID(t, apiID).Leaf()
	var many []*x509.Certificate
	for range 30 {
		many = append(many, a.CrossSign(t, a))
	}
	for _, tt := range []struct {
		name   string
		decoys []*x509.Certificate
	}{
		{"none", nil},
		{"of_a_stranger", []*x509.Certificate{stranger.CrossSign(t, a)}},
		{"with_the_stranger", []*x509.Certificate{stranger.CrossSign(t, a), stranger.Certificate}},
		{"of_its_own", []*x509.Certificate{a.CrossSign(t, a)}},
		{"in_a_circle", []*x509.Certificate{b.CrossSign(t, a), b.Certificate}},
		{"many", many},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, chain := range [][]*x509.Certificate{
				slices.Concat([]*x509.Certificate{leaf}, tt.decoys, []*x509.Certificate{a.Certificate}),
				slices.Concat([]*x509.Certificate{leaf, a.Certificate}, tt.decoys),
			} {
				if err := lists(t, root.CRL(t, a.Certificate)).Check(chain, root.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
					t.Errorf("revoked, and got %v", err)
				}
			}
			chain := slices.Concat([]*x509.Certificate{leaf, a.Certificate}, tt.decoys)
			if err := lists(t, root.CRL(t, b.Certificate)).Check(chain, root.Bundle()); err != nil {
				t.Errorf("not revoked, and got %v", err)
			}
		})
	}
}

// TestOneCleanWayIsEnough has an intermediate with two certificates for one key,
// under two roots, of which one is revoked.
func TestOneCleanWayIsEnough(t *testing.T) {
	old, fresh := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	low := old.Intermediate(t)
	cross := fresh.CrossSign(t, low)
	s := low.SVID(t, apiID)
	s.Certificates = append(s.Certificates, cross)
	both := identity.NewBundle(old.TrustDomain, []*x509.Certificate{old.Certificate, fresh.Certificate})
	own := fresh.SVID(t, webID)
	own.Bundle = both
	for _, tt := range []struct {
		name   string
		rev    *mtls.Revocation
		reason string
	}{
		{"one_revoked", lists(t, old.CRL(t, low.Certificate)), ""},
		{"both_revoked", lists(t, old.CRL(t, low.Certificate), fresh.CRL(t, cross)), mtls.ReasonRevoked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mtls.Reason(tt.rev.Check(s.Certificates, both)); got != tt.reason {
				t.Errorf("live: %q, want %q", got, tt.reason)
			}
			client, _ := shake(t, mtls.Client(own, []identity.ID{api}, tt.rev), mtls.Server(s, nil))
			if got := mtls.Reason(client.err); tt.reason != got && !(tt.reason == "" && got == mtls.ReasonRefusedByPeer) {
				t.Errorf("handshake: %q, want %q", got, tt.reason)
			}
		})
	}
}

// TestNamesakesShareNoVerdict has two authorities of one name, as a rotation leaves them: that a list is not the one's
// says nothing about the other.
func TestNamesakesShareNoVerdict(t *testing.T) {
	old, fresh := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	revoked, sound := old.SVID(t, apiID), fresh.SVID(t, webID)
	both := identity.NewBundle(old.TrustDomain, []*x509.Certificate{old.Certificate, fresh.Certificate})
	rev := lists(t, old.CRL(t, revoked.Leaf(), sound.Leaf()))
	if err := rev.Check(sound.Certificates, both); err != nil {
		t.Errorf("refused by another authority's list: %v", err)
	}
	if got := mtls.Reason(rev.Check(revoked.Certificates, both)); got != mtls.ReasonRevoked {
		t.Errorf("revoked certificate: %q, want %q", got, mtls.ReasonRevoked)
	}
}

// TestIssuerWithoutListBit has a root whose key usage does not allow revocation
// lists, like that of istiod's own authority.
func TestIssuerWithoutListBit(t *testing.T) {
	root := identitytest.NewCA(t, "td", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	peer := root.SVID(t, apiID)
	rev := lists(t, root.CRL(t, peer.Leaf()))
	if err := rev.Check(peer.Certificates, root.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
		t.Errorf("error %v", err)
	}
}

func TestFileForms(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	s := ca.SVID(t, apiID)
	crl := ca.CRL(t, s.Leaf())
	block, _ := pem.Decode(crl)
	tests := []struct {
		name    string
		content []byte
		err     string // after "load revocation lists PATH: "
		revoked bool
	}{
		{name: "pem", content: crl, revoked: true},
		{name: "der", content: block.Bytes, revoked: true},
		{name: "empty"},
		{name: "blank", content: []byte("\n \n")},
		{name: "comment_before", content: append([]byte("# lists\n"), crl...), revoked: true},
		{name: "garbage", content: []byte("hello"), err: "revocation list 1: x509: malformed crl"},
		{name: "certificate", content: ca.RootPEM(), err: `PEM block 1 is "CERTIFICATE", want X509 CRL`},
		{name: "damaged", content: append(slices.Clone(crl), crl[:len(crl)/2]...), err: "PEM block 2 is damaged"},
		{name: "bad_der_in_pem", content: pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte{1}}), err: "revocation list 1: x509: malformed crl"},
		{name: "der_with_more", content: append(slices.Clone(block.Bytes), 0), err: "revocation list 1: 1 octets too many at its end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crl")
			write(t, path, tt.content)
			rev, err := mtls.NewRevocation(mtls.RevocationConfig{Path: path})
			if tt.err != "" {
				if want := "load revocation lists " + path + ": " + tt.err; err == nil || err.Error() != want {
					t.Errorf("got error %v, want %s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := rev.Check(s.Certificates, ca.Bundle()); (err != nil) != tt.revoked {
				t.Errorf("got error %v", err)
			}
		})
	}
	if _, err := mtls.NewRevocation(mtls.RevocationConfig{}); err == nil {
		t.Error("no path is accepted")
	}
	if _, err := mtls.NewRevocation(mtls.RevocationConfig{Path: t.TempDir()}); err == nil {
		t.Error("a directory is accepted")
	}
}

// watched is a Revocation whose Watch runs in a bubble, with what it logs and
// how often it called a subscriber.
type watched struct {
	*mtls.Revocation
	mu    sync.Mutex
	log   bytes.Buffer
	calls int
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *watched) counts() (calls, warnings int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls, strings.Count(w.log.String(), "level=WARN")
}

func watch(t *testing.T, path string) *watched {
	t.Helper()
	w := &watched{}
	var err error
	w.Revocation, err = mtls.NewRevocation(mtls.RevocationConfig{Path: path, Logger: slog.New(slog.NewTextHandler(w, nil))})
	if err != nil {
		t.Fatal(err)
	}
	w.Subscribe(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.calls++
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return w
}

// TestWatch follows one file through its life. Time passes in a bubble, the
// file's own time stamps do not: they are set by hand where they matter.
func TestWatch(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	first, second := ca.SVID(t, apiID), ca.SVID(t, webID)
	none, one, both := ca.CRL(t), ca.CRL(t, first.Leaf()), ca.CRL(t, first.Leaf(), second.Leaf())
	path := filepath.Join(t.TempDir(), "crl.pem")
	steps := []struct {
		name          string
		do            func()
		first, second bool // revoked afterwards
		calls, warns  int  // in all so far
	}{
		{"still_missing", func() {}, false, false, 0, 1},
		{"appears", func() { write(t, path, none) }, false, false, 1, 1},
		{"one_revoked", func() { write(t, path, one) }, true, false, 2, 1},
		{"untouched", func() {}, true, false, 2, 1},
		{"same_content_again", func() { write(t, path, one) }, true, false, 2, 1},
		{"damaged_keeps_last_good", func() { write(t, path, both[:len(both)-40]) }, true, false, 2, 2},
		{"repaired", func() { write(t, path, both) }, true, true, 3, 2},
		{"gone_keeps_last_good", func() { _ = os.Remove(path) }, true, true, 3, 3},
		{"back_with_less", func() { write(t, path, one) }, true, false, 4, 3},
		{"emptied", func() { write(t, path, nil) }, false, false, 5, 3},
	}
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, path)
		for _, step := range steps {
			step.do()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if got := w.Check(first.Certificates, ca.Bundle()) != nil; got != step.first {
				t.Errorf("%s: first revoked: %v, want %v", step.name, got, step.first)
			}
			if got := w.Check(second.Certificates, ca.Bundle()) != nil; got != step.second {
				t.Errorf("%s: second revoked: %v, want %v", step.name, got, step.second)
			}
			if calls, warns := w.counts(); calls != step.calls || warns != step.warns {
				t.Errorf("%s: %d calls, %d warnings; want %d, %d", step.name, calls, warns, step.calls, step.warns)
			}
		}
	})
}

// TestWatchConfigMap swaps directories below a symbolic link, as kubelet does.
func TestWatchConfigMap(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	s := ca.SVID(t, apiID)
	dir := t.TempDir()
	version := func(name string, content []byte) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name, "ca-crl.pem")
		write(t, file, append(content, bytes.Repeat([]byte("\n"), 4096-len(content))...))
		// Both versions have the same size and time, so that the file's identity decides.
		if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..v1", ca.CRL(t))
	path := filepath.Join(dir, "ca-crl.pem")
	if err := os.Symlink(filepath.Join("..data", "ca-crl.pem"), path); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, path)
		time.Sleep(10 * time.Second)
		if err := w.Check(s.Certificates, ca.Bundle()); err != nil {
			t.Fatal(err)
		}
		version("..v2", ca.CRL(t, s.Leaf()))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if err := w.Check(s.Certificates, ca.Bundle()); mtls.Reason(err) != mtls.ReasonRevoked {
			t.Errorf("after the swap: error %v", err)
		}
	})
}

func TestUnsubscribe(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	path := filepath.Join(t.TempDir(), "crl.pem")
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, path)
		var called bool
		w.Subscribe(func() { called = true })()
		write(t, path, ca.CRL(t))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if calls, _ := w.counts(); calls != 1 || called {
			t.Errorf("%d calls, the cancelled one called: %v", calls, called)
		}
	})
}

// FuzzRevocationFile checks that no content makes the loader fall over.
func FuzzRevocationFile(f *testing.F) {
	ca := identitytest.NewCA(f, "td")
	s := ca.SVID(f, apiID)
	crl := ca.CRL(f, s.Leaf())
	block, _ := pem.Decode(crl)
	f.Add(crl)
	f.Add(block.Bytes)
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	path := filepath.Join(f.TempDir(), "crl")
	f.Fuzz(func(t *testing.T, content []byte) {
		write(t, path, content)
		rev, err := mtls.NewRevocation(mtls.RevocationConfig{Path: path})
		if err == nil {
			_ = rev.Check(s.Certificates, ca.Bundle())
		}
	})
}

// BenchmarkCheck asks about one of the live connections that share a chain.
func BenchmarkCheck(b *testing.B) {
	root := identitytest.NewCA(b, "td")
	low := root.Intermediate(b)
	s := low.SVID(b, apiID)
	rev := lists(b, root.CRL(b, root.SVID(b, apiID).Leaf()))
	b.ReportAllocs()
	for b.Loop() {
		if err := rev.Check(s.Certificates, s.Bundle); err != nil {
			b.Fatal(err)
		}
	}
}
