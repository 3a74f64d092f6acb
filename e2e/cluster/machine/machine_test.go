package machine_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

func TestMain(m *testing.M) {
	machine.Reexec()
	os.Exit(m.Run())
}

func TestCreateRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec machine.Spec
		want string
	}{
		{"no-name", machine.Spec{Dir: "/tmp/x"}, "not a host name"},
		{"path-as-name", machine.Spec{Name: "../x", Dir: "/tmp/x"}, "not a host name"},
		{"relative-directory", machine.Spec{Name: "m", Dir: "x"}, "not absolute"},
		{"root-directory", machine.Spec{Name: "m", Dir: "/"}, "not absolute"},
		{"unit-without-command", machine.Spec{Name: "m", Dir: "/tmp/x", Units: []machine.Unit{{Name: "u"}}}, "needs a name and a command"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := machine.Create(tt.spec); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A machine has its own files, settings and processes; when it is killed nothing of it runs, and its files are what they
// were when it starts again.
func TestLife(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "m")
	spec := machine.Spec{
		Name: "unit-test", Dir: dir,
		Files:    map[string]string{"/etc/of-the-machine": "written\n"},
		Settings: map[string]string{"kernel/panic": "12345"},
		Units: []machine.Unit{
			{Name: "sleeper", Args: []string{"/bin/sleep", "1000"}},
			{Name: "restless", Args: []string{"/bin/sh", "-c", "echo again >>/restless"}},
		},
	}
	m := start(t, spec)
	if out := run(t, m, "sh", "-c", "hostname; cat /etc/of-the-machine /proc/sys/kernel/panic; echo kept >/kept; (echo 1 >/proc/sys/kernel/panic_on_oops) 2>/dev/null || echo protected"); out != "unit-test\nwritten\n12345\nprotected" {
		t.Errorf("inside: %q", out)
	}
	if _, err := os.Stat("/kept"); err == nil {
		t.Error("what the machine wrote is on this machine")
	}
	within(t, "the unit is started again", func() bool { return strings.Count(run(t, m, "sh", "-c", "cat /restless || true"), "again") >= 2 })

	again, err := machine.Open(dir)
	if err != nil || again.PID() != m.PID() {
		t.Errorf("open: %v", err)
	}
	if _, err := machine.Create(spec); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second one of the same directory: %v", err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := machine.Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open after the end: %v", err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/culvert-cluster-unit-test"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m = start(t, spec)
	if out := run(t, m, "cat", "/kept"); out != "kept" {
		t.Errorf("after switching on again: %q", out)
	}
	if err := machine.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory is left")
	}
}

// start creates a machine and waits until its root is built.
func start(t *testing.T, spec machine.Spec) *machine.Machine {
	t.Helper()
	m, err := machine.Create(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := machine.Remove(spec.Dir); err != nil {
			t.Error(err)
		}
	})
	if err := m.Go(); err != nil {
		t.Fatal(err)
	}
	within(t, "the machine is up", func() bool {
		if log, err := os.ReadFile(filepath.Join(spec.Dir, "log", "init.log")); err == nil && strings.Contains(string(log), "build root: mount overlay") {
			t.Skipf("no overlay here: %s", log)
		}
		out, err := m.Command(t.Context(), "hostname").Output()
		return err == nil && strings.TrimSpace(string(out)) == spec.Name
	})
	return m
}

func run(t *testing.T, m *machine.Machine, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := m.Command(ctx, args...).Output()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
