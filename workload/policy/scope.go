package policy

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// mostInChunk bounds how many policies share an index, and with that what it
// costs to make a new one when one of them changes. A look at an index costs
// nearly the same whatever it holds, so it is not small.
const mostInChunk = 256

// scope is a set of policies that govern the same workloads. It is a persistent
// value, ordered by key: a changed copy shares all chunks but one or two. Nil is
// the empty scope.
type scope struct {
	chunks []*chunk
	len    int
	allows int // policies of which one has to match
}

// chunk is a part of a scope. Its indexes are made when somebody asks first.
type chunk struct {
	policies []*compiled // by key
	once     sync.Once
	made     []*index
}

func (c *chunk) indexes() []*index {
	c.once.Do(func() { c.made = newIndexes(c.policies) })
	return c.made
}

func (c *chunk) last() string { return c.policies[len(c.policies)-1].key }

// newScope returns a scope of policies in the order of their keys.
func newScope(policies []*compiled) *scope {
	if len(policies) == 0 {
		return nil
	}
	s := &scope{len: len(policies)}
	for part := range slices.Chunk(policies, mostInChunk) {
		s.chunks = append(s.chunks, &chunk{policies: part})
	}
	for _, c := range policies {
		s.allows += allowing(c)
	}
	return s
}

func allowing(c *compiled) int {
	if c.effect() == effectAllow {
		return 1
	}
	return 0
}

// change returns the scope with after in the place of before; either may be nil,
// and both have the same key. before is in the scope.
func (s *scope) change(before, after *compiled) *scope {
	if s == nil {
		return newScope([]*compiled{after})
	}
	next := &scope{chunks: s.chunks, len: s.len, allows: s.allows}
	key := ""
	if before != nil {
		key = before.key
		next.len--
		next.allows -= allowing(before)
	}
	if after != nil {
		key = after.key
		next.len++
		next.allows += allowing(after)
	}
	if next.len == 0 {
		return nil
	}
	at, _ := slices.BinarySearchFunc(s.chunks, key, func(c *chunk, key string) int { return strings.Compare(c.last(), key) })
	at = min(at, len(s.chunks)-1)
	from, to := at, at+1
	policies := replacePolicy(s.chunks[at].policies, key, after)
	// A chunk that has become small is joined with a neighbour.
	if len(policies) < mostInChunk/4 && len(s.chunks) > 1 {
		if at > 0 {
			from--
			policies = slices.Concat(s.chunks[from].policies, policies)
		} else {
			to++
			policies = slices.Concat(policies, s.chunks[at+1].policies)
		}
	}
	next.chunks = slices.Concat(s.chunks[:from], split(policies), s.chunks[to:])
	return next
}

// replacePolicy returns a copy of the ordered list with the policy of the key
// replaced, inserted or, for nil, removed.
func replacePolicy(policies []*compiled, key string, c *compiled) []*compiled {
	i, found := slices.BinarySearchFunc(policies, key, compareKey)
	end := i
	if found {
		end++
	}
	out := make([]*compiled, 0, len(policies)+1)
	out = append(out, policies[:i]...)
	if c != nil {
		out = append(out, c)
	}
	return append(out, policies[end:]...)
}

func compareKey(c *compiled, key string) int { return cmp.Compare(c.key, key) }

// split returns the policies as one chunk, or as two of half the size.
func split(policies []*compiled) []*chunk {
	if len(policies) <= mostInChunk {
		return []*chunk{{policies: policies}}
	}
	half := len(policies) / 2
	return []*chunk{{policies: policies[:half:half]}, {policies: policies[half:]}}
}
