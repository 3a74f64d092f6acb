package authz

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// Severity says how bad a finding is.
type Severity string

// The severities, from worst to best.
const (
	// Error: the policy does not do what it says.
	Error Severity = "error"
	// Warning: it most likely does not do what its author meant.
	Warning Severity = "warning"
	// Note: it does, but it is good to know.
	Note Severity = "note"
)

// Finding is one thing in a policy that deserves a look.
type Finding struct {
	Severity Severity `json:"severity"`
	// Check is the name of what was looked for: shadowed, unknown-namespace, …
	Check     string `json:"check"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Rule is the index of the rule, -1 when the finding is about the whole object.
	Rule   int    `json:"rule"`
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// Failed reports whether a finding is worse than a note.
func Failed(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Severity != Note })
}

// linter collects findings.
type linter struct {
	*World
	found []Finding
	named map[string]bool // policies that some workload names
	ways  map[*authorization][]ways
}

// ways are those in which a rule can match; none of a rule that never does.
type ways struct {
	all []conjunction
	few bool // few enough to look at them
}

func waysOf(r *ruleMeaning) ways {
	if r.Never || r.Fault != "" {
		return ways{few: true}
	}
	all, few := alternatives(r.Clauses)
	return ways{all, few}
}

func (w ways) never() bool { return w.few && len(w.all) == 0 }

// coveredBy reports whether the rule certainly matches in all of these ways.
func (w ways) coveredBy(r rule) bool { return w.few && coversWays(r, w.all) }

// Lint looks for mistakes in the policies. Worst come first; the order is the same for the same objects.
func (w *World) Lint() []Finding {
	l := &linter{World: w, found: []Finding{}, named: make(map[string]bool), ways: make(map[*authorization][]ways)}
	for wl := range w.store.Workloads() {
		for _, key := range wl.AuthorizationPolicies {
			l.named[key] = true
		}
	}
	for _, a := range w.authz {
		for i := range a.rules {
			l.ways[a] = append(l.ways[a], waysOf(&a.rules[i]))
		}
	}
	for _, a := range w.authz {
		l.authorization(a)
	}
	l.peerAuthentications()
	rank := map[Severity]int{Error: 0, Warning: 1, Note: 2}
	slices.SortFunc(l.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Severity], rank[b.Severity]), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Text, b.Text))
	})
	// With aliases of the trust domain one value becomes several, which all are at fault alike.
	l.found = slices.Compact(l.found)
	return l.found
}

// add notes a finding about a rule of a policy, or, with -1, about the whole.
func (l *linter) add(s Severity, check string, a *authorization, rule int, text, remedy string) {
	l.found = append(l.found, Finding{
		Severity: s, Check: check, Kind: "AuthorizationPolicy", Namespace: a.namespace, Name: a.name, Rule: rule, Text: text, Remedy: remedy,
	})
}

func (l *linter) authorization(a *authorization) {
	l.status(a)
	if a.invalid() || a.attached {
		return
	}
	l.rules(a)
	for i, r := range a.rules {
		l.values(a, i, r.Clauses)
		if i < len(a.written) && mentions(a.written[i], "spiffe://") {
			l.add(Warning, "spiffe-prefix", a, i, "a principal is written with spiffe://, which counts here as without; elsewhere it matches nobody", "write it without")
		}
	}
	if a.policy == nil {
		return
	}
	l.root(a)
	if _, err := strconv.ParseBool(a.annotation); a.annotation != "" && err != nil {
		l.add(Warning, "dry-run", a, -1, fmt.Sprintf("annotation istio.io/dry-run is %q, which is no boolean: the policy is enforced", a.annotation), "write true, or take the annotation out")
	}
	if a.dryRun {
		l.add(Note, "dry-run", a, -1, "the policy is for a dry run: it decides nothing", "when its metrics and log lines are as expected, remove the annotation istio.io/dry-run")
	}
	pods := l.selection(a)
	l.servicePorts(a, pods)
	if a.enforced() {
		l.shadows(a)
		l.plaintext(a, pods)
	}
}

// status repeats what the object's own status says of it.
func (l *linter) status(a *authorization) {
	c := a.condition
	switch {
	case a.invalid():
		effect := "denies everything that it governs"
		if a.policy.DryRun || a.policy.Action == policy.Audit {
			effect = "decides nothing"
		}
		l.add(Error, "invalid", a, -1, "the policy cannot be understood, and so "+effect+": "+a.policy.Invalid, "correct the value")
	case a.attached && !c.Status:
		l.add(Error, "not-attached", a, -1, "no waypoint enforces the policy, and agents do not: "+c.Message, "deploy a waypoint and let the target use it, or select workloads with a selector instead of targetRefs")
	case a.attached && c.Reason != "Accepted":
		l.add(Warning, "not-attached", a, -1, "part of the policy is not enforced: "+c.Message, "correct targetRefs")
	case a.action == "CUSTOM":
		l.add(Error, "custom", a, -1, "the CUSTOM action needs a waypoint; without one agents deny what the policy selects", "attach the policy to something with a waypoint by targetRefs, or use ALLOW or DENY")
	}
}

// rules looks at what the rules match by themselves.
func (l *linter) rules(a *authorization) {
	dead := 0
	for i := range a.rules {
		r := &a.rules[i]
		if a.action != "CUSTOM" && r.Fault == "" {
			l.conditions(a, i, r)
		}
		switch {
		case a.action == "CUSTOM" || r.Fault != "":
		case len(r.Vacant) > 0 || r.Note != "":
			if neverMatches(r) {
				dead++
			}
		case never(r.Clauses):
			dead++
			l.add(Warning, "never-matches", a, i, "the rule contradicts itself, so it never matches: "+ruleText(r.Clauses), "alternatives belong into one list or into two rules")
		case ruleText(r.Clauses) == "always" && a.action == "ALLOW":
			l.add(Note, "allows-all", a, i, "the rule matches everything: only DENY policies refuse anybody here", "say who may come, unless that is meant")
		}
	}
	switch {
	case a.policy == nil || a.action != "ALLOW" && a.action != "DENY":
	case len(a.rules) == 0 && a.action == "DENY":
		l.add(Warning, "matches-nothing", a, -1, "a DENY policy without rules refuses nobody", "to refuse everybody write rules: [{}], or an ALLOW policy without rules")
	case len(a.rules) == 0:
		l.add(Note, "matches-nothing", a, -1, "an ALLOW policy without rules lets nobody in but whom another ALLOW policy names", "nothing, if that is meant (deny by default)")
	case dead == len(a.rules) && a.action == "ALLOW":
		l.add(Warning, "matches-nothing", a, -1, "none of the rules of this ALLOW policy ever matches: it lets nobody in", "correct its rules")
	}
}

// conditions looks for what agents do not judge in a rule, and for lists that are empty.
func (l *linter) conditions(a *authorization, i int, r *ruleMeaning) {
	effect := "the rule never matches: "
	switch {
	case neverMatches(r):
	case a.action == "ALLOW":
		effect = "a part of the rule never matches: "
	case a.action == "AUDIT":
		effect = "the rule audits more than it says, now " + ruleText(r.Clauses) + ": "
	default:
		effect = "the rule refuses more than it says, now " + ruleText(r.Clauses) + ": "
	}
	if r.Note != "" {
		l.add(Warning, "l7-without-waypoint", a, i, effect+r.Note, "attach the policy to a waypoint by targetRefs, or take the HTTP conditions out")
	}
	if len(r.Vacant) > 0 {
		l.add(Warning, "empty-list", a, i, effect+vacantText(a, r), "write what belongs into the list, or take the list out")
	}
}

// notRoot is said of policies in Istio's root namespace where that is another.
func (l *linter) notRoot(namespace string) (text, remedy string) {
	root := l.settings.RootNamespace
	if namespace != "istio-system" || root == namespace {
		return "", ""
	}
	return "this policy is for namespace istio-system only: policies for the whole mesh live in " + root + " here", "move it to " + root + " if it is for the mesh"
}

// root looks at policies that are for the whole mesh, or were to be.
func (l *linter) root(a *authorization) {
	root := l.settings.RootNamespace
	text, remedy := l.notRoot(a.namespace)
	switch {
	case text != "":
		l.add(Warning, "not-root", a, -1, text, remedy)
	case a.namespace != root || a.action == "ALLOW" && len(a.rules) == 0 && len(a.selector) == 0:
	case len(a.selector) > 0:
		l.add(Note, "root-namespace", a, -1, "its selector selects in all namespaces, because "+root+" is the root namespace", "move it to the namespace that it is for, if it is for one")
	case a.action == "ALLOW" && a.enforced():
		l.add(Warning, "root-namespace", a, -1, "an ALLOW policy for the whole mesh: every workload of the mesh now refuses whom no ALLOW policy names", "move it to the namespace that it is for, if it is for one")
	default:
		l.add(Note, "root-namespace", a, -1, "the policy is for the whole mesh, because "+root+" is the root namespace", "move it to the namespace that it is for, if it is for one")
	}
}

// selection looks at which pods the policy governs, and returns them.
func (l *linter) selection(a *authorization) []*pod {
	var governed []*pod
	in, near := 0, 0
	for _, p := range l.pods {
		if p.namespace == a.namespace || a.namespace == l.settings.RootNamespace {
			near++
		}
		if l.translation.Governs(a.namespace, a.name, p.namespace, p.labels) {
			governed = append(governed, p)
			if p.in {
				in++
			}
		}
	}
	switch {
	case len(governed) > 0 && in == 0:
		l.add(Warning, "not-enforced", a, -1, fmt.Sprintf("none of the %d pods that it governs is in the mesh: nothing enforces it", len(governed)), "label their namespace istio.io/dataplane-mode=ambient")
	case len(governed) > in && a.namespace != l.settings.RootNamespace:
		l.add(Note, "not-enforced", a, -1, fmt.Sprintf("%d of the %d pods that it governs are not in the mesh: nothing enforces it there", len(governed)-in, len(governed)), "bring them into the mesh")
	case len(a.selector) == 0 || len(governed) > 0 || l.named[a.key()]:
	case near == 0:
		l.add(Note, "selects-nothing", a, -1, "there are no pods in namespace "+a.namespace, "nothing, if they are to come")
	default:
		l.add(Warning, "selects-nothing", a, -1, "its selector "+labelsText(a.selector)+" selects no pod"+l.nearestLabels(a), "correct the selector")
	}
	return governed
}

// nearestLabels says which labels a selector may have meant.
func (l *linter) nearestLabels(a *authorization) string {
	values, keys := make(map[string][]string), []string(nil)
	for _, p := range l.pods {
		if p.namespace == a.namespace || a.namespace == l.settings.RootNamespace {
			for k, v := range p.labels {
				values[k], keys = append(values[k], v), append(keys, k)
			}
		}
	}
	var hints []string
	for k, v := range a.selector {
		switch have := values[k]; {
		case len(have) == 0 && nearest(k, keys) != "":
			hints = append(hints, "label "+k+" is on none of them; did you mean "+nearest(k, keys)+"?")
		case len(have) > 0 && !slices.Contains(have, v) && nearest(v, have) != "":
			hints = append(hints, "did you mean "+k+"="+nearest(v, have)+"?")
		}
	}
	if len(hints) == 0 {
		return ""
	}
	slices.Sort(hints)
	return ": " + strings.Join(hints, " ")
}

// servicePorts looks for ports of Services in rules, where the pods' count.
func (l *linter) servicePorts(a *authorization, governed []*pod) {
	own, mapped := make(map[uint16]bool), make(map[uint16]uint16)
	for _, p := range governed {
		for port := range p.ports {
			own[port] = true
		}
		for _, ports := range p.workload.Services {
			for port, target := range ports {
				own[target] = true
				mapped[port] = target
			}
		}
	}
	for i, r := range a.rules {
		for _, clause := range r.Clauses {
			for j := range clause {
				for _, port := range slices.Concat(clause[j].DestinationPorts, clause[j].NotDestinationPorts) {
					if target, ok := mapped[port]; ok && !own[port] {
						l.add(Warning, "service-port", a, i, fmt.Sprintf("port %d is a Service's; the pods behind it listen on %d, and that is what policies are about", port, target), fmt.Sprintf("write %d", target))
					}
				}
			}
		}
	}
}

// mentions reports whether a text inside of the value begins with the prefix.
func mentions(v any, prefix string) bool {
	switch v := v.(type) {
	case string:
		return strings.HasPrefix(v, prefix)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool { return mentions(e, prefix) })
	case map[string]any:
		for _, e := range v {
			if mentions(e, prefix) {
				return true
			}
		}
	}
	return false
}
