package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

var (
	onPort80 = one(policy.Match{DestinationPorts: []uint16{80}})
	onPort81 = one(policy.Match{DestinationPorts: []uint16{81}})
)

func pol(key string, scope policy.Scope, action policy.Action, rules [][][]policy.Match) *policy.Policy {
	ns, name, _ := strings.Cut(key, "/")
	return &policy.Policy{Namespace: ns, Name: name, Scope: scope, Action: action, Rules: rules}
}

func dry(p *policy.Policy) *policy.Policy {
	c := *p
	c.DryRun = true
	return &c
}

func TestEvaluate(t *testing.T) {
	const gl, nsp, sel = policy.Global, policy.Namespace, policy.WorkloadSelector
	const allow, deny = policy.Allow, policy.Deny
	for _, tc := range []struct {
		name     string
		policies []*policy.Policy
		names    []string // the workload's own
		want     policy.Decision
	}{
		{name: "nothing", want: policy.Decision{Allowed: true}},
		{
			name:     "deny-matches",
			policies: []*policy.Policy{pol("ns/d", nsp, deny, onPort80)},
			want:     policy.Decision{Policy: "ns/d", Reason: "explicitly denied by: ns/d", Denied: true},
		},
		{
			name:     "deny-does-not-match",
			policies: []*policy.Policy{pol("ns/d", nsp, deny, onPort81)},
			want:     policy.Decision{Allowed: true},
		},
		{
			name:     "allow-matches",
			policies: []*policy.Policy{pol("ns/a", nsp, allow, onPort80)},
			want:     policy.Decision{Allowed: true, Policy: "ns/a"},
		},
		{
			name:     "allow-does-not-match",
			policies: []*policy.Policy{pol("ns/a", nsp, allow, onPort81)},
			want:     policy.Decision{Reason: "allow policies exist, but none allowed"},
		},
		{
			name:     "allow-nothing",
			policies: []*policy.Policy{pol("ns/a", nsp, allow, nil)},
			want:     policy.Decision{Reason: "allow policies exist, but none allowed"},
		},
		{
			name:     "deny-goes-before-allow",
			policies: []*policy.Policy{pol("ns/a", nsp, allow, onPort80), pol("ns/d", nsp, deny, onPort80)},
			want:     policy.Decision{Policy: "ns/d", Reason: "explicitly denied by: ns/d", Denied: true},
		},
		{
			name:     "lowest-key-is-named",
			policies: []*policy.Policy{pol("ns/d2", nsp, deny, onPort80), pol("ns/d1", nsp, deny, onPort80), pol("aa/d", gl, deny, onPort81)},
			want:     policy.Decision{Policy: "ns/d1", Reason: "explicitly denied by: ns/d1", Denied: true},
		},
		{
			name:     "global",
			policies: []*policy.Policy{pol("root/d", gl, deny, onPort80)},
			want:     policy.Decision{Policy: "root/d", Reason: "explicitly denied by: root/d", Denied: true},
		},
		{
			name:     "other-namespace",
			policies: []*policy.Policy{pol("other/d", nsp, deny, onPort80)},
			want:     policy.Decision{Allowed: true},
		},
		{
			name:     "selector-without-name",
			policies: []*policy.Policy{pol("ns/d", sel, deny, onPort80)},
			want:     policy.Decision{Allowed: true},
		},
		{
			name:     "selector-by-name",
			policies: []*policy.Policy{pol("root/strict", sel, deny, onPort80)},
			names:    []string{"root/strict"},
			want:     policy.Decision{Policy: "root/strict", Reason: "explicitly denied by: root/strict", Denied: true},
		},
		{
			name:     "selector-allow-by-name",
			policies: []*policy.Policy{pol("ns/a", sel, allow, onPort81)},
			names:    []string{"ns/a"},
			want:     policy.Decision{Reason: "allow policies exist, but none allowed"},
		},
		{
			name:  "missing",
			names: []string{"ns/z", "ns/y", "ns/z"},
			want:  policy.Decision{Missing: []string{"ns/y", "ns/z"}, Reason: "policies not known yet: ns/y, ns/z"},
		},
		{
			name:     "missing-but-denied",
			policies: []*policy.Policy{pol("ns/d", nsp, deny, onPort80)},
			names:    []string{"ns/y"},
			want:     policy.Decision{Missing: []string{"ns/y"}, Policy: "ns/d", Reason: "explicitly denied by: ns/d", Denied: true},
		},
		{
			name:     "dry-run-deny",
			policies: []*policy.Policy{dry(pol("ns/d", nsp, deny, onPort80))},
			want:     policy.Decision{Allowed: true, DryRun: []policy.DryRun{{Action: deny, Policy: "ns/d"}}},
		},
		{
			name:     "dry-run-allow-alone-never-denies",
			policies: []*policy.Policy{dry(pol("ns/a", nsp, allow, onPort81))},
			want:     policy.Decision{Allowed: true},
		},
		{
			name:     "dry-run-allow-does-not-allow",
			policies: []*policy.Policy{dry(pol("ns/a", nsp, allow, onPort80)), pol("ns/b", nsp, allow, onPort81)},
			want:     policy.Decision{Reason: "allow policies exist, but none allowed", DryRun: []policy.DryRun{{Action: allow, Policy: "ns/a"}}},
		},
		{
			name: "dry-run-mixed",
			policies: []*policy.Policy{
				dry(pol("root/d", gl, deny, onPort80)), dry(pol("ns/s", sel, deny, onPort80)), pol("ns/b", nsp, allow, onPort80),
			},
			names: []string{"ns/s"},
			want: policy.Decision{
				Allowed: true, Policy: "ns/b",
				DryRun: []policy.DryRun{{Action: deny, Policy: "ns/s"}, {Action: deny, Policy: "root/d"}},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := policy.New()
			set.Apply(tc.policies, nil)
			dst := &workload.Workload{UID: "u", Namespace: "ns", AuthorizationPolicies: tc.names}
			got := set.Snapshot().Evaluate(dst, tls)
			equalDecision(t, got, tc.want)
		})
	}
}

func equalDecision(t *testing.T, got, want policy.Decision) {
	t.Helper()
	if got.Allowed != want.Allowed || got.Policy != want.Policy || got.Reason != want.Reason || got.Denied != want.Denied ||
		!slices.Equal(got.DryRun, want.DryRun) || !slices.Equal(got.Audit, want.Audit) || !slices.Equal(got.Missing, want.Missing) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestFailClosed gives policies with parts that nobody can read: whatever the
// action, they deny what they govern.
func TestFailClosed(t *testing.T) {
	badString := one(policy.Match{DestinationPorts: []uint16{81}, Namespaces: []policy.StringMatch{{Value: "x"}}})
	badBlock := one(policy.Match{SourceIPs: []netip.Prefix{{}}})
	unread := pol("ns/p", policy.Namespace, policy.Allow, onPort80)
	unread.Invalid = "rule 3: port 99999"
	for _, tc := range []struct {
		name   string
		p      *policy.Policy
		reason string
	}{
		{"typeless-string", pol("ns/p", policy.Namespace, policy.Allow, badString), "rule 0, clause 0, match 0: string match without a kind"},
		{"typeless-string-in-deny", pol("ns/p", policy.Namespace, policy.Deny, badString), "rule 0, clause 0, match 0: string match without a kind"},
		{"invalid-block", pol("ns/p", policy.Global, policy.Allow, badBlock), "rule 0, clause 0, match 0: invalid address block"},
		{"unknown-action", pol("ns/p", policy.Namespace, policy.Action(7), onPort81), "action: unknown(7)"},
		{"unknown-scope", pol("ns/p", policy.Scope(7), policy.Allow, onPort80), "scope: unknown(7)"},
		{"told-by-source", unread, "rule 3: port 99999"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := policy.New()
			set.Apply([]*policy.Policy{tc.p, pol("ns/a", policy.Namespace, policy.Allow, [][][]policy.Match{{}})}, nil)
			got := set.Snapshot().Evaluate(server, tls)
			equalDecision(t, got, policy.Decision{
				Policy: "ns/p", Denied: true,
				Reason: "explicitly denied by: ns/p (invalid: " + tc.reason + ")",
			})
			if set.Snapshot().Fault("ns/p") == nil || set.Snapshot().Fault("ns/a") != nil {
				t.Error("Fault does not tell the invalid policy from the sound one")
			}
			set.Apply([]*policy.Policy{dry(tc.p)}, nil)
			if got := set.Snapshot().Evaluate(server, tls); !got.Allowed {
				t.Errorf("invalid dry-run policy decided: %+v", got)
			}
		})
	}
}

// TestEndsLive: what is missing ends no live connection, what is known does.
func TestEndsLive(t *testing.T) {
	for _, tc := range []struct {
		name string
		d    policy.Decision
		want bool
	}{
		{"allowed", policy.Decision{Allowed: true}, false},
		{"denied", policy.Decision{Denied: true}, true},
		{"not-allowed", policy.Decision{}, true},
		{"missing", policy.Decision{Missing: []string{"a/b"}}, false},
		{"missing-and-denied", policy.Decision{Missing: []string{"a/b"}, Denied: true}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.d.EndsLive(); got != tc.want {
				t.Errorf("EndsLive() = %t, want %t", got, tc.want)
			}
		})
	}
}

// TestStrict is how PeerAuthentication STRICT arrives: a Deny of everybody who
// has no principal.
func TestStrict(t *testing.T) {
	set := policy.New()
	set.Apply([]*policy.Policy{pol("root/strict", policy.WorkloadSelector, policy.Deny,
		one(policy.Match{NotPrincipals: []policy.StringMatch{{Kind: policy.Presence}}}))}, nil)
	dst := &workload.Workload{Namespace: "ns", AuthorizationPolicies: []string{"root/strict"}}
	if set.Snapshot().Evaluate(dst, plain).Allowed {
		t.Error("plaintext is allowed")
	}
	if !set.Snapshot().Evaluate(dst, tls).Allowed {
		t.Error("an identified client is refused")
	}
}

func TestChangeScope(t *testing.T) {
	set := policy.New()
	dst := &workload.Workload{Namespace: "ns"}
	denied := func() bool { return set.Snapshot().Evaluate(dst, tls).Denied }
	steps := []struct {
		name string
		p    *policy.Policy
		want bool
	}{
		{"namespace", pol("ns/p", policy.Namespace, policy.Deny, onPort80), true},
		{"selector", pol("ns/p", policy.WorkloadSelector, policy.Deny, onPort80), false},
		{"global", pol("ns/p", policy.Global, policy.Deny, onPort80), true},
		{"other-action", pol("ns/p", policy.Global, policy.Allow, onPort80), false},
		{"dry-run", dry(pol("ns/p", policy.Global, policy.Deny, onPort80)), false},
		{"back", pol("ns/p", policy.Namespace, policy.Deny, onPort80), true},
	}
	for _, s := range steps {
		set.Apply([]*policy.Policy{s.p}, nil)
		if got := denied(); got != s.want {
			t.Errorf("%s: denied = %t, want %t", s.name, got, s.want)
		}
	}
	set.Apply(nil, []string{"ns/p", "ns/unknown"})
	if denied() || set.Snapshot().Len() != 0 {
		t.Error("policy is still there after its removal")
	}
}

func TestSetChanges(t *testing.T) {
	set := policy.New()
	before := set.Snapshot()
	changed := set.Changed()
	if set.Apply(nil, []string{"no/such"}) {
		t.Error("removing an unknown policy reports a change")
	}
	if !set.Apply([]*policy.Policy{pol("ns/p", policy.Namespace, policy.Deny, onPort80)}, nil) {
		t.Error("inserting reports no change")
	}
	select {
	case <-changed:
	default:
		t.Error("Changed is not closed")
	}
	if set.Apply([]*policy.Policy{pol("ns/p", policy.Namespace, policy.Deny, onPort80)}, nil) {
		t.Error("an equal policy reports a change")
	}
	if before.Len() != 0 || set.Snapshot().Policy("ns/p") == nil || set.Snapshot().Version() != 1 {
		t.Error("snapshots are mixed up")
	}
	set.Replace([]*policy.Policy{pol("ns/q", policy.Namespace, policy.Deny, onPort80), pol("ns/p", policy.Global, policy.Deny, onPort81)})
	var keys []string
	for _, p := range set.Snapshot().Policies() {
		keys = append(keys, p.Key())
	}
	if !slices.Equal(keys, []string{"ns/p", "ns/q"}) {
		t.Errorf("Policies() = %v", keys)
	}
	set.Replace(nil)
	if set.Snapshot().Len() != 0 {
		t.Error("Replace with nothing leaves policies")
	}
}

// TestManyNotes: of more policies that do not decide than are told, those with the lowest keys are, whatever their kinds.
func TestManyNotes(t *testing.T) {
	set := policy.New()
	var all []*policy.Policy
	for i := range 1000 {
		p := pol(fmt.Sprintf("ns/p%04d", i), policy.Scope(i%3), policy.Audit, onPort80)
		p.DryRun = i >= 500
		p.Rules = append(p.Rules, onPort80...)
		all = append(all, p)
	}
	set.Apply(all, nil)
	named := &workload.Workload{Namespace: "ns"}
	for _, p := range all[:10] {
		named.AuthorizationPolicies = append(named.AuthorizationPolicies, p.Key()) // some of another scope, too
	}
	d := set.Snapshot().Evaluate(named, tls)
	var dry []string
	for _, n := range d.DryRun {
		dry = append(dry, n.Policy)
	}
	var wantAudit, wantDry []string
	for i := range 500 {
		if i < 10 || i%3 != 2 {
			wantAudit = append(wantAudit, fmt.Sprintf("ns/p%04d", i))
		}
		if (500+i)%3 != 2 {
			wantDry = append(wantDry, fmt.Sprintf("ns/p%04d", 500+i))
		}
	}
	if !d.Allowed || !slices.Equal(d.Audit, wantAudit[:16]) || !slices.Equal(dry, wantDry[:16]) {
		t.Errorf("got %+v, want audit by %v and dry runs of %v", d, wantAudit[:16], wantDry[:16])
	}
}
