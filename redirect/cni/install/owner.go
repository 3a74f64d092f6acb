package install

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ownerFile has the identifier of the installer that started last.
const ownerFile = "installer"

func newID() string { return rand.Text() }

// claim makes this installer the owner of the installation.
func (i *Installer) claim() error {
	if err := os.MkdirAll(i.cfg.RunDir, 0o700); err != nil {
		return fmt.Errorf("make directory for the CNI plugin: %w", err)
	}
	name := filepath.Join(i.cfg.RunDir, ownerFile)
	if err := i.put(name, 0o600, strings.NewReader(i.id)); err != nil {
		return fmt.Errorf("take over the CNI plugin's installation in %s: %w", name, err)
	}
	return nil
}

// owns reports whether no other installer started later. A missing file (the
// directory was removed) is claimed again.
func (i *Installer) owns() (bool, error) {
	id, err := readFile(filepath.Join(i.cfg.RunDir, ownerFile), 64)
	if errors.Is(err, fs.ErrNotExist) {
		return true, i.claim()
	}
	if err != nil {
		return false, fmt.Errorf("find out who owns the CNI plugin's installation: %w", err)
	}
	return string(id) == i.id, nil
}
