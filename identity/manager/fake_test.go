package manager_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const life = 2 * time.Hour

var (
	idA = identity.MustParse("spiffe://td/ns/default/sa/a")
	idB = identity.MustParse("spiffe://td/ns/default/sa/b")
	idC = identity.MustParse("spiffe://td/ns/default/sa/c")
)

var errRefused = errors.New("refused by the authority")

// source is a svid.Source under the test's control. Time is the bubble's.
type source struct {
	t  *testing.T
	ca *identitytest.CA

	mu       sync.Mutex
	err      error         // answer of each fetch, if set
	delay    time.Duration // before each answer
	hang     bool          // answer nothing until the context ends
	order    []identity.ID // fetches begun
	times    []time.Time   // when each began
	inFlight int
	most     int // fetches in flight at once
	issue    func(id identity.ID) *svid.SVID
}

func newSource(t *testing.T) *source {
	s := &source{t: t, ca: identitytest.NewCA(t, "td"), delay: time.Millisecond}
	s.issue = func(id identity.ID) *svid.SVID {
		now := time.Now()
		return s.ca.SVID(t, id.String(), identitytest.Validity(now, now.Add(life)))
	}
	return s
}

func (s *source) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	s.mu.Lock()
	s.order = append(s.order, id)
	s.times = append(s.times, time.Now())
	s.inFlight++
	s.most = max(s.most, s.inFlight)
	err, delay, hang, issue := s.err, s.delay, s.hang, s.issue
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.inFlight--
		s.mu.Unlock()
	}()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(delay):
	}
	if err != nil {
		return nil, err
	}
	return issue(id), nil
}

func (s *source) set(fn func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
}

func (s *source) fetches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// bubble runs fn with a running manager in a synctest bubble.
func bubble(t *testing.T, fn func(t *testing.T, m *manager.Manager, s *source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t)
		m := start(t, manager.Config{Source: s, Rand: middle})
		fn(t, m, s)
	})
}

// middle makes jitter nothing.
func middle() float64 { return 0.5 }

func start(t *testing.T, cfg manager.Config) *manager.Manager {
	t.Helper()
	m, err := manager.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return m
}

// get asks with a deadline that lies beyond everything the test does.
func get(t *testing.T, m *manager.Manager, id identity.ID) (*svid.SVID, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	return m.Get(ctx, id)
}

func mustGet(t *testing.T, m *manager.Manager, id identity.ID) *svid.SVID {
	t.Helper()
	s, err := get(t, m, id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stateOf(t *testing.T, m *manager.Manager, id identity.ID) manager.Status {
	t.Helper()
	for _, st := range m.Statuses() {
		if st.ID == id {
			return st
		}
	}
	t.Fatalf("%s has no status", id)
	return manager.Status{}
}
