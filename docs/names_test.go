package docs_test

import (
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestMetricsAndAnnotationsAreDocumented: what the code calls so is in operate.md, and nothing else is.
func TestMetricsAndAnnotationsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("operate.md")
	if err != nil {
		t.Fatal(err)
	}
	metric := regexp.MustCompile(`^culvert_[a-z_]+$`)
	annotation := regexp.MustCompile(`^((ambient|traffic\.sidecar)\.istio\.io/[a-zA-Z-]+|culvert\.io/(allow|outbound|rotate)[a-z-]+)$`)
	// Names of other things: a table of a probe, and keys that only the controller writes or reads on waypoints.
	other := []string{"culvert_probe", "ambient.istio.io/redirection", "ambient.istio.io/waypoint-inbound-binding"}
	known := map[string]bool{}
	for _, root := range []string{"../cmd", "../workload", "../redirect"} {
		for _, name := range literals(t, root) {
			if metric.MatchString(name) || annotation.MatchString(name) {
				known[name] = true
			}
		}
	}
	for _, name := range other {
		delete(known, name)
	}
	written := map[string]bool{}
	for _, word := range regexp.MustCompile("[a-zA-Z0-9_./-]+").FindAllString(string(text), -1) {
		word = strings.TrimRight(word, ".")
		if metric.MatchString(word) || annotation.MatchString(word) {
			written[word] = true
		}
	}
	for name := range known {
		if !written[name] {
			t.Errorf("operate.md does not tell of %s", name)
		}
	}
	for name := range written {
		if !known[name] {
			t.Errorf("operate.md tells of %s, which is not in the code", name)
		}
	}
}

// literals returns the texts in quotes of the programs' files below a directory.
func literals(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		var s scanner.Scanner
		s.Init(files.AddFile(path, files.Base(), len(source)), source, nil, 0)
		for {
			_, tok, lit := s.Scan()
			if tok == token.EOF {
				return nil
			}
			if tok == token.STRING {
				if text, err := strconv.Unquote(lit); err == nil {
					found = append(found, text)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
