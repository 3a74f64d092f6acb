package manager_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestNewRefusesNoSource(t *testing.T) {
	if _, err := manager.New(manager.Config{}); err == nil {
		t.Error("a manager without a source")
	}
}

func TestAcquireFetchesAhead(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		if st := stateOf(t, m, idA); st.State != "Initializing" || st.SVID != nil {
			t.Errorf("at first: %+v", st)
		}
		time.Sleep(time.Second)
		if st := stateOf(t, m, idA); st.State != "Available" || st.SVID == nil || st.LastError != nil {
			t.Errorf("after the fetch: %+v", st)
		}
		first, second := mustGet(t, m, idA), mustGet(t, m, idA)
		if first != second || s.fetches() != 1 {
			t.Errorf("%d fetches for two calls", s.fetches())
		}
	})
}

func TestOneFetchForManyCallers(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got, err := get(t, m, idA); err != nil || got.ID != idA {
					t.Errorf("got %v, error %v", got, err)
				}
			})
		}
		wg.Wait()
		if n := s.fetches(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestRenewsAtHalfLife(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		first := mustGet(t, m, idA)
		begun := time.Now()
		if next := stateOf(t, m, idA).NextRefresh; next.Sub(first.NotBefore()) != life/2 {
			t.Errorf("renewal is due %s after the start of the certificate, want %s", next.Sub(first.NotBefore()), life/2)
		}
		time.Sleep(life/2 - time.Minute - time.Since(begun))
		if got := mustGet(t, m, idA); got != first {
			t.Error("renewed too early")
		}
		time.Sleep(2 * time.Minute)
		second := mustGet(t, m, idA)
		if second == first || s.fetches() != 2 {
			t.Errorf("not renewed, %d fetches", s.fetches())
		}
		time.Sleep(10 * life)
		if n := s.fetches(); n < 20 || n > 23 {
			t.Errorf("%d fetches in ten more lives, want about 20", n)
		}
	})
}

func TestJitterSpreadsRenewals(t *testing.T) {
	for _, tt := range []struct {
		name string
		rand float64
		want time.Duration
	}{
		{"earliest", 0, life * 45 / 100},
		{"latest", 0.999999, life * 55 / 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := start(t, manager.Config{Source: newSource(t), Rand: func() float64 { return tt.rand }})
				m.Acquire(idA)
				s := mustGet(t, m, idA)
				got := stateOf(t, m, idA).NextRefresh.Sub(s.NotBefore())
				if diff := (got - tt.want).Abs(); diff > time.Second {
					t.Errorf("renewal is due after %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// TestConnectionsGoFirst holds all slots, queues renewals, first fetches and
// fetches that somebody waits for, and looks at the order that they come in.
func TestConnectionsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t)
		s.delay = time.Second
		m := start(t, manager.Config{Source: s, Rand: middle, Concurrency: 1, Timeout: time.Hour})
		m.Acquire(idA)
		mustGet(t, m, idA)
		time.Sleep(life/2 - 1500*time.Millisecond) // until shortly before its renewal
		blocker := identity.MustParse("spiffe://td/ns/default/sa/blocker")
		s.set(func(s *source) { s.delay = time.Minute })
		m.Acquire(blocker)
		synctest.Wait()
		time.Sleep(10 * time.Second) // the renewal of a is due by now
		m.Acquire(idB)
		m.Acquire(idC)
		s.set(func(s *source) { s.delay = time.Second })
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := get(t, m, idC); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(10 * time.Minute)
		wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if want := []identity.ID{idA, blocker, idC, idB, idA}; !slices.Equal(s.order, want) {
			t.Errorf("order %v, want %v", s.order, want)
		}
	})
}

func TestAtMostEightAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		var ids []identity.ID
		for i := range 40 {
			id := identity.MustParse(fmt.Sprintf("spiffe://td/ns/default/sa/n%d", i))
			ids = append(ids, id)
			m.Acquire(id)
		}
		for _, id := range ids {
			mustGet(t, m, id)
		}
		if s.most != 8 || s.fetches() != 40 {
			t.Errorf("%d at once, %d in all; want 8 and 40", s.most, s.fetches())
		}
	})
}

// TestCachedFailureThenHealed checks that a failing source answers callers at
// once, is asked again at growing pauses, and that a success clears all that.
func TestCachedFailureThenHealed(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		s.set(func(s *source) { s.err = errRefused })
		m.Acquire(idA)
		_, err := get(t, m, idA)
		if !errors.Is(err, errRefused) || err.Error() != "no certificate for "+idA.String()+": "+errRefused.Error() {
			t.Fatalf("got error %v", err)
		}
		if st := stateOf(t, m, idA); st.State != "Unavailable: "+errRefused.Error() || !errors.Is(st.LastError, errRefused) {
			t.Errorf("status %+v", st)
		}
		begun, n := time.Now(), s.fetches()
		for range 50 {
			if _, err := get(t, m, idA); !errors.Is(err, errRefused) {
				t.Fatal(err)
			}
		}
		if time.Since(begun) != 0 || s.fetches() != n {
			t.Errorf("callers waited %s and caused %d fetches", time.Since(begun), s.fetches()-n)
		}

		time.Sleep(20 * time.Minute)
		pauses := s.pauses()
		want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 150, 150}
		for i, w := range want {
			if got := pauses[i].Round(time.Second) / time.Second; got != w {
				t.Errorf("pause %d is %d s, want %d", i+1, got, w)
			}
		}

		s.set(func(s *source) { s.err = nil })
		time.Sleep(3 * time.Minute)
		mustGet(t, m, idA)
		if st := stateOf(t, m, idA); st.State != "Available" || st.LastError != nil {
			t.Errorf("healed, but %+v", st)
		}

		// The next failure begins at one second again.
		s.set(func(s *source) { s.err = errRefused })
		n = s.fetches()
		time.Sleep(life/2 + 2*time.Second)
		if got := s.fetches() - n; got < 2 {
			t.Errorf("%d attempts within two seconds after the renewal failed, want 2", got)
		}
	})
}

// pauses returns the times between the fetches so far.
func (s *source) pauses() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []time.Duration
	for i := 1; i < len(s.times); i++ {
		out = append(out, s.times[i].Sub(s.times[i-1]))
	}
	return out
}

func TestBackoffJitter(t *testing.T) {
	for _, tt := range []struct {
		name string
		rand float64
		want time.Duration
	}{
		{"shortest", 0, 800 * time.Millisecond},
		{"longest", 0.999999, 1200 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(t)
				s.err = errRefused
				m := start(t, manager.Config{Source: s, Rand: func() float64 { return tt.rand }})
				m.Acquire(idA)
				time.Sleep(2 * time.Second)
				if got := s.pauses()[0]; (got - tt.want).Abs() > 5*time.Millisecond {
					t.Errorf("first pause is %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// TestOldCertificateServesToItsEnd takes the authority away for good.
func TestOldCertificateServesToItsEnd(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		first := mustGet(t, m, idA)
		s.set(func(s *source) { s.err = errRefused })
		time.Sleep(life/2 + time.Minute)
		if got := mustGet(t, m, idA); got != first {
			t.Fatal("the certificate changed")
		}
		if st := stateOf(t, m, idA); st.State != "Available" || !errors.Is(st.LastError, errRefused) {
			t.Errorf("status does not tell of the trouble: %+v", st)
		}
		time.Sleep(time.Until(first.NotAfter()))
		if got := mustGet(t, m, idA); got != first {
			t.Fatal("not served in its last moment")
		}
		time.Sleep(time.Second)
		_, err := get(t, m, idA)
		if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "expired at ") {
			t.Fatalf("after the end: error %v", err)
		}
		if st := stateOf(t, m, idA); !strings.HasPrefix(st.State, "Unavailable: ") {
			t.Errorf("status %+v", st)
		}
		s.set(func(s *source) { s.err = nil })
		time.Sleep(4 * time.Minute)
		if got := mustGet(t, m, idA); got == first {
			t.Error("the expired certificate came back")
		}
	})
}

func TestRefusesUselessCertificates(t *testing.T) {
	tests := []struct {
		name  string
		issue func(s *source) *svid.SVID
		err   string
	}{
		{"none", func(*source) *svid.SVID { return nil }, "source returned no certificate"},
		{"other_identity", func(s *source) *svid.SVID { return s.ca.SVID(s.t, idB.String()) }, "source returned a certificate for " + idB.String()},
		{"expired", func(s *source) *svid.SVID { return s.ca.SVID(s.t, idA.String(), identitytest.Expired()) }, "expired at"},
		{"wrong_roots", func(s *source) *svid.SVID {
			chain, key := s.ca.Issue(s.t, idA.String())
			got, err := svid.New(chain, key, identitytest.NewCA(s.t, "td").Bundle())
			if err != nil {
				s.t.Error(err)
			}
			return got
		}, "unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
				s.set(func(s *source) { s.issue = func(identity.ID) *svid.SVID { return tt.issue(s) } })
				m.Acquire(idA)
				if _, err := get(t, m, idA); err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want %s", err, tt.err)
				}
			})
		})
	}
}

// TestStaleCertificateDoesNotSpin has a source that always hands out the same
// certificate, long past half of its life.
func TestStaleCertificateDoesNotSpin(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		now := time.Now()
		old := s.ca.SVID(t, idA.String(), identitytest.Validity(now.Add(-life), now.Add(time.Hour)))
		s.set(func(s *source) { s.issue = func(identity.ID) *svid.SVID { return old } })
		m.Acquire(idA)
		time.Sleep(time.Hour - time.Minute)
		if n := s.fetches(); n > 10 {
			t.Errorf("%d fetches of a certificate that did not change", n)
		}
	})
}

func TestReleaseCountsHolders(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		m.Acquire(idA)
		mustGet(t, m, idA)
		m.Release(idA)
		mustGet(t, m, idA)
		m.Release(idA)
		if _, err := get(t, m, idA); !errors.Is(err, manager.ErrNotAcquired) {
			t.Errorf("after the last release: error %v", err)
		}
		if len(m.Statuses()) != 0 {
			t.Errorf("statuses remain: %v", m.Statuses())
		}
		m.Release(idA) // too often: nothing happens
		time.Sleep(3 * life)
		if n := s.fetches(); n != 1 {
			t.Errorf("%d fetches, a released identity was renewed", n)
		}
		m.Acquire(idA)
		if mustGet(t, m, idA); s.fetches() != 2 {
			t.Errorf("%d fetches after acquiring again, want 2", s.fetches())
		}
	})
}

func TestReleaseWhileWaiting(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		s.set(func(s *source) { s.hang = true })
		m.Acquire(idA)
		got := make(chan error, 1)
		go func() {
			_, err := get(t, m, idA)
			got <- err
		}()
		synctest.Wait()
		m.Release(idA)
		if err := <-got; !errors.Is(err, manager.ErrNotAcquired) {
			t.Errorf("the waiting caller got %v", err)
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inFlight != 0 {
			t.Error("the fetch goes on")
		}
	})
}

// TestReacquireWhileFetching lets the answer to an earlier holder's fetch come
// after the identity was taken again.
func TestReacquireWhileFetching(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		synctest.Wait()
		m.Release(idA)
		m.Acquire(idA)
		if got := mustGet(t, m, idA); got.ID != idA {
			t.Errorf("got %v", got)
		}
		if n := s.fetches(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
}

func TestGetOfStranger(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		if _, err := get(t, m, idA); !errors.Is(err, manager.ErrNotAcquired) {
			t.Errorf("got error %v", err)
		}
		if time.Sleep(time.Second); s.fetches() != 0 {
			t.Error("a certificate was fetched for an identity that nobody holds")
		}
	})
}

func TestHangingSource(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		s.set(func(s *source) { s.hang = true })
		m.Acquire(idA)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := m.Get(ctx, idA); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 5*time.Second {
			t.Errorf("got error %v after %s", err, time.Since(begun))
		}
		_, err := get(t, m, idA)
		if err == nil || !strings.Contains(err.Error(), "certificate source did not answer within 30s") {
			t.Errorf("got error %v", err)
		}
		s.set(func(s *source) { s.hang = false })
		time.Sleep(5 * time.Second)
		mustGet(t, m, idA)
	})
}

func TestUpdateReplaces(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		m.Acquire(idA)
		first := mustGet(t, m, idA)
		pushed := s.issue(idA)
		m.Update(pushed)
		if got := mustGet(t, m, idA); got != pushed || got == first {
			t.Error("the announced certificate is not in use")
		}
		m.Update(s.ca.SVID(t, idA.String(), identitytest.Expired()))
		if got := mustGet(t, m, idA); got != pushed {
			t.Error("an expired certificate replaced a good one")
		}
		m.Update(s.issue(idB))
		if len(m.Statuses()) != 1 {
			t.Error("a certificate for an identity that nobody holds was taken")
		}
	})
}

// A fetch that began before an announcement answers with an older certificate, or with a failure that is over.
func TestAnnouncementOutlivesAFetchUnderWay(t *testing.T) {
	for _, outcome := range []error{nil, errRefused} {
		bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
			s.set(func(s *source) { s.delay, s.err = 10*time.Second, outcome })
			m.Acquire(idA)
			time.Sleep(time.Second)
			pushed := s.issue(idA)
			m.Update(pushed)
			time.Sleep(2 * time.Minute)
			if got := mustGet(t, m, idA); got != pushed {
				t.Error("the announced certificate was replaced")
			}
			if st := stateOf(t, m, idA); st.LastError != nil || s.fetches() != 1 {
				t.Errorf("after %d fetches: %+v", s.fetches(), st)
			}
		})
	}
}

// pusher is a source that never answers but announces.
type pusher struct {
	*source
	subscribe func(fn func(*svid.SVID)) func()
}

func (p pusher) Subscribe(fn func(*svid.SVID)) func() { return p.subscribe(fn) }

func TestPusherIsSubscribed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t)
		s.hang = true
		subscribed, cancelled := make(chan func(*svid.SVID), 1), make(chan struct{})
		m, err := manager.New(manager.Config{Source: pusher{s, func(fn func(*svid.SVID)) func() {
			subscribed <- fn
			return func() { close(cancelled) }
		}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		push := <-subscribed
		m.Acquire(idA)
		go push(s.issue(idA))
		mustGet(t, m, idA)
		cancel()
		<-cancelled
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t)
		m, err := manager.New(manager.Config{Source: s})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		m.Acquire(idA)
		mustGet(t, m, idA)
		s.set(func(s *source) { s.hang = true })
		m.Acquire(idB)
		waiting := make(chan error, 1)
		go func() {
			_, err := get(t, m, idB)
			waiting <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := <-waiting; !errors.Is(err, manager.ErrStopped) {
			t.Errorf("the waiting caller got %v", err)
		}
		mustGet(t, m, idA) // what is at hand stays usable while connections finish
		if err := m.Run(t.Context()); err == nil {
			t.Error("ran twice")
		}
	})
}

// TestSleptThroughRenewal has the wall clock pass the certificate's end without
// an attempt to renew it: the caller must wait for a new one, not be refused.
func TestSleptThroughRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t)
		m, err := manager.New(manager.Config{Source: s})
		if err != nil {
			t.Fatal(err)
		}
		m.Acquire(idA)
		now := time.Now()
		m.Update(s.ca.SVID(t, idA.String(), identitytest.Validity(now, now.Add(time.Minute))))
		time.Sleep(time.Hour) // Run does not run, as on a machine that sleeps
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		got := make(chan *svid.SVID, 1)
		go func() {
			s, err := get(t, m, idA)
			if err != nil {
				t.Error(err)
			}
			got <- s
		}()
		synctest.Wait()
		go func() { done <- m.Run(ctx) }()
		if s := <-got; s == nil || s.Expired(time.Now()) {
			t.Error("got no certificate or the expired one")
		}
		cancel()
		<-done
	})
}

// TestStress mixes everything under the race detector.
func TestStress(t *testing.T) {
	bubble(t, func(t *testing.T, m *manager.Manager, s *source) {
		ids := []identity.ID{idA, idB, idC}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 25 {
					id := ids[(i+j)%len(ids)]
					m.Acquire(id)
					if got, err := get(t, m, id); err != nil || got.ID != id {
						t.Errorf("got %v, error %v", got, err)
					}
					m.Statuses()
					time.Sleep(time.Duration(i*j) * time.Second)
					m.Release(id)
				}
			})
		}
		wg.Wait()
		if n := len(m.Statuses()); n != 0 {
			t.Errorf("%d identities remain", n)
		}
	})
}
