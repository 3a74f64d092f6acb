package issuer

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// CreateFiles makes an authority, valid for ten years, and writes its
// certificate and its key (mode 0600) as PEM files. It overwrites nothing: when
// either file exists it fails, and what it has written itself is removed again.
func CreateFiles(certPath, keyPath, trustDomain string) error {
	td, err := identity.ParseTrustDomain(trustDomain)
	if err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	cert, key, err := newAuthority(td)
	if err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	if err := writeNew(keyPath, 0o600, "PRIVATE KEY", keyDER); err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	if err := writeNew(certPath, 0o644, "CERTIFICATE", cert.Raw); err != nil {
		return errors.Join(fmt.Errorf("create authority: %w", err), os.Remove(keyPath))
	}
	return nil
}

// writeNew writes a PEM file that must not exist yet, to the disk.
func writeNew(path string, mode os.FileMode, blockType string, der []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	err = pem.Encode(f, &pem.Block{Type: blockType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Load reads an authority from PEM files, those of CreateFiles or others. The
// certificate file holds the signing certificate and, if that is not a root,
// what stands above it up to the root. Errors name the file and the reason.
func Load(certPath, keyPath string) (*Issuer, error) {
	certPEM, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	chain, err := identity.ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load authority: certificate %s: %w", certPath, err)
	}
	if err := checkAuthority(chain, time.Now()); err != nil {
		return nil, fmt.Errorf("load authority: certificate %s: %w", certPath, err)
	}
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	key, err := svid.ParsePrivateKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load authority: key %s: %w", keyPath, err)
	}
	cert := chain[0]
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("load authority: key %s does not belong to certificate %s", keyPath, certPath)
	}
	last := len(chain) - 1
	return &Issuer{
		td:    trustDomainOf(cert),
		cert:  cert,
		key:   key,
		above: chain[:last],
		roots: chain[last:],
		ttl:   defaultTTL,
	}, nil
}

// checkAuthority checks that the first certificate may sign now and that each
// one is signed by the next.
func checkAuthority(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain {
		switch {
		case !cert.BasicConstraintsValid || !cert.IsCA:
			return fmt.Errorf("%q is not a CA certificate", cert.Subject)
		case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("%q may not sign certificates", cert.Subject)
		case now.After(cert.NotAfter):
			return fmt.Errorf("%q expired at %s", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
		case now.Before(cert.NotBefore):
			return fmt.Errorf("%q is not valid before %s", cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339))
		}
		if i+1 < len(chain) {
			if err := cert.CheckSignatureFrom(chain[i+1]); err != nil {
				return fmt.Errorf("%q is not signed by the next certificate, %q: %w", cert.Subject, chain[i+1].Subject, err)
			}
		}
	}
	return nil
}

// trustDomainOf returns the trust domain that a signing certificate names in a
// URI SAN, or none.
func trustDomainOf(cert *x509.Certificate) identity.TrustDomain {
	for _, uri := range cert.URIs {
		if uri.Scheme != "spiffe" {
			continue
		}
		if td, err := identity.ParseTrustDomain(uri.Host); err == nil {
			return td
		}
	}
	return identity.TrustDomain{}
}
