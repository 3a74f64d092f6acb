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

// maxNames bounds the policies with a label value of their own; others share
// "overflow". The same goes for the clients of DNS, and of host names.
const maxNames = 1000

// policyMatches counts by policy and effect.
type policyMatches struct {
	counter *prometheus.CounterVec
	known   names[string]
}

// names are those that have a label value of their own. They come and go, series
// do not.
type names[K comparable] struct {
	mu    sync.RWMutex
	known map[K]struct{}
}

// has reports whether the name has a label value of its own. The first ones get it.
func (n *names[K]) has(name K) bool {
	n.mu.RLock()
	_, ok := n.known[name]
	full := len(n.known) >= maxNames
	n.mu.RUnlock()
	if ok || full {
		return ok
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.known) >= maxNames {
		_, ok = n.known[name]
		return ok
	}
	if n.known == nil {
		n.known = make(map[K]struct{})
	}
	n.known[name] = struct{}{}
	return true
}

// PolicyMatched counts the policies in c.Matches. It is called once, when they
// are known, which is long before the end of a connection that lives long.
func (t *Telemetry) PolicyMatched(c *Connection) {
	for _, m := range c.Matches {
		t.counters.policies.counter.WithLabelValues(t.counters.policies.label(m.Policy), m.Effect.String()).Inc()
	}
}

func (p *policyMatches) label(policy string) string {
	if !p.known.has(policy) {
		return overflow
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
