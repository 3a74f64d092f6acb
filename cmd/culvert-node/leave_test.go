package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is left on the node is said where the kubelet reads it, in as many bytes as it takes, and never in a file that the
// kubelet has not made.
func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	lastWords(path, []string{"x"})
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a file was made")
	}
	if err := os.WriteFile(path, []byte("of before, and longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		lines []string
		want  string
	}{
		{nil, "of before, and longer"},
		{[]string{"one", "two"}, "one\ntwo"},
		{[]string{strings.Repeat("x", 5000)}, strings.Repeat("x", 4096)},
	} {
		lastWords(path, tt.lines)
		if got, err := os.ReadFile(path); err != nil || string(got) != tt.want {
			t.Errorf("%d lines: got %.40q %v, want %.40q", len(tt.lines), got, err, tt.want)
		}
	}
}
