package kube

import (
	"errors"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// maxPairs bounds the work that one source with principals and trust domains
// makes.
const maxPairs = 1 << 16

// domains are the names of the mesh's trust domain, its own first. All of them
// mean the same in policies, as Istio has it.
type domains []string

func (s *settings) domains() domains {
	return append(domains{s.trustDomain}, s.aliases...)
}

// principals adds to each principal of the trust domain, whatever name it is
// written with, those with the other names. As in Istio "cluster.local" is one
// of the names, but nobody's who is not called so.
func (d domains) principals(in []policy.StringMatch) []policy.StringMatch {
	return d.expand(in, workload.DefaultTrustDomain)
}

// expand does it for principals, or for beginnings of principals that are a
// whole trust domain. What names no trust domain stays as it is.
func (d domains) expand(in []policy.StringMatch, more ...string) []policy.StringMatch {
	var out matches
	put := out.put
	for _, m := range in {
		name, rest, ok := strings.Cut(m.Value, "/")
		switch {
		case ok && m.Kind == policy.Suffix && name != "" && slices.ContainsFunc(d, func(t string) bool { return strings.HasSuffix(t, name) }):
			// "*-name/…" is itself the form for names that end so.
			put(m)
			for _, t := range d {
				if !strings.HasSuffix(t, name) {
					put(policy.StringMatch{Kind: policy.Exact, Value: t + "/" + rest})
				}
			}
		case ok && m.Kind != policy.Suffix && (slices.Contains(d, name) || slices.Contains(more, name)):
			for _, t := range d {
				put(policy.StringMatch{Kind: m.Kind, Value: t + "/" + rest})
			}
		default:
			put(m)
		}
	}
	return out.list
}

// matches is a list without duplicates, in the order of arrival.
type matches struct {
	list []policy.StringMatch
	seen map[policy.StringMatch]struct{}
}

func (l *matches) put(m policy.StringMatch) {
	if _, ok := l.seen[m]; ok {
		return
	}
	if l.seen == nil {
		l.seen = make(map[policy.StringMatch]struct{})
	}
	l.seen[m] = struct{}{}
	l.list = append(l.list, m)
}

// within returns matches of the principals that are also in one of the trust
// domains, which parseTrustDomain has read.
func within(principals, trustDomains []policy.StringMatch) ([]policy.StringMatch, error) {
	if len(principals)*len(trustDomains) > maxPairs {
		return nil, errors.New(policyTooLarge)
	}
	var out matches
	for _, p := range principals {
		for _, d := range trustDomains {
			m, ok, err := both(p, d)
			if err != nil {
				return nil, err
			}
			if ok {
				out.put(m)
			}
		}
	}
	if len(out.list) == 0 {
		// No list would mean everybody. No principal is empty.
		out.put(policy.StringMatch{Kind: policy.Exact})
	}
	return out.list, nil
}

// both returns the match of what p and the trust domain d match; false when
// there is nothing.
func both(p, d policy.StringMatch) (policy.StringMatch, bool, error) {
	whole := strings.HasSuffix(d.Value, "/")
	switch {
	case d.Kind == policy.Presence:
		return p, true, nil
	case p.Kind == policy.Presence:
		return d, true, nil
	case p.Kind == policy.Exact, p.Kind == policy.Prefix && strings.HasPrefix(p.Value, d.Value):
		return p, strings.HasPrefix(p.Value, d.Value), nil
	case p.Kind == policy.Prefix:
		return d, strings.HasPrefix(d.Value, p.Value), nil
	case whole && strings.HasPrefix(p.Value, "/ns/"):
		// All of the principal but the trust domain.
		return policy.StringMatch{Kind: policy.Exact, Value: d.Value + strings.TrimPrefix(p.Value, "/")}, true, nil
	default:
		return p, false, errors.New("this pattern of principals cannot be combined with trust domains")
	}
}
