package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// programs builds two small programs and returns their paths.
func testPrograms(t *testing.T, environment ...string) []string {
	t.Helper()
	src := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.com/programs\n\ngo 1.26\n")
	write("main.go", "package main\n\nfunc main() { println(1) }\n")
	var paths []string
	for _, name := range []string{"one", "two"} {
		out := filepath.Join(src, "bin", name)
		cmd := exec.Command("go", "build", "-trimpath", "-o", out, ".")
		cmd.Dir = src
		cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), environment...)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, text)
		}
		paths = append(paths, out)
	}
	return paths
}

func make1(t *testing.T, programs []string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := run(options{out: out, name: "culvert", version: "v1", programs: programs}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestImageIsValidBothWays(t *testing.T) {
	out := make1(t, testPrograms(t))

	tag, err := name.NewTag("culvert:v1")
	if err != nil {
		t.Fatal(err)
	}
	docker, err := tarball.ImageFromPath(out, &tag)
	if err != nil {
		t.Fatalf("as docker-archive: %v", err)
	}
	if err := validate.Image(docker); err != nil {
		t.Errorf("as docker-archive: %v", err)
	}

	dir := t.TempDir()
	for name, data := range entries(t, out) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatalf("as OCI layout: %v", err)
	}
	if err := validate.Index(index); err != nil {
		t.Errorf("as OCI layout: %v", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := manifest.Manifests[0].Annotations["io.containerd.image.name"]; got != "docker.io/library/culvert:v1" {
		t.Errorf("containerd would call it %q", got)
	}

	config, err := docker.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != nobody || config.OS != "linux" || config.Architecture == "" {
		t.Errorf("config: user %q, platform %s/%s", config.Config.User, config.OS, config.Architecture)
	}
	programs, err := readPrograms(testPrograms(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Config.Entrypoint; len(got) != 1 || got[0] != "/usr/local/bin/"+programs[0].name {
		t.Errorf("entry point %q", got)
	}
}

func TestImageIsReproducible(t *testing.T) {
	programs := testPrograms(t)
	first, err := os.ReadFile(make1(t, programs))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(programs)
	second, err := os.ReadFile(make1(t, programs))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same programs gave different images")
	}
}

func TestLayerHoldsProgramsAndBill(t *testing.T) {
	out := make1(t, testPrograms(t))
	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	modes := map[string]int64{}
	var bill []byte
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		modes[h.Name] = h.Mode
		if strings.HasSuffix(h.Name, "sbom.spdx.json") {
			if bill, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"usr/local/bin/one", "usr/local/bin/two"} {
		if modes[name] != 0o755 {
			t.Errorf("%s has mode %o", name, modes[name])
		}
	}
	beside, err := os.ReadFile(strings.TrimSuffix(out, ".tar") + ".spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bill, beside) {
		t.Error("the bill of materials in the image differs from the one beside it")
	}
	checkBill(t, bill)
}

// checkBill wants each relation to name packages that are there, once each.
func checkBill(t *testing.T, bill []byte) {
	t.Helper()
	var doc spdxDocument
	if err := json.Unmarshal(bill, &doc); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{doc.SPDXID: true}
	var names []string
	for _, p := range doc.Packages {
		if known[p.SPDXID] {
			t.Errorf("%s is there twice", p.SPDXID)
		}
		known[p.SPDXID] = true
		names = append(names, p.Name)
	}
	for _, r := range doc.Relationships {
		if !known[r.Element] || !known[r.Related] {
			t.Errorf("relation of something unknown: %+v", r)
		}
	}
	for _, want := range []string{"one", "two", "stdlib"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the bill: %v", want, names)
		}
	}
}

func TestRefusals(t *testing.T) {
	programs := testPrograms(t)
	other := testPrograms(t, "GOARCH=riscv64")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		version  string
		programs []string
		want     string
	}{
		{"none", "v1", nil, "no programs"},
		{"latest", "latest", programs, "says nothing"},
		{"tag", "v1/x", programs, "cannot be a tag"},
		{"twice", "v1", []string{programs[0], programs[0]}, "given twice"},
		{"architectures", "v1", []string{programs[0], other[1]}, "is for"},
		{"script", "v1", []string{text}, "read program"},
		{"absent", "v1", []string{text + "x"}, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			err := run(options{out: filepath.Join(dir, "image.tar"), name: "culvert", version: tt.version, programs: tt.programs})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func entries(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
