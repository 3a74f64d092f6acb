package podset_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

func TestReplaceAndReAdd(t *testing.T) {
	ns := namespaces(t, 2)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.drain = 10 * time.Second
		end := w.start(podset.Config{AuditInterval: time.Hour})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		w.took()
		// Another namespace under the same UID: the new one does not wait.
		before := time.Now()
		if err := w.set.Add(t.Context(), w.pod("a", ns[1])); err != nil {
			t.Fatal(err)
		}
		if time.Since(before) > time.Second {
			t.Errorf("replacing waited %v for the old one", time.Since(before))
		}
		if got := w.states(); got != "a:enrolled a:leaving " && got != "a:leaving a:enrolled " {
			t.Errorf("states %q", got)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := w.states(); got != "a:enrolled " {
			t.Errorf("states %q", got)
		}
		w.took()
		// The same namespace again while it is being left: captured at once, and what drains has its time.
		for range 2 {
			go func() { _ = w.set.Remove(context.WithoutCancel(t.Context()), "uid-a") }()
			synctest.Wait()
			w.want("leaving", "stopnew a")
			before = time.Now()
			if err := w.set.Add(t.Context(), w.pod("a", ns[1])); err != nil {
				t.Fatal(err)
			}
			if time.Since(before) > time.Second {
				t.Errorf("coming back waited %v for connections of before", time.Since(before))
			}
			w.want("coming back", "reserve a", "start a", "apply a")
		}
		synctest.Wait()
		w.eventKinds()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		w.want("connections of before end", "drained a", "drained a")
		if got := w.states() + w.eventKinds(); got != "a:enrolled " {
			t.Errorf("states and events %q", got)
		}
		_ = w.set.Remove(t.Context(), "uid-a")
		w.want("leaving for good", "stopnew a", "drained a", "delete a")
	})
}

// TestComesBackAndFails: who takes rules over also takes them away, however far it got.
func TestComesBackAndFails(t *testing.T) {
	for _, tt := range []struct {
		name, fault string
		want        []string
	}{
		{"capture", "new a", nil},
		{"service", "start a", []string{"reserve a", "start a"}},
	} {
		ns := namespaces(t, 1)
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t)
				w.drain = time.Minute
				end := w.start(podset.Config{AuditInterval: time.Hour, RetryInterval: time.Hour})
				defer end()
				if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
					t.Fatal(err)
				}
				go func() { _ = w.set.RemoveWithin(context.WithoutCancel(t.Context()), "uid-a", 2*time.Minute) }()
				synctest.Wait()
				w.took()
				w.setFail(tt.fault, errPort)
				again := w.pod("a", ns[0])
				again.Options = &redirect.Options{DNS: true}
				if err := w.set.Add(t.Context(), again); !errors.Is(err, errPort) {
					t.Errorf("Add = %v", err)
				}
				w.want("coming back", tt.want...)
				gone, cancel := context.WithCancel(t.Context())
				cancel()
				_ = w.set.RemoveWithin(gone, "uid-a", time.Minute)
				synctest.Wait()
				w.want("leaving again", "stopnew a")
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				w.want("connections of before end", "drained a", "delete a")
				if got := w.states(); got != "" {
					t.Errorf("states %q", got)
				}
			})
		})
	}
}

// TestLeavesTwiceWhileDraining: out, in and out again. The rules go only when the connections of before the first time
// have ended, too.
func TestLeavesTwiceWhileDraining(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.drain = 10 * time.Minute // connections of the first time
		end := w.start(podset.Config{AuditInterval: time.Hour})
		defer end()
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_ = w.set.RemoveWithin(gone, "uid-a", time.Hour)
		synctest.Wait()
		w.took()
		time.Sleep(time.Second)
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want("in again", "reserve a", "start a", "apply a")
		w.mu.Lock()
		w.drain = 0 // the second service has no connections
		w.mu.Unlock()
		_ = w.set.RemoveWithin(gone, "uid-a", time.Hour)
		synctest.Wait()
		time.Sleep(time.Hour)
		synctest.Wait()
		w.want("out again", "stopnew a", "drained a", "drained a", "delete a")
	})
}

func TestRemoveWhileStarting(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 20 * time.Second
		end := w.start(podset.Config{})
		defer end()
		added := make(chan error, 1)
		go func() { added <- w.set.Add(t.Context(), w.pod("a", ns[0])) }()
		synctest.Wait()
		if err := w.set.Remove(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		if err := <-added; !errors.Is(err, podset.ErrRemoved) {
			t.Errorf("Add = %v, want ErrRemoved", err)
		}
		w.want("start was ended", "reserve a", "stopnew a", "delete a")
	})
}

// TestRemoveFrom: the end of an old namespace leaves the pod in its new one.
func TestRemoveFrom(t *testing.T) {
	ns := namespaces(t, 2)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{AuditInterval: time.Hour})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[1])); err != nil {
			t.Fatal(err)
		}
		if err := w.set.RemoveFrom(t.Context(), "uid-a", ns[0].ID(), time.Second); err != nil {
			t.Error(err)
		}
		if got := w.states(); got != "a:enrolled " {
			t.Errorf("states %q", got)
		}
		if err := w.set.RemoveFrom(t.Context(), "uid-a", ns[1].ID(), time.Second); err != nil {
			t.Error(err)
		}
		if got := w.states(); got != "" {
			t.Errorf("states %q", got)
		}
		if _, ok := w.set.Pod("uid-a"); ok {
			t.Error("the pod is there still")
		}
	})
}

// TestDrainTimes: a leaving pod has the time that it was given, or less.
func TestDrainTimes(t *testing.T) {
	for _, tt := range []struct {
		name         string
		first, later time.Duration // times given, the later after a second; 0 is none
		linger       time.Duration
		end          bool // the whole set ends after a second
		want         time.Duration
		last         string
	}{
		{name: "drains_itself", first: time.Hour, want: 10 * time.Second, last: "drained a"},
		{name: "own_time", first: 3 * time.Second, want: 3 * time.Second, last: "cut a"},
		{name: "at_once", first: -1, want: 0, last: "cut a"},
		{name: "shortened", first: time.Hour, later: 2 * time.Second, want: 3 * time.Second, last: "cut a"},
		{name: "not_lengthened", first: 3 * time.Second, later: time.Hour, want: 3 * time.Second, last: "cut a"},
		{name: "lingers", first: time.Hour, linger: 2 * time.Second, want: 12 * time.Second, last: "drained a"},
		{name: "lingers_in_its_time", first: time.Second, linger: time.Minute, want: time.Second, last: "cut a"},
		{name: "set_ends", first: time.Hour, end: true, want: 6 * time.Second, last: "cut a"},
	} {
		ns := namespaces(t, 1)
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t)
				w.drain = 10 * time.Second
				end := sync.OnceFunc(w.start(podset.Config{AuditInterval: time.Hour, DrainTimeout: 5 * time.Second}))
				defer end()
				if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				w.took()
				began := time.Now()
				ctx := context.WithoutCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = w.set.RemoveLingering(ctx, "uid-a", tt.linger, tt.first)
				}()
				if tt.later != 0 || tt.end {
					time.Sleep(time.Second)
				}
				if tt.later != 0 {
					go func() { _ = w.set.RemoveWithin(ctx, "uid-a", tt.later) }()
				}
				if tt.end {
					end()
				}
				<-done
				if took := time.Since(began); took != tt.want {
					t.Errorf("left after %v, want %v", took, tt.want)
				}
				w.want("leaving", "stopnew a", tt.last, "delete a")
				synctest.Wait()
			})
		})
	}
}

// TestBehind: what the kernel refuses to take away is tried again for a moment; then who removes the pod hears of it.
func TestBehind(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lasts time.Duration
		want  error
	}{{"for a moment", time.Second, nil}, {"for good", time.Hour, podset.ErrBehind}} {
		t.Run(tt.name, func(t *testing.T) {
			ns := namespaces(t, 1)
			bubble(t, func(t *testing.T) {
				w := newWorld(t)
				end := w.start(podset.Config{})
				defer end()
				if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
					t.Fatal(err)
				}
				w.setFail("stopnew a", unix.ENOMEM)
				w.setFail("delete a", unix.ENOMEM)
				time.AfterFunc(tt.lasts, func() { w.setFail("delete a", nil) })
				begin := time.Now()
				err := w.set.Remove(t.Context(), "uid-a")
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Errorf("Remove = %v, want %v", err, tt.want)
				}
				if took := time.Since(begin) - w.drain; took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
