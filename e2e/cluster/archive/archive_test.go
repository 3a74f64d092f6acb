package archive_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/culvert-mesh/culvert/e2e/cluster/archive"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o700); err != nil {
		t.Fatal(err)
	}
	image := archive.Image{Name: "culvert.test/x:1", Programs: []string{program}}
	var texts [2][]byte
	for i, file := range []string{filepath.Join(dir, "a", "x.tar"), filepath.Join(dir, "b.tar")} {
		if err := archive.Write(file, image); err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if got := config.Config.Entrypoint; len(got) != 1 || got[0] != "/usr/local/bin/program" {
			t.Errorf("entry point %v", got)
		}
		if texts[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(texts[0], texts[1]) {
		t.Error("the same programs give different archives")
	}
	for name, bad := range map[string]archive.Image{
		"no-programs": {Name: "culvert.test/x:1"}, "no-tag": {Name: "x", Programs: []string{program}}, "absent": {Name: "culvert.test/x:1", Programs: []string{"/nowhere"}},
	} {
		if err := archive.Write(filepath.Join(dir, "bad.tar"), bad); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}
