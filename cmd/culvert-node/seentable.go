package main

import (
	"net/netip"
	"sync"
	"time"
)

// Bounds of a seenTable.
const (
	maxSeen = 4000
	seenAge = time.Hour // after which a full table gives up an entry
)

// seenTable counts connections by what they have in common, in bounded memory: when it is full, what was not seen for long
// gives up its place. What has none, or none any more, is counted. Safe for concurrent use.
type seenTable[K comparable] struct {
	since time.Time

	mu       sync.Mutex
	entries  map[K]*seenEntry
	overflow uint64 // connections that had no place, or have given it up
	swept    time.Time
}

type seenEntry struct {
	count       uint64
	first, last time.Time
	addr        netip.Addr // of the last source
}

func newSeenTable[K comparable]() *seenTable[K] {
	return &seenTable[K]{entries: make(map[K]*seenEntry), since: time.Now()}
}

// note counts a connection from the address.
func (t *seenTable[K]) note(key K, addr netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key]
	if e == nil {
		if len(t.entries) >= maxSeen && !t.sweepLocked(now) {
			t.overflow++
			return
		}
		e = &seenEntry{first: now}
		t.entries[key] = e
	}
	e.count++
	e.last, e.addr = now, addr
}

// sweepLocked makes room, at most once a minute, and reports whether there is some.
func (t *seenTable[K]) sweepLocked(now time.Time) bool {
	if now.Sub(t.swept) < time.Minute {
		return false
	}
	t.swept = now
	for key, e := range t.entries {
		if now.Sub(e.last) > seenAge {
			t.overflow += e.count // the table goes on to say that it is from since on
			delete(t.entries, key)
		}
	}
	return len(t.entries) < maxSeen
}

// each calls fn, which must be quick, for every entry. It returns since when connections are counted, and how many are
// not among them.
func (t *seenTable[K]) each(fn func(K, *seenEntry)) (since time.Time, overflow uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, e := range t.entries {
		fn(key, e)
	}
	return t.since.UTC(), t.overflow
}

// dropped returns how many connections are not in the table.
func (t *seenTable[K]) dropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.overflow
}
