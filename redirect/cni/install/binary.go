package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// binaryState remembers the two files when they were last found equal, so that they
// are not read at every look.
type binaryState struct {
	source, target stamp
}

// stamp tells whether a file has been touched; the zero stamp is that of none.
type stamp struct {
	device, inode  uint64
	size           int64
	modified       time.Time
	changed, chmod int64 // ctime in nanoseconds, mode
}

func stampOf(path string) (stamp, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: info.Size(), modified: info.ModTime(), chmod: int64(info.Mode())}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode, s.changed = st.Dev, st.Ino, st.Ctim.Nano()
	}
	return s, nil
}

// ensureBinary makes the binary in BinDir equal to the source.
func (i *Installer) ensureBinary() error {
	target := filepath.Join(i.cfg.BinDir, cni.Type)
	if err := i.copyBinary(target); err != nil {
		return fmt.Errorf("install %s: %w", target, err)
	}
	return nil
}

func (i *Installer) copyBinary(target string) error {
	source, err := stampOf(i.cfg.SourceBinary)
	if err != nil {
		return err
	}
	there, err := stampOf(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && i.binary == (binaryState{source, there}) {
		return nil
	}
	f, err := os.Open(i.cfg.SourceBinary)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	equal, err := sameBinary(f, target)
	if err != nil {
		return err
	}
	if equal {
		i.binary = binaryState{source, there} // as they were before they were read
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := i.put(target, 0o755, f); err != nil {
		return err
	}
	i.log.Info("CNI plugin's binary installed", "file", target)
	i.binary = binaryState{} // what is there now is read at the next look: somebody may have been quick
	return nil
}

// sameBinary reports whether target is a regular, executable file with f's content.
func sameBinary(f io.Reader, target string) (bool, error) {
	info, err := os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.IsDir() {
		return false, errors.New("is a directory")
	}
	if !info.Mode().IsRegular() || info.Mode().Perm() != 0o755 {
		return false, nil
	}
	t, err := os.Open(target)
	if err != nil {
		return false, err
	}
	defer func() { _ = t.Close() }()
	return sameContent(f, t)
}

// executable reports whether there is a program at path, whichever.
func executable(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	ended := func(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
	for {
		n, errX := io.ReadFull(a, x)
		m, errY := io.ReadFull(b, y)
		switch {
		case errX != nil && !ended(errX):
			return false, errX
		case errY != nil && !ended(errY):
			return false, errY
		case !bytes.Equal(x[:n], y[:m]):
			return false, nil
		case errX != nil: // and errY, as both were as long
			return true, nil
		}
	}
}
