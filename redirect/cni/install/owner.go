package install

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ownerFile has the identifier of the installer that owns the installation, which
// holds a lock on it: the kernel lets go of that when the process ends, however it
// ends.
const ownerFile = "installer"

func newID() string { return rand.Text() }

// claim makes this installer the owner of the installation, whoever was it before.
func (i *Installer) claim() error {
	if err := os.MkdirAll(i.cfg.RunDir, 0o700); err != nil {
		return fmt.Errorf("make directory for the CNI plugin: %w", err)
	}
	name := filepath.Join(i.cfg.RunDir, ownerFile)
	if err := i.putOwner(name); err != nil {
		return fmt.Errorf("take over the CNI plugin's installation in %s: %w", name, err)
	}
	return nil
}

// putOwner makes path an owner file of this installer, which is locked before it has
// that name.
func (i *Installer) putOwner(path string) error {
	temp, err := beside(path, 0o600, nil, strings.NewReader(i.id))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := i.lock(f); err != nil {
		i.log.Warn("cannot lock, so an older agent does not see when this one ends", "error", err)
	}
	i.release()
	i.owner = f
	return i.place(temp, path)
}

// lock locks a file, at once or not at all, until it is closed.
func (i *Installer) lock(f *os.File) error {
	return i.flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// release lets another installer be the owner.
func (i *Installer) release() {
	if i.owner != nil {
		_ = i.owner.Close()
		i.owner = nil
	}
}

// owns reports whether this installer owns the installation: the last one to claim it
// does. What nobody owns any more is claimed again: the file is missing (the directory
// was removed), or its owner has ended.
func (i *Installer) owns() (bool, error) {
	name := filepath.Join(i.cfg.RunDir, ownerFile)
	id, err := readFile(name, 64)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, i.claim()
	case err != nil:
		return false, fmt.Errorf("find out who owns the CNI plugin's installation: %w", err)
	case string(id) == i.id:
		return true, nil
	case !i.left(name):
		return false, nil
	}
	i.log.Info("the installer that owned the CNI plugin's installation has ended, taking it back")
	return true, i.claim()
}

// left reports whether the owner of the file has ended. Where locks do not work nobody
// is taken to have.
func (i *Installer) left(name string) bool {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return i.lock(f) == nil
}
