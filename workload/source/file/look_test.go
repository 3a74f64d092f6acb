package file

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// TestHalfWritten steps through the looks at a file that is being written: a
// beginning that happens to be sound must not be used.
func TestHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	when := time.Now().Add(-time.Hour)
	write := func(text string) {
		t.Helper()
		when = when.Add(time.Second) // no dependence on the clock's resolution
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	store := workload.New()
	s, err := New(Config{Path: path, Store: store, Policies: policy.New()})
	if err != nil {
		t.Fatal(err)
	}
	const one, two = "workloads:\n- {uid: a, namespace: n}\n", "- {uid: b, namespace: n}\n"
	write(one + two)
	seen := s.look(s.look(nil))
	count := func() int { return store.Snapshot().WorkloadCount() }
	if count() != 2 {
		t.Fatalf("%d workloads at first", count())
	}
	write(one)
	if seen = s.look(seen); count() != 2 {
		t.Error("a change is used at once")
	}
	write(one + two + "- {uid: c, namespace: n}\n")
	if seen = s.look(seen); count() != 2 {
		t.Error("a change is used although it went on")
	}
	if s.look(seen); count() != 3 {
		t.Errorf("%d workloads in the end", count())
	}
}

// TestChangeWithoutDescriptors: the agent has no descriptors left when the file changes. The change is in use when it has some
// again, though nobody touches the file any more.
func TestChangeWithoutDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte("workloads:\n- {uid: a, namespace: n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := workload.New()
	s, err := New(Config{Path: path, Store: store, Policies: policy.New()})
	if err != nil {
		t.Fatal(err)
	}
	seen := s.look(nil)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	seen = s.look(seen)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if s.Err() == nil {
		t.Error("no error in the shortage")
	}
	if s.look(seen); store.Snapshot().WorkloadCount() != 1 || s.Err() != nil {
		t.Errorf("not in use afterwards: %v", s.Err())
	}
}
