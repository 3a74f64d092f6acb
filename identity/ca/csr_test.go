package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
)

func TestCSR(t *testing.T) {
	key, csrPEM, err := ca.CSR(web)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		t.Fatalf("not one PEM request:\n%s", csrPEM)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || !pub.Equal(key.Public()) {
		t.Errorf("public key %T is not the P-256 key returned", csr.PublicKey)
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 || csr.Subject.String() != "" {
		t.Errorf("signature %s, subject %q", csr.SignatureAlgorithm, csr.Subject)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != web.String() {
		t.Errorf("URIs %v", csr.URIs)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
		t.Errorf("extensions %+v, want one critical", csr.Extensions)
	}
	again, _, err := ca.CSR(web)
	if err != nil || again.Public().(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Errorf("two requests share a key; error %v", err)
	}
	if _, _, err := ca.CSR(identity.ID{}); err == nil {
		t.Error("a request for nobody")
	}
}
