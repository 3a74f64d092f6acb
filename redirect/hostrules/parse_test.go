package hostrules

import (
	"testing"
)

func TestParseCgroup(t *testing.T) {
	for _, tt := range []struct {
		text, v2 string
		pod      bool
	}{
		{"", "", false},
		{"0::/\n", "/", false},
		{"0::/a:b/c\n", "/a:b/c", false},
		{"0::/a (deleted)\n", "/a", false},
		{"9:name=systemd:/x\n0::/y\n", "/y", false},
		{"0::/kubepods.slice/x\n", "/kubepods.slice/x", true},
		{"3:cpu,cpuacct:/a/kubepods/x\n0::/\n", "/", true},
		{"0::/not-kubepods\n", "/not-kubepods", false},
		{"junk\n0:/x\n", "", false},
	} {
		if v2, pod := parseCgroup(tt.text); v2 != tt.v2 || pod != tt.pod {
			t.Errorf("%q: %q, %v", tt.text, v2, pod)
		}
	}
}

func TestCgroupMount(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"30 1 0:26 /a /mnt rw - cgroup2 cgroup2 rw\n31 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n", "/sys/fs/cgroup/unified"},
		{"30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", ""},
		{"30 1 0:26 / /with\\040space rw - cgroup2 none rw\n", ""},
	} {
		if got := cgroupMount(tt.text); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

// TestCgroupOutside: a path that leads out of the tree names no cgroup.
func TestCgroupOutside(t *testing.T) {
	tree := cgroups{root: t.TempDir()}
	for _, path := range []string{"/../x", "/..", "x", "/a/../b", "/a/", "", "/"} { // the last is no cgroup v2
		k := Kubelet{Cgroup: path}
		if err := tree.locate(&k); err != nil || k.CgroupID != 0 || k.Cgroup != "" || k.NoCgroup == "" {
			t.Errorf("%q: %+v", path, k)
		}
	}
}

func TestHeaderDSCP(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   byte
		ok     bool
	}{
		{"\x45", 0, true}, {"\x45\xac", Mark, true}, {"\x45\xaf", Mark, true}, {"\x6a\xc0", Mark, true},
		{"\x6a\xff", Mark, true}, {"\x60", 0, true}, {"\x6f\xcf", 0x3f, true}, {"", 0, false}, {"\x00", 0, false},
	} {
		if got, err := headerDSCP(tt.header); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%x: %#x, %v", tt.header, got, err)
		}
	}
}

// FuzzProc reads files of processes that may say anything of themselves.
func FuzzProc(f *testing.F) {
	f.Add("0::/system.slice/kubelet.service\n5:cpu:/kubepods/x\n")
	f.Add("Name:\tx\nUid:\t0\t0\t0\t4294967295\n")
	f.Add("7 (a b) S) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 77 0\n")
	f.Add("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		path, _ := parseCgroup(text)
		k := Kubelet{Cgroup: path}
		if err := (cgroups{root: "/proc/self/nothing"}).locate(&k); err != nil || k.CgroupID != 0 {
			t.Errorf("%q is a cgroup", path)
		}
		_ = cgroupMount(text)
		_, _ = socketUID(text)
		if start, err := startTime(text); err == nil && start == "" {
			t.Errorf("empty start time of %q", text)
		}
		_, _ = headerDSCP(text)
		_ = kubeletArgs("k3s", text)
	})
}
