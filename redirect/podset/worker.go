package podset

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
)

// worker is the life of one entry. Only its goroutine touches it.
type worker struct {
	s       *Set
	e       *entry
	capture Capture               // nil before the namespace is the entry's
	options *redirect.Options     // of capture
	took    <-chan struct{}       // closed when the entry has left that the namespace was taken over from, rules and all; else nil
	stop    func(context.Context) // of the running service, nil without one
	left    string                // findings that the last repair could not put right
	trouble string                // why the last repair failed, said already
	blind   string                // why the last search for foreign sockets failed, said already
	foreign map[uint64]int        // how often a foreign socket was seen, by cookie
}

// look is the goroutine of one pod, from Starting to gone.
func (s *Set) look(ctx context.Context, e *entry) {
	w := &worker{s: s, e: e}
	defer s.forget(e)
	for failures := 0; !w.ending(ctx); {
		err := w.enrol(ctx)
		if err == nil {
			failures = 0
			w.set(Enrolled, nil)
			w.event(Event{Kind: EventEnrolled})
			if w.audit(ctx) {
				continue // the service has to be started again
			}
			break
		}
		if w.ending(ctx) {
			break
		}
		failures++
		s.counters.failures.Add(1)
		w.set(Failed, err)
		w.event(Event{Kind: EventFailed, Err: err})
		if !w.pause(ctx, backoff(s.cfg.RetryInterval, failures)) {
			break
		}
		w.set(Starting, nil)
	}
	w.leave(ctx)
}

// backoff returns the pause after a number of failures in a row, ±20 %.
func backoff(base time.Duration, failures int) time.Duration {
	d := base
	for i := 1; i < failures && d < maxRetryInterval; i++ {
		d *= 2
	}
	d = max(base, min(d, maxRetryInterval))
	return d*4/5 + rand.N(d*2/5+1)
}

// ending reports whether the pod or the whole set is to end.
func (w *worker) ending(ctx context.Context) bool {
	return ctx.Err() != nil || w.e.removed.Err() != nil
}

// pause waits for d or until somebody asks for the pod; false means the end.
func (w *worker) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.e.wake:
		return true
	case <-w.e.removed.Done():
		return false
	case <-ctx.Done():
		return false
	}
}

// enrol does what is still to be done; after a failure it goes on from there.
func (w *worker) enrol(ctx context.Context) error {
	if w.capture == nil {
		if err := w.own(ctx); err != nil {
			return err
		}
	}
	if err := w.shape(); err != nil {
		return err
	}
	if w.stop == nil {
		if err := w.capture.Reserve(); err != nil {
			// Rare trouble at most: a port that an application happens to take.
			w.s.cfg.Logger.Warn("reserving ports failed", "pod", w.e.pod, "error", err)
		}
		if err := w.start(ctx); err != nil {
			return fmt.Errorf("start service: %w", err)
		}
	}
	left, err := w.capture.Apply()
	if err != nil {
		return err
	}
	if w.left = fmt.Sprint(left); len(left) > 0 {
		w.s.cfg.Logger.Warn("capture is incomplete", "pod", w.e.pod, "findings", left)
	}
	return nil
}

// shape makes the capture that is wanted now.
func (w *worker) shape() error {
	options := w.wanted()
	if w.capture != nil && options == w.options {
		return nil
	}
	pod := w.e.pod
	pod.Options = options
	c, err := w.s.cfg.NewCapture(pod)
	if err != nil {
		return err
	}
	w.capture, w.options = c, options
	return nil
}

func (w *worker) wanted() *redirect.Options {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.e.options
}

// own makes the namespace this pod's. It fails when another pod has it, and waits for
// one that leaves. The pod's own connections of before may go on draining: it takes
// the namespace over from them, rules and all.
func (w *worker) own(ctx context.Context) error {
	id := w.e.pod.NS.ID()
	for {
		w.s.mu.Lock()
		other := w.s.owners[id]
		same := other != nil && other.pod.UID == w.e.pod.UID
		if other == nil || other == w.e || same && other.draining {
			if same && other != w.e {
				other.heir, other.draining, w.took = true, false, other.gone
			}
			w.s.owners[id] = w.e
			w.s.mu.Unlock()
			return nil
		}
		var next <-chan struct{} = other.gone
		switch {
		case other.removed.Err() == nil:
			w.s.mu.Unlock()
			return fmt.Errorf("network namespace %s belongs to pod %s (uid %s)", id, other.pod, other.pod.UID)
		case same && !isClosed(other.settled):
			next = other.settled
		case !same:
			other.hurryLocked(w.s.cfg.DrainTimeout) // while it drains, nothing new is captured
		}
		w.s.mu.Unlock()
		select {
		case <-next:
		case <-w.e.removed.Done():
			return ErrRemoved
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (w *worker) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.s.cfg.StartTimeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(w.e.removed, func() { end(ErrRemoved) })()
	stop, err := w.s.cfg.Runner.Start(ctx, w.e.pod)
	if err == nil {
		w.stop = stop
	}
	return err
}

// audit looks after an enrolled pod until it ends (false) or it has to be enrolled
// again (true): its service does not run any more, or something else is to be
// captured. Pods are looked at spread over the interval.
func (w *worker) audit(ctx context.Context) bool {
	interval := w.s.cfg.AuditInterval
	timer := time.NewTimer(interval/2 + rand.N(interval/2+1))
	defer timer.Stop()
	searched := time.Now()
	for {
		select {
		case <-w.e.removed.Done():
			return false
		case <-ctx.Done():
			return false
		case <-w.e.wake:
			if w.wanted() != w.options {
				return true
			}
			continue
		case <-timer.C:
		}
		w.repair()
		if every := w.s.cfg.SocketAudit; every > 0 && time.Since(searched) >= every {
			w.searchForeign()
			searched = time.Now()
		}
		if checker, ok := w.s.cfg.Runner.(Checker); ok {
			if err := checker.Check(w.e.pod); err != nil {
				w.restart(err)
				return true
			}
		}
		timer.Reset(interval)
	}
}

func (w *worker) repair() {
	w.s.counters.audits.Add(1)
	found, left, err := w.capture.Repair()
	if err == nil {
		w.trouble = ""
	}
	if err == nil && len(found) == 0 {
		w.left = ""
		w.set(Enrolled, nil)
		return
	}
	if err == nil && len(left) > 0 && fmt.Sprint(found) == w.left {
		return // known and not to be helped
	}
	w.s.counters.damaged.Add(1)
	w.left = fmt.Sprint(left)
	if err != nil {
		w.set(Enrolled, fmt.Errorf("capture is damaged: %w", err))
		if text := fmt.Sprint(found, err); text != w.trouble {
			w.trouble = text
			w.event(Event{Kind: EventDamaged, Findings: found, Err: err})
		}
		return
	}
	w.s.counters.repaired.Add(1)
	w.set(Enrolled, nil)
	w.event(Event{Kind: EventRepaired, Findings: found, Left: left})
}

// restart ends a service that does not run any more. The rules stay, so traffic is
// refused until it is back.
func (w *worker) restart(why error) {
	w.s.counters.damaged.Add(1)
	err := fmt.Errorf("service does not run: %w", why)
	w.set(Starting, err)
	w.event(Event{Kind: EventDamaged, Err: err})
	ctx, cancel := context.WithTimeout(w.e.drain, max(0, w.s.cfg.DrainTimeout))
	defer cancel()
	w.end(ctx)
}

// end stops the service; it has until ctx ends to drain.
func (w *worker) end(ctx context.Context) {
	if w.stop != nil {
		w.stop(ctx)
		w.stop = nil
	}
}

// leave undoes the enrolment. When the whole set ends, the rules stay unless they
// shall be cleaned up; a pod that is removed leaves all the same. While it drains, the
// pod may be enrolled again: then the rules are left to that.
func (w *worker) leave(ctx context.Context) {
	w.set(Leaving, nil)
	var behind error
	undo := (w.capture != nil || w.took != nil) && (w.e.removed.Err() != nil || w.s.cfg.Cleanup)
	if undo && w.capture == nil {
		behind = w.inherit()
		undo = w.capture != nil
	}
	if undo {
		_ = w.capture.StopNew() // what it cannot take away goes on being served, until takeAway
	}
	w.patience()
	w.settle()
	w.linger()
	w.end(w.e.drain)
	if w.took != nil {
		<-w.took // its connections need the rules too, and have a bound of their own
	}
	if undo {
		w.yield(ctx)
	}
	mine := w.reclaim()
	if undo && mine {
		behind = w.takeAway()
	}
	if mine && (ctx.Err() == nil || undo) {
		w.e.behind = behind
		w.event(Event{Kind: EventLeft, Err: behind})
	}
}

// takeAway deletes the capture. What the kernel refuses for want of memory or because
// of another's change it may do a moment later, and nobody serves the pod any more.
func (w *worker) takeAway() error {
	for pause := 100 * time.Millisecond; ; pause *= 4 {
		err := w.capture.Delete()
		if err == nil || pause > 2*time.Second {
			return err
		}
		time.Sleep(pause)
	}
}

// inherit makes a capture of the rules that were taken over, with which the pod never
// got as far as options of its own.
func (w *worker) inherit() error {
	pod := w.e.pod
	pod.Options = nil
	c, err := w.s.cfg.NewCapture(pod)
	if err == nil {
		w.capture = c
	}
	return err
}

// settle lets the same pod take the namespace over from now on.
func (w *worker) settle() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.e.draining = w.e.removed.Err() != nil
	close(w.e.settled)
}

// linger leaves the service as it is for the time that the removal asked for.
func (w *worker) linger() {
	if w.e.removed.Err() == nil || w.stop == nil { // linger is another's to set until the pod is removed
		return
	}
	timer := time.NewTimer(w.e.linger)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.e.drain.Done():
	}
}

// reclaim ends that, and reports whether nobody has.
func (w *worker) reclaim() bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.e.draining = false
	return !w.e.heir
}

// patience bounds the drain of a pod that ends with the whole set; a removed one has
// its bound.
func (w *worker) patience() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.e.patience == nil {
		w.e.hurryLocked(w.s.cfg.DrainTimeout)
	}
}

// forget closes what belongs to e, when its goroutine ends.
func (s *Set) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[e.pod.NS.ID()] == e {
		delete(s.owners, e.pod.NS.ID())
	}
	delete(s.leaving, e)
	if s.pods[e.pod.UID] == e {
		delete(s.pods, e.pod.UID)
	}
	e.releaseLocked()
}

// set publishes the state.
func (w *worker) set(state State, err error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if state == Enrolled && w.e.options != w.options {
		state = Starting // something else is wanted since
	}
	w.e.publishLocked(state, err)
}

func (w *worker) event(ev Event) {
	ev.Pod = w.e.pod
	ev.Pod.NS = nil
	log := w.s.cfg.Logger.With("pod", ev.Pod.String(), "uid", ev.Pod.UID, "netns", w.e.pod.NS.String())
	switch ev.Kind {
	case EventEnrolled:
		log.Info("pod enrolled")
	case EventLeft:
		if ev.Err == nil {
			log.Info("pod left")
			break
		}
		log.Warn("pod left something behind", "error", ev.Err)
	case EventFailed:
		log.Warn("enrolling pod failed", "error", ev.Err)
	case EventRepaired:
		log.Warn("capture of pod repaired", "findings", texts(ev.Findings), "left", texts(ev.Left))
	case EventForeign:
		log.Warn("sockets in pod go past the capture", "count", len(ev.Sockets), "some", ev.Sockets[:min(len(ev.Sockets), maxSaid)])
	case EventDamaged:
		log.Error("capture of pod is damaged", "findings", texts(ev.Findings), "error", ev.Err)
	}
	if w.s.cfg.OnEvent != nil {
		w.s.cfg.OnEvent(ev)
	}
}

// maxSaid bounds what of a pod's own making goes into one line of the log.
const maxSaid = 8

func texts(findings []redirect.Finding) []string {
	out := make([]string, len(findings))
	for i, f := range findings {
		out[i] = f.String()
	}
	return out
}
