package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	scheme = "spiffe://"

	// maxIDLength is the limit of the SPIFFE ID specification, section 2.3.
	maxIDLength = 2048
)

// ID is the identity of a workload: a Kubernetes service account in a trust
// domain, written spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT. The zero
// value means "no identity" and equals no parsed one.
type ID struct {
	td             TrustDomain
	namespace      string
	serviceAccount string
}

// New makes an ID of its parts, each of which must be present and fit in one
// path segment of a SPIFFE ID.
func New(td TrustDomain, namespace, serviceAccount string) (ID, error) {
	if td.IsZero() {
		return ID{}, errors.New("make identity: no trust domain")
	}
	if err := checkSegment(namespace); err != nil {
		return ID{}, fmt.Errorf("make identity: namespace: %w", err)
	}
	if err := checkSegment(serviceAccount); err != nil {
		return ID{}, fmt.Errorf("make identity: service account: %w", err)
	}
	id := ID{td: td, namespace: namespace, serviceAccount: serviceAccount}
	if n := id.length(); n > maxIDLength {
		return ID{}, fmt.Errorf("make identity: %d octets, limit is %d", n, maxIDLength)
	}
	return id, nil
}

// Parse reads the URI form. Only the form that Istio issues is an ID here:
// exactly the path /ns/NAMESPACE/sa/SERVICEACCOUNT. Unlike ztunnel's parser it
// refuses empty parts, because an empty namespace could satisfy a policy that
// meant a missing one.
func Parse(s string) (ID, error) {
	if len(s) > maxIDLength {
		return ID{}, fmt.Errorf("parse identity: %d octets, limit is %d", len(s), maxIDLength)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return ID{}, fmt.Errorf("parse identity %q: scheme is not spiffe", s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("parse identity %q: not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT", s)
	}
	td, err := ParseTrustDomain(parts[0])
	if err != nil {
		return ID{}, fmt.Errorf("parse identity %q: %w", s, err)
	}
	id, err := New(td, parts[2], parts[4])
	if err != nil {
		return ID{}, fmt.Errorf("parse identity %q: %w", s, err)
	}
	return id, nil
}

// MustParse is Parse for constants and tests; it panics on a bad ID.
func MustParse(s string) ID {
	id, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return id
}

// TrustDomain returns the trust domain that vouches for the identity.
func (id ID) TrustDomain() TrustDomain { return id.td }

// Namespace returns the Kubernetes namespace.
func (id ID) Namespace() string { return id.namespace }

// ServiceAccount returns the Kubernetes service account.
func (id ID) ServiceAccount() string { return id.serviceAccount }

// IsZero reports whether id is no identity.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the URI form, or the empty string for the zero value.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return scheme + id.Principal()
}

// Principal returns the form that authorization policies use, which is the URI
// without its scheme; empty for the zero value.
func (id ID) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.td.name + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}

// AppendPrincipal appends what Principal returns.
func (id ID) AppendPrincipal(b []byte) []byte {
	if id.IsZero() {
		return b
	}
	b = append(append(b, id.td.name...), "/ns/"...)
	b = append(append(b, id.namespace...), "/sa/"...)
	return append(b, id.serviceAccount...)
}

// URL returns the URI form for certificates. It is nil for the zero value.
func (id ID) URL() *url.URL {
	if id.IsZero() {
		return nil
	}
	return &url.URL{
		Scheme: "spiffe",
		Host:   id.td.name,
		Path:   "/ns/" + id.namespace + "/sa/" + id.serviceAccount,
	}
}

// MarshalText returns what String returns.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id ID) length() int {
	return len(scheme) + len(id.td.name) + len("/ns/") + len(id.namespace) + len("/sa/") + len(id.serviceAccount)
}

// checkSegment applies the SPIFFE ID specification, section 2.2, to one path
// segment.
func checkSegment(s string) error {
	switch s {
	case "":
		return errors.New("empty")
	case ".", "..":
		return fmt.Errorf("%q is not allowed", s)
	}
	for i := range len(s) {
		c := s[i]
		if !isTrustDomainByte(c) && !('A' <= c && c <= 'Z') {
			return fmt.Errorf("character %q at %d is not allowed", c, i)
		}
	}
	return nil
}
