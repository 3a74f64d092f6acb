package cni

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "cni.log")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l := openLog(path)
				l.logger().Info("passed", "reason", strings.Repeat("x", 8<<10))
				l.close()
			}
		})
	}
	wg.Wait()
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxLog+8*9<<10 || info.Mode() != 0o600 {
			t.Errorf("%s has %d bytes, mode %v", filepath.Base(name), info.Size(), info.Mode())
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 2 {
		t.Errorf("files: %v", entries)
	}
}

// TestNoLog: what cannot be written to must not keep pods from starting.
func TestNoLog(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	link := filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(file, "below"), link, "/dev/null"} {
		l := openLog(path)
		if l != nil {
			t.Errorf("%s was opened", path)
		}
		l.logger().Info("passed")
		l.close()
	}
}

func TestPanic(t *testing.T) {
	log := filepath.Join(t.TempDir(), "cni.log")
	f := command("ADD", func(*call) error { panic("index out of range") })
	err := f(&skel.CmdArgs{StdinData: []byte(`{"logFile":"` + log + `"}`)})
	e, ok := err.(*types.Error)
	if !ok || e.Code != types.ErrInternal || !strings.Contains(e.Msg, "internal error: panic: index out of range") {
		t.Errorf("error is %#v", err)
	}
	text, err := os.ReadFile(log)
	if err != nil || !bytes.Contains(text, []byte("log_test.go")) {
		t.Errorf("log has no stack: %v\n%s", err, text)
	}
}
