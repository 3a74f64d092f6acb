package egress_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload/egress"
)

func TestParseMode(t *testing.T) {
	for _, tc := range []struct {
		text string
		want egress.Mode
		ok   bool
	}{
		{"ALLOW_ANY", egress.AllowAny, true},
		{"REGISTRY_ONLY", egress.RegistryOnly, true},
		{"", egress.RegistryOnly, false},
		{"allow_any", egress.RegistryOnly, false},
		{" ALLOW_ANY", egress.RegistryOnly, false},
		{"ALLOWANY", egress.RegistryOnly, false},
		{strings.Repeat("ALLOW_ANY", 1000), egress.RegistryOnly, false},
	} {
		got, err := egress.ParseMode(tc.text)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("ParseMode(%.20q) = %s, %v, want %s", tc.text, got, err, tc.want)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
	_, err := egress.ParseMode("NONE")
	if want := `outbound traffic policy "NONE" is neither ALLOW_ANY nor REGISTRY_ONLY`; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestModes(t *testing.T) {
	m := egress.New(egress.AllowAny)
	want := func(namespace string, mode egress.Mode) {
		t.Helper()
		if got := m.Of(namespace); got != mode {
			t.Errorf("%s is %s, want %s", namespace, got, mode)
		}
	}
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	want("a", egress.AllowAny)
	before := m.Changed()
	if !m.Set("a", egress.RegistryOnly) || !closed(before) {
		t.Error("a change is not told")
	}
	before = m.Changed()
	if m.Set("a", egress.RegistryOnly) || m.Clear("b") || closed(before) {
		t.Error("no change is told")
	}
	want("a", egress.RegistryOnly)
	want("b", egress.AllowAny)
	if mesh, own := m.All(); mesh != egress.AllowAny || len(own) != 1 || own["a"] != egress.RegistryOnly {
		t.Errorf("all are %s and %v", mesh, own)
	}
	if !m.Clear("a") || !closed(before) {
		t.Error("the end of a mode is not told")
	}
	want("a", egress.AllowAny)

	m = egress.New(egress.RegistryOnly)
	want("a", egress.RegistryOnly)
	m.Set("a", egress.AllowAny)
	want("a", egress.AllowAny)

	m = nil
	want("a", egress.AllowAny)
	if mesh, own := m.All(); mesh != egress.AllowAny || own != nil || m.Changed() != nil {
		t.Errorf("nil is %s, %v or changes", mesh, own)
	}
}
