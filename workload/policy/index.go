package policy

// index tells which of its conjunctions match a connection, in a time that
// depends on how many values it has only by the depth of a search, and on how
// many conjunctions it has by a 64th.
//
// Each conjunction has a number. For each field the index knows, by value, the
// conjunctions that want the value and those that avoid it. All that want a
// value of the field and do not find it among the connection's are out, and so
// are all that find one that they avoid. What is left after all fields matches,
// once the few are checked that do not fit this form.
//
// Immutable once built.
type index struct {
	owners []*compiled // by conjunction, ordered by effect and key
	checks []*rule     // by conjunction; nil when no conjunction has to be checked
	ends   [numEffects]int
	// free are the conjunctions that want no value of a field; nil when that is all.
	free [numFields]bitset

	ports                 map[uint16]found
	accounts              map[ServiceAccount]found
	principals            stringIndex
	namespaces            stringIndex
	sources, destinations blockIndex

	lists []uint16
	bits  []uint64
}

// found is what a value leads to.
type found struct{ wanted, avoided members }

// search is the state of one look at an index.
type search struct {
	x      *index
	alive  bitset // what has not failed yet
	passed bitset // of one field: what has found its value, or wants none
	wants  bool   // there are such as want a value of the field
}

// room is what a search needs, on the caller's stack.
type room struct{ alive, passed [mostWords]uint64 }

// matching returns the conjunctions that match but for their checks; nil for
// none. The result is in r.
func (x *index) matching(f *facts, r *room) bitset {
	w := words(len(x.owners))
	s := search{x: x, alive: r.alive[:w], passed: r.passed[:w]}
	s.alive.fill(len(x.owners))
	if len(x.ports) > 0 {
		s.begin(fieldPort)
		s.hit(x.ports[f.port])
		if !s.end() {
			return nil
		}
	}
	if len(x.accounts) > 0 {
		s.begin(fieldServiceAccount)
		if f.known {
			s.hit(x.accounts[f.serviceAccount])
		}
		if !s.end() {
			return nil
		}
	}
	if x.principals.used {
		s.begin(fieldPrincipal)
		if f.known {
			x.principals.find(f.principal, &s)
		}
		if !s.end() {
			return nil
		}
	}
	if x.namespaces.used {
		s.begin(fieldNamespace)
		x.namespaces.find(f.namespace, &s)
		if !s.end() {
			return nil
		}
	}
	if len(x.sources.blocks) > 0 || x.free[fieldSource] != nil {
		s.begin(fieldSource)
		x.sources.find(f.source, &s)
		if !s.end() {
			return nil
		}
	}
	if len(x.destinations.blocks) > 0 || x.free[fieldDestination] != nil {
		s.begin(fieldDestination)
		x.destinations.find(f.destination, &s)
		if !s.end() {
			return nil
		}
	}
	return s.alive
}

func (s *search) begin(field fieldKind) {
	free := s.x.free[field]
	if s.wants = free != nil; s.wants {
		copy(s.passed, free)
	}
}

// hit takes a value that the connection has.
func (s *search) hit(f found) {
	if s.wants {
		s.x.unite(f.wanted, s.passed)
	}
	s.x.subtract(f.avoided, s.alive)
}

// end reports whether anything is left.
func (s *search) end() bool {
	return !s.wants || s.alive.retain(s.passed)
}

// passes does what is left to do for a conjunction that matching has returned.
func (x *index) passes(n int, f *facts) bool {
	return x.checks == nil || x.checks[n] == nil || x.checks[n].matches(f)
}
