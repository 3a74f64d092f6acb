package netpol

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// compiled is a Policy as it is evaluated.
type compiled struct {
	policy *Policy
	key    Key
	name   string // of key
	tier   Tier   // the one that it is evaluated in
	fault  error
	// pods and namespaces are the subject, without requirements that cannot be
	// understood: a policy governs at least what it was meant to.
	pods, namespaces selector
	rules            [2][]rule // by Direction
	// governs says which directions the policy governs, by Direction.
	governs [2]bool
}

// rule is a Rule without anything that cannot be understood.
type rule struct {
	name             string
	action           Action
	anyPeer, anyPort bool
	ports            []Port
	peers            []peer
	reason           string // why a rule that nobody wrote so denies
}

// kind is what a peer is compared by.
type kind uint8

const (
	kindPods kind = iota
	kindBlocks
	kindNodes
	kindDomains
)

// peer is a Peer; which fields are used depends on the kind.
type peer struct {
	kind             kind
	pods, namespaces selector
	own              string // the only namespace, if not empty
	blocks, except   []netip.Prefix
	nodes            selector
	domains          []string
}

// compile never fails: see Policy.Invalid and Rule.Invalid for what becomes of
// faults.
func compile(p *Policy) *compiled {
	c := &compiled{
		policy: p, key: p.Key(), name: p.Key().String(), tier: p.tier(),
		pods: p.Pods.compile(), namespaces: p.Namespaces.compile(),
	}
	whole := p.faults()
	errs := []error{whole}
	for d, rules := range [2][]Rule{p.IngressRules, p.EgressRules} {
		c.governs[d] = [2]bool{p.Ingress, p.Egress}[d]
		for i := range rules {
			r, err := p.compileRule(&rules[i], Direction(d), i)
			if err != nil {
				errs = append(errs, err)
			}
			if r != nil {
				c.rules[d] = append(c.rules[d], *r)
			}
		}
	}
	c.fault = errors.Join(errs...)
	if whole == nil {
		return c
	}
	if !p.Ingress && !p.Egress {
		c.governs = [2]bool{true, true}
	}
	c.rules = [2][]rule{}
	if c.tier != Namespaced {
		deny := []rule{{action: Deny, anyPeer: true, anyPort: true, reason: invalid(whole)}}
		c.rules = [2][]rule{deny, deny}
	}
	return c
}

// Validate reports every part of the policy that cannot be understood. One
// with faults may still be given to a Set.
func (p *Policy) Validate() error { return compile(p).fault }

func invalid(err error) string {
	return "invalid: " + strings.ReplaceAll(err.Error(), "\n", "; ")
}

// tier returns the tier that the policy is evaluated in.
func (p *Policy) tier() Tier {
	switch {
	case p.Namespace != "":
		return Namespaced
	case p.Tier == Baseline:
		return Baseline
	default:
		return Admin
	}
}

// faults says what of the policy outside of its rules cannot be understood.
func (p *Policy) faults() error {
	var errs []error
	if p.Invalid != "" {
		errs = append(errs, errors.New(p.Invalid))
	}
	if t := p.tier(); t != p.Tier {
		errs = append(errs, fmt.Errorf("tier: %s", p.Tier))
	} else if (t == Namespaced) != (p.Namespaces == nil) {
		errs = append(errs, errors.New("subject: namespaces in a policy of one namespace, or none in another"))
	}
	if err := errors.Join(p.Namespaces.faults(), p.Pods.faults()); err != nil {
		errs = append(errs, fmt.Errorf("subject: %w", err))
	}
	return errors.Join(errs...)
}

// selects reports whether the policy governs the pod, in either direction. For
// one of Namespaced the caller knows that the namespace is right.
func (c *compiled) selects(p *Pod, n *Namespace) bool {
	return c.pods.matches(p.Labels) && (c.tier == Namespaced || c.namespaces.matches(n.Labels))
}

// order is that of evaluation within a tier.
func (c *compiled) order(o *compiled) int {
	return cmp.Or(cmp.Compare(c.tier, o.tier), cmp.Compare(c.priority(), o.priority()), strings.Compare(c.key.Name, o.key.Name))
}

func (c *compiled) priority() int32 {
	if c.tier == Namespaced {
		return 0
	}
	return c.policy.Priority
}

// compileRule returns nil for a rule that matches nothing because it has a
// fault.
func (p *Policy) compileRule(r *Rule, d Direction, index int) (*rule, error) {
	out := &rule{
		name: r.Name, action: r.Action,
		anyPeer: r.AnyPeer, anyPort: r.AnyPort, ports: r.Ports,
	}
	if out.name == "" {
		out.name = fmt.Sprintf("%s %d", d, index)
	}
	errs := []error{r.fault(p.tier())}
	for i := range r.Peers {
		compiled, err := p.compilePeer(&r.Peers[i], r.Action)
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %d: %w", i, err))
		}
		out.peers = append(out.peers, compiled)
	}
	err := errors.Join(errs...)
	if err == nil {
		return out, nil
	}
	reason := invalid(err)
	err = fmt.Errorf("rule %s: %w", out.name, err)
	if r.Action == Allow || p.tier() == Namespaced {
		return nil, err
	}
	// "For Deny and Pass rules, fail closed means: treat the rule as a 'Deny
	// all' rule" (ClusterNetworkPolicyIngressPeer).
	return &rule{name: out.name, action: Deny, anyPeer: true, anyPort: true, reason: reason}, err
}

func (r *Rule) fault(t Tier) error {
	var errs []error
	if r.Invalid != "" {
		errs = append(errs, errors.New(r.Invalid))
	}
	if r.Action > Pass || t == Namespaced && r.Action != Allow {
		errs = append(errs, fmt.Errorf("action: %s", r.Action))
	}
	if r.AnyPeer == (len(r.Peers) > 0) {
		errs = append(errs, errors.New("peers: any and some, or none at all"))
	}
	if r.AnyPort == (len(r.Ports) > 0) {
		errs = append(errs, errors.New("ports: any and some, or none at all"))
	}
	for i := range r.Ports {
		if err := r.Ports[i].fault(); err != nil {
			errs = append(errs, fmt.Errorf("port %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (p *Port) fault() error {
	switch {
	case p.Protocol > AnyProtocol:
		return fmt.Errorf("protocol: %s", p.Protocol)
	case p.Name != "" && (p.Port != 0 || p.End != 0):
		return errors.New("both a name and a number")
	case p.End != 0 && (p.Port == 0 || p.End < p.Port):
		return fmt.Errorf("no range: %d to %d", p.Port, p.End)
	default:
		return nil
	}
}

func (p *Policy) compilePeer(from *Peer, action Action) (peer, error) {
	out := peer{pods: from.Pods.compile(), namespaces: from.Namespaces.compile(), nodes: from.Nodes.compile()}
	var kinds []kind
	blocks := from.Networks
	if from.Pods != nil || from.Namespaces != nil {
		kinds = append(kinds, kindPods)
	}
	if from.Block != (netip.Prefix{}) || len(from.Except) > 0 {
		kinds = append(kinds, kindBlocks)
		blocks = []netip.Prefix{from.Block}
	}
	if len(from.Networks) > 0 {
		kinds = append(kinds, kindBlocks)
	}
	if from.Nodes != nil {
		kinds = append(kinds, kindNodes)
	}
	if len(from.Domains) > 0 {
		kinds = append(kinds, kindDomains)
	}
	var errs [4]error
	out.blocks, errs[0] = unmapAll(blocks)
	out.except, errs[1] = unmapAll(from.Except)
	out.domains, errs[2] = normalDomains(from.Domains)
	if len(kinds) != 1 {
		errs[3] = fmt.Errorf("is of %d kinds", len(kinds))
	} else {
		out.kind = kinds[0]
		errs[3] = p.allowsPeer(from, out.kind, action)
	}
	if from.Namespaces == nil {
		out.own = p.Namespace
	}
	return out, errors.Join(append(errs[:], from.Pods.faults(), from.Namespaces.faults(), from.Nodes.faults())...)
}

// allowsPeer says why a rule of the policy cannot have a peer of the kind.
func (p *Policy) allowsPeer(from *Peer, k kind, action Action) error {
	namespaced := p.tier() == Namespaced
	switch {
	case k == kindPods && from.Namespaces == nil && !namespaced:
		return errors.New("pods without namespaces")
	case namespaced && (k > kindBlocks || len(from.Networks) > 0):
		return errors.New("of a kind that NetworkPolicy does not have")
	case k == kindDomains && action != Allow:
		// "DomainNames is only supported for Accept rules."
		return errors.New("domain names in a rule that does not allow")
	default:
		return nil
	}
}

// unmapAll returns the prefixes with those of IPv4-mapped addresses as IPv4,
// which is how addresses are compared.
func unmapAll(in []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range in {
		switch {
		case !p.IsValid():
			return nil, errors.New("no address block")
		case p.Addr().Is4In6() && p.Bits() < 96:
			return nil, fmt.Errorf("address block %s is part IPv4, part IPv6", p)
		case p.Addr().Is4In6():
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// normalDomains returns the names as Query.PeerDomain is written.
func normalDomains(in []string) ([]string, error) {
	var out []string
	for _, s := range in {
		name := strings.ToLower(strings.TrimSuffix(s, "."))
		if rest := strings.TrimPrefix(name, "*."); rest == "" || strings.ContainsAny(rest, "* ") || rest[0] == '.' {
			return nil, fmt.Errorf("domain name %q", s)
		}
		out = append(out, name)
	}
	return out, nil
}
