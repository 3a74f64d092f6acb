package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// podsOfNode are enrolled pods.
type podsOfNode struct {
	t         *testing.T
	host      *hostSide
	addrs     map[netip.Addr]string
	ready     chan struct{}
	refreshed chan struct{}
}

func (p *podsOfNode) Ready() <-chan struct{} { return p.ready }

func (p *podsOfNode) WithAddresses(f func(map[netip.Addr]string) error) error { return f(p.addrs) }

func (p *podsOfNode) Refresh() {
	if !p.host.options(redirect.Options{}).ProbeMark {
		p.t.Error("pods are looked at again, and do not trust the mark")
	}
	close(p.refreshed)
}

// earlierRules are what an agent before this one has left on the host, and procfs is a /proc that has the host's namespace
// from when it is told to appear.
func earlierRules(t *testing.T) (rules *hostrules.Rules, procfs string, appear func()) {
	t.Helper()
	host := netnstest.New(t)
	rules, err := hostrules.New(hostrules.Config{NS: host, Kubelet: func() (hostrules.Kubelet, error) { return hostrules.Kubelet{UID: 7}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := rules.Add(netip.MustParseAddr("10.0.0.8"), "old"); err != nil {
		t.Fatal(err)
	}
	procfs = t.TempDir()
	return rules, procfs, func() { linkNamespace(t, host, filepath.Join(procfs, "1", "ns")) }
}

func linkNamespace(t *testing.T, ns *netns.NS, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ns.Control(func(fd int) error { return os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(dir, "net")) }); err != nil {
		t.Fatal(err)
	}
}

func closeHost(t *testing.T, h *hostSide) {
	t.Cleanup(func() {
		if h.ns != nil {
			_ = h.ns.Close()
		}
	})
}

// TestHostRulesLate: rules that could not be made at the start are made when they can be, for all pods of then, and only
// then pods trust the mark. Each is said once.
func TestHostRulesLate(t *testing.T) {
	rules, procfs, appear := earlierRules(t)
	var log bytes.Buffer
	h := newHostSide(procfs, slog.New(slog.NewTextHandler(&log, nil)))
	closeHost(t, h)
	h.retry = time.Millisecond
	pod, wrong := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.0.0.1")
	pods := &podsOfNode{
		t: t, host: h, addrs: map[netip.Addr]string{pod: "a", wrong: "b"}, ready: make(chan struct{}), refreshed: make(chan struct{}),
	}
	if err := h.Add(pod, "a"); err != nil {
		t.Error(err)
	}
	if found := fmt.Sprint(h.findings()); h.options(redirect.Options{}).ProbeMark || !strings.Contains(found, "missing: the host's rules cannot be made") {
		t.Errorf("pods trust a mark that nobody guards, or nobody is told: %s", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = h.run(ctx, pods) })
	stop := sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	appear()
	within(t, "the rules are made", func() bool {
		select {
		case <-pods.refreshed:
			return true
		default:
			return false
		}
	})
	has := func(parts ...string) bool {
		text, err := rules.Text()
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	}
	if !has(`10.0.0.1 comment "a"`, `10.0.0.8 comment "old"`) {
		t.Error("the pod, or an earlier agent's, is not in the rules")
	}
	close(pods.ready)
	within(t, "what has gone is pruned", func() bool { return !has("10.0.0.8") })
	if err := h.Add(netip.MustParseAddr("10.0.0.2"), "c"); err != nil || !has(`10.0.0.2 comment "c"`) {
		t.Errorf("a later pod is not in the rules: %v", err)
	}
	stop()
	if found := fmt.Sprint(h.findings()); strings.Contains(found, "cannot be made") {
		t.Errorf("found still: %s", found)
	}
	for _, said := range []string{"no rules on the host", "the host has its rules now", "failed\" address=127.0.0.1"} {
		if n := strings.Count(log.String(), said); n != 1 {
			t.Errorf("%q was said %d times:\n%s", said, n, log.String())
		}
	}
	if err := h.remove(); err != nil || has("table") {
		t.Errorf("rules stay at the end: %v", err)
	}
}

// TestHostRulesNeverMade: an agent that could make no rules removes those of an earlier one with the mesh, and makes none
// after that.
func TestHostRulesNeverMade(t *testing.T) {
	rules, procfs, appear := earlierRules(t)
	h := newHostSide(procfs, slog.New(slog.DiscardHandler))
	closeHost(t, h)
	if err := h.remove(); err == nil {
		t.Error("what could not be looked at was removed")
	}
	appear()
	if err := h.remove(); err != nil {
		t.Error(err)
	}
	if err := h.makeLate(nil); err != nil {
		t.Error(err)
	}
	if text, err := rules.Text(); err != nil || text != "" {
		t.Errorf("rules stay: %v\n%s", err, text)
	}
}

// TestHostRulesBackOff: what fails again and again is tried more seldom, and the end is not waited for.
func TestHostRulesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		times := &failures{}
		h := newHostSide(t.TempDir(), slog.New(slog.NewTextHandler(times, &slog.HandlerOptions{Level: slog.LevelDebug})))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute+4*time.Second)
		defer cancel()
		begin := time.Now()
		if err := h.run(ctx, nil); err != nil {
			t.Error(err)
		}
		var got []int
		for _, at := range times.at {
			got = append(got, int(at.Sub(begin).Seconds()))
		}
		if want := fmt.Sprint([]int{0, 1, 3, 7, 15, 31, 63, 123, 183}); fmt.Sprint(got) != want {
			t.Errorf("tried at %v seconds, want %s", got, want)
		}
		if took := time.Since(begin); took != 3*time.Minute+4*time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

// failures notes when each line was written.
type failures struct {
	at []time.Time
}

func (f *failures) Write(line []byte) (int, error) {
	f.at = append(f.at, time.Now())
	return len(line), nil
}

func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestLastingTroubleOfAudits: what every audit finds, and none can repair, is not a line of the log each five seconds.
func TestLastingTroubleOfAudits(t *testing.T) {
	_, procfs, appear := earlierRules(t)
	appear()
	var log bytes.Buffer
	h := newHostSide(procfs, slog.New(slog.NewTextHandler(&log, nil)))
	if h.rules.Load() == nil {
		t.Fatalf("no rules: %s", log.String())
	}
	_ = h.ns.Close() // from now on everything fails
	log.Reset()
	for range 10 {
		h.audit(&podsOfNode{t: t, host: h})
	}
	if n := strings.Count(log.String(), "\n"); n != 3 { // one of them for the kubelet, which is not to be found
		t.Errorf("%d lines of ten audits, want 3:\n%s", n, log.String())
	}
}
