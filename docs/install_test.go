package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestManifestsNameTheImageOfTheText: who makes the image as install.md says has the one that the manifests ask for.
func TestManifestsNameTheImageOfTheText(t *testing.T) {
	text, err := os.ReadFile("install.md")
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, m := range regexp.MustCompile(`(?:make image\s+VERSION=|culvert:|ask for )(\d+\.\d+\.\d+)`).FindAllStringSubmatch(string(text), -1) {
		if want != "" && m[1] != want {
			t.Errorf("install.md says %q, and %s elsewhere", m[0], want)
		}
		want = m[1]
	}
	if want == "" {
		t.Fatal("install.md gives no VERSION to make image")
	}
	manifests, err := filepath.Glob("../deploy/manifests/*.yaml")
	if err != nil || len(manifests) == 0 {
		t.Fatalf("found %v, %v", manifests, err)
	}
	image := regexp.MustCompile(`(?m)^\s*image: (.*)$`)
	for _, name := range manifests {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all := image.FindAllStringSubmatch(string(content), -1)
		if len(all) != 2 {
			t.Errorf("%s names %d images", name, len(all))
		}
		for _, m := range all {
			if m[1] != "culvert:"+want {
				t.Errorf("%s names the image %s, install.md makes culvert:%s", name, m[1], want)
			}
		}
	}
}
