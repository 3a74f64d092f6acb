package redirect

import (
	"fmt"
	"strconv"
	"strings"
)

// portSet is a set of ports, in the notation of ip_local_reserved_ports
// ("15000-15090,30000"). It is comparable.
type portSet struct {
	bits [1 << 16 / 64]uint64
}

func ourPorts() portSet {
	var s portSet
	s.add(FirstReservedPort, LastReservedPort)
	return s
}

func parsePorts(text string) (portSet, error) {
	var s portSet
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		lo, hi, isRange := strings.Cut(item, "-")
		if !isRange {
			hi = lo
		}
		first, err1 := strconv.ParseUint(lo, 10, 16)
		last, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || first > last {
			return portSet{}, fmt.Errorf("parse port range %q: not a port or range of ports", item)
		}
		s.add(int(first), int(last))
	}
	return s, nil
}

func (s *portSet) add(first, last int) {
	for p := first; p <= last; p++ {
		s.bits[p/64] |= 1 << (p % 64)
	}
}

func (s portSet) has(p int) bool { return s.bits[p/64]&(1<<(p%64)) != 0 }

func (s portSet) union(t portSet) portSet {
	for i := range s.bits {
		s.bits[i] |= t.bits[i]
	}
	return s
}

func (s portSet) intersect(t portSet) portSet {
	for i := range s.bits {
		s.bits[i] &= t.bits[i]
	}
	return s
}

func (s portSet) minus(t portSet) portSet {
	for i := range s.bits {
		s.bits[i] &^= t.bits[i]
	}
	return s
}

// String returns the set with neighbours joined, ascending; the empty set is "".
func (s portSet) String() string {
	var b strings.Builder
	for p := 0; p < 1<<16; p++ {
		if !s.has(p) {
			continue
		}
		first := p
		for p+1 < 1<<16 && s.has(p+1) {
			p++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(first))
		if p > first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(p))
		}
	}
	return b.String()
}
