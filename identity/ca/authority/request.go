package authority

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// MaxRequest bounds a certificate request, in octets of PEM. A request with an
// RSA key of 8192 bits has about 3 KiB.
const MaxRequest = 16 << 10

// RequestError says what is wrong with a request. The text tells nothing that
// its sender did not know, so it may be sent back.
type RequestError struct{ reason string }

func (e *RequestError) Error() string { return e.reason }

func refuse(format string, args ...any) error { return &RequestError{fmt.Sprintf(format, args...)} }

// Request is a certificate request whose signature has been checked. Only its
// public key is ever heeded: what is issued is decided by whoever authorised
// the identity.
type Request struct {
	public crypto.PublicKey
	uris   []string
}

// Names returns the URIs that the request asks for. They are not heeded, but
// tell in a log that somebody asks for what he is not.
func (r *Request) Names() []string { return slices.Clone(r.uris) }

// ParseRequest reads one PEM certificate request. It refuses keys that are too
// weak or unusual, a signature that is not by that key, and requests for a
// certificate that may sign others: nobody asks for that by mistake. All errors
// are *RequestError.
func ParseRequest(pemBytes []byte) (*Request, error) {
	if len(pemBytes) > MaxRequest {
		return nil, refuse("the certificate request has %d octets, limit is %d", len(pemBytes), MaxRequest)
	}
	block, rest := pem.Decode(pemBytes)
	switch {
	case block == nil:
		return nil, refuse("the certificate request is not PEM")
	case block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST":
		return nil, refuse("the PEM block is %q, want CERTIFICATE REQUEST", block.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, refuse("something follows the certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, refuse("the certificate request cannot be read: %v", err)
	}
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, refuse("the certificate request: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, refuse("the certificate request is not signed by its key: %v", err)
	}
	if err := checkExtensions(csr); err != nil {
		return nil, refuse("the certificate request: %v", err)
	}
	r := &Request{public: csr.PublicKey}
	for _, uri := range csr.URIs {
		r.uris = append(r.uris, uri.String())
	}
	return r, nil
}

// RFC 5280 sections 4.2.1.3 and 4.2.1.9.
const (
	oidKeyUsage         = "2.5.29.15"
	oidBasicConstraints = "2.5.29.19"

	bitCertSign = 5 // of keyUsage
	bitCRLSign  = 6
)

// checkExtensions finds out whether the request is for a signing certificate.
func checkExtensions(csr *x509.CertificateRequest) error {
	for _, ext := range csr.Extensions {
		switch ext.Id.String() {
		case oidBasicConstraints:
			var constraints struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &constraints); err != nil || len(rest) > 0 {
				return errors.New("its basic constraints cannot be read")
			}
			if constraints.IsCA {
				return errors.New("it asks for a CA certificate")
			}
		case oidKeyUsage:
			var usage asn1.BitString
			if rest, err := asn1.Unmarshal(ext.Value, &usage); err != nil || len(rest) > 0 {
				return errors.New("its key usage cannot be read")
			}
			if usage.At(bitCertSign) != 0 || usage.At(bitCRLSign) != 0 {
				return errors.New("it asks for a certificate that may sign others")
			}
		}
	}
	return nil
}
