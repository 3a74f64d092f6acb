package authz

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// Suggestion is the smallest set of policies that keeps flows working: one ALLOW policy for each application that was
// reached, with those who came and the ports that they came to.
type Suggestion struct {
	Policies []*unstructured.Unstructured
	// Kept counts the flows that would be allowed with the policies; the agents' evaluator says so.
	Kept int
	// Refused are the flows that would not be.
	Refused []Uncovered
	// Governed are workloads that ALLOW policies govern already, under which all of their flows work.
	Governed []string
	// Open are workloads that were reached and for which nothing is suggested, with the reason.
	Open []Uncovered
}

// Uncovered is something that the suggestion does not cover.
type Uncovered struct {
	What   string `json:"what"`
	Why    string `json:"why"`
	Remedy string `json:"remedy,omitempty"`
}

// application is a group of pods that one selector selects.
type application struct {
	namespace, name string
	selector        map[string]string
	pods            []*pod
	flows           []*Flow
}

// Suggest makes policies of observed flows and evaluates every flow against them and what policies there are.
func (w *World) Suggest(flows []Flow) (*Suggestion, error) {
	s := &Suggestion{Refused: []Uncovered{}, Governed: []string{}, Open: []Uncovered{}}
	apps := w.applications(flows, s)
	names := make(map[string]bool)
	for key := range w.byKey {
		names[key] = true
	}
	for _, app := range apps {
		wanted := app.flows
		if w.governedByAllow(app) {
			wanted = slices.DeleteFunc(slices.Clone(wanted), func(f *Flow) bool { return w.refusal(f, app.pods) == "" })
			if len(wanted) == 0 {
				s.Governed = append(s.Governed, app.title())
				continue
			}
		}
		if u := w.policyFor(app, wanted, names); u != nil {
			s.Policies = append(s.Policies, u)
		} else {
			s.Open = append(s.Open, Uncovered{app.title(), "only plaintext was seen: there is no identity to allow", "bring its clients into the mesh"})
		}
	}
	next, err := New(append(slices.Clone(w.objects), s.Policies...), "", w.settings)
	if err != nil {
		return nil, err
	}
	for _, app := range apps {
		pods := next.samePods(app.pods)
		for _, f := range app.flows {
			if why := next.refusal(f, pods); why != "" {
				s.Refused = append(s.Refused, Uncovered{f.String(), why, remedyFor(f)})
			} else {
				s.Kept++
			}
		}
	}
	return s, nil
}

func remedyFor(f *Flow) string {
	switch {
	case f.Source.Principal != "":
		return "look at the policy that refuses it"
	case f.Source.Workload != "":
		return "bring " + f.Source.Namespace + "/" + f.Source.Workload + " into the mesh before you apply this"
	default:
		return "bring the client into the mesh, or add its address to the policy as ipBlocks"
	}
}

func (a *application) title() string { return a.namespace + "/" + a.name }

// applications groups the flows by what they reached. It notes in s what cannot have a policy.
func (w *World) applications(flows []Flow, s *Suggestion) []*application {
	byKey := make(map[string]*application)
	open := make(map[string]Uncovered)
	byName := make(map[[2]string][]*pod)
	selectors := make(map[string]map[string]string) // by workload
	for _, p := range w.pods {
		k := [2]string{p.namespace, p.workload.WorkloadName}
		byName[k] = append(byName[k], p)
	}
	for i := range flows {
		f := &flows[i]
		title := f.Destination.Namespace + "/" + f.Destination.Workload
		pods := byName[[2]string{f.Destination.Namespace, f.Destination.Workload}]
		selector, known := selectors[title]
		if !known && len(pods) > 0 {
			selector = w.selectorFor(pods[0])
			selectors[title] = selector
		}
		var why Uncovered
		switch {
		case len(pods) == 0:
			why = Uncovered{title, "there are no such pods any more", ""}
		case !slices.ContainsFunc(pods, func(p *pod) bool { return p.in }):
			why = Uncovered{title, "it is not in the mesh: nothing would enforce a policy", "label its namespace istio.io/dataplane-mode=ambient"}
		case selector == nil:
			why = Uncovered{title, "it has no labels that a policy could select it by", "label its pods"}
		}
		if why.What != "" {
			open[title] = why
			continue
		}
		key := f.Destination.Namespace + "|" + labelsText(selector)
		app := byKey[key]
		if app == nil {
			app = &application{namespace: f.Destination.Namespace, name: nameOf(selector, f.Destination.Workload), selector: selector}
			for _, p := range w.pods {
				if p.namespace == app.namespace && contains(p.labels, selector) {
					app.pods = append(app.pods, p)
				}
			}
			byKey[key] = app
		}
		app.flows = append(app.flows, f)
	}
	for _, title := range slices.Sorted(maps.Keys(open)) {
		s.Open = append(s.Open, open[title])
	}
	return slices.SortedFunc(maps.Values(byKey), func(a, b *application) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name), cmp.Compare(labelsText(a.selector), labelsText(b.selector)))
	})
}

// appLabels say which application a pod is of, the best first.
func appLabels() [][]string {
	return [][]string{{"app.kubernetes.io/name", "app.kubernetes.io/instance"}, {"app.kubernetes.io/name"}, {"app"}, {"k8s-app"}}
}

// passing labels differ between pods of one workload, or between its versions.
func passing(label string) bool {
	switch label {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "rollouts-pod-template-hash", "apps.kubernetes.io/pod-index",
		"statefulset.kubernetes.io/pod-name", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name",
		"batch.kubernetes.io/job-completion-index", "istio.io/dataplane-mode":
		return true
	}
	return false
}

// selectorFor returns labels that select the pod's application: by one of the usual labels if all that it selects calls
// itself by them, else by all labels that last. Nil when it has none.
func (w *World) selectorFor(p *pod) map[string]string {
	selector := appSelector(p)
	if selector != nil && !slices.ContainsFunc(w.pods, func(o *pod) bool {
		return o.namespace == p.namespace && contains(o.labels, selector) && !maps.Equal(appSelector(o), selector)
	}) {
		return selector
	}
	all := maps.Clone(p.labels)
	maps.DeleteFunc(all, func(k, _ string) bool { return passing(k) })
	if len(all) == 0 {
		return nil
	}
	return all
}

func appSelector(p *pod) map[string]string {
	for _, keys := range appLabels() {
		out := make(map[string]string)
		for _, k := range keys {
			if v := p.labels[k]; v != "" {
				out[k] = v
			}
		}
		if len(out) == len(keys) {
			return out
		}
	}
	return nil
}

func nameOf(selector map[string]string, workload string) string {
	for _, k := range []string{"app.kubernetes.io/instance", "app.kubernetes.io/name", "app", "k8s-app"} {
		if v := selector[k]; v != "" {
			return v
		}
	}
	return workload
}

// governedByAllow reports whether an ALLOW policy decides for every pod of the application already.
func (w *World) governedByAllow(app *application) bool {
	return !slices.ContainsFunc(app.pods, func(p *pod) bool {
		return len(w.governing(p, func(a *authorization) bool { return a.enforced() && a.policy.Action == policy.Allow })) == 0
	})
}

// policyFor makes the policy that allows the flows; nil when none of them has an identity.
func (w *World) policyFor(app *application, flows []*Flow, names map[string]bool) *unstructured.Unstructured {
	ports := make(map[string]map[uint16]bool) // by principal; port 0 stands for all
	for _, f := range flows {
		if f.Source.Principal == "" {
			continue
		}
		if ports[f.Source.Principal] == nil {
			ports[f.Source.Principal] = make(map[uint16]bool)
		}
		for _, port := range w.portsReached(f, app) {
			ports[f.Source.Principal][port] = true
		}
	}
	if len(ports) == 0 {
		return nil
	}
	// Those who came to the same ports share a rule.
	principals := make(map[string][]string)
	for _, principal := range slices.Sorted(maps.Keys(ports)) {
		key := ""
		if !ports[principal][0] {
			for _, port := range slices.Sorted(maps.Keys(ports[principal])) {
				key += fmt.Sprintf("%05d ", port)
			}
		}
		principals[key] = append(principals[key], principal)
	}
	var rules []any
	for _, key := range slices.Sorted(maps.Keys(principals)) {
		rule := map[string]any{"from": []any{map[string]any{"source": map[string]any{"principals": anys(principals[key])}}}}
		if key != "" {
			var texts []string
			for _, port := range slices.Sorted(maps.Keys(ports[principals[key][0]])) {
				texts = append(texts, fmt.Sprint(port))
			}
			rule["to"] = []any{map[string]any{"operation": map[string]any{"ports": anys(texts)}}}
		}
		rules = append(rules, rule)
	}
	labels := make(map[string]any, len(app.selector))
	for k, v := range app.selector {
		labels[k] = v
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": freeName(app, names), "namespace": app.namespace},
		"spec": map[string]any{
			"action": "ALLOW", "selector": map[string]any{"matchLabels": labels}, "rules": rules,
		},
	}}
}

func anys(texts []string) []any {
	out := make([]any, len(texts))
	for i, t := range texts {
		out[i] = t
	}
	return out
}

// freeName returns a name that no policy has, and takes it.
func freeName(app *application, names map[string]bool) string {
	base := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, app.name), "-")
	base = "allow-seen-" + base[:min(len(base), 200)]
	base = strings.TrimRight(base, "-")
	name := base
	for i := 2; names[app.namespace+"/"+name]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	names[app.namespace+"/"+name] = true
	return name
}

// portsReached returns the ports that a flow came to: its own, or those of the Service that it addressed, or 0 for all.
func (w *World) portsReached(f *Flow, app *application) []uint16 {
	if f.Port != 0 {
		return []uint16{f.Port}
	}
	set := make(map[uint16]bool)
	for svc := range w.store.Services() {
		if svc.Name != f.Destination.Service || svc.Namespace != f.Destination.ServiceNamespace {
			continue
		}
		for _, p := range app.pods {
			for _, target := range p.workload.Services[svc.Key()] {
				set[target] = true
			}
		}
	}
	delete(set, 0)
	if len(set) == 0 {
		return []uint16{0}
	}
	return slices.Sorted(maps.Keys(set))
}

// refusal says why a flow is not allowed to one of the pods; empty when it is allowed to all.
func (w *World) refusal(f *Flow, pods []*pod) string {
	from := source{}
	if f.Source.Principal != "" {
		id, err := identity.Parse("spiffe://" + f.Source.Principal)
		if err != nil {
			return err.Error()
		}
		from.id = id
	}
	if addr, err := netip.ParseAddr(f.Source.Address); err == nil {
		from.addr = addr
	} else if f.Source.Principal == "" {
		from.addr = unknownAddr()
	}
	app := &application{pods: pods}
	for _, p := range pods {
		if !p.in || p.workload.WorkloadName != f.Destination.Workload {
			continue
		}
		for _, port := range w.portsReached(f, app) {
			if port == 0 {
				port = otherPort(nil)
			}
			if v := w.decide(from, p, dialled{port: port}); !v.Allowed {
				why := v.Reason
				if v.Policy != "" {
					why += " (" + v.Policy + ")"
				}
				if f.Source.Principal == "" {
					why = "it comes in plaintext, so it has no identity: " + why
				}
				return why
			}
		}
	}
	return ""
}

// samePods returns this world's pods of the same names.
func (w *World) samePods(pods []*pod) []*pod {
	keys := make(map[string]bool, len(pods))
	for _, p := range pods {
		keys[p.key()] = true
	}
	return slices.DeleteFunc(slices.Clone(w.pods), func(p *pod) bool { return !keys[p.key()] })
}
