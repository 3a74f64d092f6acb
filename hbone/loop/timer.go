package loop

import "time"

// Timer calls a function on the loop once, at a time. The zero Timer is stopped. All methods are called on the loop.
type Timer struct {
	when int64
	f    func()
	at   int // index in the heap, plus one
}

// After has f called on the loop when d has passed, in place of whatever t was set to before.
func (l *Loop) After(t *Timer, d time.Duration, f func()) {
	l.Stop(t)
	t.when, t.f = l.now+int64(d), f
	l.timers.push(t)
}

// Stop forgets a timer; f is not called any more.
func (l *Loop) Stop(t *Timer) {
	if t.at > 0 {
		l.timers.remove(t.at - 1)
	}
}

// timerHeap is a binary heap by time that knows where each timer stands.
type timerHeap struct{ ts []*Timer }

func (h *timerHeap) next() (int64, bool) {
	if len(h.ts) == 0 {
		return 0, false
	}
	return h.ts[0].when, true
}

func (h *timerHeap) fire(now int64) {
	for len(h.ts) > 0 && h.ts[0].when <= now {
		t := h.ts[0]
		h.remove(0)
		f := t.f
		t.f = nil
		f()
	}
}

func (h *timerHeap) push(t *Timer) {
	h.ts = append(h.ts, t)
	t.at = len(h.ts)
	h.up(len(h.ts) - 1)
}

func (h *timerHeap) remove(i int) {
	last := len(h.ts) - 1
	h.ts[i].at = 0
	if i != last {
		h.set(i, h.ts[last])
	}
	h.ts[last] = nil
	h.ts = h.ts[:last]
	if i != last {
		h.down(i)
		h.up(i)
	}
}

func (h *timerHeap) set(i int, t *Timer) { h.ts[i], t.at = t, i+1 }

func (h *timerHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.ts[parent].when <= h.ts[i].when {
			return
		}
		a, b := h.ts[parent], h.ts[i]
		h.set(parent, b)
		h.set(i, a)
		i = parent
	}
}

func (h *timerHeap) down(i int) {
	for {
		least := i
		for _, c := range []int{2*i + 1, 2*i + 2} {
			if c < len(h.ts) && h.ts[c].when < h.ts[least].when {
				least = c
			}
		}
		if least == i {
			return
		}
		a, b := h.ts[i], h.ts[least]
		h.set(i, b)
		h.set(least, a)
		i = least
	}
}
