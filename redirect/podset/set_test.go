package podset_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

func (w *world) want(what string, want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.took()); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestOrder(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.drain = time.Second
		end := w.start(podset.Config{})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		w.want("enrolling", "reserve a", "start a", "apply a")
		if got := w.states(); got != "a:enrolled " {
			t.Errorf("states %q", got)
		}
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil { // the same again
			t.Fatal(err)
		}
		w.want("adding it again")
		if err := w.set.Remove(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		w.want("leaving", "stopnew a", "drained a", "delete a")
		if err := w.set.Remove(t.Context(), "uid-a"); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
		if got := w.eventKinds(); got != "enrolled left " {
			t.Errorf("events %q", got)
		}
	})
}

func TestFailureIsRetriedAlone(t *testing.T) {
	ns := namespaces(t, 2)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{})
		defer end()
		w.setFail("start a", errPort)
		err := w.set.Add(t.Context(), w.pod("a", ns[0]))
		if !errors.Is(err, errPort) || !strings.Contains(err.Error(), "default/a") {
			t.Errorf("Add = %v, want the reason and the pod", err)
		}
		if err := w.set.Add(t.Context(), w.pod("b", ns[1])); err != nil {
			t.Errorf("other pod: %v", err)
		}
		if got := w.states(); got != "a:failed b:enrolled " {
			t.Errorf("states %q", got)
		}
		w.took()
		time.Sleep(7 * time.Second) // first retry after 5 s ± 20 %
		synctest.Wait()
		w.want("first retry", "reserve a", "start a")
		time.Sleep(3 * time.Minute)
		if n := len(w.took()) / 2; n < 4 || n > 8 {
			t.Errorf("%d retries in three minutes, want about 5: 10, 20, 40, 60, 60 s", n)
		}
		w.setFail("start a", nil)
		time.Sleep(80 * time.Second)
		synctest.Wait()
		if got := w.states(); got != "a:enrolled b:enrolled " {
			t.Errorf("states %q", got)
		}
		if got := w.set.Stats().Failures; got < 5 {
			t.Errorf("%d failures counted", got)
		}
	})
}

// TestAddTriesAtOnce: who asks for a failed pod does not wait for the next retry.
func TestAddTriesAtOnce(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{RetryInterval: time.Hour})
		defer end()
		w.setFail("apply a", errPort)
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); !errors.Is(err, errPort) {
			t.Errorf("Add = %v", err)
		}
		w.setFail("apply a", nil)
		before := time.Now()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Error(err)
		}
		if d := time.Since(before); d > time.Minute {
			t.Errorf("second Add took %v", d)
		}
		w.want("service is started once", "reserve a", "start a", "apply a", "apply a")
	})
}

// TestSecondClaim: a namespace has the identity of one pod.
func TestSecondClaim(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		err := w.set.Add(t.Context(), w.pod("thief", ns[0]))
		if err == nil || !strings.Contains(err.Error(), "belongs to pod default/a") {
			t.Errorf("Add of a second pod = %v", err)
		}
		w.took()
		if err := w.set.Remove(t.Context(), "uid-thief"); err != nil {
			t.Error(err)
		}
		w.want("removing the second claim touches nothing")
	})
}

func TestSync(t *testing.T) {
	ns := namespaces(t, 3)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("cni", ns[2])); err != nil {
			t.Fatal(err)
		}
		sync := func(pods ...podset.Pod) {
			t.Helper()
			if err := w.set.Sync(pods); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		sync(w.pod("a", ns[0]), w.pod("b", ns[1]))
		if got := w.states(); got != "a:enrolled b:enrolled cni:enrolled " {
			t.Errorf("states %q", got)
		}
		unknown := podset.Pod{UID: "uid-x", Name: "x", Namespace: "default"}
		known := podset.Pod{UID: "uid-a", Name: "a", Namespace: "default"}
		sync(known, unknown)
		if got := w.states(); got != "a:enrolled cni:enrolled " {
			t.Errorf("states %q, want b gone, a kept without its namespace, cni not yet listed kept", got)
		}
		sync(known, w.pod("cni", ns[2]))
		sync(known)
		if got := w.states(); got != "a:enrolled " {
			t.Errorf("states %q, want cni gone once it was listed", got)
		}
		err := w.set.Sync([]podset.Pod{known, w.pod("", ns[0])})
		if err != nil {
			t.Errorf("pod with another uid in a namespace that is taken fails on its own: %v", err)
		}
		sync()
		if got := w.states(); got != "" {
			t.Errorf("states %q, want none", got)
		}
	})
}

func TestEndOfSet(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cleanup bool
		drain   time.Duration
		want    []string
	}{
		{"rules_stay", false, time.Second, []string{"drained a"}},
		{"cut_at_deadline", false, time.Hour, []string{"cut a"}},
		{"cleanup", true, time.Second, []string{"stopnew a", "drained a", "delete a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := namespaces(t, 1)
			bubble(t, func(t *testing.T) {
				w := newWorld(t)
				w.drain = tt.drain
				end := w.start(podset.Config{Cleanup: tt.cleanup})
				if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
					t.Fatal(err)
				}
				w.took()
				end()
				w.want("end of the set", tt.want...)
				if err := w.set.Add(t.Context(), w.pod("a", ns[0])); !errors.Is(err, podset.ErrClosed) {
					t.Errorf("Add after the end = %v", err)
				}
				if got := w.states(); got != "" {
					t.Errorf("states %q", got)
				}
			})
		})
	}
}

func TestStartTimeout(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = time.Hour
		end := w.start(podset.Config{StartTimeout: time.Second})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Add = %v, want the deadline", err)
		}
	})
}

func TestBeforeRun(t *testing.T) {
	ns := namespaces(t, 2)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.names[ns[0].ID()] = "a"
		set, err := podset.New(podset.Config{Runner: w, NewCapture: nil})
		if err != nil {
			t.Fatal(err)
		}
		if err := set.Sync([]podset.Pod{w.pod("a", ns[0]), w.pod("b", ns[1])}); err != nil {
			t.Fatal(err)
		}
		if err := set.Remove(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := set.Add(ctx, w.pod("b", ns[1])); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Add before Run = %v, want to wait for it", err)
		}
		if err := set.Remove(t.Context(), "uid-b"); err != nil {
			t.Fatal(err)
		}
		w.want("nothing happens before Run")
	})
}

func TestAudit(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		st := w.set.Stats()
		if st.Audits < 10 || st.Audits > 14 || st.Damaged != 0 {
			t.Errorf("after a minute: %+v, want about 12 audits", st)
		}
		w.eventKinds()

		damage := []redirect.Finding{{Part: redirect.PartRules, Text: "chain nat_output is missing"}}
		w.mu.Lock()
		w.found["a"] = damage
		w.mu.Unlock()
		time.Sleep(6 * time.Second)
		w.mu.Lock()
		w.found["a"] = nil
		w.mu.Unlock()
		synctest.Wait()
		if st := w.set.Stats(); st.Damaged == 0 || st.Repaired != st.Damaged {
			t.Errorf("after damage: %+v", st)
		}
		if got := w.eventKinds(); !strings.HasPrefix(got, "repaired ") {
			t.Errorf("events %q", got)
		}

		// What cannot be put right is said once.
		w.mu.Lock()
		w.found["a"], w.left["a"] = damage, damage
		w.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.eventKinds(); got != "repaired " {
			t.Errorf("events %q for lasting damage", got)
		}

		w.setFail("repair a", errPort)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if st := w.set.Pods()[0]; st.State != podset.Enrolled || !errors.Is(st.Err, errPort) {
			t.Errorf("status %+v, want the failure of repairing", st)
		}
		if got := w.eventKinds(); !strings.HasPrefix(got, "damaged ") {
			t.Errorf("events %q", got)
		}
	})
}

func TestCheckRestartsService(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{Runner: checkedWorld{w}})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		w.took()
		w.mu.Lock()
		w.checkErr = errors.New("listener of 15001 is closed")
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		w.checkErr = nil
		w.mu.Unlock()
		synctest.Wait()
		log := w.took()
		want := []string{"drained a", "reserve a", "start a", "apply a"}
		if len(log) < 4 || !cmp.Equal(log[:4], want) {
			t.Errorf("restart did %q, want %q with the rules in place", log, want)
		}
		if got := w.states(); got != "a:enrolled " {
			t.Errorf("states %q", got)
		}
	})
}

func TestForeignSockets(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var marked []redirect.Socket
		end := w.start(podset.Config{
			SocketAudit: 30 * time.Second,
			MarkedSockets: func(*netns.NS) ([]redirect.Socket, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return marked, w.fail["marked"]
			},
			OwnSockets: func() (map[uint64]bool, error) { return map[uint64]bool{1: true}, nil },
		})
		defer end()
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the event comes after the state
		w.eventKinds()
		own, foreign := redirect.Socket{Inode: 1, Cookie: 10}, redirect.Socket{Inode: 2, Cookie: 20}
		set := func(s ...redirect.Socket) {
			w.mu.Lock()
			defer w.mu.Unlock()
			marked = s
		}
		set(own, foreign)
		time.Sleep(40 * time.Second)
		set(own) // it was gone before it was seen twice
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.eventKinds(); got != "" {
			t.Errorf("events %q for a socket seen once", got)
		}
		client, server := netip.MustParseAddrPort("10.0.0.9:1234"), netip.MustParseAddrPort("10.0.0.2:8080")
		call := redirect.Socket{Protocol: "tcp", Local: client, Remote: server, Inode: 1, Cookie: 11}
		accepted := redirect.Socket{Protocol: "tcp", Local: server, Remote: client, Inode: 3, Cookie: 30}
		set(own, call, accepted) // with net.ipv4.tcp_fwmark_accept
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := w.eventKinds(); got != "" {
			t.Errorf("events %q for what the application accepted from the agent", got)
		}
		set(own, foreign)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := w.eventKinds(); got != "foreign " {
			t.Errorf("events %q, want one", got)
		}
		if got := w.set.Stats().Foreign; got != 1 {
			t.Errorf("%d counted", got)
		}
	})
}

// TestForeignSocketsOfManyPods: the agent's sockets are as many as all pods have connections, so that they are not listed for
// each pod anew.
func TestForeignSocketsOfManyPods(t *testing.T) {
	const pods = 20
	ns := namespaces(t, pods)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		lists := 0
		end := w.start(podset.Config{
			SocketAudit:   time.Minute,
			MarkedSockets: func(*netns.NS) ([]redirect.Socket, error) { return []redirect.Socket{{Inode: 1, Cookie: 10}}, nil },
			OwnSockets: func() (map[uint64]bool, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				lists++
				return map[uint64]bool{1: true}, nil
			},
		})
		defer end()
		for i := range pods {
			if err := w.set.Add(t.Context(), w.pod(fmt.Sprint("p", i), ns[i])); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if lists < 9 || lists > 50 {
			t.Errorf("the agent's sockets were listed %d times in ten minutes of %d pods, want 50 at most", lists, pods)
		}
	})
}

func TestBadConfig(t *testing.T) {
	if _, err := podset.New(podset.Config{}); err == nil {
		t.Error("a config without Runner was accepted")
	}
	_, err := podset.New(podset.Config{Runner: newWorld(t), Options: redirect.Options{ExcludeInbound: []uint16{0}}})
	if err == nil || !strings.Contains(err.Error(), "port 0") {
		t.Errorf("New with faulty options = %v", err)
	}
	set, err := podset.New(podset.Config{Runner: newWorld(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Add(t.Context(), podset.Pod{UID: "u"}); err == nil {
		t.Error("a pod without namespace was accepted")
	}
}

// TestOtherOptions: what is captured changes while the service goes on.
func TestOtherOptions(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{AuditInterval: time.Hour, RetryInterval: time.Minute})
		defer end()
		add := func(o *redirect.Options) error {
			pod := w.pod("a", ns[0])
			pod.Options = o
			return w.set.Add(t.Context(), pod)
		}
		if err := add(&redirect.Options{DNS: true}); err != nil {
			t.Fatal(err)
		}
		w.want("enrolling", "reserve a", "start a", "apply a")
		if err := add(&redirect.Options{DNS: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want("the same options")
		if err := add(&redirect.Options{Ingress: true}); err != nil {
			t.Fatal(err)
		}
		w.want("others", "apply a")
		if st, ok := w.set.Pod("uid-a"); !ok || st.State != podset.Enrolled || !st.Pod.Options.Ingress {
			t.Errorf("status %+v, %v", st, ok)
		}
		w.setFail("apply a", errPort)
		if err := add(nil); !errors.Is(err, errPort) {
			t.Errorf("options that cannot be applied: %v", err)
		}
		if got := w.states(); got != "a:failed " {
			t.Errorf("states %q", got)
		}
		w.setFail("apply a", nil)
		if err := add(nil); err != nil {
			t.Errorf("after the failure: %v", err)
		}
		w.want("again", "apply a", "apply a")
		if err := w.set.Change(t.Context(), "uid-a", &redirect.Options{DNS: true}); err != nil {
			t.Error(err)
		}
		w.want("changed", "apply a")
		if err := w.set.Change(t.Context(), "uid-b", nil); !errors.Is(err, podset.ErrRemoved) {
			t.Errorf("changing what is not there: %v", err)
		}
	})
}
