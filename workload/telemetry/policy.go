package telemetry

import (
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Effect is what a policy that does not decide says about a connection.
type Effect uint8

// Audit policies want it to be noted; dry-run policies would have allowed,
// denied or noted it.
const (
	Audited Effect = iota
	WouldAllow
	WouldDeny
	WouldAudit
)

// String returns the label's value.
func (e Effect) String() string {
	switch e {
	case Audited:
		return "audit"
	case WouldAllow:
		return "dry_run_allow"
	case WouldDeny:
		return "dry_run_deny"
	default:
		return "dry_run_audit"
	}
}

// PolicyMatch is a policy that matched a connection without deciding about it.
type PolicyMatch struct {
	Policy string // "namespace/name"
	Effect Effect
}

// maxPolicies bounds the policies with a label value of their own; others share
// "overflow".
const maxPolicies = 1000

// policyMatches counts by policy and effect.
type policyMatches struct {
	counter *prometheus.CounterVec
	mu      sync.Mutex
	known   map[string]struct{}
}

// PolicyMatched counts the policies in c.Matches. It is called once, when they
// are known, which is long before the end of a connection that lives long.
func (t *Telemetry) PolicyMatched(c *Connection) {
	for _, m := range c.Matches {
		t.counters.policies.counter.WithLabelValues(t.counters.policies.label(m.Policy), m.Effect.String()).Inc()
	}
}

func (p *policyMatches) label(policy string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.known[policy]; !ok {
		if len(p.known) >= maxPolicies {
			return overflow
		}
		if p.known == nil {
			p.known = make(map[string]struct{})
		}
		p.known[policy] = struct{}{}
	}
	return orUnknown(policy)
}

// matched lists the policies, those of dry runs with what they would have done.
func matched(matches []PolicyMatch, dryRun bool) string {
	var texts []string
	for _, m := range matches {
		switch {
		case (m.Effect != Audited) != dryRun:
		case dryRun:
			texts = append(texts, strings.TrimPrefix(m.Effect.String(), "dry_run_")+" "+m.Policy)
		default:
			texts = append(texts, m.Policy)
		}
	}
	return strings.Join(texts, ", ")
}
