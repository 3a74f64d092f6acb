package xds

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// unknownEnum is a scope or action that is none.
const unknownEnum = math.MaxUint8

// applyPolicies takes a response of the authorization type. Nothing that the
// server wanted enforced is left unenforced: a policy of which a part cannot be
// read denies what it would have governed. Only what the reference rejects is
// reported to the server.
func (c *Client) applyPolicies(s *subscription, r response) []rejection {
	var rejected []rejection
	upserts := make([]*policy.Policy, 0, len(r.GetResources()))
	for _, res := range r.GetResources() {
		p, err := c.policy(res)
		if err != nil {
			rejected = append(rejected, rejection{name: res.GetName(), err: err, held: p != nil})
		}
		if p == nil {
			c.cfg.Logger.Error("authorization policy cannot be read nor placed", "policy", res.GetName(), "error", err)
			continue
		}
		if p.Invalid != "" {
			c.cfg.Logger.Warn("authorization policy denies what it governs, because a part of it cannot be read",
				"policy", p.Key(), "reason", p.Invalid)
		}
		s.named(res.GetName(), p.Key())
		upserts = append(upserts, p)
	}
	c.cfg.Policies.Apply(upserts, s.removed(r))
	return rejected
}

// policy converts a resource of the authorization type. With an error the policy,
// unless nil, is the one that stands in for what was rejected.
func (c *Client) policy(res *discovery.Resource) (*policy.Policy, error) {
	var a security.Authorization
	if err := decode(res, &a); err != nil {
		return c.standIn(res.GetName(), err), err
	}
	if a.GetName() == "" {
		err := errors.New("policy without name")
		return c.standIn(res.GetName(), err), err
	}
	return toPolicy(&a)
}

// standIn returns the policy that denies in place of one of which only the name is
// known: what its predecessor governed or, without one, its namespace.
func (c *Client) standIn(name string, cause error) *policy.Policy {
	namespace, short, ok := strings.Cut(name, "/")
	if !ok {
		return nil
	}
	p := &policy.Policy{Namespace: namespace, Name: short, Scope: unknownEnum, Action: policy.Deny, Invalid: cause.Error()}
	if before := c.cfg.Policies.Snapshot().Policy(name); before != nil {
		p.Scope = before.Scope
	}
	return p
}

// toPolicy converts a policy. The error says what the reference rejects it for;
// the policy is then still one that denies.
func toPolicy(a *security.Authorization) (*policy.Policy, error) {
	p := &policy.Policy{Namespace: a.GetNamespace(), Name: a.GetName(), DryRun: a.GetDryRun()}
	var rejects, faults []error
	var err error
	if p.Scope, err = enum("scope", a.GetScope(), policy.Global, policy.Namespace, policy.WorkloadSelector); err != nil {
		p.Scope = unknownEnum
		rejects = append(rejects, err)
	}
	if p.Action, err = enum("action", a.GetAction(), policy.Allow, policy.Deny); err != nil {
		p.Action = unknownEnum
		rejects = append(rejects, err)
	}
	// Only what decides nothing may become an audit, which decides nothing.
	if p.DryRun && slices.ContainsFunc(a.GetExtensions(), isAudit) {
		p.Action, p.DryRun = policy.Audit, false
	}
	for i, g := range a.GetGroups() {
		rule, err := toRule(g)
		if err != nil {
			faults = append(faults, fmt.Errorf("rule %d: %w", i, err))
		}
		p.Rules = append(p.Rules, rule)
	}
	rejected := errors.Join(rejects...)
	if err := errors.Join(append(rejects, faults...)...); err != nil {
		p.Invalid = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return p, rejected
}

// isAudit knows Culvert's extension that makes a dry run an audit.
func isAudit(e *workloadapi.Extension) bool { return e.GetName() == "culvert.io/audit" }

// toRule converts a group of the wire, whose parts are called differently here: a
// group is a rule, its rules are clauses.
func toRule(g *security.Group) ([][]policy.Match, error) {
	if err := noUnknown(g); err != nil {
		return nil, err
	}
	var rule [][]policy.Match
	for i, r := range g.GetRules() {
		if err := noUnknown(r); err != nil {
			return nil, err
		}
		var clause []policy.Match
		for j, m := range r.GetMatches() {
			match, err := toMatch(m)
			if err != nil {
				return nil, fmt.Errorf("clause %d: match %d: %w", i, j, err)
			}
			clause = append(clause, match)
		}
		rule = append(rule, clause)
	}
	return rule, nil
}

// noUnknown refuses a message with fields that this version does not know. A newer
// control plane may have put a condition there; without it an ALLOW is wider.
func noUnknown(m proto.Message) error {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("a condition of a kind that is not known")
	}
	return nil
}

// toMatch converts a match; every value must convert.
func toMatch(m *security.Match) (out policy.Match, err error) {
	if err := noUnknown(m); err != nil {
		return out, err
	}
	c := converter{}
	out = policy.Match{
		Namespaces:          each(&c, "namespaces", m.GetNamespaces(), toStringMatch),
		NotNamespaces:       each(&c, "not_namespaces", m.GetNotNamespaces(), toStringMatch),
		Principals:          each(&c, "principals", m.GetPrincipals(), toStringMatch),
		NotPrincipals:       each(&c, "not_principals", m.GetNotPrincipals(), toStringMatch),
		ServiceAccounts:     each(&c, "service_accounts", m.GetServiceAccounts(), toServiceAccount),
		NotServiceAccounts:  each(&c, "not_service_accounts", m.GetNotServiceAccounts(), toServiceAccount),
		SourceIPs:           each(&c, "source_ips", m.GetSourceIps(), toBlock),
		NotSourceIPs:        each(&c, "not_source_ips", m.GetNotSourceIps(), toBlock),
		DestinationIPs:      each(&c, "destination_ips", m.GetDestinationIps(), toBlock),
		NotDestinationIPs:   each(&c, "not_destination_ips", m.GetNotDestinationIps(), toBlock),
		DestinationPorts:    each(&c, "destination_ports", m.GetDestinationPorts(), toPort),
		NotDestinationPorts: each(&c, "not_destination_ports", m.GetNotDestinationPorts(), toPort),
	}
	return out, errors.Join(c.faults...)
}

// converter collects what could not be converted.
type converter struct{ faults []error }

func each[W, T any](c *converter, field string, in []W, convert func(W) (T, error)) []T {
	var out []T
	for _, v := range in {
		t, err := convert(v)
		if err != nil {
			c.faults = append(c.faults, fmt.Errorf("%s: %w", field, err))
			continue
		}
		out = append(out, t)
	}
	return out
}

func toStringMatch(s *security.StringMatch) (policy.StringMatch, error) {
	if err := noUnknown(s); err != nil {
		return policy.StringMatch{}, err
	}
	switch m := s.GetMatchType().(type) {
	case *security.StringMatch_Exact:
		return policy.StringMatch{Kind: policy.Exact, Value: m.Exact}, nil
	case *security.StringMatch_Prefix:
		return policy.StringMatch{Kind: policy.Prefix, Value: m.Prefix}, nil
	case *security.StringMatch_Suffix:
		return policy.StringMatch{Kind: policy.Suffix, Value: m.Suffix}, nil
	case *security.StringMatch_Presence:
		return policy.StringMatch{Kind: policy.Presence}, nil
	default:
		return policy.StringMatch{}, errors.New("string match without a kind")
	}
}

func toServiceAccount(s *security.ServiceAccountMatch) (policy.ServiceAccount, error) {
	return policy.ServiceAccount{Namespace: s.GetNamespace(), Name: s.GetServiceAccount()}, noUnknown(s)
}

func toBlock(a *security.Address) (netip.Prefix, error) {
	if err := noUnknown(a); err != nil {
		return netip.Prefix{}, err
	}
	addr, err := toAddr(a.GetAddress())
	if err != nil {
		return netip.Prefix{}, err
	}
	return toPrefix(addr, a.GetLength())
}

func toPort(p uint32) (uint16, error) {
	if p > math.MaxUint16 {
		return 0, fmt.Errorf("port %d", p)
	}
	return uint16(p), nil
}
