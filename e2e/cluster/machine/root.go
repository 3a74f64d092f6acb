package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// mount is one step of building the root. Target is below the new root.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// enterRoot gives the calling process, alone in a new mount namespace, a root of its own. All of it lives in that
// namespace: nothing is mounted in the machine's.
func enterRoot(s Spec) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("seal mount namespace: %w", err)
	}
	root := s.path("root")
	layers := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", s.path("upper"), s.path("work"))
	if err := syscall.Mount("overlay", root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mount overlay at %s (its file system must be able to carry an upper layer): %w", root, err)
	}
	for _, m := range mounts(s) {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, name := range slices.Sorted(mapKeys(s.Files)) {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		_ = os.Remove(file) // /etc/resolv.conf is often a link to where there is nothing here
		if err := os.WriteFile(file, []byte(s.Files[name]), 0o644); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := protectSettings(s); err != nil {
		return err
	}
	// As systemd does it: mounts of containers with propagation reach the machine.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

func mounts(s Spec) []mount {
	list := []mount{
		{source: "proc", target: "/proc", kind: "proc", flags: syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
		{source: "sysfs", target: "/sys", kind: "sysfs", flags: syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
		{source: cgroupRoot, target: cgroupRoot, flags: syscall.MS_BIND | syscall.MS_REC},
		{source: "/dev", target: "/dev", flags: syscall.MS_BIND | syscall.MS_REC},
		{source: "tmpfs", target: "/run", kind: "tmpfs", flags: syscall.MS_NOSUID | syscall.MS_NODEV, data: "mode=755"},
		{source: "tmpfs", target: "/tmp", kind: "tmpfs", flags: syscall.MS_NOSUID | syscall.MS_NODEV, data: "mode=1777"},
	}
	for _, dir := range append([]string{s.Dir}, s.Binds...) {
		list = append(list, mount{source: dir, target: dir, flags: syscall.MS_BIND})
	}
	for _, target := range slices.Sorted(mapKeys(s.Volumes)) {
		list = append(list, mount{source: s.path(s.Volumes[target]), target: target, flags: syscall.MS_BIND})
	}
	return list
}

// pivot makes root the root of the namespace and lets go of the old one.
func pivot(root string) error {
	old := filepath.Join(root, ".old")
	if err := os.MkdirAll(old, 0o700); err != nil {
		return err
	}
	if err := syscall.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Unmount("/.old", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	if err := os.Remove("/.old"); err != nil {
		return err
	}
	return nil
}

// protectSettings leaves only the settings of the own network namespace writable, and lays the pretended ones over the real.
func protectSettings(s Spec) error {
	const ro = syscall.MS_REMOUNT | syscall.MS_BIND | syscall.MS_RDONLY
	steps := []mount{
		{source: "/proc/sys", target: "/proc/sys", flags: syscall.MS_BIND},
		{target: "/proc/sys", flags: ro},
		{source: "/proc/sys/net", target: "/proc/sys/net", flags: syscall.MS_BIND},
		{target: "/proc/sys/net", flags: ro &^ syscall.MS_RDONLY},
	}
	for _, m := range steps {
		if err := syscall.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			return fmt.Errorf("protect kernel settings: %w", err)
		}
	}
	if err := os.MkdirAll("/run/settings", 0o700); err != nil {
		return err
	}
	for i, name := range slices.Sorted(mapKeys(s.Settings)) {
		file := fmt.Sprintf("/run/settings/%d", i)
		if err := os.WriteFile(file, []byte(s.Settings[name]+"\n"), 0o444); err != nil {
			return err
		}
		if err := syscall.Mount(file, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("pretend kernel setting %s: %w", name, err)
		}
	}
	return nil
}
