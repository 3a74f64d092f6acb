package netpol

import (
	"errors"
	"fmt"
	"slices"
)

// selector is a Selector as it is evaluated; nil selects all.
type selector []check

// check is a Requirement. One value, which is what nearly all have, is in
// value.
type check struct {
	op     Op
	key    string
	value  string
	values []string // instead of value, when there are several
}

// compile leaves out what cannot be understood.
func (s *Selector) compile() selector {
	if s == nil {
		return nil
	}
	var out selector
	for i := range s.Requirements {
		r := &s.Requirements[i]
		if r.fault() != nil {
			continue
		}
		c := check{op: r.Op, key: r.Key, values: r.Values}
		if len(r.Values) == 1 {
			c.value, c.values = r.Values[0], nil
		}
		out = append(out, c)
	}
	return out
}

// matches reports whether the labels satisfy all requirements.
func (s selector) matches(l Labels) bool {
	for i := range s {
		if !s[i].matches(l) {
			return false
		}
	}
	return true
}

func (c *check) matches(l Labels) bool {
	for i := range l {
		if l[i].Key == c.key {
			switch c.op {
			case In:
				return c.has(l[i].Value)
			case NotIn:
				return !c.has(l[i].Value)
			default:
				return c.op == Exists
			}
		}
	}
	// "tier notin (frontend, backend)" selects "all resources with key equal to
	// tier and values distinct from frontend and backend, and all resources
	// with no labels with the tier key" (Kubernetes, Labels and Selectors).
	return c.op == NotIn || c.op == DoesNotExist
}

func (c *check) has(v string) bool {
	if c.values == nil {
		return v == c.value
	}
	return slices.Contains(c.values, v)
}

// faults says what of a selector cannot be understood.
func (s *Selector) faults() error {
	if s == nil {
		return nil
	}
	var errs []error
	for i := range s.Requirements {
		if err := s.Requirements[i].fault(); err != nil {
			errs = append(errs, fmt.Errorf("requirement %q: %w", s.Requirements[i].Key, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Requirement) fault() error {
	switch {
	case r.Key == "":
		return errors.New("no key")
	case r.Op == 0 || r.Op > DoesNotExist:
		return fmt.Errorf("operator %s", r.Op)
	case (r.Op == In || r.Op == NotIn) && len(r.Values) == 0:
		return fmt.Errorf("%s without values", r.Op)
	case (r.Op == Exists || r.Op == DoesNotExist) && len(r.Values) > 0:
		return fmt.Errorf("%s with values", r.Op)
	default:
		return nil
	}
}
