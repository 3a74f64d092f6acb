package publish

import (
	"slices"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/internal/hamt"
)

// find returns what a client means by a name: a resource of that name, with its
// workloads if it is a service, or the workloads or else the services that own an
// address.
func (st *state) find(typeURL, name string) []*resource {
	c := st.of(typeURL)
	if r := c.At(name); r != nil {
		return st.withMembers(nil, r)
	}
	addr, err := workload.ParseNetworkAddress(name)
	if err != nil || typeURL != AddressType {
		return nil
	}
	if w := st.workloads.WorkloadByAddress(addr); w != nil {
		if r := c.At(w.UID); r != nil {
			return []*resource{r}
		}
	}
	var out []*resource
	for _, svc := range st.workloads.ServicesByVIP(addr) {
		if r := c.At(svc.Key().String()); r != nil {
			out = st.withMembers(out, r)
		}
	}
	return out
}

// withMembers adds a resource and, of a service, all its workloads.
func (st *state) withMembers(out []*resource, r *resource) []*resource {
	out = append(out, r)
	if r.service == nil {
		return out
	}
	for w := range st.workloads.Members(r.service.Key()) {
		if m := st.addresses.At(w.UID); m != nil {
			out = append(out, m)
		}
	}
	return out
}

// named answers about the names that are owed. An unknown one is said to be
// removed, which is how the protocol says that there is none.
func (s *subscription) named(st *state, node string) *response {
	found := make(map[string]*resource)
	r := &response{aliases: s.typeURL == AddressType, asked: true}
	for _, name := range s.owed {
		list := st.find(s.typeURL, name)
		if len(list) == 0 {
			r.removed = append(r.removed, name)
			if s.at.At(name) != nil {
				s.leap(st, name)
			}
		}
		for _, res := range list {
			found[res.name] = res
		}
	}
	first := s.version == 0
	if first {
		s.local(st, node, found)
		s.current(st)
	}
	for name, res := range found {
		s.note(name)
		s.leap(st, name)
		if v, ok := s.known[name]; !ok || v != res.version {
			r.resources = append(r.resources, res)
		}
	}
	slices.SortFunc(r.resources, compareResources)
	slices.Sort(r.removed)
	r.removed = slices.Compact(r.removed)
	s.answer, s.known, s.owed = false, nil, nil
	return r
}

// local adds the workloads of the client's own node, which it will need.
func (s *subscription) local(st *state, node string, found map[string]*resource) {
	if node == "" || s.all || s.typeURL != AddressType {
		return
	}
	for w := range st.workloads.Workloads() {
		if w.Node == node {
			if r := st.addresses.At(w.UID); r != nil {
				found[r.name] = r
			}
		}
	}
}

// leap notes that the client is told of a name what it is in st, which may be after the state that it has of the others.
func (s *subscription) leap(st *state, name string) {
	if s.version == st.version {
		return
	}
	if s.ahead == nil {
		s.ahead = make(map[string]bool)
	}
	s.ahead[name] = true
}

// note adds the name of something that the client was sent to what it is told
// changes of.
func (s *subscription) note(name string) {
	if s.all {
		return
	}
	if _, ok := s.names[name]; !ok {
		s.names[name] = false
	}
}

// changesOnDemand tells a client of names what differs of what it knows, and what
// belongs to it now: workloads of its services and its node, and whatever has
// taken an address that it asked for.
func (s *subscription) changesOnDemand(st *state, node string) *response {
	found := make(map[string]*resource)
	r := &response{aliases: s.typeURL == AddressType}
	for name := range s.ahead {
		_, known := s.names[name]
		switch res := st.of(s.typeURL).At(name); {
		case !known: // unsubscribed since
		case res != nil:
			found[name] = res
		default:
			s.forget(r, name)
		}
	}
	for c := range hamt.Diff(s.at, st.of(s.typeURL)) {
		_, known := s.names[c.Key]
		for _, a := range append(c.Before.aliases(), c.After.aliases()...) {
			if s.names[a] {
				for _, res := range st.find(s.typeURL, a) {
					found[res.name] = res
				}
			}
		}
		switch {
		case c.After == nil && known && !s.ahead[c.Key]:
			s.forget(r, c.Key)
		case c.After != nil && c.Before == nil && known:
			for _, res := range st.withMembers(nil, c.After) {
				found[res.name] = res
			}
		case c.After != nil && (known || s.concerns(c.After, node)):
			found[c.Key] = c.After
		}
	}
	for name, res := range found {
		s.note(name)
		r.resources = append(r.resources, res)
	}
	s.current(st)
	return r.orNil()
}

// forget tells the client that there is no such resource any more. What it did not ask for itself is not watched further.
func (s *subscription) forget(r *response, name string) {
	r.removed = append(r.removed, name)
	if !s.names[name] {
		delete(s.names, name)
	}
}

// concerns reports whether a workload that the client has not heard of belongs to
// what it knows.
func (s *subscription) concerns(r *resource, node string) bool {
	if r.workload == nil {
		return false
	}
	if node != "" && r.workload.Node == node {
		return true
	}
	for key := range r.workload.Services {
		if _, ok := s.names[key.String()]; ok {
			return true
		}
	}
	return false
}
