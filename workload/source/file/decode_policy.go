package file

import (
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/workload/policy"
)

func (d *decoder) policy(n *yaml.Node) {
	const what = "policy"
	p := new(policy.Policy)
	seen := d.object(n, what, fields{
		"name":      func(n *yaml.Node) { p.Name = d.string(n, "policy name") },
		"namespace": func(n *yaml.Node) { p.Namespace = d.string(n, "policy namespace") },
		"scope": func(n *yaml.Node) {
			p.Scope = enum(d, n, "policy scope", policy.Global, policy.WorkloadSelector)
		},
		"action": func(n *yaml.Node) { p.Action = enum(d, n, "policy action", policy.Allow, policy.Audit) },
		"dryRun": func(n *yaml.Node) { p.DryRun = d.bool(n, "policy dryRun") },
		"rules": func(n *yaml.Node) {
			d.each(n, "rules", func(n *yaml.Node) { p.Rules = append(p.Rules, d.rule(n)) })
		},
	})
	if !d.required(n, what, seen, "name", "namespace", "scope", "action", "dryRun", "rules") {
		return
	}
	d.once(n, what, p.Key())
	d.state.Policies = append(d.state.Policies, p)
}

func (d *decoder) rule(n *yaml.Node) [][]policy.Match {
	rule := [][]policy.Match{}
	d.each(n, "rule", func(n *yaml.Node) {
		clause := []policy.Match{}
		d.each(n, "clause", func(n *yaml.Node) { clause = append(clause, d.match(n)) })
		rule = append(rule, clause)
	})
	return rule
}

func (d *decoder) match(n *yaml.Node) policy.Match {
	var m policy.Match
	texts := func(to *[]policy.StringMatch) func(*yaml.Node) {
		return list(d, to, d.stringMatch)
	}
	blocks := func(to *[]netip.Prefix) func(*yaml.Node) {
		return list(d, to, d.block)
	}
	accounts := func(to *[]policy.ServiceAccount) func(*yaml.Node) {
		return list(d, to, d.account)
	}
	ports := func(to *[]uint16) func(*yaml.Node) {
		return list(d, to, func(n *yaml.Node) uint16 { return d.port(n, "match port") })
	}
	d.object(n, "match", fields{
		"namespaces":          texts(&m.Namespaces),
		"notNamespaces":       texts(&m.NotNamespaces),
		"principals":          texts(&m.Principals),
		"notPrincipals":       texts(&m.NotPrincipals),
		"serviceAccounts":     accounts(&m.ServiceAccounts),
		"notServiceAccounts":  accounts(&m.NotServiceAccounts),
		"sourceIps":           blocks(&m.SourceIPs),
		"notSourceIps":        blocks(&m.NotSourceIPs),
		"destinationIps":      blocks(&m.DestinationIPs),
		"notDestinationIps":   blocks(&m.NotDestinationIPs),
		"destinationPorts":    ports(&m.DestinationPorts),
		"notDestinationPorts": ports(&m.NotDestinationPorts),
	})
	return m
}

func list[T any](d *decoder, to *[]T, item func(*yaml.Node) T) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.each(n, "match", func(n *yaml.Node) { *to = append(*to, item(n)) })
	}
}

// stringMatch reads {Exact: x} or the tagged form !Exact x.
func (d *decoder) stringMatch(n *yaml.Node) policy.StringMatch {
	n = d.resolve(n)
	kind, value := "", n
	switch {
	case strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!"):
		kind = n.Tag[1:]
	case n.Kind == yaml.MappingNode && len(n.Content) == 2:
		kind, value = n.Content[0].Value, d.resolve(n.Content[1])
	case n.Kind == yaml.ScalarNode && n.Value == policy.Presence.String():
		return policy.StringMatch{Kind: policy.Presence}
	}
	for k := policy.Exact; k <= policy.Suffix; k++ {
		if kind == k.String() {
			if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
				break
			}
			return policy.StringMatch{Kind: k, Value: value.Value}
		}
	}
	if kind == policy.Presence.String() && len(value.Content) == 0 {
		return policy.StringMatch{Kind: policy.Presence}
	}
	d.fault(n, "match: want one of {Exact: x}, {Prefix: x}, {Suffix: x}, {Presence: []}, have %s", describe(n))
	return policy.StringMatch{Kind: policy.Exact}
}

func (d *decoder) block(n *yaml.Node) netip.Prefix {
	p, ok := parsed(d, n, "match address block", netip.ParsePrefix)
	if !ok {
		return netip.Prefix{}
	}
	return p
}

func (d *decoder) account(n *yaml.Node) policy.ServiceAccount {
	var a policy.ServiceAccount
	seen := d.object(n, "match service account", fields{
		"namespace":      func(n *yaml.Node) { a.Namespace = d.string(n, "match service account namespace") },
		"serviceAccount": func(n *yaml.Node) { a.Name = d.string(n, "match service account") },
	})
	d.required(n, "match service account", seen, "namespace", "serviceAccount")
	return a
}
