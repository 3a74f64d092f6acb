package publish

import (
	"fmt"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// wildcard is the name that stands for all.
const wildcard = "*"

// subscription is what a client asks of one type. Of a client that asks for
// everything no names are kept: what it was sent is what the state held then.
type subscription struct {
	typeURL string
	begun   bool
	all     bool // wildcard

	// names are what an on-demand client subscribes to, and why.
	names map[string]reason
	asked int // names that it asked for

	// at is the state whose resources the client has, but for what is owed; the
	// catalogue only, so that a slow client does not keep old snapshots.
	at      catalogue
	version uint64 // of that state; 0 before the first response

	// tail are policies of which the client is told last: those that are gone, when
	// no workload that it has names them any more, and those that may have governed
	// more before, when the workloads that they are for name them.
	tail []string

	// What is owed to the client: everything, with the versions that it has, or an
	// answer about names.
	everything bool
	known      map[string]string // "" in whatever version
	owed       []string
	answer     bool
}

// reason is why a client of names is told of one.
type reason uint8

const (
	along   reason = iota // it came with what the client asked for
	brought               // the client had it when it came, from an earlier stream
	asked                 // the client asked for it in this stream
)

// begin takes the first request. Subscribing to nothing means everything, and so
// does "*"; a client that wants nothing yet subscribes to "*" and unsubscribes it
// in one request.
func (s *subscription) begin(r *discovery.DeltaDiscoveryRequest) error {
	s.begun = true
	s.known = r.GetInitialResourceVersions()
	names := make(map[string]reason)
	for name := range s.known {
		names[name] = brought
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		names[name] = asked
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(names, name)
		s.doubt(name)
	}
	s.all = names[wildcard] == asked || len(r.GetResourceNamesSubscribe()) == 0
	delete(names, wildcard)
	s.everything = s.all
	s.answer = true
	for name, why := range names {
		if why == asked {
			s.owed = append(s.owed, name)
		}
	}
	if s.all {
		return nil
	}
	s.names, s.asked = names, len(s.owed)
	return s.checkNames()
}

// change takes what a later request changes.
func (s *subscription) change(r *discovery.DeltaDiscoveryRequest) error {
	subscribe, unsubscribe := r.GetResourceNamesSubscribe(), r.GetResourceNamesUnsubscribe()
	if len(unsubscribe) > 0 {
		s.unsubscribe(unsubscribe, slices.Contains(subscribe, wildcard))
	}
	for _, name := range subscribe {
		switch {
		case name == wildcard:
			if !s.all && !slices.Contains(unsubscribe, wildcard) {
				s.widen()
			}
			continue
		case !s.all && s.names[name] != asked:
			s.names[name] = asked
			s.asked++
		}
		// Also what the client has already: one that asks wants an answer.
		s.owed = append(s.owed, name)
		s.answer = true
	}
	if len(s.owed) > maxOwed {
		if s.owed = sortedNames(s.owed); len(s.owed) > maxNames {
			return fmt.Errorf("questions about %d names, limit is %d", len(s.owed), maxNames)
		}
	}
	return s.checkNames()
}

// widen makes a client of names one of everything. What it has by name, and has been told for certain, is known of it then:
// so it is told what of that is no more.
func (s *subscription) widen() {
	if s.version > 0 {
		s.known = make(map[string]string)
		for name := range s.names {
			if r := s.at.At(name); r != nil {
				s.known[name] = r.version
			}
		}
		for _, name := range s.owed {
			delete(s.known, name)
		}
	}
	s.all, s.everything, s.answer = true, true, true
	s.names, s.asked = nil, 0
}

func (s *subscription) unsubscribe(names []string, both bool) {
	for _, name := range names {
		if name == wildcard {
			if s.all && !both {
				s.all, s.everything = false, false
				s.names, s.asked = make(map[string]reason), 0
				s.known = nil // it has thrown all away
			}
			continue
		}
		if s.names[name] == asked {
			s.asked--
		}
		delete(s.names, name)
		s.doubt(name)
	}
	// What is no longer wanted is not looked up either.
	gone := make(map[string]bool, len(names))
	for _, name := range names {
		gone[name] = true
	}
	s.owed = slices.DeleteFunc(s.owed, func(name string) bool { return gone[name] })
}

// doubt notes that a client may have thrown away what it said to have: it is sent that again, or told that it is no more.
func (s *subscription) doubt(name string) {
	if _, ok := s.known[name]; ok {
		s.known[name] = ""
	}
}

func (s *subscription) checkNames() error {
	if s.all {
		return nil // none are kept, and a request is bounded
	}
	if s.asked > maxNames {
		return fmt.Errorf("subscription to %d names, limit is %d", s.asked, maxNames)
	}
	return nil
}

// respond returns what the client is to be sent next, or nil. With an answer goes what has changed in the meantime: a client
// that had some names as of one state and some as of another could not be told what changes after that.
func (s *subscription) respond(st *state, node string) *response {
	switch {
	case !s.begun:
		return nil
	case s.everything:
		return s.whole(st)
	case !s.answer && s.version == st.version:
		return nil
	}
	r := &response{aliases: s.typeURL == AddressType && (s.answer || !s.all), asked: s.answer}
	switch {
	case s.version == st.version:
	case s.version == 0:
		s.local(st, node, r)
	case s.all:
		s.changes(st, r)
	default:
		s.changesOnDemand(st, node, r)
	}
	s.current(st)
	s.named(st, r)
	r.tidy()
	if r.empty() && !r.asked {
		return nil
	}
	return r
}

// current notes that the client has what the state holds.
func (s *subscription) current(st *state) {
	s.at, s.version = st.of(s.typeURL), st.version
}

// whole answers with everything but what the client has in the same version, and
// removes what it has and is no more. An answer is given even when it is empty.
func (s *subscription) whole(st *state) *response {
	c := st.of(s.typeURL)
	r := &response{asked: true}
	if len(s.known) == 0 {
		r.resources = make([]*resource, 0, c.Len())
	}
	for name, res := range c.All() {
		switch v, ok := s.known[name]; {
		case ok && v == res.version:
		case ok && res.byName:
			s.tail = append(s.tail, name)
		default:
			r.resources = append(r.resources, res)
		}
	}
	for _, name := range s.owed {
		if len(st.find(s.typeURL, name)) == 0 {
			r.removed = append(r.removed, name)
		}
	}
	for name := range s.known {
		if c.At(name) == nil {
			r.removed = append(r.removed, name)
		}
	}
	s.everything, s.answer, s.known, s.owed = false, false, nil, nil
	s.current(st)
	s.postpone(r)
	r.removed = sortedNames(r.removed)
	return r
}

// postpone takes removals of policies out of a response, for late. A client to
// which they came first would miss policies that its workloads still name, and
// refuse connections for that.
func (s *subscription) postpone(r *response) {
	if s.typeURL == AuthorizationType {
		s.tail = append(s.tail, r.removed...)
		r.removed = nil
	}
}

// late returns what was put off, as it is by now, when there is nothing else to say.
func (s *subscription) late(st *state) *response {
	r := &response{}
	for _, name := range sortedNames(s.tail) {
		if res := st.of(s.typeURL).At(name); res != nil {
			r.resources = append(r.resources, res)
		} else {
			r.removed = append(r.removed, name)
		}
	}
	s.tail = nil
	if r.empty() {
		return nil
	}
	return r
}

// changes tells a wildcard client what differs.
func (s *subscription) changes(st *state, r *response) {
	for c := range hamt.Diff(s.at, st.of(s.typeURL)) {
		switch {
		case c.After == nil:
			r.removed = append(r.removed, c.Key)
		case c.After.byName && (c.Before != nil && !c.Before.byName || slices.Contains(s.tail, c.Key)):
			s.tail = append(s.tail, c.Key)
		default:
			r.resources = append(r.resources, c.After)
		}
	}
	s.postpone(r)
}

// tidy puts a response in order, services before workloads, and says nothing twice.
func (r *response) tidy() {
	slices.SortFunc(r.resources, compareResources)
	r.resources = slices.Compact(r.resources)
	r.removed = sortedNames(r.removed)
}

// sortedNames sorts names in place and returns each once.
func sortedNames(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func (r *response) empty() bool { return len(r.resources) == 0 && len(r.removed) == 0 }
