package kubeca

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// errManyWaiting refuses one more who waits for a turn.
var errManyWaiting = errors.New("too many tokens of this address wait for their review")

// turns bounds what is done at a time, in all and for one address. Addresses that wait have one turn each in a round, however
// many each has waiting: so whoever floods waits for himself.
type turns struct {
	max, maxOfOne int
	maxWaiting    int // of one address

	mu    sync.Mutex
	taken int
	of    map[string]*line // of addresses that have a turn or wait for one
	order []*line          // those with somebody who waits, the next first
}

// line is one address.
type line struct {
	taken   int
	waiting []chan struct{} // in the order of arrival; closed when the turn has come
}

func newTurns(most, mostOfOne, mostWaiting int) *turns {
	return &turns{max: most, maxOfOne: mostOfOne, maxWaiting: mostWaiting, of: make(map[string]*line)}
}

// take waits for a turn until ctx ends. Without an error, leave must follow.
func (t *turns) take(ctx context.Context, address string) error {
	turn := make(chan struct{})
	if err := t.join(address, turn); err != nil {
		return err
	}
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		t.abandon(address, turn)
		return context.Cause(ctx)
	}
}

func (t *turns) join(address string, turn chan struct{}) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.of[address]
	if l == nil {
		l = &line{}
		t.of[address] = l
	}
	if len(l.waiting) >= t.maxWaiting {
		return errManyWaiting
	}
	if l.waiting = append(l.waiting, turn); len(l.waiting) == 1 {
		t.order = append(t.order, l)
	}
	t.nextLocked()
	return nil
}

// leave ends a turn.
func (t *turns) leave(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaveLocked(address)
}

func (t *turns) leaveLocked(address string) {
	l := t.of[address]
	t.taken--
	l.taken--
	t.nextLocked()
	t.forgetLocked(address, l)
}

// abandon takes back a join.
func (t *turns) abandon(address string, turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.of[address]
	n := slices.Index(l.waiting, turn)
	if n < 0 {
		t.leaveLocked(address) // the turn has come meanwhile
		return
	}
	if l.waiting = slices.Delete(l.waiting, n, n+1); len(l.waiting) == 0 {
		n := slices.Index(t.order, l)
		t.order = slices.Delete(t.order, n, n+1)
	}
	t.forgetLocked(address, l)
}

// nextLocked gives the turns that are free. It looks past few lines only: those that have all that one may have.
func (t *turns) nextLocked() {
	for t.taken < t.max {
		n := slices.IndexFunc(t.order, func(l *line) bool { return l.taken < t.maxOfOne })
		if n < 0 {
			return
		}
		l := t.order[n]
		t.order = slices.Delete(t.order, n, n+1)
		close(l.waiting[0])
		if l.waiting = slices.Delete(l.waiting, 0, 1); len(l.waiting) > 0 {
			t.order = append(t.order, l)
		}
		t.taken++
		l.taken++
	}
}

func (t *turns) forgetLocked(address string, l *line) {
	if l.taken == 0 && len(l.waiting) == 0 {
		delete(t.of, address)
	}
}
