package authz

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// values looks at the names in a rule: those that nobody has, and those that nobody can have.
func (l *linter) values(a *authorization, i int, r rule) {
	for _, clause := range r {
		for j := range clause {
			m := &clause[j]
			for _, p := range slices.Concat(m.Principals, m.NotPrincipals) {
				l.principal(a, i, p)
			}
			for _, ns := range slices.Concat(m.Namespaces, m.NotNamespaces) {
				l.namespace(a, i, ns)
			}
			for _, sa := range slices.Concat(m.ServiceAccounts, m.NotServiceAccounts) {
				l.account(a, i, sa)
			}
		}
	}
}

func (l *linter) principal(a *authorization, i int, p policy.StringMatch) {
	text := stringMatch(p)
	const form = "write trust-domain/ns/NAMESPACE/sa/ACCOUNT"
	switch p.Kind {
	case policy.Exact:
		account, ok := accountOf(p)
		if !ok {
			l.add(Error, "principal-form", a, i, "principal "+text+" matches nobody, because it is no identity", form)
			return
		}
		domain, _, _ := strings.Cut(p.Value, "/")
		l.trustDomain(a, i, domain, text)
		if l.namespace(a, i, policy.StringMatch{Kind: policy.Exact, Value: account.Namespace}) {
			l.account(a, i, account)
		}
	case policy.Prefix:
		domain, rest, ok := strings.Cut(p.Value, "/")
		if ok {
			l.trustDomain(a, i, domain, text)
		}
		if ok && rest == "" || !ok && l.knowsDomain(domain) {
			return // a trust domain, or the beginning of one
		}
		l.pattern(a, i, "principal", p, l.identities())
	case policy.Suffix:
		l.pattern(a, i, "principal", p, l.identities())
	}
}

// knowsDomain reports whether a trust domain of the mesh begins so.
func (l *linter) knowsDomain(prefix string) bool {
	return slices.ContainsFunc(l.domains(), func(d string) bool { return strings.HasPrefix(d, prefix) })
}

func (l *linter) domains() []string {
	return append([]string{l.settings.TrustDomain}, l.settings.TrustDomainAliases...)
}

func (l *linter) trustDomain(a *authorization, i int, domain, text string) {
	if !slices.Contains(l.domains(), domain) {
		l.add(Warning, "trust-domain", a, i, fmt.Sprintf("principal %s: trust domain %s is not that of the mesh, %s", text, domain, l.settings.TrustDomain),
			"write "+l.settings.TrustDomain+", unless workloads of another mesh are meant")
	}
}

// namespace reports whether the pattern matches a namespace; it says so when it does not and all are known.
func (l *linter) namespace(a *authorization, i int, ns policy.StringMatch) bool {
	known := l.Namespaces()
	if !l.declared {
		return true // files without namespaces: nobody says which there are
	}
	if ns.Kind != policy.Exact {
		return l.pattern(a, i, "namespace", ns, known)
	}
	if l.namespaces[ns.Value] != nil {
		return true
	}
	l.add(Warning, "unknown-namespace", a, i, fmt.Sprintf("there is no namespace %s%s", ns.Value, hint(ns.Value, known)), "correct the name, or make the namespace")
	return false
}

func (l *linter) account(a *authorization, i int, sa policy.ServiceAccount) {
	if !l.accountsIn[sa.Namespace] {
		if l.declared && l.namespaces[sa.Namespace] == nil {
			l.namespace(a, i, policy.StringMatch{Kind: policy.Exact, Value: sa.Namespace})
		}
		return
	}
	if l.accounts[account{sa.Namespace, sa.Name}] {
		return
	}
	var known []string
	for have := range maps.Keys(l.accounts) {
		if have.namespace == sa.Namespace {
			known = append(known, have.name)
		}
	}
	l.add(Warning, "unknown-account", a, i, fmt.Sprintf("there is no service account %s in namespace %s%s", sa.Name, sa.Namespace, hint(sa.Name, known)), "correct the name, or make the service account")
}

// pattern reports whether a pattern matches one of the known names, and says so when it does not.
func (l *linter) pattern(a *authorization, i int, what string, p policy.StringMatch, known []string) bool {
	if slices.ContainsFunc(known, func(name string) bool { return matches(p, name) }) || !l.declared {
		return true
	}
	l.add(Warning, "matches-nobody", a, i, fmt.Sprintf("%s %s matches none that there is", what, stringMatch(p)), "correct the pattern: an asterisk stands at the beginning or at the end")
	return false
}

// identities returns those of all known accounts.
func (l *linter) identities() []string {
	var out []string
	for _, domain := range l.domains() {
		for sa := range maps.Keys(l.accounts) {
			out = append(out, domain+"/ns/"+sa.namespace+"/sa/"+sa.name)
		}
	}
	return out
}
