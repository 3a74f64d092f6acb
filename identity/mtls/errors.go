package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"

	"github.com/culvert-mesh/culvert/identity"
)

// The reasons that Reason returns; those of a certificate are in the texts of errors too. They are stable: logs carry them.
const (
	ReasonExpired          = "expired"
	ReasonNotYetValid      = "not yet valid"
	ReasonUnknownAuthority = "unknown authority"
	ReasonWrongTrustDomain = "wrong trust domain"
	ReasonNoCertificate    = "no certificate"
	ReasonNoIdentity       = "no identity"
	ReasonRevoked          = "revoked"
	ReasonIdentityMismatch = "identity mismatch"
	ReasonBadCertificate   = "bad certificate"
	ReasonNotTLS           = "not TLS"
	ReasonRefusedByPeer    = "refused by peer"
	ReasonTimeout          = "timeout"
	ReasonHandshake        = "handshake failed"
)

// ErrNoCertificate says that the peer presented no certificate at all.
var ErrNoCertificate = errors.New("peer presented no certificate")

// CertificateError says why a peer's chain was not accepted.
type CertificateError struct {
	// Claimed is the identity that the leaf names, zero when it names none. It
	// is unproven.
	Claimed identity.ID
	// Cause is one of the Reason constants.
	Cause string
	// Err is the detail.
	Err error
}

func (e *CertificateError) Error() string {
	if e.Claimed.IsZero() {
		return fmt.Sprintf("peer certificate: %s: %v", e.Cause, e.Err)
	}
	return fmt.Sprintf("peer certificate claiming %s: %s: %v", e.Claimed, e.Cause, e.Err)
}

// Unwrap returns the detail.
func (e *CertificateError) Unwrap() error { return e.Err }

// TrustDomainError says that a client proved an identity of a foreign trust domain.
type TrustDomainError struct {
	Expected identity.TrustDomain
	Got      identity.ID
}

func (e *TrustDomainError) Error() string {
	return fmt.Sprintf("wrong trust domain: peer is %s, want one of %s", e.Got, e.Expected)
}

// IdentityMismatchError says that a server proved another identity than any of
// those expected.
type IdentityMismatchError struct {
	Expected []identity.ID
	Got      identity.ID
}

func (e *IdentityMismatchError) Error() string {
	if len(e.Expected) == 0 {
		return fmt.Sprintf("identity mismatch: peer is %s, no identity is expected there", e.Got)
	}
	want := make([]string, len(e.Expected))
	for i, id := range e.Expected {
		want[i] = id.String()
	}
	return fmt.Sprintf("identity mismatch: peer is %s, want %s", e.Got, strings.Join(want, " or "))
}

// RevokedError says that a certificate of the peer's chain is on a revocation list.
type RevokedError struct {
	// Peer is the identity of the chain's leaf.
	Peer identity.ID
	// Serial and Issuer name the revoked certificate, which may be an intermediate.
	Serial *big.Int
	Issuer string
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("revoked: peer %s: certificate %x of issuer %q is on the revocation list", e.Peer, e.Serial, e.Issuer)
}

// Reason returns the short stable text that says why a handshake or a later check
// failed; empty for nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*CertificateError](err); ok {
		return e.Cause
	}
	if _, ok := errors.AsType[*TrustDomainError](err); ok {
		return ReasonWrongTrustDomain
	}
	if _, ok := errors.AsType[*IdentityMismatchError](err); ok {
		return ReasonIdentityMismatch
	}
	if _, ok := errors.AsType[*RevokedError](err); ok {
		return ReasonRevoked
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return ReasonNotTLS
	}
	// The text is that of crypto/tls, which has no value for it.
	if errors.Is(err, ErrNoCertificate) || strings.Contains(err.Error(), "client didn't provide a certificate") {
		return ReasonNoCertificate
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return ReasonRefusedByPeer
	}
	// net's and crypto/tls's deadline errors are os.ErrDeadlineExceeded.
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return ReasonTimeout
	}
	return ReasonHandshake
}
