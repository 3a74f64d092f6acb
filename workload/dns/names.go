package dns

import "strings"

// Names in this file are lower case, without the dot at the end, and without
// escapes: a name that needs an escape in presentation form is never a service.

// alias is one name that the question may stand for.
type alias struct {
	name string
	// stripped is what was left of the question's name when a search domain was
	// removed; empty when none was.
	stripped string
}

// aliases lists the names that the question's name may stand for, in the order in
// which they are looked up: the name itself, its Kubernetes expansions, then the
// same for what is left after removing each search domain. No name comes twice.
func (r *Resolver) aliases(c Client, name string) []alias {
	out := make([]alias, 0, 8)
	add := func(a alias) {
		for _, o := range out {
			if o.name == a.name {
				return
			}
		}
		out = append(out, a)
	}
	expand := func(name, stripped string) {
		add(alias{name, stripped})
		for _, n := range r.expansions(name, c.Namespace) {
			add(alias{n, stripped})
		}
	}
	expand(name, "")
	for _, domain := range r.search(c) {
		if rest, ok := trimDomain(name, domain); ok {
			expand(rest, rest)
		}
	}
	return out
}

// search returns the client's search domains, normalised.
func (r *Resolver) search(c Client) []string {
	if c.Search == nil {
		return []string{c.Namespace + r.suffix, r.svcDomain, r.domain}
	}
	out := make([]string, 0, len(c.Search))
	for _, s := range c.Search {
		out = append(out, strings.ToLower(strings.Trim(s, ".")))
	}
	return out
}

// expansions returns the fully qualified Kubernetes names that a short name may
// mean to a client of the namespace. Two forms exist, of a service
// (name.namespace.svc.domain) and of a pod with a subdomain
// (host.subdomain.namespace.svc.domain); a name of other shape has none.
func (r *Resolver) expansions(name, namespace string) []string {
	switch labels := strings.Count(name, ".") + 1; {
	case labels == 1:
		return []string{name + "." + namespace + r.suffix}
	case labels == 2:
		return []string{name + r.suffix, name + "." + namespace + r.suffix}
	case labels == 3 && strings.HasSuffix(name, ".svc"):
		return []string{name + "." + r.domain, name + r.suffix}
	case labels == 3:
		return []string{name + r.suffix}
	case labels == 4 && strings.HasSuffix(name, ".svc"):
		return []string{name + "." + r.domain}
	default:
		return nil
	}
}

// trimDomain removes the domain's labels from the end of the name; false when the
// name does not end in them or nothing would be left.
func trimDomain(name, domain string) (string, bool) {
	if domain == "" {
		return "", false
	}
	rest, ok := strings.CutSuffix(name, domain)
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, ".")
	return rest, ok && rest != ""
}

// wildcards yields the hostnames under which a service may serve the name: the
// name itself, then a star in place of ever more labels, down to "*.tld".
func wildcards(name string) func(yield func(hostname string, wildcard bool) bool) {
	return func(yield func(string, bool) bool) {
		if !yield(name, false) {
			return
		}
		for {
			dot := strings.IndexByte(name, '.')
			if dot < 0 || !yield("*"+name[dot:], true) {
				return
			}
			name = name[dot+1:]
		}
	}
}
