package authz

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

// Reach says who may reach a workload, and why. It is for all pods of the workload that are treated alike.
type Reach struct {
	Workload string   `json:"workload"` // namespace/kind/name
	Pods     []string `json:"pods"`
	Identity string   `json:"identity"`
	// InMesh says that the agent judges what comes to it.
	InMesh bool     `json:"inMesh"`
	MTLS   Mode     `json:"mtls"`
	Ports  []uint16 `json:"ports"` // that are known of it
	// Policies govern it, in the order of their keys.
	Policies []Governing `json:"policies"`
	Summary  Summary     `json:"summary"`
	// Sources are the workloads that are known, by the identity that they have, and strangers.
	Sources []Source `json:"sources"`
	Notes   []string `json:"notes,omitempty"`
}

// Mode is what PeerAuthentication asks of a workload.
type Mode struct {
	Mode string `json:"mode"`
	From string `json:"from,omitempty"` // the PeerAuthentication that says so
	// Ports have modes of their own, set by PortsFrom.
	Ports     map[uint16]string `json:"ports,omitempty"`
	PortsFrom string            `json:"portsFrom,omitempty"`
	Fault     string            `json:"fault,omitempty"`
}

// Governing is an AuthorizationPolicy that governs the workload.
type Governing struct {
	Policy string `json:"policy"`
	Action string `json:"action"`
	Scope  string `json:"scope"`
	DryRun bool   `json:"dryRun,omitempty"`
	// Status is the reason of its condition and, unless all is well, the message.
	Status string     `json:"status"`
	Rules  []RuleView `json:"rules"`
}

// RuleView is one rule in words.
type RuleView struct {
	Index int    `json:"index"`
	Text  string `json:"text"`
	Note  string `json:"note,omitempty"`
}

// Who is the short answer.
type Who string

// The answers, from widest to narrowest.
const (
	Everyone   Who = "everyone"
	Identified Who = "identified" // whoever has an identity of the mesh
	Only       Who = "only"       // whom ALLOW policies name
	Nobody     Who = "nobody"
)

// Summary says who may reach the workload.
type Summary struct {
	Who  Who    `json:"who"`
	Text string `json:"text"`
	// Allowed are the rules that let in, if Who is Only; Refused are exceptions from what is let in.
	Allowed []string `json:"allowed,omitempty"`
	Refused []string `json:"refused,omitempty"`
}

// Source is a group of clients that are treated alike.
type Source struct {
	Source    string   `json:"source"`
	Workloads []string `json:"workloads,omitempty"`
	How       string   `json:"how"`
	// Ports are those it may reach, in words: "all", "none", "8080", "all but 9090".
	Ports string `json:"ports"`
}

// Reach answers for the pods that r names, one answer for each group of pods that is treated alike.
func (w *World) Reach(r Ref) ([]Reach, error) {
	pods, err := w.find(r)
	if err != nil {
		return nil, err
	}
	groups := make(map[string][]*pod)
	var order []string
	for _, p := range pods {
		key := p.title() + "|" + w.treatment(p)
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], p)
	}
	var out []Reach
	for _, key := range order {
		out = append(out, w.reach(groups[key]))
	}
	return out, nil
}

// treatment is equal for pods of one workload that nothing treats differently.
func (w *World) treatment(p *pod) string {
	mode := w.translation.PeerMode(p.namespace, p.labels)
	return fmt.Sprint(p.workload.AuthorizationPolicies, p.account, p.in, p.workload.Protocol, p.workload.Waypoint != nil, mode)
}

func (w *World) reach(pods []*pod) Reach {
	p := pods[0]
	mode := w.translation.PeerMode(p.namespace, p.labels)
	r := Reach{
		Workload: p.title(), Identity: p.workload.Identity().Principal(), InMesh: p.in,
		MTLS:     Mode{Mode: mode.Mode, From: mode.From, Ports: mode.Ports, PortsFrom: mode.PortsFrom, Fault: mode.Fault},
		Policies: []Governing{}, Pods: []string{},
	}
	for _, one := range pods {
		if !one.template || one.owner.kind == "Pod" {
			r.Pods = append(r.Pods, one.name)
		}
	}
	governing := w.governing(p, func(*authorization) bool { return true })
	for _, a := range governing {
		r.Policies = append(r.Policies, w.view(a))
	}
	r.Ports = w.portsOf(p, governing)
	r.Summary = w.summary(p, governing, mode)
	r.Sources = w.sources(p, r.Ports)
	if mode.Mode == "DISABLE" && p.in {
		r.Notes = append(r.Notes, "it is announced without mTLS (PeerAuthentication DISABLE): clients of the mesh send plaintext, and their identities are not seen")
	}
	if p.workload.Waypoint != nil {
		r.Notes = append(r.Notes, "what is addressed to it goes through waypoint "+p.workload.Waypoint.String()+", whose own policies are not judged here")
	}
	if p.template && w.asksAddresses(p) {
		r.Notes = append(r.Notes, "policies here ask for addresses, which pods get only when they run")
	}
	return r
}

// view puts a policy into words.
func (w *World) view(a *authorization) Governing {
	g := Governing{Policy: a.key(), Action: a.action, Scope: w.scope(a), DryRun: a.dryRun, Status: a.condition.Reason, Rules: []RuleView{}}
	said := func(m ruleMeaning) bool { return m.Note != "" || len(m.Vacant) > 0 }
	if a.condition.Reason != "Accepted" && (a.invalid() || !slices.ContainsFunc(a.rules, said)) {
		g.Status += ": " + a.condition.Message
	}
	for i, m := range a.rules {
		note := m.Note
		if len(m.Vacant) > 0 {
			note = strings.TrimPrefix(note+" "+vacantText(a, &m), " ")
		}
		g.Rules = append(g.Rules, RuleView{Index: i, Text: meaningText(&m), Note: note})
	}
	return g
}

func meaningText(m *ruleMeaning) string {
	switch {
	case m.Fault != "":
		return "cannot be understood: " + m.Fault
	case m.Never:
		return "never"
	default:
		return ruleText(m.Clauses)
	}
}

// scope says which workloads a policy is for.
func (w *World) scope(a *authorization) string {
	root := a.namespace == w.settings.RootNamespace
	switch {
	case len(a.selector) > 0 && root:
		return "mesh, " + labelsText(a.selector)
	case len(a.selector) > 0:
		return labelsText(a.selector)
	case root:
		return "mesh"
	default:
		return "namespace " + a.namespace
	}
}

// portsOf returns the ports that are known of a pod, sorted: those of its containers, of its services, and those that
// its policies mention.
func (w *World) portsOf(p *pod, governing []*authorization) []uint16 {
	set := maps.Clone(p.ports)
	for _, service := range p.workload.Services {
		for _, target := range service {
			set[target] = true
		}
	}
	for _, a := range governing {
		for _, r := range a.rules {
			for _, clause := range r.Clauses {
				for i := range clause {
					for _, port := range append(slices.Clone(clause[i].DestinationPorts), clause[i].NotDestinationPorts...) {
						set[port] = true
					}
				}
			}
		}
	}
	for port := range w.translation.PeerMode(p.namespace, p.labels).Ports {
		set[port] = true
	}
	delete(set, 0)
	return slices.Sorted(maps.Keys(set))
}

// summary reads off the policies who gets in. Rules that others make pointless are left out of it.
func (w *World) summary(p *pod, governing []*authorization, mode kube.PeerMode) Summary {
	if !p.in {
		return Summary{Who: Everyone, Text: "everyone who can reach its address: it is not in the mesh, so no policy is enforced"}
	}
	var s Summary
	strict := mode.Mode == "STRICT"
	denials := w.denials(p, governing, &s, mode)
	if s.Who == Nobody {
		return s
	}
	allow := 0
	for _, a := range governing {
		if !a.enforced() || a.invalid() || a.policy.Action != policy.Allow {
			continue
		}
		allow++
		for i, r := range a.rules {
			if r.Fault != "" || r.Never || never(r.Clauses) || slices.ContainsFunc(denials, func(d rule) bool { return covers(d, r.Clauses) }) {
				continue
			}
			s.Allowed = append(s.Allowed, fmt.Sprintf("%s (%s, rule %d)", ruleText(r.Clauses), a.key(), i))
		}
	}
	exception := "; to some ports only with mTLS" // where a port has a mode of its own
	switch {
	case allow > 0 && len(s.Allowed) == 0:
		return Summary{Who: Nobody, Text: "nobody: there are ALLOW policies, and none of their rules can let anybody in"}
	case allow > 0 && strict:
		s.Who, s.Text, exception = Only, "only those that an ALLOW policy names, with mTLS", "; to some ports also without"
	case allow > 0:
		s.Who, s.Text = Only, "only those that an ALLOW policy names"
	case strict:
		s.Who, s.Text, exception = Identified, "everybody with an identity (mTLS)", "; to some ports everyone"
	default:
		s.Who, s.Text = Everyone, "everyone, with mTLS and without"
	}
	if len(mode.Ports) > 0 {
		s.Text += exception
	}
	if len(s.Refused) > 0 {
		s.Text += ", but for what DENY policies refuse"
	}
	return s
}

// denials returns the rules that refuse, and notes them in the summary.
func (w *World) denials(p *pod, governing []*authorization, s *Summary, mode kube.PeerMode) []rule {
	var out []rule
	for _, a := range governing {
		switch {
		case a.invalid() && !a.policy.DryRun:
			*s = Summary{Who: Nobody, Text: "nobody: policy " + a.key() + " cannot be understood and denies all: " + a.policy.Invalid}
			return nil
		case !a.enforced() || a.policy.Action != policy.Deny:
			continue
		}
		for i, r := range a.rules {
			if r.Never || never(r.Clauses) {
				continue
			}
			text := ruleText(r.Clauses)
			if text == "always" {
				*s = Summary{Who: Nobody, Text: fmt.Sprintf("nobody: rule %d of DENY policy %s matches everything", i, a.key())}
				return nil
			}
			out = append(out, r.Clauses)
			s.Refused = append(s.Refused, fmt.Sprintf("%s (%s, rule %d)", text, a.key(), i))
		}
	}
	if key := w.derived(p); key != nil {
		out = append(out, key.Rules...)
	}
	if mode.Fault != "" {
		s.Refused = append(s.Refused, "plaintext: a PeerAuthentication cannot be understood: "+mode.Fault)
	}
	return out
}

// derived returns the policy that PeerAuthentication makes for the pod, or nil.
func (w *World) derived(p *pod) *policy.Policy {
	for _, key := range p.workload.AuthorizationPolicies {
		if w.byKey[key] == nil {
			return w.policies.Policy(key)
		}
	}
	return nil
}

// sources asks the evaluator about everybody who is known, and about strangers.
func (w *World) sources(to *pod, ports []uint16) []Source {
	if !to.in {
		return []Source{}
	}
	probe := append(slices.Clone(ports), otherPort(ports))
	type group struct {
		Source
		workloads map[string]bool
	}
	groups := make(map[[3]string]*group)
	add := func(label string, from source, title string) {
		allowed := make([]bool, len(probe))
		how := ""
		for i, port := range probe {
			a := w.arrive(from, to, dialled{port: port})
			allowed[i], how = a.refused == "" && w.policies.Evaluate(to.workload, a.connection).Allowed, a.how
		}
		g := &group{Source: Source{Source: label, How: how, Ports: portsText(ports, allowed)}, workloads: map[string]bool{}}
		key := [3]string{g.Source.Source, g.How, g.Ports}
		if have := groups[key]; have != nil {
			g = have
		}
		groups[key] = g
		if title != "" {
			g.workloads[title] = true
		}
	}
	// Pods of one workload are told apart only where their addresses count.
	byAddress, seen := w.asksAddresses(to), make(map[string]bool)
	for _, p := range w.pods {
		same := fmt.Sprint(p.title(), "|", p.account, p.in)
		if seen[same] && !byAddress {
			continue
		}
		seen[same] = true
		label := p.namespace + "/" + p.account
		if !p.in {
			label = "pods outside of the mesh"
		}
		add(label, source{pod: p}, p.title())
	}
	add("any other identity", source{id: w.stranger(), addr: unknownAddr()}, "")
	add("anybody else in plaintext", source{addr: unknownAddr()}, "")
	var out []Source
	for _, g := range groups {
		g.Workloads = slices.Sorted(maps.Keys(g.workloads))
		out = append(out, g.Source)
	}
	slices.SortFunc(out, func(a, b Source) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(a.Source, b.Source), cmp.Compare(a.How, b.How), cmp.Compare(a.Ports, b.Ports))
	})
	return out
}

// rank puts the accounts before all others.
func rank(s *Source) int {
	switch {
	case strings.HasPrefix(s.Source, "pods outside"):
		return 1
	case len(s.Workloads) == 0:
		return 2
	}
	return 0
}

// stranger is an identity that nothing names.
func (w *World) stranger() identity.ID {
	td, err := identity.ParseTrustDomain(w.settings.TrustDomain)
	if err != nil {
		return identity.ID{}
	}
	name := "stranger"
	for w.namespaces[name] != nil {
		name += "-"
	}
	id, err := identity.New(td, name, name)
	if err != nil {
		return identity.ID{}
	}
	return id
}

// otherPort returns a port that is not among the sorted ones.
func otherPort(ports []uint16) uint16 {
	for port := uint16(65535); port > 0; port-- {
		if _, found := slices.BinarySearch(ports, port); !found {
			return port
		}
	}
	return 0
}

// portsText says which ports are allowed; the last of allowed is for all others.
func portsText(ports []uint16, allowed []bool) string {
	var yes, no []string
	for i, port := range ports {
		if allowed[i] {
			yes = append(yes, fmt.Sprint(port))
		} else {
			no = append(no, fmt.Sprint(port))
		}
	}
	rest := allowed[len(allowed)-1]
	switch {
	case rest && len(no) == 0:
		return "all"
	case rest:
		return "all but " + strings.Join(no, ",")
	case len(yes) == 0:
		return "none"
	default:
		return strings.Join(yes, ",")
	}
}
