package identity

import (
	"errors"
	"fmt"
)

// maxTrustDomainLength is the limit of the SPIFFE ID specification, section 2.1.
const maxTrustDomainLength = 255

// TrustDomain names one root of trust, "cluster.local" for example. The zero
// value is no trust domain.
type TrustDomain struct {
	name string
}

// ParseTrustDomain reads a trust domain name. Names follow the SPIFFE ID
// specification, section 2.1: lower case letters, digits, '.', '-' and '_',
// at most 255 octets. No normalisation takes place, so two equal trust domains
// always have equal names.
func ParseTrustDomain(s string) (TrustDomain, error) {
	if s == "" {
		return TrustDomain{}, errors.New("parse trust domain: empty")
	}
	if len(s) > maxTrustDomainLength {
		return TrustDomain{}, fmt.Errorf("parse trust domain: %d octets, limit is %d", len(s), maxTrustDomainLength)
	}
	for i := range len(s) {
		if !isTrustDomainByte(s[i]) {
			return TrustDomain{}, fmt.Errorf("parse trust domain %q: character %q at %d is not allowed", s, s[i], i)
		}
	}
	return TrustDomain{name: s}, nil
}

// MustTrustDomain is ParseTrustDomain for constants and tests; it panics on a
// bad name.
func MustTrustDomain(s string) TrustDomain {
	td, err := ParseTrustDomain(s)
	if err != nil {
		panic(err)
	}
	return td
}

// String returns the bare name, without a scheme; empty for the zero value.
func (td TrustDomain) String() string { return td.name }

// IsZero reports whether td names nothing.
func (td TrustDomain) IsZero() bool { return td.name == "" }

// MarshalText returns the bare name.
func (td TrustDomain) MarshalText() ([]byte, error) { return []byte(td.name), nil }

func isTrustDomainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}
