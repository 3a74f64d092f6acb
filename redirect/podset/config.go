package podset

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Runner serves a pod's captured traffic. Its methods are called concurrently for
// different pods. For the same one, Start may be called while an earlier stop drains.
type Runner interface {
	// Start brings up everything that serves the pod (listeners inside its
	// namespace, its identity) and returns when it is up. ctx bounds Start alone,
	// not what it starts. pod.NS stays the Set's and is open until stop has
	// returned.
	//
	// stop ends the service: it accepts no more, lets what is there finish until
	// ctx ends, cuts the rest, and returns when everything is closed. It is called
	// once.
	Start(ctx context.Context, pod Pod) (stop func(ctx context.Context), err error)
}

// Checker is a Runner that can tell whether a pod's service still runs. It is asked
// at each audit; an error makes the Set stop and start it again.
type Checker interface {
	Check(pod Pod) error
}

// Capture is what the Set needs of redirect.Capture.
type Capture interface {
	Reserve() error
	Apply() (left []redirect.Finding, err error)
	Repair() (found, left []redirect.Finding, err error)
	StopNew() error
	Delete() error
}

// Config describes a Set.
type Config struct {
	// Runner is required.
	Runner Runner
	// Options are what is captured in each pod.
	Options redirect.Options
	// NewCapture makes the capture of a pod, when redirect.New of its namespace with
	// its options is not wanted (a fake). It is called again when they change.
	NewCapture func(pod Pod) (Capture, error)
	// StartTimeout bounds one Runner.Start. Zero means 30 s.
	StartTimeout time.Duration
	// RetryInterval is the pause after the first failure of a pod; it doubles with
	// each further one up to a minute. Zero means 5 s.
	RetryInterval time.Duration
	// AuditInterval is how often an enrolled pod is looked at. Zero means 5 s.
	AuditInterval time.Duration
	// SocketAudit is how often an enrolled pod is searched for sockets that carry
	// the agent's mark, so go past the capture, and are not the agent's. Zero means
	// a minute, negative never.
	SocketAudit time.Duration
	// MarkedSockets lists the sockets with the mark; nil means
	// redirect.MarkedSockets.
	MarkedSockets func(ns *netns.NS) ([]redirect.Socket, error)
	// OwnSockets returns the inodes of the agent's sockets; nil means those of this
	// process.
	OwnSockets func() (map[uint64]bool, error)
	// DrainTimeout is how long connections may go on when a pod leaves or the Set
	// ends. Zero means 30 s; negative cuts them at once.
	DrainTimeout time.Duration
	// Cleanup removes the rules of all pods when the Set ends. By default they
	// stay, so that the pods' traffic is refused until a successor comes.
	Cleanup bool
	// OnEvent, when not nil, is called for each event of a pod in order, from the
	// pod's goroutine. It may call the Set, but must not wait for that pod.
	OnEvent func(Event)
	// Logger gets one line per event. nil discards.
	Logger *slog.Logger
}

const maxRetryInterval = time.Minute

func (c Config) complete() (Config, error) {
	if c.Runner == nil {
		return Config{}, errors.New("make pod set: Runner is required")
	}
	if err := c.Options.Validate(); err != nil {
		return Config{}, err
	}
	if c.NewCapture == nil {
		o := c.Options
		c.NewCapture = func(pod Pod) (Capture, error) {
			if pod.Options != nil {
				return redirect.New(pod.NS, *pod.Options)
			}
			return redirect.New(pod.NS, o)
		}
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.StartTimeout, 30 * time.Second}, {&c.RetryInterval, 5 * time.Second},
		{&c.AuditInterval, 5 * time.Second}, {&c.SocketAudit, time.Minute},
		{&c.DrainTimeout, 30 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if c.MarkedSockets == nil {
		c.MarkedSockets = redirect.MarkedSockets
	}
	if c.OwnSockets == nil {
		c.OwnSockets = ownSockets
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
