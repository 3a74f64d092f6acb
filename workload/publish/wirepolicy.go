package publish

import (
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// wirePolicy converts a policy. The wire has no word for one that is faulty: it
// becomes the policy that it stands for, which denies all that it governs. Nor has
// it one for Audit, which must never decide: it travels as a dry run, and an
// extension tells our clients.
func wirePolicy(p *policy.Policy) *security.Authorization {
	if p.Validate() != nil {
		return denial(p)
	}
	out := &security.Authorization{Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun || p.Action == policy.Audit, Scope: wireScope(p.Scope)}
	if p.Action == policy.Deny {
		out.Action = security.Action_DENY
	}
	out.Extensions = wireAudit(p)
	for _, rule := range p.Rules {
		g := new(security.Group)
		for _, clause := range rule {
			r := new(security.Rules)
			for i := range clause {
				r.Matches = append(r.Matches, wireMatch(&clause[i]))
			}
			g.Rules = append(g.Rules, r)
		}
		out.Groups = append(out.Groups, g)
	}
	return out
}

// audit is the name of Culvert's extension that makes a dry run an audit. It has
// no content. Others' clients pass over it.
const audit = "culvert.io/audit"

func wireAudit(p *policy.Policy) []*workloadapi.Extension {
	if p.Action != policy.Audit {
		return nil
	}
	return []*workloadapi.Extension{{Name: audit}}
}

// denial is the policy that denies everything in the other one's place. A group
// without rules matches always.
func denial(p *policy.Policy) *security.Authorization {
	return &security.Authorization{
		Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun || p.Action == policy.Audit, Scope: wireScope(p.Scope),
		Action: security.Action_DENY, Groups: []*security.Group{{}}, Extensions: wireAudit(p),
	}
}

// wireScope converts a scope; one that nobody knows governs at least the policy's
// namespace, as in a Set.
func wireScope(s policy.Scope) security.Scope {
	switch s {
	case policy.Global:
		return security.Scope_GLOBAL
	case policy.WorkloadSelector:
		return security.Scope_WORKLOAD_SELECTOR
	default:
		return security.Scope_NAMESPACE
	}
}

func wireMatch(m *policy.Match) *security.Match {
	return &security.Match{
		Namespaces: each(m.Namespaces, wireString), NotNamespaces: each(m.NotNamespaces, wireString),
		Principals: each(m.Principals, wireString), NotPrincipals: each(m.NotPrincipals, wireString),
		ServiceAccounts: each(m.ServiceAccounts, wireAccount), NotServiceAccounts: each(m.NotServiceAccounts, wireAccount),
		SourceIps: each(m.SourceIPs, wireBlock), NotSourceIps: each(m.NotSourceIPs, wireBlock),
		DestinationIps: each(m.DestinationIPs, wireBlock), NotDestinationIps: each(m.NotDestinationIPs, wireBlock),
		DestinationPorts: each(m.DestinationPorts, wirePort), NotDestinationPorts: each(m.NotDestinationPorts, wirePort),
	}
}

func each[T, W any](in []T, convert func(T) W) []W {
	if len(in) == 0 {
		return nil
	}
	out := make([]W, len(in))
	for i, v := range in {
		out[i] = convert(v)
	}
	return out
}

func wireString(s policy.StringMatch) *security.StringMatch {
	switch s.Kind {
	case policy.Exact:
		return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: s.Value}}
	case policy.Prefix:
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: s.Value}}
	case policy.Suffix:
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: s.Value}}
	case policy.Presence:
		return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	default:
		return &security.StringMatch{} // in no valid policy; our client refuses it
	}
}

func wireAccount(a policy.ServiceAccount) *security.ServiceAccountMatch {
	return &security.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.Name}
}

func wireBlock(p netip.Prefix) *security.Address {
	return &security.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func wirePort(p uint16) uint32 { return uint32(p) }
