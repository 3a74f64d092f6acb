package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bind makes a new socket, and the path lead to it, if that is wanted still when no
// other server is about to do so. It reports whether it did.
func (s *Server) bind(wanted func() bool) (bool, error) {
	dir := filepath.Dir(s.cfg.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return false, err
	}
	defer lock(dir)()
	if !wanted() {
		return false, nil
	}
	// Bound beside and renamed, so that the path always leads to a listening socket.
	beside := fmt.Sprintf("%s.%d", s.cfg.Path, os.Getpid())
	if err := os.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: beside, Net: "unixpacket"})
	if err != nil {
		return false, err
	}
	l.SetUnlinkOnClose(false)
	if err := s.replace(l, beside); err != nil {
		return false, errors.Join(err, l.Close(), os.Remove(beside))
	}
	return true, nil
}

// lock keeps other servers from changing what is in the directory until unlock is
// called. Two agents may well have the same process identifier, each in its
// container, and so the same name beside. Where locks do not work it goes without.
func lock(dir string) (unlock func()) {
	d, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	_ = unix.Flock(int(d.Fd()), unix.LOCK_EX)
	return func() { _ = d.Close() }
}

// replace makes the path lead to l, which is bound to the file beside it, and l the
// listener in place of the one before.
func (s *Server) replace(l *net.UnixListener, beside string) error {
	var st unix.Stat_t
	if err := errors.Join(os.Chmod(beside, 0o600), unix.Stat(beside, &st)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if err := os.Rename(beside, s.cfg.Path); err != nil {
		return err
	}
	old := s.listener
	s.listener, s.inode = l, st.Ino
	if old == nil {
		close(s.bound)
		return nil
	}
	_ = old.Close()
	return nil
}

// current returns the listener.
func (s *Server) current() *net.UnixListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listener
}

// at reports whether something is at the path, and whether that is the listener's.
func (s *Server) at() (there, ours bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st unix.Stat_t
	if unix.Stat(s.cfg.Path, &st) != nil {
		return false, false
	}
	return true, st.Ino == s.inode
}

// Superseded reports whether the path leads to the socket of another server: a newer
// one, one that was killed and whose place is not taken back yet, or the one that a
// Patient server waits for. After the end of the server it still tells whether there
// is a successor.
func (s *Server) Superseded() bool {
	there, ours := s.at()
	return there && !ours
}

// keep takes the path, until ctx ends, whenever another server has left it.
func (s *Server) keep(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.left() {
			continue
		}
		done, err := s.bind(s.left)
		switch {
		case done:
			s.cfg.Logger.Warn("nobody serves the hand-off socket any more that another agent had: taken over", "path", s.cfg.Path)
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil && !failed && ctx.Err() == nil:
			s.cfg.Logger.Warn("hand-off socket cannot be taken over, trying on", "path", s.cfg.Path, "error", err)
		}
		failed = err != nil
	}
}

// left reports whether the path does not lead here, and nobody else serves it.
func (s *Server) left() bool {
	if _, ours := s.at(); ours {
		return false
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.cfg.Path, Net: "unixpacket"})
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// Close closes the socket, for a server that is not run. Closing twice is allowed.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.listener == nil {
		close(s.bound)
		return nil
	}
	err := s.listener.Close()
	var st unix.Stat_t
	if unix.Stat(s.cfg.Path, &st) == nil && st.Ino == s.inode {
		err = errors.Join(err, os.Remove(s.cfg.Path))
	}
	return err
}
