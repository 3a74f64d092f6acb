package file_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/file"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running starts a source for the path; it ends with the test.
func running(t *testing.T, path string, log *slog.Logger) (*file.Source, wt.Source) {
	t.Helper()
	out := wt.Source{Store: workload.New(), Policies: policy.New()}
	src, err := file.New(file.Config{Path: path, Store: out.Store, Policies: out.Policies, Logger: log, Interval: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := src.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return src, out
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	for _, tc := range []struct {
		name    string
		publish func(t *testing.T, path string, data []byte)
	}{
		{"in-place", write},
		{"renamed", func(t *testing.T, path string, data []byte) {
			t.Helper()
			write(t, path+".new", data)
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wt.Conform(t, func(t *testing.T) wt.Source {
				path := filepath.Join(t.TempDir(), "mesh.yaml")
				write(t, path, []byte("{}"))
				_, out := running(t, path, nil)
				out.Publish = func(s wt.State) {
					data, err := file.Encode(file.State{Workloads: s.Workloads, Services: s.Services, Policies: s.Policies})
					if err != nil {
						t.Fatal(err)
					}
					tc.publish(t, path, data)
				}
				return out
			})
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

const onePod = "workloads:\n- {uid: u, namespace: n, name: one, workloadIps: [10.0.0.1]}\n"

func TestLastGoodStateStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	write(t, path, []byte(onePod))
	log := new(wt.Log)
	src, out := running(t, path, slog.New(slog.NewTextHandler(log, nil)))
	<-src.Synced()
	has := func(name string) func() bool {
		return func() bool { w := out.Store.Snapshot().Workload("u"); return w != nil && w.Name == name }
	}
	eventually(t, "first state", has("one"))

	version := out.Store.Snapshot().Version()
	for _, bad := range []string{"workloads:\n- {uid: u, namespace: n, nmae: x}\n", "", "workloads: [", "{}\n---\n{}"} {
		write(t, path, []byte(bad))
		eventually(t, "a refusal of "+bad, func() bool { return src.Err() != nil })
		write(t, path, []byte(onePod))
		eventually(t, "recovery", func() bool { return src.Err() == nil })
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file's absence is noticed", func() bool { return src.Err() != nil })
	if !has("one")() || out.Store.Snapshot().Version() != version {
		t.Error("the last good state did not stay")
	}
	write(t, path, []byte(strings.ReplaceAll(onePod, "one", "two")))
	eventually(t, "the new file", has("two"))
	if src.Err() != nil {
		t.Errorf("Err() = %v", src.Err())
	}
	if want := path + `:2: workload: unknown key \"nmae\"`; strings.Count(log.String(), want) != 1 {
		t.Errorf("the log does not say once %s:\n%s", want, log)
	}
}

// TestSymlinkSwap replaces the file as Kubernetes updates a mounted ConfigMap.
func TestSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	mount := func(version, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "mesh.yaml"), []byte(content))
		if err := os.Symlink(version, filepath.Join(dir, "tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	mount("v1", onePod)
	path := filepath.Join(dir, "mesh.yaml")
	if err := os.Symlink("data/mesh.yaml", path); err != nil {
		t.Fatal(err)
	}
	_, out := running(t, path, nil)
	for i, name := range []string{"one", "two", "three"} {
		if i > 0 {
			mount("v"+name, strings.ReplaceAll(onePod, "one", name))
		}
		eventually(t, name, func() bool { w := out.Store.Snapshot().Workload("u"); return w != nil && w.Name == name })
	}
}

func TestLoadAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	store := wt.Store(wt.Pod("ns/kept", nil))
	src, err := file.New(file.Config{Path: path, Store: store, Policies: policy.New()})
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Load(); err == nil || src.Err() == nil {
		t.Error("a missing file is loaded")
	}
	write(t, path, []byte("nonsense: true"))
	if err := src.Load(); err == nil || err.Error() != path+`:1: file: unknown key "nonsense"` {
		t.Errorf("err = %v", err)
	}
	if store.Snapshot().WorkloadCount() != 1 {
		t.Error("a faulty file changed the store")
	}
	write(t, path, []byte(onePod))
	if err := src.Load(); err != nil || src.Err() != nil || store.Snapshot().Workload("u") == nil {
		t.Errorf("err = %v", err)
	}
	select {
	case <-src.Synced():
	default:
		t.Error("not synced after Load")
	}
}

func TestNewRefusesIncomplete(t *testing.T) {
	_, err := file.New(file.Config{})
	if err == nil || err.Error() != "new file source: path is missing\nstore is missing\npolicies are missing" {
		t.Errorf("err = %v", err)
	}
}
