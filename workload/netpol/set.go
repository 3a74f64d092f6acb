package netpol

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// Set holds the policies that a node knows and what they select by.
//
// Writers (Apply, Replace, SetReady) are serialised; each publishes one new
// Snapshot. An update costs time in proportion to the objects it changes, and
// a policy besides to the number of those in its namespace (of the cluster's,
// if it has none), whose order is copied. What a Set needs above its objects is
// proportional to them, and for every pod that was a Subject 8 octets for each
// policy that selects it; if these are NetworkPolicies with more than a few
// rules, about 100 octets for each of the rules too.
type Set struct {
	mu       sync.Mutex
	snapshot atomic.Pointer[Snapshot]
}

// Snapshot is one consistent state of a Set. It may be read by any number of
// goroutines.
type Snapshot struct {
	changed chan struct{}
	version uint64
	ready   bool

	policies hamt.Map[Key, *compiled]
	pods     hamt.Map[string, *podState]
	nodes    hamt.Map[string, *Node]
	byAddr   hamt.Map[netip.Addr, []*Node]
	domains  hamt.Map[string, *domain]
	cluster  *domain // policies without a namespace
}

// domain is a namespace with its policies. Changed copies replace it, so that
// two pointers that are equal stand for equal policies and labels.
type domain struct {
	namespace *Namespace  // nil when it is not in the Set
	policies  []*compiled // ordered
}

// podState is a pod with what selects it, kept from one query to the next.
type podState struct {
	pod      *Pod
	selected atomic.Pointer[selected]
}

// New returns an empty Set that is not ready.
func New() *Set {
	s := new(Set)
	s.snapshot.Store(&Snapshot{changed: make(chan struct{}), cluster: new(domain)})
	return s
}

// Snapshot returns the newest state.
func (s *Set) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed at the next change. To miss
// nothing, take it (or use Snapshot.Changed) before reading.
func (s *Set) Changed() <-chan struct{} { return s.Snapshot().Changed() }

// Apply removes and then inserts objects in one step. An object replaces the
// one with its key, and one that is equal to it changes nothing. Apply reports
// whether anything changed.
func (s *Set) Apply(upserts []Object, removals []Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changeLocked(upserts, removals)
}

// Replace makes the Set hold exactly the given objects.
func (s *Set) Replace(objects []Object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := make(map[Key]bool, len(objects))
	for _, o := range objects {
		keep[o.Key()] = true
	}
	var gone []Key
	for _, o := range s.Snapshot().Objects() {
		if k := o.Key(); !keep[k] {
			gone = append(gone, k)
		}
	}
	return s.changeLocked(objects, gone)
}

// SetReady says whether the Set holds all that there is, so that it can be
// relied on. A source calls it when it has received everything once.
func (s *Set) SetReady(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.Snapshot()
	if next.ready == ready {
		return
	}
	next.ready = ready
	s.publishLocked(&next)
}

func (s *Set) publishLocked(next *Snapshot) {
	old := s.Snapshot()
	next.version++
	next.changed = make(chan struct{})
	s.snapshot.Store(next)
	close(old.changed)
}

func (s *Set) changeLocked(upserts []Object, removals []Key) bool {
	next := *s.Snapshot()
	b := batch{next: &next, owner: new(hamt.Owner), touched: make(map[string]map[string]bool)}
	for _, k := range removals {
		if old := next.Object(k); old != nil {
			b.remove(old)
		}
	}
	for _, o := range upserts {
		old := next.Object(o.Key())
		if old != nil && reflect.DeepEqual(old, o) {
			continue
		}
		if old != nil {
			b.remove(old)
		}
		b.insert(o)
	}
	if !b.dirty {
		return false
	}
	b.orderPolicies()
	s.publishLocked(&next)
	return true
}

// batch is one Apply under way.
type batch struct {
	next  *Snapshot
	owner *hamt.Owner
	dirty bool
	// touched are the names of policies that changed, by namespace.
	touched map[string]map[string]bool
}

func (b *batch) insert(o Object) {
	b.dirty = true
	n := b.next
	switch o := o.(type) {
	case *Policy:
		n.policies = n.policies.With(b.owner, o.Key(), compile(o))
		b.touch(o)
	case *Pod:
		n.pods = n.pods.With(b.owner, o.UID, &podState{pod: o})
	case *Namespace:
		b.setDomain(o.Name, func(d *domain) { d.namespace = o })
	case *Node:
		n.nodes = n.nodes.With(b.owner, o.Name, o)
		for _, a := range o.Addresses {
			a = a.Unmap()
			n.byAddr = n.byAddr.With(b.owner, a, append(slices.Clip(n.byAddr.At(a)), o))
		}
	}
}

func (b *batch) remove(o Object) {
	b.dirty = true
	n := b.next
	switch o := o.(type) {
	case *Policy:
		n.policies = n.policies.Without(b.owner, o.Key())
		b.touch(o)
	case *Pod:
		n.pods = n.pods.Without(b.owner, o.UID)
	case *Namespace:
		b.setDomain(o.Name, func(d *domain) { d.namespace = nil })
	case *Node:
		n.nodes = n.nodes.Without(b.owner, o.Name)
		for _, a := range o.Addresses {
			b.forget(a.Unmap(), o)
		}
	}
}

// forget takes a node from those that have an address.
func (b *batch) forget(a netip.Addr, o *Node) {
	rest := slices.DeleteFunc(slices.Clone(b.next.byAddr.At(a)), func(n *Node) bool { return n == o })
	if len(rest) == 0 {
		b.next.byAddr = b.next.byAddr.Without(b.owner, a)
		return
	}
	b.next.byAddr = b.next.byAddr.With(b.owner, a, rest)
}

func (b *batch) touch(p *Policy) {
	names := b.touched[p.Namespace]
	if names == nil {
		names = make(map[string]bool)
		b.touched[p.Namespace] = names
	}
	names[p.Name] = true
}

// setDomain changes a copy of the domain and keeps it if it holds anything.
func (b *batch) setDomain(name string, change func(*domain)) {
	var d domain
	if old := b.next.domains.At(name); old != nil {
		d = *old
	}
	change(&d)
	if d.namespace == nil && len(d.policies) == 0 {
		b.next.domains = b.next.domains.Without(b.owner, name)
		return
	}
	b.next.domains = b.next.domains.With(b.owner, name, &d)
}

// orderPolicies brings the domains up to date with the policies.
func (b *batch) orderPolicies() {
	for namespace, names := range b.touched {
		if namespace == "" {
			b.next.cluster = &domain{policies: b.ordered(b.next.cluster.policies, "", names)}
			continue
		}
		b.setDomain(namespace, func(d *domain) { d.policies = b.ordered(d.policies, namespace, names) })
	}
}

func (b *batch) ordered(old []*compiled, namespace string, names map[string]bool) []*compiled {
	out := make([]*compiled, 0, len(old)+len(names))
	for _, c := range old {
		if !names[c.key.Name] {
			out = append(out, c)
		}
	}
	for name := range names {
		if c := b.next.policies.At(Key{KindPolicy, namespace, name}); c != nil {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, (*compiled).order)
	return out
}

// Ready reports what SetReady was told last; false before. What a Snapshot
// answers that is not ready may be wider than the policies that exist: the
// caller waits, and refuses.
func (s *Snapshot) Ready() bool { return s.ready }

// Version counts the changes of the Set; it is 0 before the first.
func (s *Snapshot) Version() uint64 { return s.version }

// Changed returns a channel that is closed when the Set has a newer state.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Object returns the object with the key, or nil.
func (s *Snapshot) Object(k Key) Object {
	switch k.Kind {
	case KindPolicy:
		if c := s.policies.At(k); c != nil {
			return c.policy
		}
	case KindPod:
		if p := s.pods.At(k.Name); p != nil {
			return p.pod
		}
	case KindNamespace:
		if d := s.domains.At(k.Name); d != nil && d.namespace != nil {
			return d.namespace
		}
	case KindNode:
		if n := s.nodes.At(k.Name); n != nil {
			return n
		}
	}
	return nil
}

// Objects returns all objects, ordered by kind, namespace and name.
func (s *Snapshot) Objects() []Object {
	out, _ := s.Changes(nil)
	slices.SortFunc(out, func(a, b Object) int { return a.Key().compare(b.Key()) })
	return out
}

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// Policies returns how many policies the Set holds. Without any, everything is
// allowed.
func (s *Snapshot) Policies() int { return s.policies.Len() }

// Fault returns what of the policy with the key cannot be understood, or nil
// when all of it can or the policy is not in the Set.
func (s *Snapshot) Fault(k Key) error {
	if c := s.policies.At(k); c != nil {
		return c.fault
	}
	return nil
}

// Changes returns what leads from an older snapshot of the same Set to this
// one, as Apply takes it, in no particular order. It costs time in proportion
// to what has changed; since may be nil, which stands for the empty Set.
func (s *Snapshot) Changes(since *Snapshot) (upserts []Object, removals []Key) {
	if since == nil {
		since = new(Snapshot)
	}
	note := func(k Key, before, after Object) {
		switch {
		case after == nil && before != nil:
			removals = append(removals, k)
		case after != before:
			upserts = append(upserts, after)
		}
	}
	for c := range hamt.Diff(since.policies, s.policies) {
		note(c.Key, since.Object(c.Key), s.Object(c.Key))
	}
	for c := range hamt.Diff(since.pods, s.pods) {
		k := Key{Kind: KindPod, Name: c.Key}
		note(k, since.Object(k), s.Object(k))
	}
	for c := range hamt.Diff(since.domains, s.domains) {
		k := Key{Kind: KindNamespace, Name: c.Key}
		note(k, since.Object(k), s.Object(k))
	}
	for c := range hamt.Diff(since.nodes, s.nodes) {
		k := Key{Kind: KindNode, Name: c.Key}
		note(k, since.Object(k), s.Object(k))
	}
	return upserts, removals
}
