package server

import (
	"sync"
	"time"
)

// sweepAt is the number of callers at which those are forgotten who have not
// called for so long that their bucket is full again.
const sweepAt = 1024

// limiter is a token bucket for each caller, or each address. Callers are
// authenticated, so there are as many as pods at the most; an address is that of a
// TLS connection, so it is one's own.
type limiter struct {
	rate  float64 // tokens per second
	burst float64

	mu      sync.Mutex
	buckets map[string]bucket
	sweep   int
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(rate float64, burst int) *limiter {
	return &limiter{rate: rate, burst: float64(burst), buckets: make(map[string]bucket), sweep: sweepAt}
}

// take reports whether the caller has one more request.
func (l *limiter) take(caller string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.buckets[caller]
	if !known {
		l.sweepLocked(now)
		b = bucket{tokens: l.burst, at: now}
	}
	b.tokens = l.filled(b, now)
	b.at = now
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.buckets[caller] = b
	return allowed
}

func (l *limiter) filled(b bucket, now time.Time) float64 {
	return min(l.burst, b.tokens+l.rate*max(0, now.Sub(b.at).Seconds()))
}

func (l *limiter) sweepLocked(now time.Time) {
	if len(l.buckets) < l.sweep {
		return
	}
	for caller, b := range l.buckets {
		if l.filled(b, now) >= l.burst {
			delete(l.buckets, caller)
		}
	}
	l.sweep = max(sweepAt, 2*len(l.buckets))
}

// gate bounds how many requests of one network address are under way.
type gate struct {
	limit int

	mu     sync.Mutex
	inside map[string]int
}

func newGate(limit int) *gate { return &gate{limit: limit, inside: make(map[string]int)} }

// enter reports whether one more may go in, who must leave then.
func (g *gate) enter(address string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside[address] >= g.limit {
		return false
	}
	g.inside[address]++
	return true
}

func (g *gate) leave(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside[address]--; g.inside[address] <= 0 {
		delete(g.inside, address)
	}
}
