package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// Texts of Decision.Reason, as ztunnel words them.
const (
	reasonDenied     = "explicitly denied by: "
	reasonNotAllowed = "allow policies exist, but none allowed"
	reasonMissing    = "policies not known yet: "
)

// maxNotes bounds Decision.DryRun and Decision.Audit.
const maxNotes = 16

// Evaluate decides whether the connection may enter the workload.
//
// The policies that govern a workload are the global ones, those of its
// namespace and those that it names. A matching Deny refuses. Otherwise, with
// a name that the Set does not know, the connection is not allowed yet.
// Otherwise, when there is any Allow, one has to match. Dry-run and Audit
// policies are only reported. Of several policies that decide alike the one with
// the lowest key is named.
//
// dst must not be changed afterwards. Nothing is allocated unless a dry-run or
// Audit policy matches, or one is missing.
func (s *Snapshot) Evaluate(dst *workload.Workload, c Connection) Decision {
	var buf factBuffer
	f := factsOf(&c, &buf)
	p := s.plan(dst)
	var v verdict
	var r room
	for _, sc := range p.scopes {
		if sc == nil {
			continue
		}
		for _, part := range sc.chunks {
			for _, x := range part.indexes() {
				v.add(x, &f, &r)
			}
		}
	}
	return v.decide(p)
}

// verdict is what the policies of a plan say about one connection.
type verdict struct {
	deny, allow *compiled   // those with the lowest key
	notes       []*compiled // dry-run and Audit policies
}

// add takes the conjunctions of an index that match.
func (v *verdict) add(x *index, f *facts, r *room) {
	hits := x.matching(f, r)
	if hits == nil {
		return
	}
	v.deny = x.lowest(f, hits, 0, x.ends[effectDeny], v.deny)
	v.allow = x.lowest(f, hits, x.ends[effectDeny], x.ends[effectAllow], v.allow)
	v.note(x, f, hits)
}

// note takes the dry-run and Audit policies, of each kind those with the lowest
// keys: more are not told, so an index need not give more.
func (v *verdict) note(x *index, f *facts, hits bitset) {
	var last *compiled
	dry, audit, end := 0, 0, x.ends[effectNote]
	for n, ok := hits.next(x.ends[effectAllow], end); ok; n, ok = hits.next(n+1, end) {
		c := x.owners[n]
		count := &audit
		if c.policy.DryRun {
			count = &dry
		}
		if c == last || *count == maxNotes || !x.passes(n, f) {
			continue
		}
		last = c // owners are in order
		*count++
		v.notes = append(v.notes, c)
	}
}

// lowest returns best, or the first policy between two conjunctions that matches
// and has a lower key.
func (x *index) lowest(f *facts, hits bitset, at, end int, best *compiled) *compiled {
	for n, ok := hits.next(at, end); ok; n, ok = hits.next(n+1, end) {
		if best != nil && best.key <= x.owners[n].key {
			return best // owners are in order
		}
		if x.passes(n, f) {
			return x.owners[n]
		}
	}
	return best
}

func (v *verdict) decide(p *plan) Decision {
	var d Decision
	if len(v.notes) > 0 {
		v.report(&d)
	}
	d.Missing = slices.Clone(p.missing)
	switch {
	case v.deny != nil:
		d.Denied, d.Policy, d.Reason = true, v.deny.key, v.deny.reason
	case len(p.missing) > 0:
		d.Reason = reasonMissing + strings.Join(p.missing, ", ")
	case !p.allows:
		d.Allowed = true
	case v.allow != nil:
		d.Allowed, d.Policy = true, v.allow.key
	default:
		d.Reason = reasonNotAllowed
	}
	return d
}

// report fills in what dry-run and Audit policies say, in a fixed order.
func (v *verdict) report(d *Decision) {
	slices.SortFunc(v.notes, func(a, b *compiled) int { return cmp.Compare(a.key, b.key) })
	for _, c := range slices.Compact(v.notes) { // one that is named may be of the namespace too
		switch {
		case c.policy.DryRun && len(d.DryRun) < maxNotes:
			d.DryRun = append(d.DryRun, DryRun{Action: c.action, Policy: c.key})
		case !c.policy.DryRun && len(d.Audit) < maxNotes:
			d.Audit = append(d.Audit, c.key)
		}
	}
}
