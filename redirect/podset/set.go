package podset

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

var (
	// ErrRemoved is returned to who waits for a pod that was removed meanwhile.
	ErrRemoved = errors.New("pod was removed")
	// ErrClosed is returned when the Set has ended.
	ErrClosed = errors.New("pod set has ended")
	// ErrBehind is returned to who removed a pod when the kernel has kept something of the capture.
	ErrBehind = errors.New("something of the capture stays in the pod")
)

// Set is the set of pods. Make it with New; it does nothing before Run.
type Set struct {
	cfg      Config
	counters counters
	own      ownList

	mu      sync.Mutex
	pods    map[string]*entry   // desired, by UID
	leaving map[*entry]struct{} // not desired any more, not gone yet
	owners  map[netns.ID]*entry // who has a namespace, leaving ones too
	ctx     context.Context     // of Run, which bounds the pods' goroutines; nil before
	closed  bool
	wg      sync.WaitGroup // the pods' goroutines
}

// entry is one pod in one namespace. The Set's mutex guards what is below it.
type entry struct {
	pod     Pod
	removed context.Context // ended by drop, which makes the pod leave
	drop    context.CancelCauseFunc
	drain   context.Context // of the service of a removed pod: ended when it has had its time
	cut     context.CancelFunc
	settled chan struct{} // closed when it captures nothing new any more, and only drains
	gone    chan struct{} // closed when it has left
	behind  error         // what stayed in the pod; valid when gone is closed
	wake    chan struct{} // capacity 1: try again at once

	options  *redirect.Options // those wanted now; pod has those of the beginning
	linger   time.Duration     // see RemoveLingering; set before drop
	patience *time.Timer       // calls cut; nil before the pod is removed
	cutAt    time.Time         // when patience does
	synced   bool              // seen in a Sync
	draining bool              // settled, and its rules are not being deleted yet
	heir     bool              // another entry of the pod has taken the namespace and its rules over
	state    State
	err      error
	attempts int
	changed  chan struct{} // closed and replaced when state changes
}

// New returns an empty Set.
func New(cfg Config) (*Set, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	return &Set{
		cfg: cfg, pods: map[string]*entry{}, leaving: map[*entry]struct{}{}, owners: map[netns.ID]*entry{},
	}, nil
}

// Run keeps the pods until ctx ends; then it ends all of them (see Config.Cleanup)
// and returns nil. It is called once.
func (s *Set) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ctx != nil || s.closed {
		s.mu.Unlock()
		return errors.New("run pod set: it runs already or has ended")
	}
	s.ctx = ctx
	for _, e := range s.pods {
		s.startLocked(e)
	}
	s.mu.Unlock()

	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	for e := range s.leaving {
		e.hurryLocked(s.cfg.DrainTimeout)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Set) startLocked(e *entry) {
	ctx := s.ctx
	s.wg.Go(func() { s.look(ctx, e) })
}

// Add makes pod desired and waits until it is enrolled (nil), an attempt has failed
// (why; it goes on being tried) or ctx ends. A pod with the UID and namespace of one
// that is there changes at most what is captured, while the service and its connections
// go on; with another namespace it takes that one's place.
func (s *Set) Add(ctx context.Context, pod Pod) error {
	e, attempts, err := s.put(pod, false)
	if err != nil {
		return fmt.Errorf("enrol pod %s: %w", pod, err)
	}
	if err := s.wait(ctx, e, attempts); err != nil {
		return fmt.Errorf("enrol pod %s: %w", pod, err)
	}
	return nil
}

// put makes pod desired and returns its entry and the attempts made so far. It owns
// pod.NS.
func (s *Set) put(pod Pod, synced bool) (*entry, int, error) {
	if pod.NS == nil {
		return nil, 0, errors.New("network namespace is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch {
	case pod.UID == "":
		err = errors.New("UID is required")
	case s.closed:
		err = ErrClosed
	}
	if err != nil {
		return nil, 0, errors.Join(err, pod.NS.Close())
	}
	if e := s.pods[pod.UID]; e != nil {
		if e.pod.NS.ID() == pod.NS.ID() {
			_ = pod.NS.Close()
			e.synced = e.synced || synced
			if !e.reshapeLocked(pod.Options) && !synced {
				e.rouse() // somebody waits now, so do not sleep on a failure
			}
			return e, e.attempts, nil
		}
		s.dropLocked(e, s.cfg.DrainTimeout)
	}
	e := &entry{
		pod: pod, options: pod.Options, synced: synced, state: Starting, settled: make(chan struct{}),
		gone: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	e.removed, e.drop = context.WithCancelCause(context.Background())
	e.drain, e.cut = context.WithCancel(context.Background())
	s.pods[pod.UID] = e
	if s.ctx != nil {
		s.startLocked(e)
	}
	return e, 0, nil
}

// Change is Add for a pod that is there: only its options become others. Without the
// pod it is ErrRemoved.
func (s *Set) Change(ctx context.Context, uid string, options *redirect.Options) error {
	s.mu.Lock()
	e := s.pods[uid]
	if e == nil {
		s.mu.Unlock()
		return fmt.Errorf("change pod with uid %s: %w", uid, ErrRemoved)
	}
	attempts := e.attempts
	e.reshapeLocked(options)
	s.mu.Unlock()
	if err := s.wait(ctx, e, attempts); err != nil {
		return fmt.Errorf("change pod %s: %w", e.pod, err)
	}
	return nil
}

// reshapeLocked makes other options wanted, and reports whether they were others.
func (e *entry) reshapeLocked(options *redirect.Options) bool {
	if reflect.DeepEqual(e.options, options) {
		return false
	}
	e.options = options
	e.publishLocked(Starting, nil)
	e.rouse()
	return true
}

// rouse makes the pod's goroutine look at once.
func (e *entry) rouse() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// wait waits for the outcome of a further attempt than those before.
func (s *Set) wait(ctx context.Context, e *entry, before int) error {
	for {
		s.mu.Lock()
		state, err, attempts, changed := e.state, e.err, e.attempts, e.changed
		s.mu.Unlock()
		switch {
		case state == Enrolled:
			return nil
		case state == Leaving:
			return ErrRemoved
		case state == Failed && attempts > before:
			return err
		}
		select {
		case <-changed:
		case <-e.gone:
			return ErrRemoved
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Remove makes a pod not desired and waits until it has left or ctx ends; it leaves
// in any case, though perhaps not without ErrBehind. Removing what is not there is no
// error.
func (s *Set) Remove(ctx context.Context, uid string) error {
	return s.RemoveWithin(ctx, uid, s.cfg.DrainTimeout)
}

// RemoveWithin is Remove with another time for the pod's connections; zero or less
// cuts them at once. For a pod that is leaving already it can only shorten the time.
func (s *Set) RemoveWithin(ctx context.Context, uid string, drain time.Duration) error {
	return s.remove(ctx, uid, 0, drain, func(*entry) bool { return true })
}

// RemoveLingering is RemoveWithin for a pod whose peers have not been told: for linger
// its service goes on taking what they send to it, though the pod is not captured any
// more. Linger is part of drain. For a pod that is leaving already it changes nothing.
func (s *Set) RemoveLingering(ctx context.Context, uid string, linger, drain time.Duration) error {
	return s.remove(ctx, uid, linger, drain, func(*entry) bool { return true })
}

// RemoveFrom is RemoveWithin for a pod in that namespace; in another one it stays. So
// the end of a pod's old namespace does not take it out of its new one.
func (s *Set) RemoveFrom(ctx context.Context, uid string, ns netns.ID, drain time.Duration) error {
	return s.remove(ctx, uid, 0, drain, func(e *entry) bool { return e.pod.NS.ID() == ns })
}

func (s *Set) remove(ctx context.Context, uid string, linger, drain time.Duration, meant func(*entry) bool) error {
	s.mu.Lock()
	var leaving []*entry
	for old := range s.leaving {
		if old.pod.UID == uid && meant(old) {
			old.hurryLocked(drain)
			leaving = append(leaving, old)
		}
	}
	if e := s.pods[uid]; e != nil && meant(e) {
		e.linger = linger
		s.dropLocked(e, drain)
		leaving = append(leaving, e)
	}
	s.mu.Unlock()
	var errs []error
	for _, e := range leaving {
		select {
		case <-e.gone:
			if e.behind != nil {
				errs = append(errs, fmt.Errorf("%w: %w", ErrBehind, e.behind))
			}
		case <-ctx.Done():
			errs = append(errs, context.Cause(ctx))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	return nil
}

// dropLocked takes e out of the desired pods and makes it leave.
func (s *Set) dropLocked(e *entry, drain time.Duration) {
	delete(s.pods, e.pod.UID)
	e.hurryLocked(drain)
	e.drop(ErrRemoved)
	e.publishLocked(Leaving, nil)
	if s.ctx == nil { // no goroutine has it yet
		e.releaseLocked()
		return
	}
	s.leaving[e] = struct{}{}
}

// hurryLocked gives the service of a leaving pod at most that much time from now.
func (e *entry) hurryLocked(drain time.Duration) {
	at := time.Now().Add(drain)
	switch {
	case e.patience == nil:
		e.patience = time.AfterFunc(max(0, drain), e.cut)
	case at.Before(e.cutAt) && e.patience.Stop():
		e.patience.Reset(max(0, drain))
	default:
		return
	}
	e.cutAt = at
}

// releaseLocked closes what belongs to e, at its end.
func (e *entry) releaseLocked() {
	if e.patience != nil {
		e.patience.Stop()
	}
	e.drop(ErrRemoved) // frees the contexts
	e.cut()
	_ = e.pod.NS.Close()
	close(e.gone)
}

// publishLocked changes the state that others see. Leaving is final.
func (e *entry) publishLocked(state State, err error) {
	if e.state == Leaving || e.state == state && e.err == nil && err == nil {
		return
	}
	if state == Failed {
		e.attempts++
	}
	e.state, e.err = state, err
	close(e.changed)
	e.changed = make(chan struct{})
}

// Sync makes the desired pods those of a complete list: new ones are added, and ones
// that an earlier Sync had and this one has not are removed. A pod that was only
// given by Add stays, because the list may not know it yet. A pod without NS stays if
// it is there and is otherwise passed over. Sync does not wait; faulty pods are
// returned as one error, and the others are taken.
func (s *Set) Sync(pods []Pod) error {
	listed := map[string]bool{}
	var errs []error
	for _, pod := range pods {
		listed[pod.UID] = true
		if pod.NS == nil && pod.UID != "" {
			s.keep(pod.UID)
			continue
		}
		if _, _, err := s.put(pod, true); err != nil {
			errs = append(errs, fmt.Errorf("enrol pod %s: %w", pod, err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, e := range s.pods {
		if e.synced && !listed[uid] {
			s.dropLocked(e, s.cfg.DrainTimeout)
		}
	}
	return errors.Join(errs...)
}

func (s *Set) keep(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.pods[uid]; e != nil {
		e.synced = true
	}
}

// Pods returns the state of all pods, by namespace and name; leaving ones too.
func (s *Set) Pods() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Status
	for _, e := range s.pods {
		out = append(out, e.statusLocked())
	}
	for e := range s.leaving {
		out = append(out, e.statusLocked())
	}
	sortStatuses(out)
	return out
}

// Pod returns the state of one desired pod; false when there is none with that UID.
func (s *Set) Pod(uid string) (Status, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.pods[uid]
	if e == nil {
		return Status{}, false
	}
	return e.statusLocked(), true
}

func (e *entry) statusLocked() Status {
	st := Status{Pod: e.pod, NetNS: e.pod.NS.ID(), State: e.state, Err: e.err}
	st.Pod.NS, st.Pod.Options = nil, e.options
	return st
}

// Stats returns the counts.
func (s *Set) Stats() Stats { return s.counters.stats() }
