package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// each reads the values of one field; one that cannot be read spoils the rule.
func each[T any](c *ruleReader, field string, values []string, parse func(string) (T, error)) []T {
	if len(values) == 0 {
		return nil
	}
	if len(values) > maxRules {
		c.fail(field, policyTooLarge)
		return nil
	}
	out := make([]T, 0, len(values))
	for _, v := range values {
		t, err := parse(v)
		if err != nil {
			c.fail(field, err.Error())
			return nil
		}
		out = append(out, t)
	}
	return out
}

// parseMatch reads "*", "*suffix", "prefix*" or an exact text. A star anywhere
// else is refused: compared as it stands it would match nothing, and nothing is
// what an exception must not be.
func parseMatch(s string) (policy.StringMatch, error) {
	m := policy.StringMatch{Kind: policy.Exact, Value: s}
	switch {
	case s == "":
		return m, errors.New("a value is empty")
	case s == "*":
		return policy.StringMatch{Kind: policy.Presence}, nil
	case s[0] == '*':
		m = policy.StringMatch{Kind: policy.Suffix, Value: s[1:]}
	case s[len(s)-1] == '*':
		m = policy.StringMatch{Kind: policy.Prefix, Value: s[:len(s)-1]}
	}
	if strings.Contains(m.Value, "*") {
		return m, fmt.Errorf("pattern %q cannot be enforced", bounded(s))
	}
	return m, nil
}

// parsePrincipal reads a pattern of principals, which are written without their
// scheme. Written with it, a pattern means the same and not nobody.
func parsePrincipal(s string) (policy.StringMatch, error) {
	return parseMatch(strings.TrimPrefix(s, "spiffe://"))
}

// parseTrustDomain reads a trust domain as a match of principals, in which it
// stands first. Of patterns, only those can be said that fix the beginning.
func parseTrustDomain(s string) (policy.StringMatch, error) {
	m, err := parseMatch(s)
	switch {
	case err != nil:
	case m.Kind == policy.Suffix, strings.Contains(s, "/"):
		err = fmt.Errorf("trust domain %q cannot be enforced", bounded(s))
	case m.Kind == policy.Exact:
		m.Kind, m.Value = policy.Prefix, m.Value+"/"
	}
	return m, err
}

// parseAccount reads "account", which is one of the namespace, or
// "namespace/account".
func parseAccount(s, namespace string) (policy.ServiceAccount, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = namespace, s
	}
	if ns == "" || name == "" || strings.Contains(name, "/") || strings.Contains(s, "*") {
		return policy.ServiceAccount{}, fmt.Errorf("%q is no service account", bounded(s))
	}
	return policy.ServiceAccount{Namespace: ns, Name: name}, nil
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q is no port", bounded(s))
	}
	return uint16(p), nil
}

// parseBlock reads an address or a CIDR block. IPv4-mapped forms are what they
// map: connections are compared so.
func parseBlock(s string) (netip.Prefix, error) {
	bad := fmt.Errorf("%q is no address block", bounded(s))
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, bad
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, bad
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, bad
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}
