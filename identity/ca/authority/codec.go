package authority

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// What a stored State has beside the four entries of Istio's layout.
const (
	keyState   = "state.json"
	keyRetired = "retired.json"
	nextPrefix = "next-"
)

// record is state.json: what certificates do not tell. Roots are named by the
// SHA-256 of their DER.
type record struct {
	Version int          `json:"version"`
	Brought bool         `json:"brought,omitempty"`
	Request string       `json:"request,omitempty"`
	Signer  []string     `json:"signerRoots"`
	Roots   []rootRecord `json:"roots"`
	// Own is of the signer, Brought of the next one if there is one.
	Own       bool     `json:"own,omitempty"`
	Inherited []string `json:"inheritedLists,omitempty"`
}

type rootRecord struct {
	Root  string    `json:"sha256"`
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

const recordVersion = 1

// IsKey reports whether an entry of a Secret is one that Encode writes.
func IsKey(key string) bool {
	switch strings.TrimPrefix(key, nextPrefix) {
	case KeyCert, KeyKey, KeyChain, KeyRoots:
		return true
	}
	return key == KeyCRL || key == keyState || key == keyRetired
}

// Encode returns a State as the entries of a Secret: the signer and the whole
// bundle in Istio's layout, which any other tool can read, and beside that the
// next signer, those before and the times. It holds private keys.
func (st State) Encode() (map[string][]byte, error) {
	m, err := st.Signer.Material()
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{
		KeyCert: m.Cert, KeyKey: m.Key, KeyChain: m.Chain, KeyRoots: encode(st.Certificates()...),
	}
	if st.Next != nil {
		m, err := st.Next.Material()
		if err != nil {
			return nil, err
		}
		maps.Copy(data, map[string][]byte{
			nextPrefix + KeyCert: m.Cert, nextPrefix + KeyKey: m.Key, nextPrefix + KeyChain: m.Chain, nextPrefix + KeyRoots: m.Roots,
		})
	}
	if len(st.Revoked) > 0 {
		data[KeyCRL] = st.Revoked
	}
	if len(st.retired) > 0 {
		if data[keyRetired], err = st.encodeRetired(); err != nil {
			return nil, err
		}
	}
	rec := record{Version: recordVersion, Brought: st.Brought, Request: st.Request, Own: st.own, Inherited: st.inherited}
	for _, cert := range st.Signer.roots {
		rec.Signer = append(rec.Signer, fingerprint(cert))
	}
	for _, root := range st.Roots {
		rec.Roots = append(rec.Roots, rootRecord{fingerprint(root.Certificate), root.Since.UTC(), root.Until.UTC()})
	}
	data[keyState], err = json.Marshal(rec)
	return data, err
}

// Decode reads the entries of a Secret. Without the record of times, as when
// somebody made the Secret by hand, all roots are taken to be old and to stay.
// A signer that has expired is no error: Advance replaces it.
func Decode(data map[string][]byte, td identity.TrustDomain) (State, error) {
	signer, err := parseSigner(MaterialOf(data), td)
	if err != nil {
		return State{}, fmt.Errorf("read authority: %w", err)
	}
	st := NewState(signer, true)
	if raw, ok := data[keyState]; ok {
		if err := st.apply(raw); err != nil {
			return State{}, fmt.Errorf("read authority: %s: %w", keyState, err)
		}
	}
	if len(data[nextPrefix+KeyCert]) > 0 {
		next := make(map[string][]byte)
		for _, key := range []string{KeyCert, KeyKey, KeyChain, KeyRoots} {
			next[key] = data[nextPrefix+key]
		}
		if st.Next, err = parseSigner(MaterialOf(next), td); err != nil {
			return State{}, fmt.Errorf("read authority: next signer: %w", err)
		}
		for _, cert := range st.Next.roots {
			if st.indexOf(cert) < 0 {
				return State{}, fmt.Errorf("read authority: a root of the next signer is missing in %s", KeyRoots)
			}
		}
	}
	if crl := data[KeyCRL]; len(bytes.TrimSpace(crl)) > 0 {
		if _, err := parseCRLs(crl); err != nil {
			return State{}, fmt.Errorf("read authority: %s: %w", KeyCRL, err)
		}
		st.Revoked = crl
	}
	if raw, ok := data[keyRetired]; ok {
		if err := st.applyRetired(raw); err != nil {
			return State{}, fmt.Errorf("read authority: %s: %w", keyRetired, err)
		}
	}
	return st, nil
}

// apply adds what the record knows.
func (st *State) apply(raw []byte) error {
	var rec record
	if len(raw) > maxPEM {
		return fmt.Errorf("%d octets, limit is %d", len(raw), maxPEM)
	}
	if err := json.Unmarshal(raw, &rec); err != nil {
		return err
	}
	if rec.Version != recordVersion {
		return fmt.Errorf("version %d is not known here", rec.Version)
	}
	st.Brought, st.Request, st.inherited = rec.Brought, rec.Request, rec.Inherited
	st.own = rec.Own || !rec.Brought // we make no signer after one that was brought
	times := make(map[string]rootRecord, len(rec.Roots))
	for _, r := range rec.Roots {
		times[r.Root] = r
	}
	known := make(map[string]*x509.Certificate, len(st.Roots))
	for i := range st.Roots {
		root := &st.Roots[i]
		fp := fingerprint(root.Certificate)
		known[fp] = root.Certificate
		root.Since, root.Until = times[fp].Since, times[fp].Until
	}
	var own []*x509.Certificate
	for _, fp := range rec.Signer {
		if known[fp] == nil {
			return fmt.Errorf("a root of the signer is missing in %s", KeyRoots)
		}
		own = append(own, known[fp])
	}
	st.Signer.roots = own
	if len(st.Signer.anchors()) == 0 {
		return errors.New("the signer's chain leads to none of its roots")
	}
	return nil
}

func fingerprint(cert *x509.Certificate) string { return fingerprintOf(cert.Raw) }

func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
