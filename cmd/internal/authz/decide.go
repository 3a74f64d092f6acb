package authz

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// Question asks about one connection. Of the source exactly one of From, Principal and Address is given; Address may be
// given with Principal.
type Question struct {
	From      *Ref
	Principal identity.ID
	Address   netip.Addr
	To        Ref
	// Port is one of the destination pods, or of the Service if To is one.
	Port uint16
}

// Verdict is the answer for those of the pods asked about that it is the same for.
type Verdict struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port uint16 `json:"port"` // of the pod
	// How the connection arrives: mTLS, plaintext or waypoint NAME.
	How      string `json:"how"`
	Identity string `json:"identity,omitempty"` // that the destination sees
	Allowed  bool   `json:"allowed"`
	// Policy is the object that decides ("AuthorizationPolicy shop/cart"), empty when none does. Rule is the index of its
	// rule, -1 when it is not one rule that decides.
	Policy   string `json:"policy,omitempty"`
	Rule     int    `json:"rule"`
	RuleText string `json:"ruleText,omitempty"`
	Reason   string `json:"reason"`
	// DryRun says what policies for a dry run would do, Audit names the AUDIT policies that match.
	DryRun []string `json:"dryRun,omitempty"`
	Audit  []string `json:"audit,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

// Decide answers a question. There are several verdicts when the pods asked about are not all treated alike.
func (w *World) Decide(q Question) ([]Verdict, error) {
	if q.Port == 0 {
		return nil, errors.New("a port is missing")
	}
	to, err := w.find(q.To)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	sources := []source{{id: q.Principal, addr: q.Address}}
	if q.From != nil {
		from, err := w.find(*q.From)
		if err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
		sources = nil
		for _, p := range from {
			sources = append(sources, source{pod: p})
		}
	}
	ports, err := w.targetPorts(q, to)
	if err != nil {
		return nil, err
	}
	type kept struct {
		Verdict
		from, to map[string]bool
	}
	var out []*kept
	for _, s := range sources {
		for _, p := range to {
			v := w.decide(s, p, ports[p])
			same := slices.IndexFunc(out, func(k *kept) bool { return k.same(&v) })
			if same < 0 {
				same = len(out)
				out = append(out, &kept{v, map[string]bool{}, map[string]bool{}})
			}
			out[same].from[s.title()], out[same].to[p.title()] = true, true
		}
	}
	verdicts := make([]Verdict, len(out))
	for i, k := range out {
		k.From, k.To = titles(k.from), titles(k.to)
		verdicts[i] = k.Verdict
	}
	return verdicts, nil
}

func titles(set map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(set)), ", ") }

// same reports whether both say the same but for the pods they are about.
func (v *Verdict) same(o *Verdict) bool {
	return v.Port == o.Port && v.How == o.How && v.Identity == o.Identity && v.Allowed == o.Allowed && v.Policy == o.Policy &&
		v.Rule == o.Rule && v.Reason == o.Reason && slices.Equal(v.DryRun, o.DryRun) && slices.Equal(v.Audit, o.Audit) && slices.Equal(v.Notes, o.Notes)
}

func (s source) title() string {
	switch {
	case s.pod != nil:
		return s.pod.title()
	case s.id.IsZero():
		return "address " + s.addr.String()
	case s.addr.IsValid():
		return s.id.Principal() + " at " + s.addr.String()
	default:
		return s.id.Principal()
	}
}

// targetPorts returns what is dialled of each pod.
func (w *World) targetPorts(q Question, to []*pod) (map[*pod]dialled, error) {
	out := make(map[*pod]dialled, len(to))
	for _, p := range to {
		out[p] = dialled{port: q.Port}
	}
	if q.To.kind != "Service" {
		return out, nil
	}
	for svc := range w.store.Services() {
		if svc.Namespace != q.To.namespace || svc.Name != q.To.name {
			continue
		}
		if _, ok := svc.Ports[q.Port]; !ok {
			return nil, fmt.Errorf("%s has no port %d: it has %s", q.To, q.Port, list("", slices.Sorted(maps.Keys(svc.Ports)), portText))
		}
		for _, p := range to {
			d := dialled{port: q.Port}
			if own, ok := p.workload.Services[svc.Key()]; ok && own[q.Port] != 0 {
				d.port = own[q.Port]
			} else if svc.Ports[q.Port] != 0 {
				d.port = svc.Ports[q.Port]
			}
			if len(svc.VIPs) > 0 { // else clients dial the pods themselves
				d.service = netip.AddrPortFrom(svc.VIPs[0].Addr, q.Port)
			}
			out[p] = d
		}
	}
	return out, nil
}

// decide asks the evaluator about one connection to a pod.
func (w *World) decide(from source, to *pod, d dialled) Verdict {
	a := w.arrive(from, to, d)
	v := Verdict{Port: d.port, How: a.how, Rule: -1, Notes: w.notes(from, to, &a)}
	if !a.connection.Source.IsZero() {
		v.Identity = a.connection.Source.Principal()
	}
	if a.refused != "" {
		v.Reason = "the agent of the source refuses it: " + a.refused
		return v
	}
	if !to.in {
		v.Allowed, v.Reason = true, "the destination is not in the mesh: no policy is enforced there"
		return v
	}
	decision := w.policies.Evaluate(to.workload, a.connection)
	v.Allowed, v.Audit = decision.Allowed, decision.Audit
	for _, dry := range decision.DryRun {
		v.DryRun = append(v.DryRun, dry.String())
	}
	w.explain(&v, to, &decision, a.connection)
	return v
}

// explain says which policy and rule decided.
func (w *World) explain(v *Verdict, to *pod, d *policy.Decision, c policy.Connection) {
	by := w.byKey[d.Policy]
	switch {
	case d.Policy == "" && d.Allowed:
		v.Reason = "no ALLOW policy governs the destination, and no DENY policy matches"
	case d.Policy == "":
		v.Reason = d.Reason
		if allow := w.governing(to, func(a *authorization) bool { return a.enforced() && a.policy.Action == policy.Allow }); len(allow) > 0 {
			v.Reason = "no rule matches of the ALLOW policies that govern the destination: " + list("", allow, (*authorization).key)
		}
	case by == nil:
		mode := w.translation.PeerMode(to.namespace, to.labels)
		object := mode.From
		if m, own := mode.Ports[v.Port]; own && m == "STRICT" {
			object = mode.PortsFrom
		}
		v.Policy, v.Reason = "PeerAuthentication "+object, "mode STRICT: connections without mTLS are refused"
	default:
		v.Policy = "AuthorizationPolicy " + by.key()
		v.Reason = "a rule of this " + by.action + " policy matches"
		if by.invalid() {
			v.Reason = "the policy cannot be understood and denies everything that it governs: " + by.policy.Invalid
			return
		}
		for i, r := range by.rules {
			if r.Fault == "" && !r.Never && matchesRule(r.Clauses, c) {
				v.Rule, v.RuleText = i, ruleText(r.Clauses)
				return
			}
		}
	}
}

// matchesRule asks the evaluator whether one rule matches.
func matchesRule(r rule, c policy.Connection) bool { return ruleSet(r).matches(c) }

// notes say what the answer cannot know.
func (w *World) notes(from source, to *pod, a *arrival) []string {
	var notes []string
	if from.pod != nil && !from.pod.in {
		notes = append(notes, "the source is not in the mesh: it has no identity")
	}
	if from.pod != nil && from.pod.in && a.how == byPlaintext && a.refused == "" {
		notes = append(notes, "the destination does not take mTLS, so the source's identity is not seen")
	}
	if from.pod == nil && !from.id.IsZero() && a.how == byPlaintext && to.in {
		notes = append(notes, "the destination is announced without mTLS (PeerAuthentication DISABLE): an identity is not seen")
	}
	if strings.HasPrefix(a.how, "waypoint ") {
		notes = append(notes, "the waypoint judges the source; at the destination the waypoint's identity counts")
	}
	if from.pod == nil && to.workload.Waypoint != nil {
		notes = append(notes, "clients of the mesh come through waypoint "+to.workload.Waypoint.String()+", as its identity")
	}
	if (to.template || from.pod != nil && from.pod.template) && w.asksAddresses(to) {
		notes = append(notes, "policies here ask for addresses, which pods get only when they run")
	}
	return notes
}

// asksAddresses reports whether a policy of the pod's asks for addresses.
func (w *World) asksAddresses(p *pod) bool {
	return len(w.governing(p, func(a *authorization) bool {
		return slices.ContainsFunc(a.rules, func(r ruleMeaning) bool {
			for _, clause := range r.Clauses {
				for i := range clause {
					if m := &clause[i]; len(m.SourceIPs)+len(m.NotSourceIPs)+len(m.DestinationIPs)+len(m.NotDestinationIPs) > 0 {
						return true
					}
				}
			}
			return false
		})
	})) > 0
}

// governing returns the policies that are for the pod and meet the condition, by key.
func (w *World) governing(p *pod, meets func(*authorization) bool) []*authorization {
	var out []*authorization
	for _, a := range w.authz {
		if meets(a) && w.translation.Governs(a.namespace, a.name, p.namespace, p.labels) {
			out = append(out, a)
		}
	}
	return out
}
