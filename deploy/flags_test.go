package deploy_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// The programs have every flag that the chart gives them, and read every variable.
func TestProgramsKnowTheirFlags(t *testing.T) {
	all := objects(t, "x", everything())
	settings := find[corev1.ConfigMap](t, all, "ConfigMap", "culvert")
	agent := find[appsv1.DaemonSet](t, all, "DaemonSet", "culvert-node")
	controller := find[appsv1.Deployment](t, all, "Deployment", "culvert-controller")
	read := map[string]bool{}
	for program, spec := range map[string]corev1.PodSpec{"culvert-node": agent.Spec.Template.Spec, "culvert-controller": controller.Spec.Template.Spec} {
		flags, variables := usage(t, program)
		c := spec.Containers[0]
		if c.Command[0] != "/usr/local/bin/"+program {
			t.Errorf("%s is started as %v", program, c.Command)
		}
		for _, arg := range c.Args {
			name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			if !flags[name] {
				t.Errorf("%s has no flag --%s", program, name)
			}
		}
		for _, e := range c.Env {
			if !variables[e.Name] && e.Name != "GOMEMLIMIT" { // Go's runtime reads that
				t.Errorf("%s reads no variable %s", program, e.Name)
			}
		}
		for name := range settings.Data {
			read[name] = read[name] || variables[name]
		}
	}
	for name, somebody := range read {
		if !somebody {
			t.Errorf("nobody reads %s of the settings", name)
		}
	}
}

var (
	flagForm     = regexp.MustCompile(`(?m)^\s+--([a-z0-9-]+)`)
	variableForm = regexp.MustCompile(`\$([A-Z][A-Z0-9_]+)`)
)

// usage builds a program and returns the flags and variables that its help names.
func usage(t *testing.T, program string) (flags, variables map[string]bool) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), program)
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/"+program).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, text)
	}
	text, err := exec.CommandContext(t.Context(), bin, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", program, err, text)
	}
	flags, variables = map[string]bool{}, map[string]bool{}
	for _, m := range flagForm.FindAllStringSubmatch(string(text), -1) {
		flags[m[1]] = true
	}
	for _, m := range variableForm.FindAllStringSubmatch(string(text), -1) {
		variables[m[1]] = true
	}
	return flags, variables
}
