package hostrules

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestStill: a process that has got the kubelet's number is not the kubelet for that, nor one that has become another.
func TestStill(t *testing.T) {
	const own = "0::/system.slice/kubelet.service\n"
	stat := func(start int) string {
		return fmt.Sprintf("40 (kubelet) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 0 0\n", start)
	}
	for _, tt := range []struct {
		name, file, text string
		want             bool
	}{
		{"unchanged", "stat", stat(1040), true},
		{"number_used_again", "stat", stat(9999), false},
		{"other_user", "status", "Uid:\t0\t0\t0\t1000\n", false},
		{"other_cgroup", "cgroup", "0::/user.slice\n", false},
		{"in_a_pod", "cgroup", "5:memory:/kubepods/pod1/c\n" + own, false},
		{"unreadable", "status", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			write := func(file, text string) {
				t.Helper()
				path := filepath.Join(root, "40", file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("stat", stat(1040))
			write("status", "Uid:\t0\t0\t0\t0\n")
			write("cgroup", own)
			k := Kubelet{PID: 40, procRoot: root, view: filepath.Join(root, "1")}
			if ok, err := k.read(); !ok || err != nil {
				t.Fatal(ok, err)
			}
			write(tt.file, tt.text)
			if got := k.still(); got != tt.want {
				t.Errorf("still = %v, want %v", got, tt.want)
			}
		})
	}
}
