// Package manager keeps one SVID for each identity that the node serves: it
// has the certificate issued before the first connection needs it, renews it at
// about half of its life, keeps the old one to its end while the authority is
// away, and drops it when the last workload of that identity leaves.
//
// Where certificates come from is the Source's business, and how they are used
// is that of package mtls, whose callers ask Get for each connection and so
// follow every rotation without more ado.
//
//	Acquire            fetched               refused, no valid certificate left
//	   │                  │                        │
//	   ▼                  ▼                        ▼
//	Initializing ──► Available ◄──────────► Unavailable: cause
//	                  renewal refused: stays Available to the end of the certificate
//
// A Manager's methods may be called concurrently, before, during and after Run.
package manager

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const (
	// defaultConcurrency is ztunnel's number of certificate requests in flight.
	defaultConcurrency = 8
	// defaultTimeout ends a fetch whose source has no deadline of its own.
	defaultTimeout = 30 * time.Second
)

// ErrNotAcquired says that no workload holds the identity, or that the last one
// let go of it while the caller waited.
var ErrNotAcquired = errors.New("identity is not held by any workload of this node")

// ErrStopped says that Run has returned and nothing is fetched any more.
var ErrStopped = errors.New("certificate manager is stopped")

// Config configures a Manager.
type Config struct {
	// Source issues the certificates. Required. If it is a svid.Pusher, what it
	// announces replaces the certificate at hand.
	Source svid.Source
	// Logger gets renewals at debug level and failures at warn. Nil discards.
	Logger *slog.Logger
	// Concurrency is the number of fetches at one time; 0 means 8.
	Concurrency int
	// Timeout bounds one fetch; 0 means 30 s.
	Timeout time.Duration
	// Rand returns numbers in [0, 1) for jitter; nil means math/rand. It may be
	// called concurrently.
	Rand func() float64
}

// Manager keeps one SVID per identity; see the package comment.
type Manager struct {
	source      svid.Source
	logger      *slog.Logger
	concurrency int
	timeout     time.Duration
	rand        func() float64
	wake        chan struct{} // size 1: "look at the entries again"
	stopped     chan struct{} // closed when Run has returned

	mu      sync.RWMutex
	entries map[identity.ID]*entry
	ran     bool
}

// Status describes one identity for dumps and metrics.
type Status struct {
	ID identity.ID
	// State is "Available", "Initializing" or "Unavailable: " and the cause.
	State string
	// SVID is the certificate at hand, which may have expired; nil if none.
	SVID *svid.SVID
	// LastError is why the latest fetch failed; nil after a success. In the
	// state Available it tells that renewal is in trouble.
	LastError error
	// NextRefresh is when the next fetch is due.
	NextRefresh time.Time
}

// New makes a Manager. Nothing is fetched before Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Source == nil {
		return nil, errors.New("make certificate manager: no source")
	}
	m := &Manager{
		source:      cfg.Source,
		logger:      cfg.Logger,
		concurrency: cmp.Or(cfg.Concurrency, defaultConcurrency),
		timeout:     cmp.Or(cfg.Timeout, defaultTimeout),
		rand:        cfg.Rand,
		wake:        make(chan struct{}, 1),
		stopped:     make(chan struct{}),
		entries:     make(map[identity.ID]*entry),
	}
	if m.logger == nil {
		m.logger = slog.New(slog.DiscardHandler)
	}
	if m.rand == nil {
		m.rand = rand.Float64
	}
	return m, nil
}

// Acquire holds id for one workload and has its certificate fetched ahead of
// need. Each call wants one Release.
func (m *Manager) Acquire(id identity.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[id]; e != nil {
		e.holders++
		return
	}
	m.entries[id] = newEntry(id, time.Now())
	m.wakeUp()
}

// Release undoes one Acquire. With the last one the certificate and its key are
// dropped, a fetch under way is cancelled, and callers waiting in Get get
// ErrNotAcquired. Releasing what is not held does nothing.
func (m *Manager) Release(id identity.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[id]
	if e == nil {
		return
	}
	if e.holders--; e.holders > 0 {
		return
	}
	delete(m.entries, id)
	e.drop()
}

// Get returns the SVID of id to be used for one connection. It returns at once
// while a valid certificate is at hand, and also with the latest failure while
// there is none and the source is refusing; only the first fetch is waited for,
// as long as ctx allows, and goes ahead of all others.
func (m *Manager) Get(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	for {
		s, changed, err := m.get(id)
		if s != nil || err != nil {
			return s, err
		}
		select {
		case <-changed:
		case <-m.stopped:
			return nil, ErrStopped
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// get returns the SVID or an error, or else what to wait for.
func (m *Manager) get(id identity.ID) (*svid.SVID, <-chan struct{}, error) {
	now := time.Now()
	m.mu.RLock()
	e := m.entries[id]
	if e != nil && e.state(now) == available {
		s := e.svid
		m.mu.RUnlock()
		return s, nil, nil
	}
	m.mu.RUnlock()

	m.mu.Lock()
	defer m.mu.Unlock()
	e = m.entries[id]
	if e == nil {
		return nil, nil, ErrNotAcquired
	}
	switch e.state(now) {
	case available:
		return e.svid, nil, nil
	case unavailable:
		return nil, nil, e.unavailableError(now)
	default:
		e.wanted(now)
		m.wakeUp()
		return nil, e.changed, nil
	}
}

// Update replaces the SVID of the identity that s carries, as a source does
// that announces certificates on its own. It does nothing when the identity is
// not held or s is not valid.
func (m *Manager) Update(s *svid.SVID) {
	now := time.Now()
	if err := s.Verify(now); err != nil {
		m.logger.Warn("announced certificate not used", "identity", s.ID.String(), "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[s.ID]; e != nil {
		e.pushes++
		e.accept(s, now, m.rand())
		m.wakeUp()
	}
}

// Statuses describes all identities held, in the order of their names.
func (m *Manager) Statuses() []Status {
	now := time.Now()
	m.mu.RLock()
	statuses := make([]Status, 0, len(m.entries))
	for _, e := range m.entries {
		statuses = append(statuses, e.status(now))
	}
	m.mu.RUnlock()
	slices.SortFunc(statuses, func(a, b Status) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return statuses
}

// wakeUp makes Run look at the entries again. It does not block.
func (m *Manager) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}
