package install

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveEmpty removes the empty directory dir of the system whose root directory is root, "/host/proc/1/root" for that of
// a node. Symbolic links are followed as that system would, so dir may be below one that is absolute (/var/run). It is for
// a directory that is mounted here: from inside of the mount it cannot be removed. Needs Linux 5.6.
func RemoveEmpty(root, dir string) error {
	fail := func(err error) error { return fmt.Errorf("remove directory %s below %s: %w", dir, root, err) }
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = unix.Close(top) }()
	parent, err := unix.Openat2(top, strings.TrimPrefix(filepath.Dir(filepath.Clean(dir)), "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fail(err)
	}
	defer func() { _ = unix.Close(parent) }()
	if err := unix.Unlinkat(parent, filepath.Base(dir), unix.AT_REMOVEDIR); err != nil {
		return fail(err)
	}
	return nil
}
