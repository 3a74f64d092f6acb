package mtls

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"time"
)

// fileState identifies what a path led to at one moment.
type fileState struct {
	info fs.FileInfo
	when time.Time
}

// same reports whether info is the file of s, unchanged. A file that was young
// when it was read may have changed since within one tick of its time stamp, so
// such a one is never taken for the same (as git treats "racily clean" files).
func (s fileState) same(info fs.FileInfo) bool {
	return s.info != nil && os.SameFile(s.info, info) && s.info.Size() == info.Size() &&
		s.info.ModTime().Equal(info.ModTime()) && s.when.Sub(info.ModTime()) > time.Second
}

// readFile reads a file with the state that it had before.
func readFile(path string) (fileState, []byte, error) {
	state := fileState{when: time.Now()}
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}, nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return fileState{}, nil, err
	}
	state.info = info
	return state, content, nil
}

// Watch looks at the file again and again until ctx ends, which is not an
// error; it must run once at most. It follows symbolic links, so the swap that
// updates a mounted ConfigMap is a change. Content that is not a set of lists,
// and a file that is gone, leave the last good lists in force, with a warning.
func (r *Revocation) Watch(ctx context.Context) error {
	ticker := time.NewTicker(r.interval)
	defer ticker.Stop()
	var complained string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := r.reload()
		switch {
		case err == nil:
			complained = ""
		case err.Error() != complained:
			complained = err.Error()
			r.logger.Warn("revocation lists not reloaded, last good ones stay", "path", r.path, "error", err)
		}
	}
}

// reload takes the file over if it changed, and tells the subscribers.
func (r *Revocation) reload() error {
	if info, err := os.Stat(r.path); err == nil && r.seen.same(info) {
		return nil
	}
	state, content, err := readFile(r.path)
	if errors.Is(err, fs.ErrNotExist) && r.seen.info == nil {
		return nil // never was there; said at the start
	}
	if err != nil {
		return err
	}
	digest := sha256.Sum256(content)
	if r.seen.info != nil && digest == r.digest {
		r.seen = state
		return nil
	}
	set, err := parseCRLs(content)
	if err != nil {
		return err
	}
	r.seen, r.digest = state, digest
	r.set.Store(set)
	r.logger.Info("revocation lists loaded", "path", r.path, "lists", set.lists, "revoked", set.entries)
	for _, fn := range r.subscribers() {
		fn()
	}
	return nil
}

func (r *Revocation) subscribers() []func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	fns := make([]func(), 0, len(r.subs))
	for _, fn := range r.subs {
		fns = append(fns, fn)
	}
	return fns
}
