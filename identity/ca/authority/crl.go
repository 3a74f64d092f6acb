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

// names reports whether a list names exactly these serial numbers.
func names(list *x509.RevocationList, want map[string]bool) bool {
	have := make(map[string]bool, len(want))
	for _, entry := range list.RevokedCertificateEntries {
		have[entry.SerialNumber.String()] = true
	}
	return maps.Equal(have, want)
}

// sameIssuer reports whether a list of one certificate is one of the other, as of
// a certificate and its renewal. Nobody is the same as nil.
func sameIssuer(a, b *x509.Certificate) bool {
	return a != nil && b != nil && bytes.Equal(a.RawSubject, b.RawSubject) &&
		bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

func sameList(list *x509.RevocationList) func(*x509.RevocationList) bool {
	return func(other *x509.RevocationList) bool { return bytes.Equal(list.Raw, other.Raw) }
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
