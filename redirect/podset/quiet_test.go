package podset_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// TestDamageIsToldOnce: what cannot be put right is looked at every few seconds, and told once.
func TestDamageIsToldOnce(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.eventKinds()
		for _, step := range []struct {
			repair error
			want   string
		}{
			{errors.New("no memory"), "damaged "}, {errors.New("not permitted"), "damaged "}, {nil, ""}, {errors.New("not permitted"), "damaged "},
		} {
			w.setFail("repair a", step.repair)
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := w.eventKinds(); got != step.want {
				t.Errorf("while repairing fails with %v: events %q, want %q", step.repair, got, step.want)
			}
			if st, _ := w.set.Pod("uid-a"); (st.Err == nil) != (step.repair == nil) {
				t.Errorf("while repairing fails with %v: status %v", step.repair, st.Err)
			}
		}
	})
}

// TestManyForeignSockets: a pod decides how many sockets it opens, but not how long a line of the log is.
func TestManyForeignSockets(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var log bytes.Buffer // written by the pod's goroutine, and read when that has ended
		end := w.start(podset.Config{
			SocketAudit: 30 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			MarkedSockets: func(*netns.NS) ([]redirect.Socket, error) {
				all := make([]redirect.Socket, 5000)
				for i := range all {
					all[i] = redirect.Socket{Protocol: "tcp", Inode: uint64(i) + 1, Cookie: uint64(i) + 1}
				}
				return all, nil
			},
			OwnSockets: func() (map[uint64]bool, error) { return nil, nil },
		})
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		end()
		said := 0
		for line := range strings.Lines(log.String()) {
			if len(line) > 2000 {
				t.Errorf("a line of %d bytes: %.200s", len(line), line)
			}
			if strings.Contains(line, "count=5000") {
				said++
			}
		}
		if said != 1 {
			t.Errorf("said %d times how many sockets there are", said)
		}
	})
}

// TestSearchThatFails: a kernel without the means to list sockets is said once for each pod, not each minute.
func TestSearchThatFails(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var log bytes.Buffer
		end := w.start(podset.Config{
			SocketAudit: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			MarkedSockets: func(*netns.NS) ([]redirect.Socket, error) { return nil, syscall.ENOENT },
		})
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		end()
		if n := strings.Count(log.String(), "searching for foreign sockets failed"); n != 1 {
			t.Errorf("said %d times in an hour, want once", n)
		}
	})
}
