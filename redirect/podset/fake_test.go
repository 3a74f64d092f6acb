package podset_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// world is a Runner and the captures of all namespaces, which write down what
// happens and fail on demand.
type world struct {
	t   testing.TB
	set *podset.Set

	mu       sync.Mutex
	log      []string
	fail     map[string]error // by "what name"
	found    map[string][]redirect.Finding
	left     map[string][]redirect.Finding
	drain    time.Duration // how long a service needs to drain
	slow     time.Duration // how long a start needs
	names    map[netns.ID]string
	events   []podset.Event
	checkErr error
}

func newWorld(t testing.TB) *world {
	return &world{
		t: t, fail: map[string]error{}, found: map[string][]redirect.Finding{}, left: map[string][]redirect.Finding{},
		names: map[netns.ID]string{},
	}
}

func (w *world) did(what string, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, what+" "+name)
	return w.fail[what+" "+name]
}

// took returns what happened since the last call.
func (w *world) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	log := w.log
	w.log = nil
	return log
}

func (w *world) setFail(what string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[what] = err
}

func (w *world) Start(ctx context.Context, pod podset.Pod) (func(context.Context), error) {
	select {
	case <-time.After(w.slow):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := w.did("start", pod.Name); err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		select {
		case <-time.After(w.drain):
			_ = w.did("drained", pod.Name)
		case <-ctx.Done():
			_ = w.did("cut", pod.Name)
		}
	}, nil
}

type checkedWorld struct{ *world }

func (w checkedWorld) Check(podset.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checkErr
}

type capture struct {
	w    *world
	name string
}

func (c capture) Reserve() error                     { return c.w.did("reserve", c.name) }
func (c capture) Apply() ([]redirect.Finding, error) { return nil, c.w.did("apply", c.name) }
func (c capture) StopNew() error                     { return c.w.did("stopnew", c.name) }
func (c capture) Delete() error                      { return c.w.did("delete", c.name) }
func (c capture) Repair() (f, l []redirect.Finding, _ error) {
	c.w.mu.Lock()
	f, l = c.w.found[c.name], c.w.left[c.name]
	err := c.w.fail["repair "+c.name]
	c.w.mu.Unlock()
	return f, l, err
}

// pod makes a pod with a namespace of its own.
func (w *world) pod(name string, ns *netns.NS) podset.Pod {
	w.t.Helper()
	dup, err := ns.Dup()
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.names[ns.ID()] = name
	w.mu.Unlock()
	return podset.Pod{UID: "uid-" + name, Name: name, Namespace: "default", ServiceAccount: "sa", NS: dup}
}

// start makes and runs a set inside the bubble; the returned function ends it.
func (w *world) start(cfg podset.Config) (end func()) {
	w.t.Helper()
	if cfg.Runner == nil {
		cfg.Runner = w
	}
	if cfg.SocketAudit == 0 {
		cfg.SocketAudit = -1
	}
	if cfg.MarkedSockets == nil {
		cfg.MarkedSockets = func(*netns.NS) ([]redirect.Socket, error) { return nil, nil }
	}
	cfg.NewCapture = func(pod podset.Pod) (podset.Capture, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := w.fail["new "+w.names[pod.NS.ID()]]; err != nil && pod.Options != nil {
			return nil, err
		}
		return capture{w, w.names[pod.NS.ID()]}, nil
	}
	cfg.OnEvent = func(e podset.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}
	set, err := podset.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.set = set
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	return func() {
		w.t.Helper()
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}
}

func (w *world) states() string {
	text := ""
	for _, st := range w.set.Pods() {
		text += fmt.Sprintf("%s:%s ", st.Pod.Name, st.State)
	}
	return text
}

func (w *world) eventKinds() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := ""
	for _, e := range w.events {
		text += string(e.Kind) + " "
	}
	w.events = nil
	return text
}

// namespaces makes n namespaces outside of any bubble.
func namespaces(t *testing.T, n int) []*netns.NS {
	t.Helper()
	var out []*netns.NS
	for range n {
		out = append(out, netnstest.New(t))
	}
	return out
}

// bubble runs f with fake time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

var errPort = errors.New("listen on 15001: address already in use")
