package authz

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// maxValues is how many values of a field are written out.
const maxValues = 8

// ruleText says in words what a rule matches.
func ruleText(clauses [][]policy.Match) string {
	var parts []string
	for _, c := range clauses {
		if len(c) == 0 {
			continue
		}
		var alternatives []string
		for i := range c {
			if text := matchText(&c[i]); text != "" {
				alternatives = append(alternatives, text)
			}
		}
		switch len(alternatives) {
		case 0:
			return "never"
		case 1:
			parts = append(parts, alternatives[0])
		default:
			parts = append(parts, "("+strings.Join(alternatives, " or ")+")")
		}
	}
	if len(parts) == 0 {
		return "always"
	}
	return strings.Join(parts, ", ")
}

// vacantText says of which lists a rule is emptier than its author may think.
func vacantText(a *authorization, m *ruleMeaning) string {
	lists := strings.Join(m.Vacant[:min(len(m.Vacant), maxValues)], ", ")
	if a.action == "ALLOW" {
		return "nobody is in a list that is empty (" + lists + ")"
	}
	return "a list that is empty is passed over (" + lists + ")"
}

// matchText says in words what a match asks for; nothing for one that never matches.
func matchText(m *policy.Match) string {
	var parts []string
	add := func(text string) {
		if text != "" {
			parts = append(parts, text)
		}
	}
	add(principalsText(m))
	add(list("from namespace ", m.Namespaces, stringMatch))
	add(list("not from namespace ", m.NotNamespaces, stringMatch))
	add(list("from service account ", m.ServiceAccounts, accountText))
	add(list("not from service account ", m.NotServiceAccounts, accountText))
	add(list("from ", m.SourceIPs, netip.Prefix.String))
	add(list("not from ", m.NotSourceIPs, netip.Prefix.String))
	add(list("to address ", m.DestinationIPs, netip.Prefix.String))
	add(list("not to address ", m.NotDestinationIPs, netip.Prefix.String))
	add(list("to port ", m.DestinationPorts, portText))
	add(list("to any port but ", m.NotDestinationPorts, portText))
	return strings.Join(parts, ", ")
}

func principalsText(m *policy.Match) string {
	var parts []string
	if hasPresence(m.Principals) {
		parts = append(parts, "from anybody with an identity (mTLS)")
	} else if text := list("from ", m.Principals, stringMatch); text != "" {
		parts = append(parts, text)
	}
	if hasPresence(m.NotPrincipals) {
		parts = append(parts, "from whoever has no identity (plaintext)")
	} else if text := list("not from ", m.NotPrincipals, stringMatch); text != "" {
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func hasPresence(all []policy.StringMatch) bool {
	for _, s := range all {
		if s.Kind == policy.Presence {
			return true
		}
	}
	return false
}

func list[T any](label string, values []T, text func(T) string) string {
	if len(values) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(label)
	for i, v := range values {
		if i == maxValues {
			fmt.Fprintf(&b, " or %d more", len(values)-i)
			break
		}
		if i > 0 {
			b.WriteString(" or ")
		}
		b.WriteString(text(v))
	}
	return b.String()
}

// stringMatch writes a pattern as users do.
func stringMatch(s policy.StringMatch) string {
	switch s.Kind {
	case policy.Prefix:
		return s.Value + "*"
	case policy.Suffix:
		return "*" + s.Value
	case policy.Presence:
		return "*"
	default:
		return s.Value
	}
}

func accountText(a policy.ServiceAccount) string { return a.Namespace + "/" + a.Name }

func portText(p uint16) string { return fmt.Sprint(p) }
