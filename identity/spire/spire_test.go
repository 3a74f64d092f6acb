package spire_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/spire"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	webID = "spiffe://td/ns/default/sa/web"
	apiID = "spiffe://td/ns/default/sa/api"
)

var (
	web = identity.MustParse(webID)
	api = identity.MustParse(apiID)
)

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start runs a source until the test ends.
func start(t *testing.T, address string) (*spire.Source, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	s, err := spire.New(spire.Config{Address: address, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	return s, log
}

func run(t *testing.T, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func fetch(t *testing.T, s svid.Source, id identity.ID) (*svid.SVID, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return s.Fetch(ctx, id)
}

// eventually repeats fn until it returns true.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !fn() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestFetchAndPush(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	authority := root.Intermediate(t)
	first := authority.SVID(t, webID)
	server := identitytest.NewWorkloadAPI(t, first, root.SVID(t, apiID))
	source, _ := start(t, server.Address)
	got, err := fetch(t, source, web)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != web || !got.Leaf().Equal(first.Leaf()) || len(got.Certificates) != 2 || !got.Bundle.Equal(root.Bundle()) {
		t.Errorf("got %s with %d certificates", got.ID, len(got.Certificates))
	}
	if err := got.Verify(time.Now()); err != nil {
		t.Error(err)
	}
	if got, err := fetch(t, source, api); err != nil || got.ID != api {
		t.Errorf("second identity: %v, error %v", got, err)
	}

	pushed := make(chan *svid.SVID, 10)
	cancel := source.Subscribe(func(s *svid.SVID) { pushed <- s })
	second := authority.SVID(t, webID)
	server.Push(second)
	if got := <-pushed; !got.Leaf().Equal(second.Leaf()) {
		t.Error("another certificate was announced")
	}
	if got, err := fetch(t, source, web); err != nil || !got.Leaf().Equal(second.Leaf()) {
		t.Errorf("the old certificate is still given out; error %v", err)
	}
	if _, err := fetch(t, source, api); err == nil || err.Error() != "fetch "+apiID+" from Workload API: it offers "+webID+" only" {
		t.Errorf("an identity withdrawn: error %v", err)
	}

	cancel()
	third := authority.SVID(t, webID)
	server.Push(third)
	eventually(t, "third certificate", func() bool {
		got, err := fetch(t, source, web)
		return err == nil && got.Leaf().Equal(third.Leaf())
	})
	if len(pushed) != 0 {
		t.Error("announced after the subscription ended")
	}
}

// TestRotationThroughManager is the whole way: the API pushes, the manager
// serves, nobody asks again. New roots come with a new certificate.
func TestRotationThroughManager(t *testing.T) {
	before, after := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	server := identitytest.NewWorkloadAPI(t, before.SVID(t, webID))
	source, _ := start(t, server.Address)
	m, err := manager.New(manager.Config{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	run(t, m.Run)
	m.Acquire(web)
	if s, err := m.Get(t.Context(), web); err != nil || !s.Bundle.Equal(before.Bundle()) {
		t.Fatalf("got %v, error %v", s, err)
	}
	next := after.SVID(t, webID)
	server.Push(next)
	eventually(t, "rotation", func() bool {
		s, err := m.Get(t.Context(), web)
		return err == nil && s.Leaf().Equal(next.Leaf()) && s.Bundle.Equal(after.Bundle())
	})
}

func TestRefusedThenAdmitted(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	server := identitytest.NewWorkloadAPI(t)
	source, log := start(t, server.Address)
	if _, err := fetch(t, source, web); err == nil || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("got error %v", err)
	}
	server.Push(authority.SVID(t, webID))
	eventually(t, "admission", func() bool {
		_, err := fetch(t, source, web)
		return err == nil
	})
	eventually(t, "both lines of the log", func() bool {
		got := log.String()
		return strings.Contains(got, "Workload API fails") && strings.Contains(got, "Workload API answers again")
	})
}

// TestServerRestarts has the agent go away and come back with news.
func TestServerRestarts(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	first, second := authority.SVID(t, webID), authority.SVID(t, webID)
	server := identitytest.NewWorkloadAPI(t, first)
	source, log := start(t, server.Address)
	if _, err := fetch(t, source, web); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	eventually(t, "the outage to be noticed", func() bool { return strings.Contains(log.String(), "Workload API fails") })
	if got, err := fetch(t, source, web); err != nil || !got.Leaf().Equal(first.Leaf()) {
		t.Errorf("during the outage: %v, error %v", got, err)
	}
	if _, err := fetch(t, source, api); err == nil {
		t.Error("an identity out of nowhere")
	}
	server.Push(second)
	server.Start()
	eventually(t, "the certificate after the restart", func() bool {
		got, err := fetch(t, source, web)
		return err == nil && got.Leaf().Equal(second.Leaf())
	})
}

// TestServerCancels ends the watch in the one way that go-spiffe takes for final.
func TestServerCancels(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	server := identitytest.NewWorkloadAPI(t, authority.SVID(t, webID))
	source, _ := start(t, server.Address)
	if _, err := fetch(t, source, web); err != nil {
		t.Fatal(err)
	}
	server.Refuse(status.Error(codes.Canceled, "going away"))
	eventually(t, "the end of the watch", func() bool { return server.Streams() == 0 })
	next := authority.SVID(t, webID)
	server.Push(next)
	eventually(t, "the next certificate", func() bool {
		got, err := fetch(t, source, web)
		return err == nil && got.Leaf().Equal(next.Leaf())
	})
}

func TestRunEndsWhenRequestIsInvalid(t *testing.T) {
	server := identitytest.NewWorkloadAPI(t)
	server.Refuse(status.Error(codes.InvalidArgument, "not this way"))
	source, err := spire.New(spire.Config{Address: server.Address})
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not this way") {
		t.Errorf("run returned %v", err)
	}
}

// TestOtherIDsAreLeftOut has the API offer an SVID that is no service account's.
func TestOtherIDsAreLeftOut(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	chain, key := authority.Issue(t, "spiffe://td/legacy/web")
	odd := &svid.SVID{Certificates: chain, PrivateKey: key, Bundle: authority.Bundle()}
	server := identitytest.NewWorkloadAPI(t, odd, authority.SVID(t, webID))
	source, log := start(t, server.Address)
	if _, err := fetch(t, source, web); err != nil {
		t.Error(err)
	}
	if got := log.String(); !strings.Contains(got, "SVID from the Workload API not used") || !strings.Contains(got, "spiffe://td/legacy/web") {
		t.Errorf("log:\n%s", got)
	}
}

func TestNothingOfferedIsOfUse(t *testing.T) {
	authority := identitytest.NewCA(t, "td")
	chain, key := authority.Issue(t, "spiffe://td/legacy/web")
	server := identitytest.NewWorkloadAPI(t, &svid.SVID{Certificates: chain, PrivateKey: key, Bundle: authority.Bundle()})
	source, _ := start(t, server.Address)
	want := "fetch " + webID + " from Workload API: it offers no identity of a service account"
	if _, err := fetch(t, source, web); err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestFetchIsBounded(t *testing.T) {
	source, err := spire.New(spire.Config{Address: "unix:///nowhere/agent.sock"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := source.Fetch(ctx, web); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	source, _ := start(t, "unix:///nowhere/agent.sock")
	if _, err := fetch(t, source, web); err == nil || !strings.Contains(err.Error(), "/nowhere/agent.sock") {
		t.Errorf("got error %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct{ name, address string }{
		{"empty", ""},
		{"path", "/run/agent.sock"},
		{"http", "http://127.0.0.1:80"},
		{"tcp_name", "tcp://agent:8081"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := spire.New(spire.Config{Address: tt.address}); err == nil {
				t.Error("accepted")
			}
		})
	}
}
