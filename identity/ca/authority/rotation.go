package authority

import (
	"slices"
	"time"
)

// renewFraction is the part of a root's life after which the next one is made,
// as istiod does.
const renewFraction = 0.8

// Step is what Advance asks of its caller beside storing the State.
type Step int

// The steps.
const (
	// Wait until the time that comes with it.
	Wait Step = iota
	// MakeRoot: make a root (NewRoot) and Introduce it.
	MakeRoot
)

// String returns the step in words.
func (s Step) String() string {
	if s == MakeRoot {
		return "make a root"
	}
	return "wait"
}

// Progress is what Advance found.
type Progress struct {
	// Changed says that the new State differs and has to be stored.
	Changed bool
	// Switched says that Next has become the signer.
	Switched bool
	// Dropped counts roots that left the bundle.
	Dropped int
	// Step is what else is to be done now.
	Step Step
	// At is when to call Advance again at the latest; zero: never by itself.
	At time.Time
}

// Advance is the rotation. It is a pure function: what st becomes at now, and
// what is to be done next and when. st must have been published as it is, its
// bundle above all, for at least as long as it claims.
//
// Nothing here depends on how often it is called. A clock that stood back only
// makes things later; after a clock that ran ahead they are too early by that
// much, so Settle and Overlap ought to be long against errors of clocks.
func Advance(st State, now time.Time, cfg Config) (State, Progress) {
	var p Progress
	st.Roots = slices.Clone(st.Roots)
	if st.Next != nil {
		ready := st.readyAt(cfg)
		if !now.Before(ready) {
			old, own := st.Signer, st.own
			st.Signer, st.Next, st.own = st.Next, nil, !st.Brought
			st.retire(now.Add(cfg.Overlap))
			st.retireSigner(old, own, now, cfg)
			p.Switched, p.Changed = true, true
		} else {
			p.soonest(ready)
		}
	}
	st.drop(now, &p)
	st.dropRetired(now, &p)
	if st.Next == nil && !st.Brought {
		renew := st.renewAt(cfg)
		if !now.Before(renew) {
			p.Step = MakeRoot
		} else {
			p.soonest(renew)
		}
	}
	return st, p
}

// readyAt is when Next may sign: when a root that its chain leads to has been
// in the bundle for the settle time, or the signer has come to its end.
func (st State) readyAt(cfg Config) time.Time {
	end := st.Signer.NotAfter()
	for _, root := range st.Next.anchors() {
		i := st.indexOf(root)
		if i < 0 {
			continue // State of somebody else's making; wait to the end
		}
		since := st.Roots[i].Since
		if since.IsZero() {
			return time.Time{}
		}
		end = earlier(end, since.Add(cfg.Settle))
	}
	return end
}

// renewAt is when the next root is to be made: in the last fifth of its life,
// and in time for a whole rotation.
func (st State) renewAt(cfg Config) time.Time {
	begin, end := st.Signer.cert.NotBefore, st.Signer.NotAfter()
	at := begin.Add(time.Duration(float64(end.Sub(begin)) * renewFraction))
	return earlier(at, end.Add(-cfg.rotationTime()))
}

// drop removes the roots whose time has come, and those that have expired. What
// the signers stand on is never dropped.
func (st *State) drop(now time.Time, p *Progress) {
	needed := st.Signer.anchors()
	if st.Next != nil {
		needed = append(needed, st.Next.anchors()...)
	}
	before := len(st.Roots)
	st.Roots = slices.DeleteFunc(st.Roots, func(r Root) bool {
		gone := !r.Until.IsZero() && !now.Before(r.Until) || now.After(r.Certificate.NotAfter)
		if gone && !contains(needed, r.Certificate) {
			return true
		}
		if !gone {
			p.soonest(r.Certificate.NotAfter.Add(time.Second))
			if !r.Until.IsZero() {
				p.soonest(r.Until)
			}
		}
		return false
	})
	p.Dropped = before - len(st.Roots)
	p.Changed = p.Changed || p.Dropped > 0
}

func (p *Progress) soonest(at time.Time) {
	if p.At.IsZero() || at.Before(p.At) {
		p.At = at
	}
}
