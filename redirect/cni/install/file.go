package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files in the making. Runtimes do not read them: they
// have none of the endings.
const tempPrefix = ".culvert-tmp-"

// staleAfter is how old a file in the making is before it is taken for one of a
// process that was killed.
const staleAfter = time.Minute

// errChanged says that another program changed a file at the same moment; the next
// look sees what it made of it.
var errChanged = errors.New("another program changed it at the same moment")

// beside writes a new file next to path, synced to disk and with the mode, and with
// the owner of info if it is not nil. It returns its name. Nothing is left on an error, which does not have the name: it
// is another one each time.
func beside(path string, mode fs.FileMode, info fs.FileInfo, from io.Reader) (name string, err error) {
	defer func() {
		var where *fs.PathError
		if errors.As(err, &where) {
			err = fmt.Errorf("write a file beside it: %w", where.Err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return "", err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, from); err != nil {
		return "", err
	}
	if info != nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
			if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return "", err
			}
		}
	}
	if err := f.Chmod(mode); err != nil { // after chown, which takes set-id bits away
		return "", err
	}
	return f.Name(), f.Sync()
}

// put makes path a new file in one step, whatever is there.
func (i *Installer) put(path string, mode fs.FileMode, from io.Reader) error {
	temp, err := beside(path, mode, nil, from)
	if err != nil {
		return err
	}
	return i.place(temp, path)
}

// place gives the new file temp the name path in one step, whatever is there.
func (i *Installer) place(temp, path string) error {
	i.step("beside " + filepath.Base(path))
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	i.step("put " + filepath.Base(path))
	return syncDir(filepath.Dir(path))
}

// replace changes the file c of directory dir to text in one step, if it still is what
// was read; errChanged otherwise, with nothing done.
func (i *Installer) replace(dir string, c conf, text []byte) error {
	path := filepath.Join(dir, c.name)
	temp, err := beside(path, c.info.Mode().Perm(), c.info, bytes.NewReader(text))
	if err != nil {
		return err
	}
	i.step("beside " + c.name)
	defer func() { _ = os.Remove(temp) }()
	if err := exchange(temp, path); err != nil {
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		// A file system that cannot exchange: look once more, then rename.
		if now := read(dir, c.name, c.list); !bytes.Equal(now.text, c.text) {
			return errChanged
		}
		if err := os.Rename(temp, path); err != nil {
			return err
		}
		return syncDir(dir)
	}
	i.step("exchanged " + c.name)
	if out := read(dir, filepath.Base(temp), c.list); bytes.Equal(out.text, c.text) {
		return syncDir(dir)
	}
	// What came out is newer than what was read: back with it. Should there be
	// something newer still at path meanwhile, that stays.
	if err := exchange(temp, path); err != nil {
		return err
	}
	if ours := read(dir, filepath.Base(temp), c.list); !bytes.Equal(ours.text, text) {
		return errors.Join(errChanged, os.Rename(temp, path))
	}
	return errChanged
}

// exchange swaps two files of one directory in one step.
func exchange(a, b string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sweepAll removes what killed processes left, now and then.
func (i *Installer) sweepAll(now time.Time) error {
	if now.Sub(i.swept) < staleAfter {
		return nil
	}
	i.swept = now
	if err := errors.Join(sweep(i.cfg.NetDir, now), sweep(i.cfg.BinDir, now), sweep(i.cfg.RunDir, now)); err != nil {
		return fmt.Errorf("remove files of a killed installer: %w", err)
	}
	return nil
}

// sweep removes files in the making that processes left which were killed.
func sweep(dir string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) { // whoever needs it says so better
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if info, err := e.Info(); err != nil || now.Sub(info.ModTime()) < staleAfter {
			continue
		}
		errs = append(errs, remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// remove removes a file, which may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readFile reads a small file. Symbolic links are followed: projected volumes are
// made of them.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return b, err
}
