package cni

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxLog is how large the log grows before it is renamed, in bytes. With its
// predecessor that is twice as much on the disk.
const maxLog = 1 << 20

// logFile is the log, which several plugins write at once. It is nil where it cannot
// be opened: a pod must not fail for that.
type logFile struct {
	file *os.File
}

func openLog(path string) *logFile {
	if os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return nil
	}
	for range 2 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil
		}
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() {
			_ = f.Close()
			return nil
		}
		if info.Size() < maxLog || !rotate(f, path) {
			return &logFile{file: f}
		}
		_ = f.Close()
	}
	return nil
}

// rotate renames the log, unless another plugin has done it or does it right now.
func rotate(f *os.File, path string) bool {
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	var open, there unix.Stat_t
	if unix.Fstat(int(f.Fd()), &open) != nil || unix.Stat(path, &there) != nil || open.Ino != there.Ino {
		return true // renamed meanwhile: open the new one
	}
	return os.Rename(path, path+".1") == nil
}

func (l *logFile) logger() *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewJSONHandler(io.Writer(l.file), nil))
}

func (l *logFile) close() {
	if l != nil {
		_ = l.file.Close()
	}
}
