// Package manager keeps one SVID for each identity that the node serves.
package manager

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// ErrNotAcquired says that nobody holds the identity, or that its last holder
// let go of it while the caller waited.
var ErrNotAcquired = errors.New("identity is not held by any workload here")

// ErrStopped says that the manager's Run has returned.
var ErrStopped = errors.New("certificate manager is stopped")

// Config configures a Manager.
type Config struct {
	// Source issues the certificates. Required.
	Source svid.Source
	// Logger gets renewals and failures. Nil discards.
	Logger *slog.Logger
}

// Manager keeps one SVID per identity.
type Manager struct{ cfg Config }

// Status describes one identity.
type Status struct {
	ID          identity.ID
	State       string
	SVID        *svid.SVID
	LastError   error
	NextRefresh time.Time
}

// New makes a Manager.
func New(cfg Config) (*Manager, error) { return &Manager{cfg: cfg}, nil }

// Run fetches and renews until ctx ends.
func (m *Manager) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Acquire holds id.
func (m *Manager) Acquire(id identity.ID) {}

// Release undoes one Acquire.
func (m *Manager) Release(id identity.ID) {}

// Get returns the current SVID of id.
func (m *Manager) Get(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	return nil, ErrNotAcquired
}

// Update replaces the SVID of the identity that s carries.
func (m *Manager) Update(s *svid.SVID) {}

// Statuses describes all identities held.
func (m *Manager) Statuses() []Status { return nil }
