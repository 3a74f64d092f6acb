package telemetry

import (
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// series are the counters of one label set.
type series struct {
	labels    labels
	direction Direction
	overflow  bool // for connections beyond the limit

	opened, closed, failed atomic.Uint64
	// Bytes of closed connections and, as of the last scrape, of live ones.
	received, sent atomic.Uint64
	// The series of the same labels with a failure flag, once needed.
	flags [numFlags]atomic.Pointer[series]
}

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

// table holds all series. Series are never removed, as in Istio; their number is
// bounded.
type table struct {
	max int

	mu       sync.RWMutex
	recent   map[recentKey]*series
	byLabels map[labels]*series
	all      []*series // append-only
	claimed  int       // of them by what peers say of themselves, not counting those with a flag
}

// claimedPart is the part of the series that may be made of what peers say of themselves: anybody may say something else each
// time, and whoever it is told has up to numFlags series.
const claimedPart = 2 * int(numFlags)

func (t *table) init(max int) {
	t.max = max
	t.recent = make(map[recentKey]*series)
	t.byLabels = make(map[labels]*series)
}

// of returns the connection's series.
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
	clear(t.recent)
	t.mu.Unlock()
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
	origin := ours
	if s.overflow {
		origin = beyond
	}
	found := t.byLabel(l, s.direction, origin)
	s.flags[f].Store(found)
	return found
}

// origin is where a label set comes from, by which it finds room.
type origin uint8

const (
	ours   origin = iota // what the mesh knows
	claim                // what a peer says of itself
	beyond               // the label set for those that found no room
)

// byLabel returns the series of a label set. Beyond the limit it is the one for
// overflow, which itself (and its flagged ones) may always be made.
func (t *table) byLabel(l labels, d Direction, from origin) *series {
	t.mu.RLock()
	s := t.byLabels[l]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byLabels[l]; s != nil {
		return s
	}
	if !t.room(from) {
		flag := l[lFlags]
		l, from = overflowLabels(d), beyond
		l[lFlags] = flag
		if s := t.byLabels[l]; s != nil {
			return s
		}
	}
	if from == claim {
		t.claimed++
	}
	s = &series{labels: l, direction: d, overflow: from == beyond}
	t.byLabels[l] = s
	t.all = append(t.all, s)
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

// list returns all series in the order in which they were made.
func (t *table) list() []*series {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.all[:len(t.all):len(t.all)]
}
