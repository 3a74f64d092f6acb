package authority_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

func extension(t testing.TB, id asn1.ObjectIdentifier, value any) func(*x509.CertificateRequest) {
	t.Helper()
	raw, ok := value.([]byte)
	if !ok {
		var err error
		if raw, err = asn1.Marshal(value); err != nil {
			t.Fatal(err)
		}
	}
	return func(r *x509.CertificateRequest) { r.ExtraExtensions = []pkix.Extension{{Id: id, Value: raw}} }
}

func badRequests(t testing.TB) map[string]struct {
	csr []byte
	err string
} {
	t.Helper()
	type row = struct {
		csr []byte
		err string
	}
	basic, usage := asn1.ObjectIdentifier{2, 5, 29, 19}, asn1.ObjectIdentifier{2, 5, 29, 15}
	good := csrPEM(t, p256(t), nil)
	forged, _ := pem.Decode(good)
	forged.Bytes = bytes.Clone(forged.Bytes)
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	type constraints struct{ IsCA bool }
	return map[string]row{
		"empty":       {nil, "the certificate request is not PEM"},
		"text":        {[]byte("hello"), "the certificate request is not PEM"},
		"certificate": {identitytest.NewCA(t, "td").RootPEM(), `the PEM block is "CERTIFICATE", want CERTIFICATE REQUEST`},
		"two":         {append(bytes.Clone(good), good...), "something follows the certificate request"},
		"garbage":     {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1, 2, 3}}), "the certificate request cannot be read: "},
		"forged":      {pem.EncodeToMemory(forged), "the certificate request is not signed by its key: "},
		"long":        {append(bytes.Clone(good), bytes.Repeat([]byte(" "), authority.MaxRequest)...), "octets, limit is 16384"},
		"rsa1024":     {csrPEM(t, weakRSA(t), nil), "the certificate request: an RSA key of 1024 bits is not accepted, only of 2048 to 8192"},
		"rsa9000":     {hugeRSA(t), "the certificate request: an RSA key of 9000 bits is not accepted, only of 2048 to 8192"},
		"p521":        {csrPEM(t, ecdsaKey(t, elliptic.P521()), nil), "the certificate request: an ECDSA key on P-521 is not accepted, only on P-256 and P-384"},
		"p224":        {csrPEM(t, ecdsaKey(t, elliptic.P224()), nil), "an ECDSA key on P-224 is not accepted"},
		"ca":          {csrPEM(t, p256(t), extension(t, basic, constraints{true})), "the certificate request: it asks for a CA certificate"},
		"ca_damaged":  {csrPEM(t, p256(t), extension(t, basic, []byte{0x30, 0x05})), "the certificate request: its basic constraints cannot be read"},
		"cert_sign":   {csrPEM(t, p256(t), extension(t, usage, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6})), "the certificate request: it asks for a certificate that may sign others"},
		"crl_sign":    {csrPEM(t, p256(t), extension(t, usage, asn1.BitString{Bytes: []byte{0x02}, BitLength: 7})), "the certificate request: it asks for a certificate that may sign others"},
		"usage_wrong": {csrPEM(t, p256(t), extension(t, usage, []byte{1, 1, 0xff})), "the certificate request: its key usage cannot be read"},
	}
}

func TestParseRequestRefuses(t *testing.T) {
	for name, tt := range badRequests(t) {
		t.Run(name, func(t *testing.T) {
			_, err := authority.ParseRequest(tt.csr)
			if _, ok := errors.AsType[*authority.RequestError](err); !ok || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %s", err, tt.err)
			}
		})
	}
}

func TestParseRequestAccepts(t *testing.T) {
	_, agents, err := ca.CSR(web)
	if err != nil {
		t.Fatal(err)
	}
	type constraints struct{ IsCA bool }
	plain := csrPEM(t, p256(t), nil)
	for name, csr := range map[string][]byte{
		"agents":    agents,
		"no_ca":     csrPEM(t, p256(t), extension(t, asn1.ObjectIdentifier{2, 5, 29, 19}, constraints{})),
		"leaf":      csrPEM(t, p256(t), extension(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{0xa0}, BitLength: 3})),
		"old_label": bytes.ReplaceAll(plain, []byte("CERTIFICATE REQUEST"), []byte("NEW CERTIFICATE REQUEST")),
		"crlf":      bytes.ReplaceAll(plain, []byte("\n"), []byte("\r\n")),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := authority.ParseRequest(csr); err != nil {
				t.Error(err)
			}
		})
	}
}

// FuzzParseRequest checks that whatever a stranger sends is refused in the one
// way, or can be issued for as a leaf of the identity that was decided.
func FuzzParseRequest(f *testing.F) {
	for _, tt := range badRequests(f) {
		f.Add(tt.csr)
	}
	f.Add(csrPEM(f, p256(f), nil))
	_, csr, err := ca.CSR(web)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	a := newAuthority(f, newRoot(f), authority.Config{})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := authority.ParseRequest(in)
		if err != nil {
			if _, ok := errors.AsType[*authority.RequestError](err); !ok {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		chain, err := a.Issue(r, web, 0)
		if err != nil {
			t.Fatal(err)
		}
		leaf := one(t, chain[0])
		if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.String() || len(leaf.DNSNames) != 0 {
			t.Fatalf("issued CA %v, URIs %v, names %v", leaf.IsCA, leaf.URIs, leaf.DNSNames)
		}
	})
}

// weakRSA returns a key that crypto/rsa no longer makes.
func weakRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	return rsaKey(t, 1024)
}

// hugeRSA asks with a key that it would take long to check a signature with, and has made none.
func hugeRSA(t testing.TB) []byte {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 8999)
	key, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	type info struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		info{Key: asn1.RawValue{FullBytes: key}},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, 1125), BitLength: 9000},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
