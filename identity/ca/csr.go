package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/culvert-mesh/culvert/identity"
)

// sanURITag is uniformResourceIdentifier of GeneralName, RFC 5280 section 4.2.1.6.
const sanURITag = 6

// CSR makes a P-256 key and a certificate request for id signed with it, in PEM.
// The request has the shape of ztunnel's: an empty subject and one critical
// extension with the SPIFFE URI. The key exists in memory only.
func CSR(id identity.ID) (key crypto.Signer, csrPEM []byte, err error) {
	if id.IsZero() {
		return nil, nil, errors.New("make certificate request: no identity")
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific,
		Tag:   sanURITag,
		Bytes: []byte(id.String()),
	}})
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	template := &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		// Given by hand because the URIs field would make it not critical, which
		// RFC 5280 section 4.1.2.6 forbids with an empty subject.
		ExtraExtensions: []pkix.Extension{{
			Id:       asn1.ObjectIdentifier{2, 5, 29, 17},
			Critical: true,
			Value:    san,
		}},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, ecKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return ecKey, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
