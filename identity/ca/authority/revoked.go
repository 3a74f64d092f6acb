package authority

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// parseBrought reads lists that somebody brought, of which there may be none: each
// must be signed by a root of the bundle, by a certificate between them and the
// signers, or by a signer that has been replaced, or be among those there are.
// Lists of strangers would be ignored by all agents, so they are a mistake.
func (st State) parseBrought(pemBytes []byte, have []*x509.RevocationList) ([]*x509.RevocationList, error) {
	if len(bytes.TrimSpace(pemBytes)) == 0 {
		return nil, nil
	}
	lists, err := parseCRLs(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCRL, err)
	}
	for i, list := range lists {
		if st.issuerOf(list) == nil && !slices.ContainsFunc(have, sameList(list)) {
			return nil, fmt.Errorf("%s: list %d, of %q, is signed by no certificate of this authority", KeyCRL, i+1, list.Issuer)
		}
	}
	return lists, nil
}

// WithRevoked replaces the lists that were brought with the newest signer by
// those that somebody brings now, see parseBrought. Empty text removes them.
// What is revoked by others stays so: lists that are made here, and those from
// before the newest signer while their issuer's certificates may be valid and no
// other list of the same issuer is brought.
func (st State) WithRevoked(pemBytes []byte) (State, error) {
	have, err := st.lists()
	if err != nil {
		return st, err
	}
	brought, err := st.parseBrought(pemBytes, have)
	if err != nil {
		return st, err
	}
	var revoked []byte
	if len(brought) > 0 {
		revoked = slices.Clone(pemBytes)
	}
	for _, list := range have {
		if slices.ContainsFunc(brought, sameList(list)) || !st.keeps(list, brought) {
			continue
		}
		if n := len(revoked); n > 0 && revoked[n-1] != '\n' {
			revoked = append(revoked, '\n')
		}
		revoked = append(revoked, encodeCRL(list.Raw)...)
	}
	if len(revoked) > maxCRL {
		return st, fmt.Errorf("%s: %d octets with the lists that stay, limit is %d", KeyCRL, len(revoked), maxCRL)
	}
	st.Revoked = revoked
	return st, nil
}

// keeps reports whether a list stays though it is not among those that are
// brought.
func (st State) keeps(list *x509.RevocationList, brought []*x509.RevocationList) bool {
	issuer := st.issuerOf(list)
	if st.makesListsOf(issuer) {
		return true
	}
	return issuer != nil && slices.Contains(st.inherited, fingerprintOf(list.Raw)) &&
		!slices.ContainsFunc(brought, func(other *x509.RevocationList) bool { return sameIssuer(issuer, st.issuerOf(other)) })
}

// inherit notes that the lists there are were not brought with the newest signer.
func (st *State) inherit() {
	have, err := st.lists()
	if err != nil {
		return // Decode has refused such text
	}
	st.inherited = nil
	for _, list := range have {
		st.inherited = append(st.inherited, fingerprintOf(list.Raw))
	}
}

// Revokes reports whether the lists that are made here name exactly these serial
// numbers. Where none is to be revoked there need not be a list.
func (st State) Revokes(serials []*big.Int) bool {
	have, err := st.lists()
	if err != nil {
		return false
	}
	want := make(map[string]bool, len(serials))
	for _, serial := range serials {
		want[serial.String()] = true
	}
	makers := st.makers()
	listed, exact := make([]bool, len(makers)), make([]bool, len(makers))
	for _, list := range have {
		issuer := st.issuerOf(list)
		if i := slices.IndexFunc(makers, func(s *Signer) bool { return sameIssuer(s.cert, issuer) }); i >= 0 {
			listed[i], exact[i] = true, exact[i] || names(list, want)
		}
	}
	for i := range makers {
		if !exact[i] && (listed[i] || len(want) > 0) {
			return false
		}
	}
	return true
}

// Revoke makes new lists of all signers of our own making, those too that have
// been replaced but have their root in the bundle. Nobody knows which of them
// has signed what, so each list has all serial numbers. Lists of others are kept
// while their issuer's root is in the bundle.
func (st State) Revoke(serials []*big.Int, now time.Time) (State, error) {
	var revoked []byte
	number := big.NewInt(now.Unix())
	have, err := st.lists()
	if err != nil {
		return st, err
	}
	for _, list := range have {
		if list.Number != nil && list.Number.Cmp(number) >= 0 {
			number = new(big.Int).Add(list.Number, big.NewInt(1))
		}
		// Which of those that were brought stay is up to WithRevoked.
		if issuer := st.issuerOf(list); !st.makesListsOf(issuer) && (issuer != nil || st.Brought) {
			revoked = append(revoked, encodeCRL(list.Raw)...)
		}
	}
	for _, s := range st.makers() {
		list, err := s.CRL(serials, number, now)
		if err != nil {
			return st, err
		}
		revoked = append(revoked, list...)
	}
	if len(revoked) > maxCRL {
		return st, fmt.Errorf("%s: %d octets, limit is %d", KeyCRL, len(revoked), maxCRL)
	}
	st.Revoked = revoked
	return st, nil
}

// makers are the signers whose lists are made here: those that nobody brought.
func (st State) makers() []*Signer {
	var all []*Signer
	if st.own {
		all = append(all, st.Signer)
	}
	if st.Next != nil && !st.Brought {
		all = append(all, st.Next)
	}
	for _, r := range st.retired {
		known := slices.ContainsFunc(all, func(s *Signer) bool { return sameIssuer(s.cert, r.signer.cert) })
		if r.signer.key != nil && !known { // a signer may have come back
			all = append(all, r.signer)
		}
	}
	return all
}

// makesListsOf reports whether cert is that of a signer whose lists are made here.
func (st State) makesListsOf(cert *x509.Certificate) bool {
	return slices.ContainsFunc(st.makers(), func(s *Signer) bool { return sameIssuer(s.cert, cert) })
}

// lists returns what Revoked holds.
func (st State) lists() ([]*x509.RevocationList, error) {
	if len(st.Revoked) == 0 {
		return nil, nil
	}
	lists, err := parseCRLs(st.Revoked)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCRL, err)
	}
	return lists, nil
}

// issuerOf returns the certificate of ours that signed the list, or nil.
func (st State) issuerOf(list *x509.RevocationList) *x509.Certificate {
	candidates := append(st.Certificates(), st.Signer.above...)
	if st.Next != nil {
		candidates = append(candidates, st.Next.above...)
	}
	for _, r := range st.retired {
		candidates = append(candidates, r.signer.above...)
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
