package issuer

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
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
	signer, err := authority.NewRoot(td, time.Now(), authority.DefaultRootTTL)
	if err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	material, err := signer.Material()
	if err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	if err := writeNew(keyPath, 0o600, material.Key); err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	if err := writeNew(certPath, 0o644, material.Cert); err != nil {
		return errors.Join(fmt.Errorf("create authority: %w", err), os.Remove(keyPath))
	}
	return nil
}

// writeNew writes a file that must not exist yet, to the disk.
func writeNew(path string, mode os.FileMode, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Load reads an authority from PEM files, those of CreateFiles or others. The
// certificate file holds the signing certificate and, if that is not a root,
// what stands above it up to the root. Errors name the file and the reason.
func Load(certPath, keyPath string) (*Issuer, error) {
	now := time.Now()
	certPEM, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	chain, err := identity.ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load authority: certificate %s: %w", certPath, err)
	}
	if err := authority.CheckChain(chain, now); err != nil {
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
	signer, err := authority.NewSigner(chain, key, now)
	if errors.Is(err, authority.ErrOtherKey) {
		return nil, fmt.Errorf("load authority: key %s does not belong to certificate %s", keyPath, certPath)
	}
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	return &Issuer{td: authority.TrustDomainOf(chain[0]), signer: signer, ttl: defaultTTL}, nil
}
