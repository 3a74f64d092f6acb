//go:build !purego

package aesgcm

import (
	"os"
	"os/exec"
	"testing"
)

// The assembly stays out where it is told to.
func TestStandardWhereAsked(t *testing.T) {
	if os.Getenv("AESGCM_CHILD") != "" {
		a, err := New(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		if a.vector != nil {
			t.Error("the assembly is used")
		}
		return
	}
	for _, setting := range []string{"fips140=on", "cpu.avx512vaes=off", "cpu.avx512vpclmulqdq=off", "cpu.avx512bw=off"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStandardWhereAsked$")
		cmd.Env = append(os.Environ(), "AESGCM_CHILD=1", "GODEBUG="+setting)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GODEBUG=%s: %v\n%s", setting, err, out)
		}
	}
}
