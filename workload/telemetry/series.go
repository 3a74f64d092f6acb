package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// series are the counters of one label set.
type series struct {
	labels    labels
	direction Direction
	origin    origin

	opened, closed, failed atomic.Uint64
	// Bytes of closed connections and, as of the last scrape, of live ones.
	received, sent atomic.Uint64
	// The series of the same labels with a failure flag, once needed.
	flags [numFlags]atomic.Pointer[series]

	live atomic.Int64 // connections that are open
	used atomic.Int64 // the table's age when one last began or ended
}

// origin is where a label set comes from, by which it finds room.
type origin uint8

const (
	ours   origin = iota // what the mesh knows
	claim                // what a peer says of itself
	beyond               // the label set for those that found no room
)

// A full table lets series go whose connections are gone for at least ageStep: jobs
// and versions come with names of their own. Prometheus takes one that comes back for
// a counter that began anew.
const (
	ageStep   = time.Hour   // the least time between two ages of a table
	sweepStep = time.Minute // and between two searches for such series
)

// maxRecent bounds the shortcut by pointers; beyond it starts anew.
const maxRecent = 8192

// recentKey finds a series by what a connection points to: hashing pointers is
// much cheaper than hashing some twenty label values.
type recentKey struct {
	direction           Direction
	security            Security
	source, destination *workload.Workload
	service             *workload.Service
	sourceID, destID    identity.ID
}

// table holds all series. Their number is bounded.
type table struct {
	max int
	age atomic.Int64

	mu       sync.RWMutex
	recent   map[recentKey]*series
	byLabels map[labels]*series
	all      []*series // only appended to; a sweep makes a new one
	claimed  int       // of them by what peers say of themselves, not counting those with a flag
	aged     time.Time // when age last grew
	swept    time.Time
}

// claimedPart is the part of the series that may be made of what peers say of themselves: anybody may say something else each
// time, and whoever it is told has up to numFlags series.
const claimedPart = 2 * int(numFlags)

func (t *table) init(max int) {
	t.max = max
	t.recent = make(map[recentKey]*series)
	t.byLabels = make(map[labels]*series)
	t.aged = time.Now()
}

// open returns the connection's series, which stays until it is given to close.
func (t *table) open(c *Connection) *series {
	s := t.of(c)
	s.live.Add(1)
	return s
}

func (t *table) close(s *series) {
	t.use(s)
	s.live.Add(-1)
}

// use keeps the series from growing old. Who finds one in the table uses it under the
// lock, so that none goes which is about to be counted in.
func (t *table) use(s *series) { s.used.Store(t.age.Load()) }

// of returns the connection's series, which is used.
func (t *table) of(c *Connection) *series {
	if c.Source.Workload == nil && c.Source.Baggage != nil || c.Destination.Workload == nil && c.Destination.Baggage != nil {
		return t.byLabel(labelsOf(c), c.Direction, claim) // baggage is new with every connection
	}
	key := recentKey{
		direction: c.Direction, security: c.Security,
		source: c.Source.Workload, destination: c.Destination.Workload, service: c.Service,
		sourceID: c.Source.ID, destID: c.Destination.ID,
	}
	t.mu.RLock()
	s := t.recent[key]
	if s != nil {
		t.use(s)
	}
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	s = t.byLabel(labelsOf(c), c.Direction, ours)
	t.mu.Lock()
	if len(t.recent) >= maxRecent {
		clear(t.recent)
	}
	t.recent[key] = s
	t.mu.Unlock()
	return s
}

// forget empties the shortcut, so that it keeps no replaced workload alive for
// longer than the time between two scrapes.
func (t *table) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.recent)
	t.growOldLocked(time.Now())
}

func (t *table) growOldLocked(now time.Time) {
	if now.Sub(t.aged) >= ageStep {
		t.aged = now
		t.age.Add(1)
	}
}

// flagged returns the series of the same labels with the flag.
func (t *table) flagged(s *series, f Flag) *series {
	if f == None {
		return s
	}
	if f >= numFlags {
		f = ConnectFailure
	}
	if found := s.flags[f].Load(); found != nil {
		return found
	}
	l := s.labels
	l[lFlags] = f.String()
	from := s.origin
	if from == claim {
		from = ours // only what it belongs to was counted as claimed
	}
	found := t.byLabel(l, s.direction, from)
	s.flags[f].Store(found)
	return found
}

// byLabel returns the series of a label set. Beyond the limit it is the one for
// overflow, which itself (and its flagged ones) may always be made.
func (t *table) byLabel(l labels, d Direction, from origin) *series {
	t.mu.RLock()
	s := t.byLabels[l]
	if s != nil {
		t.use(s)
	}
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.room(from) {
		t.sweepLocked()
	}
	if t.byLabels[l] == nil && !t.room(from) {
		flag := l[lFlags]
		l, from = overflowLabels(d), beyond
		l[lFlags] = flag
	}
	s = t.byLabels[l]
	if s == nil {
		s = &series{labels: l, direction: d, origin: from}
		t.byLabels[l] = s
		t.all = append(t.all, s)
		if from == claim {
			t.claimed++
		}
	}
	t.use(s)
	return s
}

// room reports whether one more may be made. The caller holds mu.
func (t *table) room(from origin) bool {
	switch from {
	case beyond:
		return true
	case claim:
		return len(t.all) < t.max && t.claimed < t.max/claimedPart
	default:
		return len(t.all) < t.max
	}
}

// sweepLocked removes the series that nobody has used for a whole age, each with its
// flagged ones.
func (t *table) sweepLocked() {
	now := time.Now()
	if now.Sub(t.swept) < sweepStep {
		return
	}
	t.swept = now
	t.growOldLocked(now)
	gone := make(map[*series]bool)
	for _, s := range t.all {
		if s.origin == beyond || s.labels[lFlags] != None.String() {
			continue
		}
		idle := s.live.Load() == 0 && t.age.Load()-s.used.Load() >= 2
		if idle {
			gone[s] = true
		}
		if idle && s.origin == claim {
			t.claimed--
		}
		for i := range s.flags {
			switch f := s.flags[i].Load(); {
			case f == nil:
			case f.origin == beyond:
				s.flags[i].Store(nil) // it may find room of its own now
			case idle:
				gone[f] = true
			}
		}
	}
	clear(t.recent)
	kept := make([]*series, 0, len(t.all))
	for _, s := range t.all {
		if gone[s] {
			delete(t.byLabels, s.labels)
		} else {
			kept = append(kept, s)
		}
	}
	t.all = kept
}

// list returns all series in the order in which they were made.
func (t *table) list() []*series {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.all[:len(t.all):len(t.all)]
}
