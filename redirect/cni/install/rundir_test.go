package install_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/cni/install"
)

func TestRemoveEmpty(t *testing.T) {
	for _, tt := range []struct {
		name, dir string
		want      error
	}{
		{"plain", "/run/empty", nil},
		{"below_absolute_link", "/var/run/empty/", nil},
		{"not_empty", "/var/run/full", syscall.ENOTEMPTY},
		{"missing", "/run/missing", syscall.ENOENT},
		{"file", "/run/full/file", syscall.ENOTDIR},
		{"way_out", "/../../run/empty", nil}, // the root's parent is the root
		{"no_link_is_removed", "/var/run", syscall.ENOTDIR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for _, dir := range []string{"run/empty", "run/full", "var"} {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.WriteFile(filepath.Join(root, "run/full/file"), nil, 0o600), os.Symlink("/run", filepath.Join(root, "var/run"))); err != nil {
				t.Fatal(err)
			}
			err := install.RemoveEmpty(root, tt.dir)
			if errors.Is(err, syscall.ENOSYS) {
				t.Skip("needs openat2 (Linux 5.6)")
			}
			if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if _, err := os.Stat(filepath.Join(root, "run/empty")); os.IsNotExist(err) != (tt.want == nil) {
				t.Errorf("the empty directory: %v", err)
			}
		})
	}
}
