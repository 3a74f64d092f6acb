package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// blockCRL is the type of PEM blocks of lists (RFC 7468 section 6).
const blockCRL = "X509 CRL"

// maxCRL bounds the lists that are carried; a ConfigMap holds 1 MiB.
const maxCRL = 900 << 10

// maxSerials bounds a list that is made here; each takes about 35 octets.
const maxSerials = 10000

// ParseSerials reads serial numbers of certificates in hexadecimal, one a line,
// as openssl prints them (with or without colons). Blank lines and what follows
// a '#' are ignored.
func ParseSerials(text []byte) ([]*big.Int, error) {
	var serials []*big.Int
	for n, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.ReplaceAll(strings.TrimSpace(line), ":", "")
		if line == "" {
			continue
		}
		// RFC 5280 section 4.1.2.2: at most 20 octets.
		serial, ok := new(big.Int).SetString(line, 16)
		if !ok || serial.Sign() <= 0 || serial.BitLen() > 160 {
			return nil, fmt.Errorf("line %d is no serial number", n+1)
		}
		if serials = append(serials, serial); len(serials) > maxSerials {
			return nil, fmt.Errorf("more than %d serial numbers", maxSerials)
		}
	}
	return serials, nil
}

// CRL makes a revocation list of what s has signed, as PEM text, that ends with
// s. number must grow from list to list (RFC 5280 section 5.2.3).
func (s *Signer) CRL(revoked []*big.Int, number *big.Int, now time.Time) ([]byte, error) {
	template := &x509.RevocationList{Number: number, ThisUpdate: now, NextUpdate: s.NotAfter()}
	for _, serial := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, s.cert, s.key)
	if err != nil {
		return nil, fmt.Errorf("make revocation list of %q: %w", s.cert.Subject, err)
	}
	return encodeCRL(der), nil
}

// CheckRevoked checks lists that somebody brought: each must be signed by a
// root of the bundle or by a certificate between them and the signers. Lists
// of strangers would be ignored by all agents, so they are a mistake.
func (st State) CheckRevoked(pemBytes []byte) error {
	lists, err := parseCRLs(pemBytes)
	if err != nil {
		return fmt.Errorf("%s: %w", KeyCRL, err)
	}
	for i, list := range lists {
		if st.issuerOf(list) == nil {
			return fmt.Errorf("%s: list %d, of %q, is signed by no certificate of this authority", KeyCRL, i+1, list.Issuer)
		}
	}
	return nil
}

// WithRevoked replaces all lists by those that somebody brought, after
// CheckRevoked. Empty text removes them.
func (st State) WithRevoked(pemBytes []byte) (State, error) {
	if len(bytes.TrimSpace(pemBytes)) == 0 {
		st.Revoked = nil
		return st, nil
	}
	if err := st.CheckRevoked(pemBytes); err != nil {
		return st, err
	}
	st.Revoked = pemBytes
	return st, nil
}

// Revokes reports whether the lists of all signers at hand name exactly these
// serial numbers.
func (st State) Revokes(serials []*big.Int) bool {
	lists, err := parseCRLs(st.Revoked)
	if err != nil {
		return len(serials) == 0 && len(st.Revoked) == 0
	}
	want := make(map[string]bool, len(serials))
	for _, serial := range serials {
		want[serial.String()] = true
	}
	found := 0
	for _, list := range lists {
		if !st.signs(st.issuerOf(list)) {
			continue
		}
		found++
		have := make(map[string]bool, len(want))
		for _, entry := range list.RevokedCertificateEntries {
			have[entry.SerialNumber.String()] = true
		}
		if !maps.Equal(have, want) {
			return false
		}
	}
	return found == len(st.signers())
}

// Revoke makes new lists of the signers at hand, and keeps those of signers that
// are gone while their root is in the bundle.
func (st State) Revoke(serials []*big.Int, now time.Time) (State, error) {
	var kept []byte
	number := big.NewInt(now.Unix())
	lists, err := parseCRLs(st.Revoked)
	if err != nil && len(st.Revoked) > 0 {
		return st, fmt.Errorf("%s: %w", KeyCRL, err)
	}
	for _, list := range lists {
		if list.Number != nil && list.Number.Cmp(number) >= 0 {
			number = new(big.Int).Add(list.Number, big.NewInt(1))
		}
		if issuer := st.issuerOf(list); issuer != nil && !st.signs(issuer) {
			kept = append(kept, encodeCRL(list.Raw)...)
		}
	}
	for _, s := range st.signers() {
		list, err := s.CRL(serials, number, now)
		if err != nil {
			return st, err
		}
		kept = append(kept, list...)
	}
	st.Revoked = kept
	return st, nil
}

func (st State) signers() []*Signer {
	if st.Next == nil {
		return []*Signer{st.Signer}
	}
	return []*Signer{st.Signer, st.Next}
}

// signs reports whether cert is that of a signer at hand.
func (st State) signs(cert *x509.Certificate) bool {
	return cert != nil && slices.ContainsFunc(st.signers(), func(s *Signer) bool { return s.cert.Equal(cert) })
}

// issuerOf returns the certificate of ours that signed the list, or nil.
func (st State) issuerOf(list *x509.RevocationList) *x509.Certificate {
	candidates := append(st.Certificates(), st.Signer.above...)
	if st.Next != nil {
		candidates = append(candidates, st.Next.above...)
	}
	for _, cert := range candidates {
		// Not CheckSignatureFrom: agents do not insist on the usage cRLSign
		// either, which older authorities lack.
		if bytes.Equal(cert.RawSubject, list.RawIssuer) &&
			cert.CheckSignature(list.SignatureAlgorithm, list.RawTBSRevocationList, list.Signature) == nil {
			return cert
		}
	}
	return nil
}

func parseCRLs(pemBytes []byte) ([]*x509.RevocationList, error) {
	if len(pemBytes) > maxCRL {
		return nil, fmt.Errorf("%d octets, limit is %d", len(pemBytes), maxCRL)
	}
	var lists []*x509.RevocationList
	blocks, err := identity.EachPEM(pemBytes, blockCRL, func(der []byte) error {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return fmt.Errorf("list %d: %w", len(lists)+1, err)
		}
		lists = append(lists, list)
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case blocks == 0:
		return nil, errors.New("no revocation list found")
	}
	return lists, nil
}

func encodeCRL(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCRL, Bytes: der})
}
