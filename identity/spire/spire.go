// Package spire takes SVIDs from SPIRE: from the SPIFFE Workload API, which
// others serve too, or from the Delegated Identity API of SPIRE's agent, each a
// socket of the machine.
//
// The Workload API decides by the calling process which identities it gets, so
// a Source is for an agent that serves one workload. With the Delegated
// Identity API an agent gets the identities of other pods; a Delegated is for
// the agent of a node. Both push: renewals and new roots arrive when the server
// makes them, and are handed on to subscribers. Both may be used concurrently.
package spire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// pauseAfterCancel is how long Run waits when the server cancelled the watch,
// the one failure after which go-spiffe does not try again by itself.
const pauseAfterCancel = time.Second

// Config configures a Source.
type Config struct {
	// Address is the Workload API's socket, as "unix:///run/spire/agent.sock"
	// or "tcp://127.0.0.1:8081". Required; the environment is not looked at.
	Address string
	// Logger gets a line when the watch fails and when it works again, and for
	// SVIDs that are of no use here. Nil discards.
	Logger *slog.Logger
}

// Source is a svid.Pusher fed by the Workload API.
type Source struct {
	address string
	logger  *slog.Logger

	mu      sync.Mutex
	changed chan struct{} // closed at each change of what follows, then replaced
	synced  bool
	svids   map[identity.ID]*svid.SVID
	err     error // of the watch; nil while it works
	next    int
	subs    map[int]func(*svid.SVID)
}

var _ svid.Pusher = (*Source)(nil)

// New makes a Source. It connects in Run.
func New(cfg Config) (*Source, error) {
	if cfg.Address == "" {
		return nil, errors.New("make Workload API source: no address")
	}
	if err := workloadapi.ValidateAddress(cfg.Address); err != nil {
		return nil, fmt.Errorf("make Workload API source: address %q: %w", cfg.Address, err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Source{
		address: cfg.Address,
		logger:  cfg.Logger,
		changed: make(chan struct{}),
		subs:    make(map[int]func(*svid.SVID)),
	}, nil
}

// Run follows the Workload API until ctx ends, which is not an error, and
// connects again whenever the watch breaks. It returns an error only when the
// server calls the request itself invalid.
func (s *Source) Run(ctx context.Context) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(s.address))
	if err != nil {
		return fmt.Errorf("follow Workload API: %w", err)
	}
	defer func() { _ = client.Close() }()
	for {
		err := client.WatchX509Context(ctx, &watcher{source: s})
		if ctx.Err() != nil {
			return nil
		}
		if status.Code(err) != codes.Canceled {
			return fmt.Errorf("follow Workload API: %w", err)
		}
		pause := time.NewTimer(pauseAfterCancel)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
	}
}

// Fetch returns the SVID that the Workload API offers for id at the moment. It
// waits for the API's first answer, and fails when that is a refusal or holds
// other identities only. While the API is away the last SVID is returned to its
// end.
func (s *Source) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	for {
		got, changed, err := s.current(id)
		if got != nil || err != nil {
			return got, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("fetch %s from Workload API: %w", id, context.Cause(ctx))
		}
	}
}

// current returns the SVID or an error, or else what to wait for.
func (s *Source) current(id identity.ID) (*svid.SVID, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.svids[id]; got != nil && !got.Expired(time.Now()) {
		return got, nil, nil
	}
	if s.err != nil {
		return nil, nil, fmt.Errorf("fetch %s from Workload API: %w", id, s.err)
	}
	if s.synced {
		return nil, nil, fmt.Errorf("fetch %s from Workload API: it offers %s", id, s.offeredLocked())
	}
	return nil, s.changed, nil
}

// offeredLocked names the identities at hand.
func (s *Source) offeredLocked() string {
	if len(s.svids) == 0 {
		return "no identity of a service account"
	}
	var names []string
	for id := range s.svids {
		names = append(names, id.String())
	}
	slices.Sort(names)
	return strings.Join(names, ", ") + " only"
}

// Subscribe registers fn for each SVID that the Workload API delivers from now
// on; see svid.Pusher.
func (s *Source) Subscribe(fn func(*svid.SVID)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.next
	s.next++
	s.subs[id] = fn
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, id)
	}
}

// update takes over one answer of the Workload API, which replaces all earlier
// ones, and tells the subscribers.
func (s *Source) update(all []*svid.SVID) {
	s.mu.Lock()
	wasFailing := s.err != nil
	s.synced, s.err = true, nil
	s.svids = make(map[identity.ID]*svid.SVID, len(all))
	for _, one := range all {
		s.svids[one.ID] = one
	}
	s.announceLocked()
	subs := slices.Collect(maps.Values(s.subs))
	s.mu.Unlock()

	if wasFailing {
		s.logger.Info("Workload API answers again", "address", s.address)
	}
	for _, one := range all {
		for _, fn := range subs {
			fn(one)
		}
	}
}

// fail notes that the watch broke. go-spiffe tries again.
func (s *Source) fail(err error) {
	s.mu.Lock()
	again := s.err != nil && s.err.Error() == err.Error()
	s.err = err
	s.announceLocked()
	s.mu.Unlock()
	if !again {
		s.logger.Warn("Workload API fails", "address", s.address, "error", err)
	}
}

func (s *Source) announceLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}
