package policy

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/identity"
)

// Scope says which destination workloads a policy governs.
type Scope uint8

// A Global policy governs all workloads, a Namespace policy those of its own
// namespace, a WorkloadSelector policy those that name it.
const (
	Global Scope = iota
	Namespace
	WorkloadSelector
)

// String returns the name used in files and dumps.
func (s Scope) String() string { return name(s, "Global", "Namespace", "WorkloadSelector") }

// Action is what a match means.
type Action uint8

// The zero value is Allow, as in WDS. An Audit policy never decides; that it
// matched is reported.
const (
	Allow Action = iota
	Deny
	Audit
)

// String returns the name used in files and dumps.
func (a Action) String() string { return name(a, "Allow", "Deny", "Audit") }

func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", v)
}

// Policy is one AuthorizationPolicy. It matches a connection when one of its
// Rules does. A rule is a list of clauses that all must match, a clause a list
// of Matches of which one must. No rules at all never match; a rule without
// clauses and a clause without matches always do.
// Immutable after it was given to a Set.
type Policy struct {
	Namespace string
	Name      string
	Scope     Scope
	Action    Action
	// DryRun policies never decide; what they would have done is reported.
	DryRun bool
	Rules  [][][]Match
	// Invalid is set by a source when some part of the policy could not be
	// read or cannot be enforced, and says which. Such a policy denies all
	// that it governs; one that never decides reports all of that.
	Invalid string
}

// Key returns "namespace/name".
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// Match is a conjunction: every field that is not empty must match. Values of
// one field are alternatives; a Not field matches when none of its values
// does. A Match without any values never matches.
type Match struct {
	// Namespaces are compared with the namespace of the source identity, which
	// is empty for a plaintext source.
	Namespaces, NotNamespaces []StringMatch
	// Principals are compared with the source identity without "spiffe://".
	// A plaintext source matches none.
	Principals, NotPrincipals []StringMatch
	// ServiceAccounts are compared whatever the trust domain is.
	ServiceAccounts, NotServiceAccounts []ServiceAccount
	// SourceIPs hold the client's address, DestinationIPs the workload's; host
	// bits are ignored.
	SourceIPs, NotSourceIPs           []netip.Prefix
	DestinationIPs, NotDestinationIPs []netip.Prefix
	// DestinationPorts are ports of the application, not of the tunnel.
	DestinationPorts, NotDestinationPorts []uint16
}

// MatchKind is how a StringMatch compares.
type MatchKind uint8

// The zero value is no kind; a StringMatch that has it is invalid.
const (
	_ MatchKind = iota
	Exact
	Prefix
	Suffix
	Presence
)

// String returns the name used in files and dumps.
func (k MatchKind) String() string { return name(k, "None", "Exact", "Prefix", "Suffix", "Presence") }

// StringMatch compares a string, case-sensitively. Presence matches any string
// that is not empty and ignores Value.
type StringMatch struct {
	Kind  MatchKind
	Value string
}

// ServiceAccount names a Kubernetes service account.
type ServiceAccount struct {
	Namespace, Name string
}

// Connection are the facts that a decision rests on.
type Connection struct {
	// Source is the proven identity of the client; zero for plaintext.
	Source identity.ID
	// SourceIP is the client's address as seen by the destination.
	SourceIP netip.Addr
	// Destination is the address that the application is reached at.
	Destination netip.AddrPort
}

// Decision is the answer of Evaluate.
type Decision struct {
	Allowed bool
	// Policy is the key of the policy that decided; empty when none did.
	Policy string
	// Reason is for logs: why the connection is refused, or what allows it.
	Reason string
	// DryRun says what dry-run policies would have done, by key.
	DryRun []DryRun
	// Audit are the keys of Audit policies that matched, in order.
	Audit []string
	// Missing are the keys of policies that the workload names and the Set
	// does not hold. The connection is not allowed while there are any; a new
	// one may wait for them.
	Missing []string
	// Denied is set when a policy matched that denies. Unlike a missing
	// policy this ends live connections too.
	Denied bool
}

// DryRun is a policy that matched and would have done something.
type DryRun struct {
	Action Action
	Policy string // key
}

// String returns the text for logs.
func (d DryRun) String() string {
	switch d.Action {
	case Allow:
		return "would be allowed by: " + d.Policy
	case Deny:
		return "would be denied by: " + d.Policy
	default:
		return "would be audited by: " + d.Policy
	}
}

// EndsLive reports whether a connection that was allowed before has to be cut.
// What is missing never ends a connection.
func (d Decision) EndsLive() bool {
	return d.Denied || !d.Allowed && len(d.Missing) == 0
}

// Validate reports every part of the policy that cannot be enforced. A policy
// with faults may still be given to a Set; it then denies what it governs.
func (p *Policy) Validate() error {
	var errs []error
	if p.Invalid != "" {
		errs = append(errs, errors.New(p.Invalid))
	}
	if p.Scope > WorkloadSelector {
		errs = append(errs, fmt.Errorf("scope: %s", p.Scope))
	}
	if p.Action > Audit {
		errs = append(errs, fmt.Errorf("action: %s", p.Action))
	}
	for r, rule := range p.Rules {
		for c, clause := range rule {
			for m := range clause {
				if err := clause[m].validate(); err != nil {
					errs = append(errs, fmt.Errorf("rule %d, clause %d, match %d: %w", r, c, m, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Match) validate() error {
	for _, l := range [][]StringMatch{m.Namespaces, m.NotNamespaces, m.Principals, m.NotPrincipals} {
		for _, s := range l {
			if s.Kind < Exact || s.Kind > Presence {
				return errors.New("string match without a kind")
			}
		}
	}
	for _, l := range [][]netip.Prefix{m.SourceIPs, m.NotSourceIPs, m.DestinationIPs, m.NotDestinationIPs} {
		for _, p := range l {
			switch {
			case !p.IsValid():
				return errors.New("invalid address block")
			case p.Addr().Is4In6() && p.Bits() < 96:
				return errors.New("address block of IPv4-mapped addresses and others")
			}
		}
	}
	return nil
}
