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

// named adds the answers about the names that are owed, and notes what the client has then. An unknown name is said to be
// removed, which is how the protocol says that there is none.
func (s *subscription) named(st *state, r *response) {
	for _, name := range s.owed {
		found := st.find(s.typeURL, name)
		if len(found) == 0 {
			r.removed = append(r.removed, name)
		}
		r.resources = append(r.resources, found...)
	}
	for name := range s.known {
		if s.names[name] != brought {
			continue
		}
		found := st.find(s.typeURL, name)
		if len(found) == 0 {
			// Not kept, so that what a client may bring takes no more memory than the state.
			r.removed = append(r.removed, name)
			delete(s.names, name)
		}
		r.resources = append(r.resources, found...)
	}
	for _, res := range r.resources {
		s.note(res.name)
	}
	r.resources = slices.DeleteFunc(r.resources, func(res *resource) bool {
		v, ok := s.known[res.name]
		return ok && v == res.version
	})
	s.answer, s.known, s.owed = false, nil, nil
}

// local adds the workloads of the client's own node, which it will need.
func (s *subscription) local(st *state, node string, r *response) {
	if node == "" || s.all || s.typeURL != AddressType {
		return
	}
	for w := range st.workloads.Workloads() {
		if w.Node == node {
			if res := st.addresses.At(w.UID); res != nil {
				r.resources = append(r.resources, res)
			}
		}
	}
}

// note adds the name of something that the client was sent to what it is told
// changes of.
func (s *subscription) note(name string) {
	if s.all {
		return
	}
	if _, ok := s.names[name]; !ok {
		s.names[name] = along
	}
}

// changesOnDemand tells a client of names what differs of what it knows, and what
// belongs to it now: workloads of its services and its node, and whatever has
// taken an address that it asked for.
func (s *subscription) changesOnDemand(st *state, node string, r *response) {
	for c := range hamt.Diff(s.at, st.of(s.typeURL)) {
		_, known := s.names[c.Key]
		for _, a := range append(c.Before.aliases(), c.After.aliases()...) {
			if s.names[a] != along {
				r.resources = append(r.resources, st.find(s.typeURL, a)...)
			}
		}
		switch {
		case c.After == nil && known:
			r.removed = append(r.removed, c.Key)
			if s.names[c.Key] != asked {
				delete(s.names, c.Key)
			}
		case c.After != nil && c.Before == nil && known:
			r.resources = st.withMembers(r.resources, c.After)
		case c.After != nil && (known || s.concerns(c.After, node)):
			r.resources = append(r.resources, c.After)
		}
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
