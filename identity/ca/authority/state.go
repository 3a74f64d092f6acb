package authority

import (
	"crypto/x509"
	"slices"
	"time"
)

// Root is one root of the bundle.
type Root struct {
	Certificate *x509.Certificate
	// Since is when it joined the bundle; zero for roots that were there from
	// the beginning, which everybody has.
	Since time.Time
	// Until is when it leaves; zero while it is to stay.
	Until time.Time
}

// State is all that an authority has to remember. It is not changed in place:
// every step returns a new one.
//
//	          Introduce                    Settle passed                 Overlap passed
//	settled ─────────────► introduced ─────────────────► overlapping ─────────────────► settled
//	one root               Next and its root are         Next has become Signer, the
//	                       there, Signer signs           old root is still trusted
type State struct {
	// Signer signs.
	Signer *Signer
	// Next signs as soon as everybody trusts its root; nil outside of a rotation.
	Next *Signer
	// Roots is the bundle that everybody is to trust.
	Roots []Root
	// Brought says that the newest signer is not of our own making, so its end
	// is for those to see to who brought it.
	Brought bool
	// Request is the latest wish for a rotation that was heeded, in the words
	// of whoever asked; see Requested.
	Request string
	// Revoked holds revocation lists as PEM text; see WithRevoked and Revoke.
	Revoked []byte

	own       bool      // Signer is of our own making
	retired   []retired // for lists only
	inherited []string  // lists that are older than the newest signer, by fingerprint
}

// NewState is the beginning: nobody has had another root before.
func NewState(s *Signer, brought bool) State {
	st := State{Signer: s, Brought: brought, own: !brought}
	for _, cert := range s.roots {
		st.Roots = append(st.Roots, Root{Certificate: cert})
	}
	return st
}

// Certificates returns the certificates of the bundle.
func (st State) Certificates() []*x509.Certificate {
	certs := make([]*x509.Certificate, 0, len(st.Roots))
	for _, root := range st.Roots {
		certs = append(certs, root.Certificate)
	}
	return certs
}

// Requested notes a wish to rotate. A wish that was heeded before is none.
func (st State) Requested(wish string) (State, bool) {
	if wish == "" || wish == st.Request {
		return st, false
	}
	st.Request = wish
	return st, true
}

// Same reports whether s is what signs, or is to sign next, with the same chain
// and roots.
func (st State) Same(s *Signer) bool {
	newest := st.Signer
	if st.Next != nil {
		newest = st.Next
	}
	return newest.equal(s)
}

// Introduce begins a rotation to s: its roots join the bundle at now. It signs
// when Advance finds that time enough has passed, which is at once if its root
// has been in the bundle long before. A rotation that was under way is given
// up.
func (st State) Introduce(s *Signer, brought bool, now time.Time, cfg Config) State {
	st.Roots = slices.Clone(st.Roots)
	st.Brought, st.Next = brought, s
	st.inherit()
	for _, cert := range s.roots {
		if i := st.indexOf(cert); i >= 0 {
			st.Roots[i].Until = time.Time{}
			continue
		}
		st.Roots = append(st.Roots, Root{Certificate: cert, Since: now})
	}
	st.retire(now.Add(cfg.Overlap))
	return st
}

// retire sets the end of all roots that neither signer brings along.
func (st *State) retire(until time.Time) {
	stays := st.Signer.roots
	if st.Next != nil {
		stays = slices.Concat(stays, st.Next.roots)
	}
	for i := range st.Roots {
		if r := &st.Roots[i]; r.Until.IsZero() && !contains(stays, r.Certificate) {
			r.Until = until
		}
	}
}

func (st State) indexOf(cert *x509.Certificate) int {
	return slices.IndexFunc(st.Roots, func(r Root) bool { return r.Certificate.Equal(cert) })
}

func (s *Signer) equal(other *Signer) bool {
	same := func(a, b *x509.Certificate) bool { return a.Equal(b) }
	return s.cert.Equal(other.cert) && slices.EqualFunc(s.above, other.above, same) &&
		slices.EqualFunc(s.roots, other.roots, same)
}
