package proxy

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// suspensions remembers which endpoints failed lately, for one pod: what stands in the way of one pod need not stand in
// the way of another.
//
//	        failed                 time is over: the next attempt is a probe
//	ok ──────────────► suspended ────────────────────────────────────────────► probed
//	▲                      ▲                        failed, for twice as long     │
//	│                      └──────────────────────────────────────────────────────┤
//	└─────────────────────────────────── works ───────────────────────────────────┘
type suspensions struct {
	base time.Duration

	count atomic.Int32 // of entries, so that nobody locks while all is well
	mu    sync.Mutex
	by    map[endpoint]*suspension
}

type endpoint struct {
	uid  string
	addr netip.AddrPort
}

type suspension struct {
	failures int
	until    time.Time
}

const (
	suspensionGrowth = 12 // the longest suspension in units of the first
	maxSuspensions   = 1024
	probeTime        = 10 * time.Second
)

// has reports whether the endpoint is to be tried last.
func (s *suspensions) has(uid string, addr netip.AddrPort) bool {
	if s.count.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.by[endpoint{uid, addr}]
	return e != nil && time.Now().Before(e.until)
}

// trying says that an attempt begins. The first one behind a suspension is a probe: until it is over, others are still
// sent elsewhere.
func (s *suspensions) trying(uid string, addr netip.AddrPort) {
	if s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.by[endpoint{uid, addr}]; e != nil {
		if now := time.Now(); now.After(e.until) {
			e.until = now.Add(probeTime)
		}
	}
}

// failed suspends the endpoint.
func (s *suspensions) failed(uid string, addr netip.AddrPort) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[endpoint]*suspension)
	}
	key := endpoint{uid, addr}
	e := s.by[key]
	if e == nil {
		s.roomLocked()
		e = &suspension{}
		s.by[key] = e
	}
	e.until = now.Add(min(s.base<<min(e.failures, 8), suspensionGrowth*s.base))
	e.failures++
	s.count.Store(int32(len(s.by)))
}

// works ends the endpoint's suspension.
func (s *suspensions) works(uid string, addr netip.AddrPort) {
	if s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by, endpoint{uid, addr})
	s.count.Store(int32(len(s.by)))
}

// roomLocked keeps the table from growing without end: when it is full, a quarter of it goes, beginning with what ends
// first.
func (s *suspensions) roomLocked() {
	if len(s.by) < maxSuspensions {
		return
	}
	keys := slices.SortedFunc(maps.Keys(s.by), func(a, b endpoint) int { return s.by[a].until.Compare(s.by[b].until) })
	for _, key := range keys[:len(keys)/4] {
		delete(s.by, key)
	}
}
