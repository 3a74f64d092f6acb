package hostrules

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutDescriptors calls f while the process has none left.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	f()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
}

// One moment without descriptors must not make every process of uid 0 the kubelet for as long as the kubelet lives: nothing
// is concluded from it, so what was known stays in force.
func TestShortageOfDescriptors(t *testing.T) {
	point := cgroup2(t)
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "1", "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "1", "ns", "cgroup"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := Kubelet{PID: 77, Cgroup: "/"}
	tree := cgroups{root: point}
	looks := map[string]func() error{
		"view": func() error { _, _, err := viewpoint(root); return err },
		"tree": func() error { _, err := openCgroups(filepath.Join(root, "1")); return err },
		"id":   func() error { return tree.locate(&k) },
	}
	for name, look := range looks {
		var err error
		withoutDescriptors(t, func() { err = look() })
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("%s in the shortage: %v, want EMFILE", name, err)
		}
		if err := look(); err != nil {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
	if k.CgroupID == 0 {
		t.Errorf("the cgroup is not found: %q", k.NoCgroup)
	}
}

func cgroup2(t *testing.T) string {
	t.Helper()
	mounts, err := readSome("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	point := cgroupMount(mounts)
	if point == "" {
		point = t.TempDir()
		if err := unix.Mount("cgroup2", point, "cgroup2", 0, ""); err != nil {
			t.Skip("no cgroup v2: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(point, 0) })
	}
	return point
}
