package manager

import (
	"context"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const (
	// firstBackoff doubles with each failure up to maxBackoff, ±20 %.
	firstBackoff = time.Second
	maxBackoff   = 150 * time.Second

	// minPause lies between two fetches of one identity at least, however old
	// the certificate is that the source hands out.
	minPause = time.Second
)

// priority orders fetches that are due.
type priority int

const (
	background priority = iota // renewal of a certificate at hand, retries
	warmUp                     // first fetch, nobody waits yet
	realTime                   // a connection waits
)

// state is where an identity stands; see the package comment.
type state int

const (
	initializing state = iota
	available
	unavailable
)

// entry is one identity. All fields are guarded by the manager's lock.
type entry struct {
	id      identity.ID
	holders int
	changed chan struct{} // closed when svid or err changes, then replaced

	svid     *svid.SVID
	next     *svid.SVID // takes the place of svid when it is due; nil if none
	err      error      // of the latest fetch
	failures int        // in a row
	pushes   int        // SVIDs that the source has announced on its own

	due      time.Time
	priority priority
	cancel   context.CancelFunc // of the fetch under way, else nil
}

func newEntry(id identity.ID, now time.Time) *entry {
	return &entry{id: id, holders: 1, changed: make(chan struct{}), due: now, priority: warmUp}
}

func (e *entry) state(now time.Time) state {
	switch {
	case e.svid != nil && !e.svid.Expired(now):
		return available
	case e.err != nil:
		return unavailable
	default:
		// Nothing yet; or it expired before its renewal was ever tried, which
		// happens when the machine slept.
		return initializing
	}
}

func (e *entry) unavailableError(now time.Time) error {
	if e.svid != nil {
		return fmt.Errorf("certificate of %s expired at %s and was not renewed: %w",
			e.id, e.svid.NotAfter().UTC().Format(time.RFC3339), e.err)
	}
	return fmt.Errorf("no certificate for %s: %w", e.id, e.err)
}

// wanted notes that a connection waits.
func (e *entry) wanted(now time.Time) {
	e.priority = realTime
	if e.due.After(now) {
		e.due = now
	}
}

// accept takes over a new SVID, unless its validity begins later, which says that the
// authority's clock is ahead, and peers accept the one at hand: then it waits for its
// beginning or the end of that one, when it is due. rnd is in [0, 1).
func (e *entry) accept(s *svid.SVID, now time.Time, rnd float64) {
	e.next, e.err, e.failures = nil, nil, 0
	e.priority = background
	if begin := s.NotBefore(); begin.After(now) && e.svid != nil && !e.svid.NotBefore().After(now) && e.svid.NotAfter().After(now) {
		e.next, e.due = s, begin
		if end := e.svid.NotAfter(); end.Before(begin) {
			e.due = end
		}
		return
	}
	e.svid = s
	e.due = renewalTime(s, now, rnd)
	e.announce()
}

// fail notes a failed fetch and sets the time of the next. rnd is in [0, 1).
func (e *entry) fail(err error, now time.Time, rnd float64) {
	e.err = err
	e.failures++
	e.priority = background
	e.due = now.Add(backoff(e.failures, rnd))
	if e.svid != nil {
		// One more attempt right before the end, if that comes first.
		if last := e.svid.NotAfter().Add(-minPause); last.After(now) && last.Before(e.due) {
			e.due = last
		}
	}
	e.announce()
}

// drop ends an entry that has left the map.
func (e *entry) drop() {
	if e.cancel != nil {
		e.cancel()
	}
	e.svid, e.next = nil, nil
	close(e.changed)
	e.changed = nil
}

func (e *entry) announce() {
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *entry) status(now time.Time) Status {
	st := Status{ID: e.id, SVID: e.svid, LastError: e.err, NextRefresh: e.due}
	switch e.state(now) {
	case available:
		st.State = "Available"
	case unavailable:
		st.State = "Unavailable: " + e.err.Error()
	default:
		st.State = "Initializing"
	}
	return st
}

// before orders entries that are due: by priority, then by time.
func (e *entry) before(other *entry) bool {
	if e.priority != other.priority {
		return e.priority > other.priority
	}
	return e.due.Before(other.due)
}

// renewalTime is at half of the certificate's life, ±5 % so that certificates
// issued together do not come back together. When that has passed already (a
// source may hand out what it issued long ago) half of what remains is waited.
func renewalTime(s *svid.SVID, now time.Time, rnd float64) time.Time {
	life := s.NotAfter().Sub(s.NotBefore())
	at := s.NotBefore().Add(time.Duration(float64(life) * (0.45 + 0.1*rnd)))
	if pause := minPause; at.Sub(now) < pause {
		at = now.Add(max(pause, s.NotAfter().Sub(now)/2))
	}
	return at
}

// backoff is the pause after the n-th failure in a row, n from 1.
func backoff(n int, rnd float64) time.Duration {
	d := maxBackoff
	if n <= 8 { // 2^8 s is above the limit
		d = min(d, firstBackoff<<(n-1))
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rnd))
}
