package policy

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/workload"
)

// plan is what governs one workload, as of one snapshot.
type plan struct {
	scopes  [3]*scope // global, of the namespace, named by the workload
	allows  bool      // one of them has to match
	missing []string  // names that nobody knows, in order
}

// mostPlans and mostNames bound what is remembered. A node asks about its own
// workloads, so hardly anything is ever forgotten.
const (
	mostPlans = 4096
	mostNames = 1024
)

// plans remembers the plans of one snapshot, by workload: sources replace a
// workload when it changes, and never change it.
type plans struct {
	by    sync.Map // *workload.Workload → *plan
	count atomic.Int32
}

func (s *Snapshot) plan(dst *workload.Workload) *plan {
	if p, ok := s.plans.by.Load(dst); ok {
		return p.(*plan)
	}
	p := s.newPlan(dst)
	if s.plans.count.Add(1) > mostPlans {
		s.plans.by.Clear()
		s.plans.count.Store(1)
	}
	s.plans.by.Store(dst, p)
	return p
}

// newPlan makes a plan, and all indexes that it needs.
func (s *Snapshot) newPlan(dst *workload.Workload) *plan {
	p := &plan{scopes: [3]*scope{s.byScope.At(scopeKey{global: true}), s.byScope.At(scopeKey{namespace: dst.Namespace})}}
	p.scopes[2], p.missing = s.names.resolve(s, dst.AuthorizationPolicies)
	for _, sc := range p.scopes {
		if sc == nil {
			continue
		}
		p.allows = p.allows || sc.allows > 0
		for _, c := range sc.chunks {
			c.indexes()
		}
	}
	return p
}

// names turns the lists of policies that workloads name into scopes. Workloads
// that name the same policies share one, and a scope whose policies are the same
// in the next snapshot goes on to be used there.
type names struct {
	mu sync.Mutex
	by map[string]named // by the names, joined
}

type named struct {
	found []*compiled // by key
	scope *scope
}

// resolve returns the scope of the named policies that the snapshot has, and the
// names of the others.
func (n *names) resolve(s *Snapshot, keys []string) (sc *scope, missing []string) {
	if len(keys) == 0 {
		return nil, nil
	}
	keys = slices.Clone(keys)
	slices.Sort(keys)
	keys = slices.Compact(keys)
	var found []*compiled
	for _, key := range keys {
		if c := s.byKey.At(key); c != nil {
			found = append(found, c)
		} else {
			missing = append(missing, key)
		}
	}
	list := strings.Join(keys, "\x00")
	n.mu.Lock()
	defer n.mu.Unlock()
	known := n.by[list]
	if !slices.Equal(known.found, found) {
		known = named{found: found, scope: known.scope.become(known.found, found)}
		if n.by == nil || len(n.by) >= mostNames {
			n.by = make(map[string]named)
		}
		n.by[list] = known
	}
	return known.scope, missing
}

// become returns the scope of the wanted policies, given the scope of others;
// both lists are ordered.
func (s *scope) become(has, want []*compiled) *scope {
	if s == nil {
		return newScope(want)
	}
	for len(has) > 0 || len(want) > 0 {
		switch {
		case len(has) > 0 && len(want) > 0 && has[0] == want[0]:
			has, want = has[1:], want[1:]
		case len(has) > 0 && len(want) > 0 && has[0].key == want[0].key:
			s = s.change(has[0], want[0])
			has, want = has[1:], want[1:]
		case len(want) == 0 || len(has) > 0 && has[0].key < want[0].key:
			s = s.change(has[0], nil)
			has = has[1:]
		default:
			s = s.change(nil, want[0])
			want = want[1:]
		}
	}
	return s
}

// Prepared reports whether Evaluate can answer for the workload at once. The
// first question after a change of policies that govern it may take
// milliseconds, because an index is made; who must not wait so long asks in a
// goroutine.
func (s *Snapshot) Prepared(dst *workload.Workload) bool {
	_, ok := s.plans.by.Load(dst)
	return ok
}

// Basis stands for the policies that govern a workload. While it is the same for
// two snapshots and workloads, so are the answers about connections that live.
// The zero Basis is that of no workload.
type Basis struct {
	known  bool
	scopes [3]*scope
	// missing: connections that live are treated otherwise while a name is unknown.
	missing bool
}

// Basis returns the basis of answers about the workload.
func (s *Snapshot) Basis(dst *workload.Workload) Basis {
	p := s.plan(dst)
	return Basis{known: true, scopes: p.scopes, missing: len(p.missing) > 0}
}
