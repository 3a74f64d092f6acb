package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/identity/svid"
)

// maxSleep makes Run look at the wall clock now and then: timers stand still
// while a machine sleeps, certificates age.
const maxSleep = time.Minute

// Run fetches and renews until ctx ends, which is not an error. It returns when
// all fetches have ended; from then on Get returns certificates at hand but
// waits for none. It must be called once.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	again := m.ran
	m.ran = true
	m.mu.Unlock()
	if again {
		return errors.New("run certificate manager: it has run already")
	}
	defer close(m.stopped)
	if p, ok := m.source.(svid.Pusher); ok {
		defer p.Subscribe(m.Update)()
	}
	var fetches sync.WaitGroup
	defer fetches.Wait()
	slots := make(chan struct{}, m.concurrency)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.startDue(ctx, &fetches, slots))
	}
}

// startDue starts the fetches that are due while there are slots, the most
// urgent first, and returns how long nothing will be due. A fetch that ends
// frees its slot and wakes Run.
func (m *Manager) startDue(ctx context.Context, fetches *sync.WaitGroup, slots chan struct{}) time.Duration {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		e, sleep := m.mostUrgentLocked(now)
		if e == nil {
			return sleep
		}
		select {
		case slots <- struct{}{}:
		default:
			return maxSleep
		}
		fetchCtx, cancel := context.WithTimeoutCause(ctx, m.timeout,
			fmt.Errorf("certificate source did not answer within %s: %w", m.timeout, context.DeadlineExceeded))
		e.cancel = cancel
		pushes := e.pushes
		fetches.Go(func() {
			m.fetch(fetchCtx, e, pushes)
			cancel()
			<-slots
			m.wakeUp()
		})
	}
}

// mostUrgentLocked returns the entry to fetch first, or nil and the time until
// one is due. Certificates that waited for their time come into use. A node holds at most a few hundred identities, so it simply looks
// at each.
func (m *Manager) mostUrgentLocked(now time.Time) (*entry, time.Duration) {
	var first *entry
	sleep := maxSleep
	for _, e := range m.entries {
		if e.next != nil && !e.due.After(now) {
			e.accept(e.next, now, m.rand())
		}
		switch {
		case e.cancel != nil:
		case e.due.After(now):
			sleep = min(sleep, e.due.Sub(now))
		case first == nil || e.before(first):
			first = e
		}
	}
	return first, sleep
}

// fetch asks the source once and records the outcome, unless the identity has
// been released meanwhile. An SVID that was announced since the fetch began, when
// there had been as many as pushes says, is the newer one and stays.
func (m *Manager) fetch(ctx context.Context, e *entry, pushes int) {
	s, err := m.source.Fetch(ctx, e.id)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	now := time.Now()
	if err == nil {
		err = check(s, e, now)
	}
	m.mu.Lock()
	e.cancel = nil
	counts := m.entries[e.id] == e && e.pushes == pushes &&
		(err == nil || !errors.Is(context.Cause(ctx), context.Canceled)) // else released, or Run is ending
	switch {
	case !counts:
	case err != nil:
		e.fail(err, now, m.rand())
	default:
		e.accept(s, now, m.rand())
	}
	failures, due, waits, valid := e.failures, e.due, e.next == s, e.state(now) == available
	m.mu.Unlock() // before anything is logged: handshakes must not wait for whoever reads the log
	switch {
	case !counts:
	case err != nil:
		m.logger.Warn("certificate not fetched", "identity", e.id.String(), "error", err,
			"failures", failures, "retry_in", due.Sub(now), "valid_one_at_hand", valid)
	case waits:
		m.logger.Warn("new certificate is not valid yet, the one at hand stays: the authority's clock is ahead",
			"identity", e.id.String(), "not_before", s.NotBefore(), "in_use_at", due)
	default:
		m.logger.Debug("certificate fetched", "identity", e.id.String(), "not_after", s.NotAfter(), "next_refresh", due)
	}
}

// check refuses what peers would refuse, so that a fault of the authority shows
// here and a good certificate at hand is not replaced by a useless one.
func check(s *svid.SVID, e *entry, now time.Time) error {
	if s == nil {
		return errors.New("source returned no certificate")
	}
	if s.ID != e.id {
		return fmt.Errorf("source returned a certificate for %s", s.ID)
	}
	return s.Verify(now)
}
