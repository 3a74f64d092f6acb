package proxy

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// shortageEnds is how long nothing may be short before the next time is news again.
const shortageEnds = 10 * time.Second

// shortage is what a node's accept loops share for the time when the process has no descriptors left. A short one is
// waited out: the kernel keeps those who connect. In a longer one they are refused, so that they can go elsewhere
// instead of hanging; the place for that is a descriptor that is kept for nothing else.
type shortage struct {
	mu      sync.Mutex
	users   int
	spare   int // valid with kept
	kept    bool
	last    time.Time // when something was short last
	crowd   time.Time // when somebody had too many last
	refused bool      // in this shortage
}

// enter and leave count the pods; without pods there is no spare descriptor.
func (s *shortage) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users++; s.users == 1 {
		s.keepLocked()
	}
}

func (s *shortage) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 && s.kept {
		loop.CloseFD(s.spare)
		s.kept = false
	}
}

func (s *shortage) keepLocked() {
	fd, err := loop.Placeholder()
	s.spare, s.kept = fd, err == nil
}

// met notes that something was short, and says so once.
func (s *shortage) met(log *slog.Logger, listener string, err error) {
	s.mu.Lock()
	now := time.Now()
	news := now.Sub(s.last) > shortageEnds
	s.last = now
	if news {
		s.refused = false
	}
	s.mu.Unlock()
	if news {
		log.Warn("accepting connections pauses", "listener", listener, "error", err)
	}
}

// crowded notes that somebody was refused for what is kept for others, and says so once.
func (s *shortage) crowded(log *slog.Logger) {
	s.mu.Lock()
	now := time.Now()
	news := now.Sub(s.crowd) > shortageEnds
	s.crowd = now
	s.mu.Unlock()
	if news {
		log.Warn("connections are refused: no descriptors are left for who has many")
	}
}

// refuse resets one connection that waits on the listener. It reports false when that cannot be done either.
func (s *shortage) refuse(log *slog.Logger, l *loop.Acceptor) (client netip.AddrPort, ok bool) {
	s.mu.Lock()
	if !s.kept {
		s.keepLocked()
	}
	if !s.kept {
		s.mu.Unlock()
		return client, false
	}
	loop.CloseFD(s.spare)
	client, ok = l.Refuse()
	s.keepLocked()
	news := ok && !s.refused
	s.refused = s.refused || ok
	s.mu.Unlock()
	if news {
		log.Warn("connections are refused: no descriptors are left")
	}
	return client, ok
}
