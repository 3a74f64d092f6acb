package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// DefaultInterval is how often the file is looked at.
const DefaultInterval = 200 * time.Millisecond

// Config says what a Source does.
type Config struct {
	// Path is the file; it may be a symbolic link, also one that is swapped.
	// Required.
	Path string
	// Store and Policies are kept equal to the file. Required.
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies is kept equal to the file too and is ready from the first
	// Load on; nil: what the file says of network policies is not used, which is
	// logged.
	NetworkPolicies *netpol.Set
	// Logger gets one line for each change and each fault; nil discards.
	Logger *slog.Logger
	// Interval is how often the file is looked at; 0 means DefaultInterval.
	Interval time.Duration
}

// Source keeps a Store and a policy Set equal to a file.
type Source struct {
	cfg    Config
	synced chan struct{}

	mu     sync.Mutex
	err    error // of the last attempt
	loaded bool
	last   os.FileInfo // of the content last looked at
}

// New returns a Source that has not read anything yet.
func New(cfg Config) (*Source, error) {
	var errs []error
	if cfg.Path == "" {
		errs = append(errs, errors.New("path is missing"))
	}
	if cfg.Store == nil {
		errs = append(errs, errors.New("store is missing"))
	}
	if cfg.Policies == nil {
		errs = append(errs, errors.New("policies are missing"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new file source: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	return &Source{cfg: cfg, synced: make(chan struct{})}, nil
}

// Load reads the file and applies it. When the file is at fault the Store and
// the Set stay as they are. Programs call it before Run to refuse a faulty
// file at start.
func (s *Source) Load() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.cfg.Path)
	if err != nil {
		s.err = fmt.Errorf("read workloads: %w", err)
		return s.err
	}
	return s.loadLocked(info)
}

// loadLocked reads the content that info describes.
func (s *Source) loadLocked(info os.FileInfo) error {
	s.last = info
	state, err := Load(s.cfg.Path)
	s.err = err
	if unread := (*fs.PathError)(nil); errors.As(err, &unread) {
		s.last = nil // the content is not known: it is looked at again
	}
	if err != nil {
		return err
	}
	for _, w := range state.Warnings {
		s.cfg.Logger.Warn("part of the workload file is ignored", "place", w.Error())
	}
	s.applyNetworkPolicies(state.NetworkPolicies)
	// New policies come before the workloads that they govern, old ones go
	// after them.
	s.cfg.Policies.Apply(state.Policies, nil)
	s.cfg.Store.Replace(state.Workloads, state.Services)
	s.cfg.Policies.Replace(state.Policies)
	s.cfg.Logger.Info("workload file applied", "file", s.cfg.Path,
		"workloads", len(state.Workloads), "services", len(state.Services), "policies", len(state.Policies))
	if !s.loaded {
		s.loaded = true
		close(s.synced)
	}
	return nil
}

// applyNetworkPolicies goes before the workloads: what is known of a pod is known
// before it is served.
func (s *Source) applyNetworkPolicies(objects []netpol.Object) {
	set := s.cfg.NetworkPolicies
	if set == nil {
		if len(objects) > 0 {
			s.cfg.Logger.Warn("network policies of the workload file are not evaluated", "file", s.cfg.Path, "objects", len(objects))
		}
		return
	}
	set.Replace(objects)
	set.SetReady(true)
}

// Synced returns a channel that is closed when the file was applied for the
// first time.
func (s *Source) Synced() <-chan struct{} { return s.synced }

// Err returns why the file's newest content is not in use, or nil.
func (s *Source) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Run follows the file until ctx ends; it returns nil then. A change is in use
// after at most two intervals. A content that is at fault is logged once and
// left; the last good one stays in use, also when the file goes away.
func (s *Source) Run(ctx context.Context) error {
	ticker := time.NewTicker(s.cfg.Interval)
	defer ticker.Stop()
	var seen os.FileInfo
	for {
		seen = s.look(seen)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look applies a new content when two looks in a row found it the same, so
// that a half-written file is not used. It returns what it saw.
func (s *Source) look(seen os.FileInfo) os.FileInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.cfg.Path)
	if err != nil {
		if s.err == nil || s.last != nil {
			s.cfg.Logger.Warn("workload file cannot be read, the last state stays", "error", err)
		}
		s.err, s.last = fmt.Errorf("read workloads: %w", err), nil
		return nil
	}
	if same(info, s.last) {
		return info
	}
	if !same(info, seen) {
		return info
	}
	before := s.err
	if err := s.loadLocked(info); err != nil && (before == nil || before.Error() != err.Error()) {
		s.cfg.Logger.Warn("workload file is refused, the last state stays", "error", err)
	}
	return info
}

// same reports whether both describe one content.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
