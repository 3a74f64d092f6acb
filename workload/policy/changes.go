package policy

import "github.com/culvert-mesh/culvert/workload/internal/hamt"

// Changes returns what leads from an older snapshot of the same Set to this
// one, as Apply takes it, in no particular order. It costs time in proportion
// to what has changed; since may be nil, which stands for the empty Set.
func (s *Snapshot) Changes(since *Snapshot) (upserts []*Policy, removals []string) {
	if since == nil {
		since = new(Snapshot)
	}
	for c := range hamt.Diff(since.byKey, s.byKey) {
		if c.After == nil {
			removals = append(removals, c.Key)
		} else {
			upserts = append(upserts, c.After.policy)
		}
	}
	return upserts, removals
}
