package kube

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Report says which conditions the status of an object should have, of those
// types that Managed lists, and which it has, and the same of addresses. They
// differ.
type Report struct {
	Resource schema.GroupVersionResource
	Kind     string
	// Manager is the field manager that owns the conditions.
	Manager         string
	Namespace, Name string
	UID             string
	Generation      int64
	// Want and Have are ordered by type. Conditions of other types are not in
	// them and must be left alone.
	Want, Have []Condition
	// Addresses are what the status of a ServiceEntry should have, by host, and
	// HaveAddresses what it has. They are in order.
	Addresses, HaveAddresses []HostAddress
}

// Managed reports whether conditions of the type are written by this program.
func Managed(conditionType string) bool { return managed(conditionType) }

// Reports returns the objects whose status is not what it should be, in no
// particular order, and a channel that is closed when the answer changes.
func (s *Source) Reports() ([]Report, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Report, 0, len(s.reports))
	for _, r := range s.reports {
		out = append(out, r)
	}
	return out, s.reported
}

// publishReports makes changes of reports visible.
func (s *Source) publishReports(changed map[ref]*Report) {
	if len(changed) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, report := range changed {
		if report == nil {
			delete(s.reports, r)
		} else {
			s.reports[r] = *report
		}
	}
	close(s.reported)
	s.reported = make(chan struct{})
}

// report compares what an object's conditions should be with what they are.
func (st *state) report(r ref, h *header, want, have []Condition) {
	st.reportWith(r, h, want, have, nil, nil)
}

// reportWith does the same for conditions and allocated addresses.
func (st *state) reportWith(r ref, h *header, want, have []Condition, addresses, haveAddresses []HostAddress) {
	for i := range want {
		want[i].ObservedGeneration = h.generation
	}
	byType := func(a, b Condition) int { return strings.Compare(a.Type, b.Type) }
	slices.SortFunc(want, byType)
	have = slices.SortedFunc(slices.Values(have), byType)
	if slices.Equal(want, have) && slices.Equal(addresses, haveAddresses) {
		st.settle(r)
		return
	}
	k := reportingOf(r.kind)
	next := &Report{
		Resource: k.resource, Kind: r.kind.String(), Manager: k.manager, Namespace: r.namespace, Name: r.name,
		UID: h.uid, Generation: h.generation, Want: want, Have: have, Addresses: addresses, HaveAddresses: haveAddresses,
	}
	st.pending[r] = true
	st.reports[r] = next
}

// settle notes that nothing is to be written to the object.
func (st *state) settle(r ref) {
	if st.pending[r] {
		delete(st.pending, r)
		st.reports[r] = nil
	}
}
