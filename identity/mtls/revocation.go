package mtls

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// defaultInterval is ztunnel's debounce time for the same file.
const defaultInterval = 2 * time.Second

// RevocationConfig configures a Revocation.
type RevocationConfig struct {
	// Path is the file with the revocation lists, PEM (any number) or DER
	// (one). Required.
	Path string
	// Logger gets one line per change and per failed reload. Nil discards.
	Logger *slog.Logger
	// Interval is the time between looks at the file; 0 means 2 s.
	Interval time.Duration
}

// Revocation holds the certificate revocation lists of one file.
//
// A list counts for certificates whose issuer has the list's issuer name and
// signed the list. Certificates that no list speaks of are not revoked, and a
// list's nextUpdate is ignored: a revocation does not lapse because nobody
// renewed the list. A nil *Revocation revokes nothing.
type Revocation struct {
	path     string
	interval time.Duration
	logger   *slog.Logger

	set atomic.Pointer[crlSet]

	seen   fileState // of Watch, or of NewRevocation before it
	digest [sha256.Size]byte

	mu   sync.Mutex
	next int
	subs map[int]func()
}

// NewRevocation loads the file. Content that is not a set of revocation lists
// is an error; the caller should refuse to start. A file that is not there yet
// is not: a ConfigMap may come later, and until then nothing is revoked.
func NewRevocation(cfg RevocationConfig) (*Revocation, error) {
	if cfg.Path == "" {
		return nil, errors.New("load revocation lists: no path")
	}
	r := &Revocation{
		path:     cfg.Path,
		interval: cmp.Or(cfg.Interval, defaultInterval),
		logger:   cfg.Logger,
		subs:     make(map[int]func()),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	r.set.Store(&crlSet{})
	state, content, err := readFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		r.logger.Warn("revocation file does not exist yet", "path", r.path)
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load revocation lists: %w", err)
	}
	set, err := parseCRLs(content)
	if err != nil {
		return nil, fmt.Errorf("load revocation lists %s: %w", r.path, err)
	}
	r.seen, r.digest = state, sha256.Sum256(content)
	r.set.Store(set)
	return r, nil
}

// Check returns a *RevokedError when chain cannot be traced to roots without a
// revoked certificate. The chain is a peer's as it came in its handshake, leaf
// first, and has been verified then; validity times are not looked at, so it
// serves to check live tunnels after a change of the lists. roots are those that
// the handshake used.
func (r *Revocation) Check(chain []*x509.Certificate, roots *identity.Bundle) error {
	if r == nil || len(chain) == 0 {
		return nil
	}
	set := r.set.Load()
	if set.entries == 0 {
		return nil
	}
	if bad := set.check(chain, roots); bad != nil {
		return revokedError(chain[0], bad)
	}
	return nil
}

// Subscribe registers fn to be called by Watch after each change of the lists,
// one call at a time. Calling the returned function ends that; a call that has
// begun may still be running then.
func (r *Revocation) Subscribe(fn func()) (cancel func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.next
	r.next++
	r.subs[id] = fn
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subs, id)
	}
}

// checkVerified applies the lists to the chains that Certificate.Verify found,
// of which one without a revoked certificate is enough.
func (r *Revocation) checkVerified(id identity.ID, chains [][]*x509.Certificate) error {
	if r == nil {
		return nil
	}
	set := r.set.Load()
	if set.entries == 0 {
		return nil
	}
	var bad *x509.Certificate
	for _, chain := range chains {
		found := set.firstRevoked(chain)
		if found == nil {
			return nil
		}
		bad = cmp.Or(bad, found)
	}
	if bad == nil {
		return nil
	}
	return &RevokedError{Peer: id, Serial: bad.SerialNumber, Issuer: bad.Issuer.String()}
}

// firstRevoked returns the first revoked certificate of a complete chain.
func (s *crlSet) firstRevoked(chain []*x509.Certificate) *x509.Certificate {
	for i := range len(chain) - 1 {
		if s.revoked(chain[i], chain[i+1]) {
			return chain[i]
		}
	}
	return nil
}

// tracer looks for a way from a peer's leaf to a root. What lies on the way is the peer's
// choice: certificates that lead nowhere, or in a circle.
type tracer struct {
	set        *crlSet
	candidates []*x509.Certificate
	roots      *identity.Bundle
	seen       map[*x509.Certificate]bool
	signatures int // that may still be checked
}

// maxSignatures is what crypto/x509 checks of one chain.
const maxSignatures = 100

// trace walks from cert up to a root over every issuer among candidates, and returns
// a revoked certificate when there are ways but none without one. A peer whose
// certificates take too long to look at counts as revoked.
func (s *crlSet) trace(cert *x509.Certificate, candidates []*x509.Certificate, roots *identity.Bundle) *x509.Certificate {
	t := &tracer{s, candidates, roots, make(map[*x509.Certificate]bool), maxSignatures}
	_, bad := t.from(cert)
	return bad
}

// from reports whether a way without a revoked certificate leads to a root, and
// otherwise a revoked one of those that were met, if there was any.
func (t *tracer) from(cert *x509.Certificate) (clean bool, bad *x509.Certificate) {
	if t.roots.Contains(cert) {
		return true, nil
	}
	if t.seen[cert] {
		return false, nil
	}
	t.seen[cert] = true
	for _, issuer := range t.candidates {
		if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
			continue
		}
		if t.signatures--; t.signatures < 0 {
			return false, cert
		}
		if cert.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if t.set.revoked(cert, issuer) {
			bad = cmp.Or(bad, cert)
			continue
		}
		ok, found := t.from(issuer)
		if ok {
			return true, nil
		}
		bad = cmp.Or(bad, found)
	}
	return false, bad
}

func revokedError(leaf, bad *x509.Certificate) *RevokedError {
	id, _ := svid.IDFromCert(leaf) // of a verified chain; zero is harmless in a message
	return &RevokedError{Peer: id, Serial: bad.SerialNumber, Issuer: bad.Issuer.String()}
}
