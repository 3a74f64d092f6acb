// Package mtls builds the crypto/tls configurations of the mesh: TLS 1.3 with
// certificates on both sides, the check of the peer's identity, and revocation
// lists.
//
// It decides whether a peer is who it has to be; whether that identity may
// connect is the business of package policy. It does not log failed handshakes:
// it returns errors, and Reason shortens them for whoever logs.
//
// All checks hang on VerifyConnection, which crypto/tls never skips. A refusal
// found there reaches the peer as the alert bad_certificate, whatever the cause
// (crypto/tls has no way to choose another one); a client without a certificate
// is told certificate_required. The cause stays on this side, in the error.
//
// Server, Client and PeerID are pure functions. A Revocation may be used by any
// number of goroutines.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// Server returns a configuration for accepting peers as s. The client must
// present a certificate whose chain leads to the roots of s; the identity is
// the first SPIFFE URI SAN of its leaf, and that very SAN must be of the trust
// domain of s (ztunnel accepts any SAN of the trust domain but authorizes by
// the first one). rev may be nil: then nothing is revoked.
//
// The configuration is new and the caller's own, so it may set KeyLogWriter for
// one connection without a Clone. Making one costs less than a microsecond;
// call it per connection with the current SVID, and rotation needs nothing else.
func Server(s *svid.SVID, rev *Revocation) *tls.Config {
	cfg := base()
	cfg.Certificates = []tls.Certificate{s.TLSCertificate()}
	// The chain is verified in VerifyConnection, so crypto/tls is only asked to
	// insist on a certificate. Without ClientCAs the request carries no list of
	// authorities, which would tell strangers what roots there are.
	cfg.ClientAuth = tls.RequireAnyClientCert
	bundle, td := s.Bundle, s.ID.TrustDomain()
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := verify(cs, bundle, x509.ExtKeyUsageClientAuth, rev)
		if err != nil {
			return err
		}
		if id.TrustDomain() != td {
			return &TrustDomainError{Expected: td, Got: id}
		}
		return nil
	}
	return cfg
}

// Client returns a configuration for dialling a peer as s. The server's chain
// must lead to the roots of s, and the first SPIFFE URI SAN of its leaf must be
// one of expected; no other name counts. With no expected identity every
// handshake fails. rev may be nil: then nothing is revoked.
//
// No server name is sent: the listener's namespace decides whose certificate a
// peer presents. What Server says about ownership and cost holds here too.
func Client(s *svid.SVID, expected []identity.ID, rev *Revocation) *tls.Config {
	cfg := base()
	cert := s.TLSCertificate()
	// Not Certificates: crypto/tls would hold the certificate back when its
	// issuer is not in the server's list of authorities, and the server would
	// then report a missing certificate instead of an unknown authority.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &cert, nil
	}
	// The name check is replaced by the identity check, the chain check by our own.
	cfg.InsecureSkipVerify = true
	bundle, expected := s.Bundle, slices.Clone(expected)
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := verify(cs, bundle, x509.ExtKeyUsageServerAuth, rev)
		if err != nil {
			return err
		}
		if !slices.Contains(expected, id) {
			return &IdentityMismatchError{Expected: expected, Got: id}
		}
		return nil
	}
	return cfg
}

// PeerID returns the identity that the peer of a handshake proved: the first
// SPIFFE URI SAN of its leaf. It means something only after a handshake with a
// configuration of this package has succeeded.
func PeerID(cs tls.ConnectionState) (identity.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return identity.ID{}, ErrNoCertificate
	}
	return svid.IDFromCert(cs.PeerCertificates[0])
}

// base is what both roles share.
//
// The key exchanges are named so that a default of another Go version does not
// change the wire. Their order here means nothing to crypto/tls. Its client
// sends shares for X25519MLKEM768 and X25519, so every peer finds one. Its
// server takes X25519MLKEM768 whenever the client supports it, even at the
// price of a HelloRetryRequest when the client sent only an X25519 share, as
// ztunnel does. That round trip is accepted: it happens once per tunnel, not
// per connection, adds about a twentieth to the CPU time of a handshake
// (X25519MLKEM768 itself adds a quarter to that of X25519; BenchmarkHandshake),
// and makes recorded traffic useless to a later quantum computer. Leaving
// X25519MLKEM768 out of the server would take that from our own clients too,
// which need no second round. A client that does not know it gets X25519 at
// once. TestServerKeyExchange records all this.
//
// TLS 1.3 cipher suites cannot be chosen in crypto/tls. Between machines with
// AES instructions it settles on AES-128-GCM or AES-256-GCM.
func base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		SessionTicketsDisabled: true,
	}
}

// verify checks the peer's chain and revocation and returns the one identity
// that counts.
func verify(cs tls.ConnectionState, roots *identity.Bundle, usage x509.ExtKeyUsage, rev *Revocation) (identity.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return identity.ID{}, ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	id, idErr := svid.IDFromCert(leaf)
	intermediates := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	now := time.Now()
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots.Pool(),
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return identity.ID{}, &CertificateError{Claimed: id, Cause: cause(err, now), Err: err}
	}
	if idErr != nil {
		return identity.ID{}, &CertificateError{Cause: ReasonNoIdentity, Err: idErr}
	}
	if err := checkLeaf(leaf); err != nil {
		return identity.ID{}, &CertificateError{Claimed: id, Cause: ReasonBadCertificate, Err: err}
	}
	if err := rev.checkVerified(id, chains); err != nil {
		return identity.ID{}, err
	}
	return id, nil
}

// checkLeaf refuses signing certificates as leaves, which the X.509-SVID
// specification, section 5.2, obliges a verifier to do.
func checkLeaf(leaf *x509.Certificate) error {
	if leaf.IsCA {
		return errors.New("the leaf is a CA certificate")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("the leaf may sign certificates or revocation lists")
	}
	return nil
}

// cause sorts an error of Certificate.Verify.
func cause(err error, now time.Time) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return ReasonUnknownAuthority
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		if e.Cert != nil && now.Before(e.Cert.NotBefore) {
			return ReasonNotYetValid
		}
		return ReasonExpired
	}
	return ReasonBadCertificate
}
